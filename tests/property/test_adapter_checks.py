"""Invariants of `serve_app.policy.adapter_shapes` and `serve_app.policy.adapter_checks`."""

import json
from pathlib import Path

from safetensors.torch import load_file

from serve_app.policy.adapter_shapes import shape_of


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
