"""What adapters take, said before and when an engine starts."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from serve_app.config_model import ModelSettings
from serve_app.engine_args import find_problems
from serve_app.lora_room import describe_room, measure_room, read_shape
from tests.support.settings import write_model, write_vllm_model


def make_model(tiny_model: Path, **changes: Any) -> ModelSettings:
    source = {"kind": "local", "path": str(tiny_model)}
    return ModelSettings.model_validate(write_model(source=source, **changes))


def test_room_is_said_where_the_model_is_at_hand(tiny_model: Path) -> None:
    model = make_model(tiny_model, adapters={"slots": 8, "in_memory": 20, "max_rank": 16})
    # Two layers; q, k, v, o of 64 to 64, gate and up of 64 to 128 and down of 128 to 64; float32.
    slot_bytes = 2 * (4 * 128 + 3 * 192) * 16 * 4
    assert measure_room(model, model.adapters, tiny_model).slot_bytes == slot_bytes  # type: ignore[arg-type]  # set above
    assert describe_room(model) == (
        "up to rank 16; 8 adapters in a batch take 1 MiB, 20 in memory up to 3 MiB"
    )


def test_room_of_a_model_elsewhere_is_left_open(tiny_model: Path) -> None:
    source = {"kind": "huggingface", "id": "someone/model"}
    model = ModelSettings.model_validate(write_model(source=source, adapters={}))
    assert describe_room(model) == "up to rank 64; how many is decided when an engine starts"
    assert describe_room(make_model(tiny_model)) is None


def test_defaults_take_one_slot_for_each_request_that_runs(tiny_model: Path) -> None:
    model = make_model(
        tiny_model, engine={"kind": "vllm", "args": {"max_num_seqs": 24}}, adapters={}
    )
    assert model.adapters is not None
    room = measure_room(model, model.adapters, tiny_model)
    assert (room.slots, room.in_memory) == (24, 96)


def test_shape_of_a_damaged_model_is_not_known(tmp_path: Path, tiny_model: Path) -> None:
    model = make_model(tiny_model)
    assert read_shape(model, tmp_path) is None
    (tmp_path / "config.json").write_text("[")
    assert read_shape(model, tmp_path) is None


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("enable_lora", True, "set the model's adapters."),
        ("max_loras", 4, "set the model's adapters.slots."),
        ("max_lora_rank", 16, "set the model's adapters.max_rank."),
        ("max_cpu_loras", 16, "set the model's adapters.in_memory."),
    ],
)
def test_engine_argument_of_adapters_names_the_setting(
    name: str, value: object, remedy: str
) -> None:
    [problem] = find_problems(write_vllm_model({name: value}), "models[0]")
    assert problem.path == f"models[0].engine.args.{name}"
    assert problem.text == f"is not for this file: {remedy}"


@pytest.mark.parametrize("adapters", [{"slots": 0}, {"max_rank": 20}, {"floor": -1}, {"rank": 8}])
def test_wrong_adapters_are_refused(tiny_model: Path, adapters: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make_model(tiny_model, adapters=adapters)
