"""Adapters as PEFT saves them, with random weights that change what a model says."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import torch
from safetensors.torch import save_file

from deployments.adapter_jobs import AdapterFacts
from deployments.adapter_reading import FACTS_FILE, checksum_of
from serve_app.policy.adapter_shapes import ModelShape, shape_of

ATTENTION = ("q_proj", "v_proj")
ALL_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RANKS = (8, 16, 32, 64)
CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"


def make_adapter(
    folder: Path,
    model: Path,
    *,
    rank: int = 8,
    alpha: float | None = None,
    modules: Sequence[str] = ATTENTION,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    strength: float = 1.0,
    **config: Any,
) -> Path:
    """Writes an adapter for the model in a folder; the same seed gives the same weights.

    Args:
        folder: Where to; made if it is not there.
        model: Folder with the base model's `config.json`.
        rank: Of every matrix.
        alpha: PEFT's; None means twice the rank, as most are trained.
        modules: Last names of the parts that it changes.
        seed: Of its weights.
        dtype: Of its weights; most are saved as float32.
        strength: About how much it adds to what a part says, beside what the part itself does.
        config: Further fields of `adapter_config.json`, such as `use_rslora=True`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    alpha = 2.0 * rank if alpha is None else alpha
    content: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": model.name,
        "r": rank,
        "lora_alpha": alpha,
        "lora_dropout": 0.05,
        "bias": "none",
        "target_modules": list(modules),
        "inference_mode": True,
    } | config
    (folder / CONFIG).write_text(json.dumps(content, indent=2))
    scale = alpha / (math.sqrt(rank) if content.get("use_rslora") else rank)
    weights = draw_weights(read_shape(model), rank, modules, seed, strength / scale)
    contiguous = {name: tensor.to(dtype).contiguous() for name, tensor in weights.items()}
    save_file(contiguous, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


def make_family(
    folder: Path,
    model: Path,
    n_adapters: int,
    *,
    ranks: Sequence[int] = RANKS,
    n_contents: int | None = None,
    are_different: bool = False,
    **options: Any,
) -> list[str]:
    """Writes adapters `a00000`, `a00001`, … side by side; returns their names.

    Args:
        folder: The folder of the family.
        model: Folder with the base model's `config.json`.
        n_adapters: How many.
        ranks: Their ranks, in turn.
        n_contents: How many have weights of their own; later ones are hard links to these, so
            that ten thousand take no more room than that. None means all.
        are_different: Whether those are adapters of their own to whoever compares contents: their
            configs say another revision.
        options: As of `make_adapter`.
    """
    names = [f"a{i:05}" for i in range(n_adapters)]
    n_own = n_adapters if n_contents is None else min(n_contents, n_adapters)
    for i, name in enumerate(names[:n_own]):
        make_adapter(folder / name, model, rank=ranks[i % len(ranks)], seed=i, **options)
    for i, name in enumerate(names[n_own:], n_own):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for file in (CONFIG, WEIGHTS):
            (folder / name / file).hardlink_to(folder / names[i % n_own] / file)
        if are_different:
            _revise(folder / name / CONFIG, f"r{i}")
    return names


def write_facts(folder: Path) -> None:
    """Notes in a folder what an import worker would, so that readers compare checksums."""
    config = (folder / CONFIG).read_bytes()
    checksum = checksum_of([(folder / WEIGHTS).read_bytes()], config)
    facts = AdapterFacts("v", "m", 8, ATTENTION, 0, 0, checksum)
    (folder / FACTS_FILE).write_bytes(msgspec.json.encode(facts))


def _revise(config: Path, revision: str) -> None:
    content = json.loads(config.read_text()) | {"revision": revision}
    config.unlink()
    config.write_text(json.dumps(content))


def read_shape(model: Path) -> ModelShape:
    """What adapters of the model in a folder must fit."""
    shape = shape_of(json.loads((model / "config.json").read_text()), "float32")
    assert shape is not None, "a model of a known kind"
    return shape


def draw_weights(
    shape: ModelShape, rank: int, modules: Sequence[str], seed: int, strength: float
) -> dict[str, torch.Tensor]:
    """Random weights by PEFT's names."""
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for layer in range(shape.n_layers):
        for path, (n_in, n_out) in shape.modules.items():
            if path.rpartition(".")[2] not in modules:
                continue
            prefix = f"base_model.model.model.layers.{layer}.{path}"
            a = torch.randn(rank, n_in, generator=generator) / math.sqrt(n_in)
            b = torch.randn(n_out, rank, generator=generator) * strength / math.sqrt(rank)
            weights[f"{prefix}.lora_A.weight"] = a
            weights[f"{prefix}.lora_B.weight"] = b
    return weights
