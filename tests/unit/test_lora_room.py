"""What adapters take, said before and when an engine starts."""

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from deployments.engine_build import _adapter_args, resolve_config
from serve_app.config_model import ModelSettings
from serve_app.engine_args import find_problems
from serve_app.lora_room import describe_room, measure_room, read_shape
from tests.support.settings import write_model, write_vllm_model


def make_model(tiny_model: Path, **changes: Any) -> ModelSettings:
    source = {"kind": "local", "path": str(tiny_model)}
    return ModelSettings.model_validate(write_model(source=source, **changes))


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's own cache, empty, and no hub."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return tmp_path


def test_room_is_said_where_the_model_is_at_hand(tiny_model: Path) -> None:
    model = make_model(tiny_model, adapters={"slots": 8, "in_memory": 20, "max_rank": 16})
    # Two layers; q, k, v, o of 64 to 64, gate and up of 64 to 128 and down of 128 to 64; float32.
    slot_bytes = 2 * (4 * 128 + 3 * 192) * 16 * 4
    shape = read_shape(model, tiny_model)
    assert measure_room(model, model.adapters, shape).slot_bytes == slot_bytes  # type: ignore[arg-type]  # set above
    assert describe_room(model) == (
        "up to rank 16; 8 adapters in a batch take 1 MiB, 20 in memory up to 3 MiB"
    )


def test_room_of_a_model_elsewhere_is_left_open(tiny_model: Path, hub_cache: Path) -> None:
    source = {"kind": "huggingface", "id": "someone/model"}
    model = ModelSettings.model_validate(write_model(source=source, adapters={}))
    assert describe_room(model) == "up to rank 64; how many is decided when an engine starts"
    model = ModelSettings.model_validate(write_model(source=source, adapters={"slots": 8}))
    assert describe_room(model) == (
        "up to rank 64; 8 adapters in a batch, 32 in memory, of unknown size, "
        "as the model's config.json is not on this machine"
    )
    assert describe_room(make_model(tiny_model)) is None


def test_room_of_a_hubs_model_is_said_once_it_was_fetched(
    tiny_model: Path, hub_cache: Path
) -> None:
    repository, commit = hub_cache / "models--someone--model", "a" * 40
    for name, content in (
        ("refs/v2", commit),
        (f"snapshots/{commit}/config.json", (tiny_model / "config.json").read_text()),
    ):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text(content)
    source = {"kind": "huggingface", "id": "someone/model", "revision": "v2"}
    fields = write_model(source=source, adapters={"max_rank": 16})
    model = ModelSettings.model_validate(fields)
    local = make_model(tiny_model, adapters={"max_rank": 16})
    for may_fetch in (False, True):  # Nothing is fetched that is there.
        found = read_shape(model, Path("someone/model"), may_fetch=may_fetch)
        assert found == read_shape(local, tiny_model) is not None
    assert describe_room(model) == describe_room(local)
    assert _adapter_args(model, "someone/model") == _adapter_args(local, str(tiny_model))
    gpu = ModelSettings.model_validate(fields | {"accelerator": {"kind": "gpu"}})
    assert describe_room(gpu) == (
        "up to rank 16; 0 MiB each; how many is decided when an engine starts"
    )


def test_defaults_take_one_slot_for_each_request_that_runs(tiny_model: Path) -> None:
    model = make_model(
        tiny_model, engine={"kind": "vllm", "args": {"max_num_seqs": 24}}, adapters={}
    )
    assert model.adapters is not None
    room = measure_room(model, model.adapters, read_shape(model, tiny_model))
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


@pytest.mark.parametrize("own", [None, ["q_proj", "v_proj"]])
def test_engine_keeps_slots_only_for_what_adapters_may_change(
    tiny_model: Path, own: list[str] | None
) -> None:
    args = {} if own is None else {"lora_target_modules": own}
    model = make_model(tiny_model, engine={"kind": "vllm", "args": args}, adapters={})
    linear = ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    config = resolve_config(model, str(tiny_model))
    assert config.lora_config is not None
    assert config.lora_config.target_modules == (own or linear)


@pytest.mark.parametrize("adapters", [{"slots": 0}, {"max_rank": 20}, {"floor": -1}, {"rank": 8}])
def test_wrong_adapters_are_refused(tiny_model: Path, adapters: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        make_model(tiny_model, adapters=adapters)
