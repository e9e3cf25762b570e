"""What is read ahead of the step loop: the same tensors that safetensors reads, taken over once."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from deployments.adapter_extension import tensor_of
from deployments.adapter_reading import DamagedCopyError, discard, read_ahead, spans_of, take
from tests.support.adapters import write_facts

NUMBER = 987_654_321
DTYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensors_are_parts_of_what_was_read(tmp_path: Path, dtype: torch.dtype) -> None:
    saved = {"b": torch.randn(5, 3).to(dtype), "a": torch.randn(3, 7).to(dtype)}
    save_file(saved, tmp_path / "adapter_model.safetensors")
    read_ahead(NUMBER, tmp_path)
    content = take(NUMBER)
    assert content is not None
    found = {name: tensor_of(content.data, span, at) for name, span, at in spans_of(content)}
    assert found.keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(found[name], tensor)
    begin = content.ctypes.data
    for tensor in found.values():
        assert begin < tensor.data_ptr() < begin + content.size, "not copied"


def test_what_was_read_is_taken_once_or_discarded(tmp_path: Path) -> None:
    save_file({"a": torch.zeros(1, 1)}, tmp_path / "adapter_model.safetensors")
    read_ahead(NUMBER, tmp_path)
    assert take(NUMBER) is not None
    assert take(NUMBER) is None
    read_ahead(NUMBER, tmp_path)
    discard(NUMBER)
    discard(NUMBER)
    assert take(NUMBER) is None


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_damaged_copy_is_not_read(tmp_path: Path, name: str) -> None:
    save_file({"a": torch.zeros(1, 1)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text("{}")
    write_facts(tmp_path)
    read_ahead(NUMBER, tmp_path)
    assert take(NUMBER) is not None
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[:-1] + b"\x01")
    with pytest.raises(DamagedCopyError):
        read_ahead(NUMBER, tmp_path)
    assert take(NUMBER) is None


def test_folder_without_weights_reads_nothing(tmp_path: Path) -> None:
    read_ahead(NUMBER, tmp_path)
    assert take(NUMBER) is None
