"""Whether an adapter's `adapter_config.json` describes a plain LoRA, and which.

Inputs: the bytes of the file, as somebody wrote them who may mean harm.
Rule: what changes the meaning of the weights and the engine does not compute is refused, each with
its reason; what concerns training alone is not looked at.

Invariants (tests/property/test_adapter_checks.py):
1. any_bytes_are_read_or_refused: no input raises anything but AdapterRefusedError.
2. factor_is_pefts: a matrix is scaled as PEFT would, patterns and rslora included.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from serve_app.errors import AdapterRefusedError

N = TypeVar("N", int, float)

CONFIG_FILE = "adapter_config.json"
MAX_CONFIG_BYTES = 1 << 20
"""PEFT's own are about a kilobyte; those that list each module by its path are longer."""

_PATTERN = re.compile(r"[A-Za-z0-9_.]{1,256}")
_MAX_RANK = 1 << 20
_PLAIN_INITS = ("gaussian", "eva", "orthogonal", "mica", "lora_ga")
"""Inits that leave the base model's weights as they are."""
_UNSUPPORTED = {
    "use_dora": "DoRA",
    "lora_bias": "biases of LoRA matrices",
    "modules_to_save": "whole modules saved beside the matrices",
    "layer_replication": "replicated layers",
    "alora_invocation_tokens": "activated LoRA",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
    "target_parameters": "matrices on parameters instead of modules",
    "trainable_token_indices": "trained tokens",
    "megatron_config": "Megatron's layers",
    "arrow_config": "routing among adapters",
}


@dataclass(frozen=True)
class AdapterConfig:
    """What the file says of the matrices.

    Attributes:
        rank: Of every pair of matrices that `ranks` does not name.
        alpha: PEFT's `lora_alpha`, likewise.
        is_rslora: Whether the scale is alpha / sqrt(rank) instead of alpha / rank.
        ranks: Rank by the end of a module's path; the first that fits counts.
        alphas: The same of alpha.
    """

    rank: int
    alpha: float
    is_rslora: bool = False
    ranks: Mapping[str, int] = field(default_factory=dict)
    alphas: Mapping[str, float] = field(default_factory=dict)

    def rank_of(self, module: str) -> int:
        """Rank of a module, by its path in the base model."""
        return _find(self.ranks, module, self.rank)

    def factor_of(self, module: str) -> float:
        """What the product of a module's two matrices is multiplied by."""
        rank, alpha = self.rank_of(module), _find(self.alphas, module, self.alpha)
        return alpha / math.sqrt(rank) if self.is_rslora else alpha / rank


def _find(patterns: Mapping[str, N], module: str, default: N) -> N:
    for end, value in patterns.items():
        if module == end or module.endswith(f".{end}"):
            return value
    return default


def read_config(content: bytes) -> AdapterConfig:
    """Return what an `adapter_config.json` says.

    Raises:
        AdapterRefusedError: It is not JSON, or of something else than a plain LoRA.
    """
    if len(content) > MAX_CONFIG_BYTES:
        raise AdapterRefusedError(
            f"{CONFIG_FILE} is longer than {MAX_CONFIG_BYTES} bytes; such a file is about 1,000."
        )
    fields = read_object(content, CONFIG_FILE)
    kind = fields.get("peft_type", "LORA")
    if kind != "LORA":
        raise _refuse("peft_type", kind, "only LORA is served")
    _check_supported(fields)
    rank = _read_rank("r", fields.get("r"))
    alpha = _read_alpha("lora_alpha", fields.get("lora_alpha"))
    is_rslora = fields.get("use_rslora") or False
    if not isinstance(is_rslora, bool):
        raise _refuse("use_rslora", is_rslora, "it is true or false")
    ranks = {end: _read_rank(f"rank_pattern.{end}", r) for end, r in _read_ends(fields, "rank")}
    alphas = {end: _read_alpha(f"alpha_pattern.{end}", a) for end, a in _read_ends(fields, "alpha")}
    return AdapterConfig(rank, alpha, is_rslora, ranks, alphas)


def read_object(content: bytes, what: str) -> dict[str, Any]:
    """Return a JSON object in which no name stands twice, as its readers might differ on that.

    Raises:
        AdapterRefusedError: It is something else.
    """
    try:
        fields = json.loads(content.decode(), object_pairs_hook=_unite)
    except _TwiceError as error:
        raise AdapterRefusedError(f"{what} has {_show(str(error))} twice.") from None
    except (ValueError, RecursionError):
        raise AdapterRefusedError(f"{what} is not JSON.") from None
    if not isinstance(fields, dict):
        raise AdapterRefusedError(f"{what} does not hold a JSON object.")
    return fields


class _TwiceError(Exception):
    """A name stands twice in an object."""


def _unite(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, value in pairs:
        if name in fields:
            raise _TwiceError(name)
        fields[name] = value
    return fields


def _check_supported(fields: Mapping[str, Any]) -> None:
    for name, words in _UNSUPPORTED.items():
        if fields.get(name):
            raise _refuse(name, fields[name], f"{words} cannot be served")
    if fields.get("bias", "none") != "none":
        raise _refuse("bias", fields["bias"], "trained biases cannot be served")
    if fields.get("fan_in_fan_out"):
        raise _refuse("fan_in_fan_out", True, "matrices must be those of linear layers")
    init = fields.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        raise _refuse(
            "init_lora_weights",
            init,
            "it changes the base model's weights; convert it to a plain LoRA with PEFT's "
            "path_initial_model_for_weight_conversion",
        )


def _read_ends(fields: Mapping[str, Any], what: str) -> list[tuple[str, Any]]:
    name = f"{what}_pattern"
    patterns = fields.get(name) or {}
    if not isinstance(patterns, dict) or len(patterns) > 4096:
        raise _refuse(name, patterns, "it maps ends of modules' paths to values")
    for end in patterns:
        # PEFT takes regular expressions, which may run for ever on a path.
        if _PATTERN.fullmatch(end) is None:
            raise _refuse(name, end, "only ends of modules' paths are taken, such as mlp.up_proj")
    return list(patterns.items())


def _read_rank(name: str, value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= _MAX_RANK:
        raise _refuse(name, value, "a rank is a whole number from 1")
    return value


def _read_alpha(name: str, value: object) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value < 1e9:  # type: ignore[operator]  # narrowed in the line above
        raise _refuse(name, value, "alpha is a number above 0 and below 1e9")
    return float(value)  # type: ignore[arg-type]  # the same


def _refuse(name: str, value: object, why: str) -> AdapterRefusedError:
    return AdapterRefusedError(f"{CONFIG_FILE}: {_show(name)} is {_show(value)}; {why}.")


def _show(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return repr(text[:80]) if isinstance(value, str) else text[:80]
