"""Archives of tensors are what torch.save makes, and what torch.load takes."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch

from torchtitan_cpp import _C
from torchtitan_cpp.checkpoint.dcp.archive import write_archive


def archive_of(tensor: torch.Tensor, folder: Path, before: bytes = b"") -> bytes:
    """The bytes of the archive, written behind others."""
    path = folder / "file"
    path.unlink(missing_ok=True)
    file = _C.storage.HashedFile(str(path))
    file.write(before)
    write_archive(file, tensor)
    size, _, _ = file.finish()
    data = path.read_bytes()
    assert len(data) == size == file.num_bytes
    return data[len(before) :]


DTYPES = [
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
    *(torch.uint16, torch.float8_e4m3fn, torch.float8_e8m0fnu),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_torch_loads_every_dtype(dtype: torch.dtype, tmp_path: Path) -> None:
    expected = torch.arange(1, 25).reshape(2, 3, 4).to(dtype)
    for tensor in (expected, expected[1], expected.transpose(0, 2), expected[0, 0, :0]):
        data = archive_of(tensor, tmp_path, before=b"something of 18 B.")
        found = torch.load(io.BytesIO(data), weights_only=True)
        assert found.dtype == dtype
        assert found.shape == tensor.shape
        if tensor.numel():
            same = tensor.contiguous().view(torch.uint8)
            assert torch.equal(found.contiguous().view(torch.uint8), same)
        assert len(data) < 4096, "the storage of a view is not written whole"


def test_a_scalar_and_a_parameter_are_loaded_as_tensors(tmp_path: Path) -> None:
    for tensor in (torch.tensor(2.5), torch.nn.Parameter(torch.ones(3))):
        data = archive_of(tensor, tmp_path)
        found = torch.load(io.BytesIO(data), weights_only=True)
        assert torch.equal(found, tensor.detach())
        assert not found.requires_grad


def test_checksums_hold_and_numbers_are_aligned(tmp_path: Path) -> None:
    tensor = torch.randn(700, 1000)  # large enough to be hashed by a second thread
    data = archive_of(tensor, tmp_path)
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
    assert data.index(tensor.numpy().tobytes()) % 64 == 0


class SparseFile:
    """Takes the numbers of a tensor as a hole."""

    def __init__(self, path: Path) -> None:
        self.file = path.open("wb")

    @property
    def num_bytes(self) -> int:
        return self.file.tell()

    def write(self, data: bytes) -> None:
        self.file.write(data)

    def write_tensor(self, data: torch.Tensor) -> int:
        self.file.seek(data.nbytes, os.SEEK_CUR)
        return 0


def test_more_than_four_gibibytes_have_64_bit_sizes(tmp_path: Path) -> None:
    file: Any = SparseFile(tmp_path / "large")
    numel = (5 << 30) + 3
    write_archive(file, torch.empty(numel, dtype=torch.uint8))  # pages never touched
    file.file.close()
    with zipfile.ZipFile(tmp_path / "large") as archive:
        assert archive.getinfo("archive/data/0").file_size == numel
        assert archive.getinfo("archive/version").header_offset > numel
        assert archive.read("archive/version") == b"3\n"
    found = torch.load(tmp_path / "large", weights_only=True, mmap=True)
    assert found.shape == (numel,)
    assert found[-1] == 0
