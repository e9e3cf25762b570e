"""What an adapter has to fit: the linear layers of its base model, by name and size.

Inputs: a base model's `config.json`; which parts the engine was told to adapt.
Rule: a model of a known kind has `n_layers` equal layers, whose linear parts have the sizes that
its configuration says. Of an unknown kind nothing is guessed; its adapters are refused. What an
engine does not adapt is left out, so that adapters which change it are refused before one is asked.

Invariants (tests/property/test_adapter_checks.py):
1. sizes_are_those_of_the_weights: they are what a real model of that configuration has.
2. targets_are_what_is_left: what the engine adapts, and what it computes in one with that.
"""

import hashlib
import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Dtype = Literal["float32", "bfloat16", "float16"]

Size = tuple[int, int]
"""Features that go in, features that come out."""

_SPLIT = frozenset(
    {
        "arcee",
        "gemma",
        "gemma2",
        "gemma3_text",
        "granite",
        "llama",
        "mistral",
        "olmo2",
        "qwen2",
        "qwen3",
        "smollm3",
    }
)
"""Kinds with one matrix each for query, key, value, gate and up."""
_FUSED = frozenset({"phi3"})
"""Kinds with one matrix for query, key and value, and one for gate and up."""
_IN_ONE = (
    frozenset({"q_proj", "k_proj", "v_proj", "qkv_proj"}),
    frozenset({"gate_proj", "up_proj", "gate_up_proj"}),
)
"""What engines compute as one part, and adapt if told to adapt any of it."""


@dataclass(frozen=True)
class ModelShape:
    """The parts of a base model that adapters may change.

    Attributes:
        dtype: What the engine computes with, and so what adapters are stored in.
        n_layers: How many layers, all alike.
        modules: Size of each linear part of a layer, by its path in the layer.
    """

    dtype: Dtype
    n_layers: int
    modules: Mapping[str, Size]

    @property
    def fingerprint(self) -> str:
        """Equal for models that take the same adapters in the same form."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def size_of(self, module: str) -> Size | None:
        """Size of a part by its full path, such as `model.layers.0.mlp.up_proj`; None is none."""
        head, _, rest = module.removeprefix("model.layers.").partition(".")
        is_layer = module.startswith("model.layers.") and head.isascii() and head.isdigit()
        if not is_layer or len(head) > 6 or str(int(head)) != head or int(head) >= self.n_layers:
            return None
        return self.modules.get(rest)


def shape_of(
    config: Mapping[str, Any], dtype: Dtype, targets: Collection[str] | None = None
) -> ModelShape | None:
    """Return what adapters of a model must fit; None for a kind of model that is not known.

    Args:
        config: The content of its `config.json`.
        dtype: What its engine computes with.
        targets: Parts that the engine adapts, vLLM's `lora_target_modules`; None is all.
    """
    kind = config.get("model_type")
    if kind not in _SPLIT | _FUSED:
        return None
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    inner = int(config["intermediate_size"])
    head = int(config.get("head_dim") or hidden // heads)
    queries = heads * head
    keys = int(config.get("num_key_value_heads") or heads) * head
    modules = {"self_attn.o_proj": (queries, hidden), "mlp.down_proj": (inner, hidden)}
    if kind in _FUSED:
        modules["self_attn.qkv_proj"] = (hidden, queries + 2 * keys)
        modules["mlp.gate_up_proj"] = (hidden, 2 * inner)
    else:
        modules["self_attn.q_proj"] = (hidden, queries)
        modules["self_attn.k_proj"] = modules["self_attn.v_proj"] = (hidden, keys)
        modules["mlp.gate_proj"] = modules["mlp.up_proj"] = (hidden, inner)
    if targets is not None:
        names = {target.rpartition(".")[2] for target in targets}
        modules = {path: size for path, size in modules.items() if names & _in_one_with(path)}
    return ModelShape(dtype, int(config["num_hidden_layers"]), modules)


def _in_one_with(path: str) -> frozenset[str]:
    name = path.rpartition(".")[2]
    return next((group for group in _IN_ONE if name in group), frozenset({name}))
