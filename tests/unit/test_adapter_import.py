"""Adapters as people make them, good and hostile, through the worker's own steps."""

import json
import os
import pickle
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from deployments.adapter_jobs import Away, Bring, Brought, Look, Refused, Seen, key_of
from deployments.adapter_worker import AdapterWorker
from serve_app.policy.adapter_shapes import Dtype, ModelShape, shape_of
from tests.support.adapters import ALL_LINEAR, CONFIG, WEIGHTS, make_adapter

MAX_RANK = 64
ONE_MIB = 1 << 20


def shape(tiny_model: Path, dtype: Dtype = "float32") -> ModelShape:
    found = shape_of(json.loads((tiny_model / "config.json").read_text()), dtype)
    assert found is not None
    return found


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def worker(cache: Path) -> AdapterWorker:
    return AdapterWorker(cache, 64 * ONE_MIB, 8 * ONE_MIB)


@pytest.fixture
def good(tmp_path: Path, tiny_model: Path) -> Path:
    return make_adapter(tmp_path / "adapters/good", tiny_model)


def bring(worker: AdapterWorker, folder: Path, base: ModelShape, version: str = "") -> Any:
    return worker.do(Bring(f"file://{folder}", version, base, MAX_RANK))


def refused(worker: AdapterWorker, folder: Path, tiny_model: Path) -> str:
    outcome = bring(worker, folder, shape(tiny_model))
    assert isinstance(outcome, Refused), outcome
    assert visible(worker) == []
    return outcome.message


def visible(worker: AdapterWorker) -> list[str]:
    return sorted(os.listdir(worker._folder / "ready"))


def left(cache: Path) -> list[str]:
    return os.listdir(cache / "staging")


def edit_config(folder: Path, **fields: Any) -> None:
    content = json.loads((folder / CONFIG).read_text())
    (folder / CONFIG).write_text(json.dumps(content | fields))


def edit_header(folder: Path, change: Any) -> None:
    content = (folder / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    change(header)
    text = json.dumps(header).encode()
    (folder / WEIGHTS).write_bytes(len(text).to_bytes(8, "little") + text + content[8 + length :])


# --- good ones ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("config", [{}, {"use_rslora": True}, {"alpha": 3.0}])
def test_imported_adapter_does_the_same_with_alpha_folded_into_b(
    worker: AdapterWorker, tmp_path: Path, tiny_model: Path, dtype: Dtype, config: dict[str, Any]
) -> None:
    source = make_adapter(tmp_path / "a", tiny_model, rank=8, modules=ALL_LINEAR, **config)
    outcome = bring(worker, source, shape(tiny_model, dtype))
    assert isinstance(outcome, Brought), outcome
    folder = worker._folder / "ready" / outcome.key
    written = json.loads((folder / CONFIG).read_text())
    assert written["lora_alpha"] == written["r"] == 8
    assert not written.get("use_rslora")
    before, after = load_file(source / WEIGHTS), load_file(folder / WEIGHTS)
    assert before.keys() == after.keys()
    scale = json.loads((source / CONFIG).read_text())["lora_alpha"] / 8
    if config.get("use_rslora"):
        scale *= 8**0.5
    for name, tensor in before.items():
        expected = tensor * (scale if "lora_B" in name else 1.0)
        assert after[name].dtype == getattr(torch, dtype)
        # Rounded once, to the nearest, as PyTorch does.
        np.testing.assert_array_equal(
            after[name].float().numpy(), expected.to(getattr(torch, dtype)).float().numpy()
        )


def test_import_says_what_it_found(
    worker: AdapterWorker, good: Path, tiny_model: Path, cache: Path
) -> None:
    outcome = bring(worker, good, shape(tiny_model))
    assert isinstance(outcome, Brought)
    assert (outcome.facts.rank, outcome.facts.modules) == (8, ("q_proj", "v_proj"))
    assert outcome.facts.source_bytes == (good / WEIGHTS).stat().st_size
    assert outcome.key == key_of(outcome.facts.version, shape(tiny_model))
    assert (cache / "ready" / outcome.key / WEIGHTS).stat().st_size == outcome.facts.n_bytes
    assert worker.do(Look(f"file://{good}")) == Seen(outcome.facts.mark)
    assert bring(worker, good, shape(tiny_model), outcome.facts.version) == outcome
    assert left(cache) == []


def test_ranks_of_single_modules_are_kept(
    worker: AdapterWorker, tmp_path: Path, tiny_model: Path
) -> None:
    source = make_adapter(tmp_path / "a", tiny_model, rank=4, alpha=4.0)
    weights = load_file(source / WEIGHTS)
    name = "base_model.model.model.layers.1.self_attn.v_proj"
    weights[f"{name}.lora_A.weight"] = torch.ones(16, 64)
    weights[f"{name}.lora_B.weight"] = torch.ones(64, 16)
    save_file(weights, source / WEIGHTS)
    edit_config(source, rank_pattern={"layers.1.self_attn.v_proj": 16}, alpha_pattern={"v_proj": 8})
    outcome = bring(worker, source, shape(tiny_model))
    assert isinstance(outcome, Brought), outcome
    folder = worker._folder / "ready" / outcome.key
    written = json.loads((folder / CONFIG).read_text())
    assert written["r"] == written["lora_alpha"] == outcome.facts.rank == 16
    assert written["rank_pattern"] == written["alpha_pattern"]
    assert written["rank_pattern"]["model.layers.0.self_attn.q_proj"] == 4
    assert load_file(folder / WEIGHTS)[f"{name}.lora_B.weight"].unique().tolist() == [0.5]


def test_same_files_are_one_version_and_other_files_another(
    worker: AdapterWorker, good: Path, tmp_path: Path, tiny_model: Path
) -> None:
    base = shape(tiny_model)
    twin = make_adapter(tmp_path / "adapters/twin", tiny_model)
    other = make_adapter(tmp_path / "adapters/other", tiny_model, seed=1)
    versions = [bring(worker, folder, base).facts.version for folder in (good, twin, other)]
    assert versions[0] == versions[1] != versions[2]
    assert len(visible(worker)) == 2


def test_version_that_is_there_is_not_read_again_and_another_is_refused(
    worker: AdapterWorker, good: Path, tiny_model: Path
) -> None:
    base = shape(tiny_model)
    brought = bring(worker, good, base)
    make_adapter(good, tiny_model, seed=2)
    assert bring(worker, good, base, brought.facts.version) == brought
    worker._cache.discard(brought.key)
    outcome = bring(worker, good, base, brought.facts.version)
    assert isinstance(outcome, Away)
    assert "not those of version" in outcome.message


def test_damaged_copy_is_brought_again(
    worker: AdapterWorker, good: Path, tiny_model: Path, cache: Path
) -> None:
    base = shape(tiny_model)
    brought = bring(worker, good, base)
    weights = cache / "ready" / brought.key / WEIGHTS
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + b"\x01")
    assert bring(worker, good, base, brought.facts.version) == brought
    assert weights.read_bytes() == content


def test_links_among_siblings_are_followed(
    worker: AdapterWorker, good: Path, tiny_model: Path
) -> None:
    current = good.parent / "current"
    current.symlink_to("good")
    assert isinstance(bring(worker, current, shape(tiny_model)), Brought)


# --- bad ones -----------------------------------------------------------------------------------


def test_adapter_that_is_not_there_is_missing(
    worker: AdapterWorker, good: Path, tiny_model: Path
) -> None:
    for folder in (good / "none", good.parent):
        outcome = bring(worker, folder, shape(tiny_model))
        assert isinstance(outcome, Refused)
        assert outcome.is_missing
    (good / WEIGHTS).unlink()
    assert "There is no adapter_model.safetensors" in refused(worker, good, tiny_model)


class _Bomb:
    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self._mark),))


def test_pickle_is_never_opened(
    worker: AdapterWorker, good: Path, tmp_path: Path, tiny_model: Path
) -> None:
    mark = tmp_path / "it ran"
    bomb = pickle.dumps(_Bomb(mark))
    (good / WEIGHTS).unlink()
    (good / "adapter_model.bin").write_bytes(bomb)
    assert "is a pickle, which can run any program" in refused(worker, good, tiny_model)
    (good / WEIGHTS).write_bytes(bomb)
    assert "no safetensors file" in refused(worker, good, tiny_model)
    assert not mark.exists()


def test_zip_is_never_unpacked(worker: AdapterWorker, good: Path, tiny_model: Path) -> None:
    with zipfile.ZipFile(good / WEIGHTS, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("adapter_model/data.pkl", b"\x00" * (64 * ONE_MIB))
    assert (good / WEIGHTS).stat().st_size < ONE_MIB
    assert "no safetensors file" in refused(worker, good, tiny_model)


def test_config_of_a_gigabyte_is_refused_unread(
    worker: AdapterWorker, good: Path, tiny_model: Path
) -> None:
    with (good / CONFIG).open("r+b") as file:
        file.truncate(1 << 30)
    assert f"has {1 << 30} bytes; at most {ONE_MIB}" in refused(worker, good, tiny_model)


def test_weights_above_the_bound_are_refused_unread(
    worker: AdapterWorker, good: Path, tiny_model: Path
) -> None:
    with (good / WEIGHTS).open("r+b") as file:
        file.truncate(1 << 40)
    assert f"at most {8 * ONE_MIB} are taken" in refused(worker, good, tiny_model)


def test_links_that_lead_out_are_refused(
    worker: AdapterWorker, good: Path, tmp_path: Path, tiny_model: Path
) -> None:
    outside = make_adapter(tmp_path / "secret/adapter", tiny_model)
    (good.parent / "way-out").symlink_to(outside)
    assert "leads out" in refused(worker, good.parent / "way-out", tiny_model)
    for name in (CONFIG, WEIGHTS):
        folder = make_adapter(good.parent / f"link-{name}", tiny_model)
        (folder / name).unlink()
        (folder / name).symlink_to(outside / name)
        assert "no plain file in the adapter's own folder" in refused(worker, folder, tiny_model)
        (folder / name).unlink()
        (folder / name).symlink_to(f"../good/{name}")
        assert "no plain file in the adapter's own folder" in refused(worker, folder, tiny_model)


def test_what_is_no_plain_file_is_refused_at_once(
    worker: AdapterWorker, good: Path, tiny_model: Path
) -> None:
    (good / CONFIG).unlink()
    os.mkfifo(good / CONFIG)
    assert "no plain file" in refused(worker, good, tiny_model)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"peft_type": "IA3"}, "only LORA is served"),
        ({"r": 10_000}, "is 10000 while the engine takes at most 64"),
        ({"r": 0}, "a rank is a whole number from 1"),
        ({"r": True}, "a rank is a whole number from 1"),
        ({"r": 16}, "asks? for"),
        ({"lora_alpha": float("nan")}, "alpha is a number above 0"),
        ({"lora_alpha": -1}, "alpha is a number above 0"),
        ({"use_dora": True}, "DoRA cannot be served"),
        ({"bias": "all"}, "trained biases cannot be served"),
        ({"modules_to_save": ["lm_head"]}, "whole modules"),
        ({"init_lora_weights": "pissa"}, "changes the base model's weights"),
        ({"rank_pattern": {"(a+)+$": 8}}, "only ends of modules' paths are taken"),
        ({"use_rslora": "yes"}, "it is true or false"),
    ],
)
def test_config_that_asks_for_something_else_is_refused(
    worker: AdapterWorker, good: Path, tiny_model: Path, fields: dict[str, Any], words: str
) -> None:
    edit_config(good, **fields)
    message = refused(worker, good, tiny_model)
    if words != "asks? for":
        assert words in message
        return
    # Both shapes: what there is and what there should be.
    assert "is 8 x 64 while" in message
    assert "ask for 16 x 64" in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"{", "is not JSON"),
        (b"[1]", "does not hold a JSON object"),
        (b"\xff\xfe", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"r": 8, "r": 9}', "has 'r' twice"),
    ],
)
def test_config_that_is_no_json_object_is_refused(
    worker: AdapterWorker, good: Path, tiny_model: Path, content: bytes, words: str
) -> None:
    (good / CONFIG).write_bytes(content)
    assert words in refused(worker, good, tiny_model)


def test_adapter_of_another_base_is_refused_with_both_shapes(
    worker: AdapterWorker, tmp_path: Path, tiny_model: Path
) -> None:
    other = tmp_path / "other-base"
    other.mkdir()
    config = json.loads((tiny_model / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"hidden_size": 96}))
    folder = make_adapter(tmp_path / "a", other)
    message = refused(worker, folder, tiny_model)
    assert "lora_A" in message
    assert "8 x 96" in message
    assert "8 x 64" in message
    (other / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
    deeper = make_adapter(tmp_path / "b", other)
    assert "which the base model does not have" in refused(worker, deeper, tiny_model)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_numbers_that_are_not_finite_are_refused(
    worker: AdapterWorker, good: Path, tiny_model: Path, value: float, dtype: torch.dtype
) -> None:
    weights = {name: tensor.to(dtype) for name, tensor in load_file(good / WEIGHTS).items()}
    next(reversed(weights.values()))[-1, -1] = value
    save_file(weights, good / WEIGHTS)
    assert "not finite" in refused(worker, good, tiny_model)


def test_numbers_too_large_for_the_engine_are_refused(
    worker: AdapterWorker, good: Path, tiny_model: Path
) -> None:
    weights = load_file(good / WEIGHTS)
    next(iter(weights.values()))[0, 0] = 1e6
    save_file(weights, good / WEIGHTS)
    outcome = bring(worker, good, shape(tiny_model, "float16"))
    assert isinstance(outcome, Refused)
    assert "too large for F16" in outcome.message
    assert isinstance(bring(worker, good, shape(tiny_model, "bfloat16")), Brought)


A_NAME = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda h: h[A_NAME].update(data_offsets=[0, 1 << 40]), "cannot have bytes"),
        (lambda h: h[A_NAME].update(data_offsets=[-4, 2044]), "a LoRA matrix has two"),
        (lambda h: h[A_NAME].update(data_offsets=[4, 2052]), "neither overlap nor leave gaps"),
        (lambda h: h[A_NAME].update(shape=[1 << 40, 1 << 40]), "cannot have bytes"),
        (lambda h: h[A_NAME].update(shape=[2, 4, 64]), "has two dimensions"),
        (lambda h: h[A_NAME].update(shape=[64, 8]), "is 64 x 8 while"),
        (lambda h: h[A_NAME].update(dtype="I64"), "LoRA matrices are F32, BF16, F16"),
        (lambda h: h[A_NAME].update(dtype=["F32"]), "LoRA matrices are F32, BF16, F16"),
        (lambda h: h.update({A_NAME: None}), "has dtype None"),
        (lambda h: h.clear(), "holds no tensors"),
        (lambda h: h.pop(A_NAME), "neither overlap nor leave gaps"),
        (lambda h: h.update({"../../x": h.pop(A_NAME)}), "is no LoRA matrix"),
        (lambda h: h.update({"lm_head.weight": h.pop(A_NAME)}), "is no LoRA matrix"),
        (
            lambda h: h.update({A_NAME.replace("q_proj", "a_proj"): h.pop(A_NAME)}),
            "which the base model does not have",
        ),
        (
            lambda h: h.update({A_NAME.replace("q_proj", "k_proj"): h.pop(A_NAME)}),
            "and not the other matrix",
        ),
    ],
)
def test_header_that_lies_is_refused(
    worker: AdapterWorker, good: Path, tiny_model: Path, change: Any, words: str
) -> None:
    edit_header(good, change)
    assert words in refused(worker, good, tiny_model)


def test_names_that_stand_twice_in_the_header_are_refused(
    worker: AdapterWorker, good: Path, tiny_model: Path
) -> None:
    content = (good / WEIGHTS).read_bytes()
    length = int.from_bytes(content[:8], "little")
    entry = json.dumps({A_NAME: json.loads(content[8 : 8 + length])[A_NAME]}).encode()
    header = entry[:-1] + b", " + content[9 : 8 + length]
    (good / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
    assert "twice" in refused(worker, good, tiny_model)


def test_file_that_was_cut_off_or_added_to_is_refused(
    worker: AdapterWorker, good: Path, tiny_model: Path
) -> None:
    content = (good / WEIGHTS).read_bytes()
    for changed in (content[:-1], content + b"x", content[:100], content[:7], b""):
        (good / WEIGHTS).write_bytes(changed)
        refused(worker, good, tiny_model)
    (good / WEIGHTS).write_bytes((1 << 63).to_bytes(8, "little") + content[8:])
    assert "no safetensors file" in refused(worker, good, tiny_model)


def test_files_that_change_while_they_are_read_are_not_mixed(
    worker: AdapterWorker, good: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from deployments.adapter_files import LocalFolder

    read = LocalFolder.read

    def read_and_change(self: LocalFolder, name: str, n_bytes: int) -> bytes:
        content = read(self, name, n_bytes)
        if name == CONFIG:
            make_adapter(good, tiny_model, seed=9)
        return content

    monkeypatch.setattr(LocalFolder, "read", read_and_change)
    outcome = bring(worker, good, shape(tiny_model))
    assert isinstance(outcome, Away)
    assert "changed while" in outcome.message


def test_worker_runs_out_of_memory_before_the_node_does() -> None:
    # In a process of its own: a bound cannot be lifted again.
    program = """
from deployments.adapter_worker import bound_memory
bound_memory(100 << 20)
held = bytes(300 << 20)
try:
    more = bytes(1100 << 20)
except MemoryError:
    print("bounded")
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "bounded\n", done.stderr


def test_adapter_larger_than_the_whole_cache_is_refused(
    tmp_path: Path, good: Path, tiny_model: Path
) -> None:
    worker = AdapterWorker(tmp_path / "small", 1000, ONE_MIB)
    assert "whole cache of adapters" in refused(worker, good, tiny_model)
    assert left(tmp_path / "small") == []
