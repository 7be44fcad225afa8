"""Weight files, written one tensor at a time, are what the safetensors library reads and writes."""

import pytest
import safetensors.torch
import torch

from hesstune.errors import RunError
from hesstune.storage.tensors import stream_tensors

DTYPES = [
    torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e4m3fnuz,
    torch.float8_e5m2, torch.float8_e5m2fnuz, torch.complex64, torch.int64, torch.int32, torch.int16,
    torch.int8, torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool,
]  # fmt: skip


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_of_the_format_comes_back(dtype, tmp_path):
    values = torch.arange(6).reshape(3, 2).to(dtype)
    tensors = {"odd": values.t(), "none": values[:0], "number": values[1, 1]}
    stream_tensors(tmp_path / "a", tensors, tensors.values(), {"kind": "test"})
    found = safetensors.torch.load_file(tmp_path / "a")
    assert set(found) == set(tensors)
    for name, tensor in tensors.items():
        assert (found[name].dtype, found[name].shape) == (dtype, tensor.shape)
        assert found[name].tolist() == tensor.tolist()


def test_a_dtype_that_the_format_lacks_is_told(tmp_path):
    tensors = {"wave": torch.zeros(2, dtype=torch.complex128)}
    with pytest.raises(RunError, match=r"wave has dtype torch\.complex128"):
        stream_tensors(tmp_path / "a", tensors, tensors.values())
    assert not (tmp_path / "a").exists()
