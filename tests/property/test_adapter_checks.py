"""Invariants of `serve_app.policy.adapter_shapes` and `serve_app.policy.adapter_checks`."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from serve_app.errors import AdapterRefusedError
from serve_app.policy.adapter_checks import header_end, match_pairs, read_header
from serve_app.policy.adapter_config import AdapterConfig, read_config
from serve_app.policy.adapter_shapes import ModelShape, shape_of

SHAPE = ModelShape("bfloat16", 2, {"self_attn.q_proj": (8, 4), "mlp.up_proj": (8, 16)})


def _dump(content: Any) -> bytes:
    return json.dumps(content).encode()


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=6,
)
fields = st.sampled_from(
    [
        "r",
        "lora_alpha",
        "use_rslora",
        "rank_pattern",
        "alpha_pattern",
        "bias",
        "peft_type",
        "init_lora_weights",
    ]
)
modules = st.sampled_from([f"model.layers.{i}.{path}" for i in range(3) for path in SHAPE.modules])


def test_sizes_are_those_of_the_weights(tiny_model: Path) -> None:
    shape = shape_of(json.loads((tiny_model / "config.json").read_text()), "float32")
    assert shape is not None
    found = {
        name.removesuffix(".weight"): tuple(reversed(tensor.shape))
        for name, tensor in load_file(tiny_model / "model.safetensors").items()
        if "_proj" in name
    }
    assert found
    assert {name: shape.size_of(name) for name in found} == found
    assert shape.size_of("model.layers.2.mlp.up_proj") is None
    assert shape.size_of("model.layers.00.mlp.up_proj") is None


@pytest.mark.parametrize(
    ("targets", "left"),
    [
        (None, "q k v o gate up down"),
        (["q_proj", "v_proj"], "q k v"),
        (["gate_up_proj", "model.layers.0.self_attn.o_proj"], "o gate up"),
        (["embed_tokens"], ""),
    ],
)
def test_targets_are_what_is_left(tiny_model: Path, targets: list[str] | None, left: str) -> None:
    config = json.loads((tiny_model / "config.json").read_text())
    shape, whole = shape_of(config, "float32", targets), shape_of(config, "float32")
    assert shape is not None
    assert whole is not None
    names = {path.rpartition(".")[2] for path in shape.modules}
    assert names == {f"{name}_proj" for name in left.split()}
    assert shape.modules.items() <= whole.modules.items()
    assert (shape.fingerprint == whole.fingerprint) == (targets is None)


def test_what_an_engine_adapts_by_default_is_all_of_the_shape(tiny_model: Path) -> None:
    # Else copies on disk would be made anew, under another name.
    config = json.loads((tiny_model / "config.json").read_text())
    whole = shape_of(config, "float32")
    assert whole is not None
    names = [path.rpartition(".")[2] for path in whole.modules]
    assert shape_of(config, "float32", names) == whole


@given(st.binary(max_size=60) | st.dictionaries(fields, values).map(_dump))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    try:
        config = read_config(content)
    except AdapterRefusedError:
        return
    assert config.rank >= 1
    assert math.isfinite(config.factor_of("model.layers.0.mlp.up_proj"))


@given(st.integers(1, 512), st.floats(0.01, 1e4), st.booleans(), st.integers(1, 512))
def test_factor_is_pefts(rank: int, alpha: float, is_rslora: bool, other: int) -> None:
    written = {"r": rank, "lora_alpha": alpha, "use_rslora": is_rslora}
    config = read_config(_dump(written | {"rank_pattern": {"up_proj": other}}))
    for module, r in (("a.up_proj", other), ("up_proj", other), ("a.xup_proj", rank)):
        assert config.rank_of(module) == r
        expected = alpha / math.sqrt(r) if is_rslora else alpha / r
        assert config.factor_of(module) == pytest.approx(expected)


headers = st.dictionaries(
    st.text(max_size=5),
    values
    | st.fixed_dictionaries(
        {
            "dtype": st.sampled_from(["F32", "F16", "I8", ""]),
            "shape": st.lists(st.integers(-1, 4), min_size=1, max_size=3),
            "data_offsets": st.lists(st.integers(-1, 40), min_size=1, max_size=3),
        }
    ),
    max_size=4,
)


@given(headers, st.integers(0, 64), st.binary(max_size=20))
def test_any_header_is_read_or_refused(header: dict[str, Any], n_data: int, junk: bytes) -> None:
    text = _dump(header)
    for content in (len(text).to_bytes(8, "little") + text + bytes(n_data), junk):
        try:
            end = header_end(content[:8], len(content))
            entries = read_header(content[:end], len(content))
        except AdapterRefusedError:
            continue
        assert entries


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=5))
def test_entries_cover_the_file(shapes: list[tuple[int, int]]) -> None:
    header, at = {}, 0
    for i, (rows, columns) in enumerate(shapes):
        end = at + rows * columns * 4
        span = [at, end]
        header[str(i)] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": span}
        at = end
    text = _dump(header)
    content = len(text).to_bytes(8, "little") + text + bytes(at)
    entries = read_header(content[: 8 + len(text)], len(content))
    covered = [i for entry in entries for i in range(entry.begin, entry.end)]
    assert covered == list(range(8 + len(text), len(content)))
    with pytest.raises(AdapterRefusedError, match="bytes while its header describes"):
        read_header(content[: 8 + len(text)], len(content) + 1)


@given(
    st.dictionaries(modules, st.tuples(*[st.integers(1, 9)] * 4), min_size=1, max_size=3),
    st.integers(1, 9),
    st.integers(1, 9),
)
def test_pairs_fit_the_base(
    sizes: dict[str, tuple[int, int, int, int]], rank: int, max_rank: int
) -> None:
    header, at = {}, 0
    for module, (a0, a1, b0, b1) in sizes.items():
        for half, shape in (("A", [a0, a1]), ("B", [b0, b1])):
            end = at + shape[0] * shape[1] * 2
            name = f"base_model.model.{module}.lora_{half}.weight"
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [at, end]}
            at = end
    text = _dump(header)
    n_bytes = 8 + len(text) + at
    entries = read_header(len(text).to_bytes(8, "little") + text, n_bytes)
    try:
        pairs = match_pairs(entries, AdapterConfig(rank, 1.0), SHAPE, max_rank)
    except AdapterRefusedError:
        assert rank > max_rank or any(
            SHAPE.size_of(module) is None or (a0, a1, b0, b1) != _fitting(module, rank)
            for module, (a0, a1, b0, b1) in sizes.items()
        )
        return
    assert [pair.module for pair in pairs] == sorted(sizes)
    for pair in pairs:
        assert pair.rank == rank <= max_rank
        assert (*pair.a.shape, *pair.b.shape) == _fitting(pair.module, rank)


def _fitting(module: str, rank: int) -> tuple[int, int, int, int]:
    size = SHAPE.size_of(module)
    assert size is not None
    return rank, size[0], size[1], rank
