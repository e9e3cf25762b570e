"""Models of a few megabytes with random weights, made on the spot. They talk nonsense, fast."""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file

from serve_app.embedded_model import prepare_embedded_model

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_HIDDEN = 64
_FFN = 128
_HEADS = 2
_LAYERS = 2
_VOCAB = 49_152
_CONTEXT = 2048
_STD = 0.5
"""Wide enough that the likeliest token is well ahead of the next."""


def make_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Writes a Llama with random weights and the embedded model's tokenizer.

    The same seed gives the same weights. float32, so that greedy decoding never meets a tie.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in _TOKENIZER_FILES:
        shutil.copy(prepare_embedded_model() / name, folder / name)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": _VOCAB,
        "hidden_size": _HIDDEN,
        "intermediate_size": _FFN,
        "num_hidden_layers": _LAYERS,
        "num_attention_heads": _HEADS,
        "num_key_value_heads": _HEADS,
        "head_dim": _HIDDEN // _HEADS,
        "max_position_embeddings": _CONTEXT,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10_000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    }
    (folder / "config.json").write_text(json.dumps(config))
    save_file(_draw_weights(seed), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _draw_weights(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"model.embed_tokens.weight": (_VOCAB, _HIDDEN)}
    for layer in range(_LAYERS):
        prefix = f"model.layers.{layer}"
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            shapes[f"{prefix}.self_attn.{name}.weight"] = (_HIDDEN, _HIDDEN)
        shapes[f"{prefix}.mlp.gate_proj.weight"] = (_FFN, _HIDDEN)
        shapes[f"{prefix}.mlp.up_proj.weight"] = (_FFN, _HIDDEN)
        shapes[f"{prefix}.mlp.down_proj.weight"] = (_HIDDEN, _FFN)
    weights = {
        name: torch.randn(shape, generator=generator) * _STD for name, shape in shapes.items()
    }
    norms = ["model.norm.weight"]
    for layer in range(_LAYERS):
        norms += [
            f"model.layers.{layer}.input_layernorm.weight",
            f"model.layers.{layer}.post_attention_layernorm.weight",
        ]
    return weights | {name: torch.ones(_HIDDEN) for name in norms}
