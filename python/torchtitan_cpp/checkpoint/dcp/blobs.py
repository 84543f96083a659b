"""What ``torch.save`` has written, one blob behind the other in a file.

A blob is a ZIP archive: ``data.pkl`` describes, ``data/<key>`` holds the bytes of a
tensor. It is named by its address in the file, ``<offset>+<length>``.
"""

from __future__ import annotations

import io
import math
import os
import struct
import sys
import zipfile
from collections.abc import Sequence
from typing import Any

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.checkpoint.dcp.unpickling import SavedTensor, read_value
from torchtitan_cpp.checkpoint.manifest import StoredFile
from torchtitan_cpp.checkpoint.shards import kept_open, num_io_threads

_MAX_PICKLE_BYTES = 16 << 20


def address(offset: int, length: int) -> str:
    """Name of a blob."""
    return f"{offset}+{length}"


def parse_address(text: str) -> tuple[int, int]:
    """Offset and length in bytes; ValueError for another text."""
    offset, plus, length = text.partition("+")
    if not (plus and offset.isdecimal() and length.isdecimal()):
        raise ValueError(f"expected <offset>+<length>, found {text!r}")
    return int(offset), int(length)


class BlobReader:
    """Reads blobs of the files of a folder; keeps the last files that it used open.

    What it reads of files of ours is compared with ``StoredFile.block_sha256``.

    Every method raises ValueError that names file and address for a blob that is
    damaged or not what it should be, and OSError if it cannot be read.
    """

    def __init__(self, folder: str, files: Sequence[StoredFile]) -> None:
        self._folder = folder
        self._files = files
        self._open: dict[int, _C.storage.VerifiedFile] = {}

    def value(self, file: int, blob: str) -> Any:
        """What was saved, if it is no tensor; a tensor of one element as a number."""
        with _Archive(self._stream(file, blob), self._where(file, blob)) as archive:
            value = archive.value()
            if not isinstance(value, SavedTensor):
                return value
            if math.prod(value.shape) != 1:
                raise ValueError(f"{self._where(file, blob)}: expected one number")
            begin, _ = archive.place(value)
            flat = self._read_flat(file, begin, 1, value.dtype)
            return flat.item()

    def dtype(self, file: int, blob: str) -> torch.dtype:
        """Of the tensor."""
        return self._describe(file, blob)[0].dtype

    def read_box(
        self,
        file: int,
        blob: str,
        out: torch.Tensor,
        *,
        offset: Sequence[int],
        size: Sequence[int],
        out_offset: Sequence[int],
    ) -> None:
        """Copy a box of the tensor into ``out`` (CPU, same dtype), at ``out_offset``.

        Reads the rows that the box has a part of.
        """
        saved, begin, available = self._describe(file, blob)
        where = self._where(file, blob)
        if len(offset) != len(saved.shape) or any(
            o + s > n for o, s, n in zip(offset, size, saved.shape, strict=True)
        ):
            raise ValueError(f"{where}: holds a tensor of the shape {saved.shape}")
        if out.dtype != saved.dtype:
            raise ValueError(f"{where}: holds {saved.dtype}, expected {out.dtype}")
        target = out
        for dim, (start, length) in enumerate(zip(out_offset, size, strict=True)):
            target = target.narrow(dim, start, length)
        if not saved.shape or not _is_contiguous(saved):
            flat = self._read_flat(file, begin, available, saved.dtype)
            source = flat.as_strided(saved.shape, saved.stride)
            for dim, (start, length) in enumerate(zip(offset, size, strict=True)):
                source = source.narrow(dim, start, length)
            target.copy_(source)
            return
        row = math.prod(saved.shape[1:])
        first = begin + offset[0] * row * saved.dtype.itemsize
        rows = (size[0], *saved.shape[1:])
        if target.is_contiguous() and tuple(size) == rows:
            self._fill(file, first, target)
            return
        source = self._read_flat(file, first, size[0] * row, saved.dtype).view(rows)
        for dim in range(1, len(rows)):
            source = source.narrow(dim, offset[dim], size[dim])
        target.copy_(source)

    def verify(
        self, file: int, blob: str, *, dtype: torch.dtype, shape: Sequence[int]
    ) -> None:
        """Check what the tensor is, and the CRC-32 of all bytes of the archive."""
        where = self._where(file, blob)
        with _Archive(self._stream(file, blob), where) as archive:
            archive.verify()
            saved = archive.tensor()
            archive.place(saved)
        if (saved.dtype, saved.shape) != (dtype, tuple(shape)):
            raise ValueError(
                f"{where}: expected {dtype} of the shape {tuple(shape)}, found "
                f"{saved.dtype} of {saved.shape}"
            )

    def verify_value(self, file: int, blob: str) -> None:
        """Check the CRC-32 of all bytes of an archive that holds anything."""
        with _Archive(self._stream(file, blob), self._where(file, blob)) as archive:
            archive.verify()

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the files."""
        self._open.clear()

    def _describe(self, file: int, blob: str) -> tuple[SavedTensor, int, int]:
        """The tensor, where its first element lies in the file, elements from there."""
        with _Archive(self._stream(file, blob), self._where(file, blob)) as archive:
            saved = archive.tensor()
            begin, available = archive.place(saved)
        return saved, begin, available

    def _stream(self, file: int, blob: str) -> _Region:
        return _Region(self._opened(file), *parse_address(blob))

    def _opened(self, file: int) -> _C.storage.VerifiedFile:
        def make() -> _C.storage.VerifiedFile:
            stored = self._files[file]
            _C.storage.check_plain_name(stored.name, where=self._folder)
            return _C.storage.VerifiedFile(
                os.path.join(self._folder, stored.name),
                blocks=stored.block_sha256,
                num_threads=num_io_threads(),
            )

        return kept_open(self._open, file, make)

    def _where(self, file: int, blob: str) -> str:
        return f"{os.path.join(self._folder, self._files[file].name)} at {blob}"

    def _read_flat(
        self, file: int, begin: int, numel: int, dtype: torch.dtype
    ) -> torch.Tensor:
        out = torch.empty(numel, dtype=dtype)
        self._fill(file, begin, out)
        return out

    def _fill(self, file: int, begin: int, out: torch.Tensor) -> None:
        """Fill a contiguous CPU tensor from the bytes at ``begin``."""
        if out.numel() == 0:
            return
        self._opened(file).read_into(begin, out.detach())


def _is_contiguous(saved: SavedTensor) -> bool:
    expected = 1
    for size, stride in zip(reversed(saved.shape), reversed(saved.stride), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


class _Region(io.RawIOBase):
    """A part of a file as a file of its own; the position of the file stays."""

    def __init__(self, file: _C.storage.VerifiedFile, begin: int, length: int) -> None:
        super().__init__()
        self._file, self.begin, self._length = file, begin, length
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = (0, self._position, self._length)[whence]
        if start + offset < 0:
            raise OSError("seek before the beginning")
        self._position = start + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        begin = self.begin + self._position
        end = min(self.begin + self._length, self._file.size_bytes)
        left = max(end - begin, 0)
        if size is not None and size >= 0:
            left = min(left, size)  # a damaged archive may ask for anything
        if left == 0:
            return b""
        data = self._file.read(begin, left)
        self._position += len(data)
        return data


class _Archive:
    """One blob. What goes wrong in its context is a ValueError with ``where``."""

    def __init__(self, region: _Region, where: str) -> None:
        self._region, self._where = region, where

    def __enter__(self) -> _Archive:
        try:
            self._zip = zipfile.ZipFile(self._region)
        except Exception as error:
            raise ValueError(f"{self._where}: {error}") from error
        self._members = {info.filename: info for info in self._zip.infolist()}
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        self._zip.close()
        # Flipped bits of its headers raise whatever zipfile makes of them.
        if isinstance(error, Exception) and not isinstance(error, OSError):
            raise ValueError(f"{self._where}: {error}") from error

    def value(self) -> Any:
        """What ``data.pkl`` describes."""
        info = self._member("data.pkl")
        if info.file_size > _MAX_PICKLE_BYTES:
            raise ValueError(f"data.pkl has {info.file_size} bytes")
        if "byteorder" in {name.rpartition("/")[2] for name in self._members}:
            order = self._zip.read(self._member("byteorder")).decode()
            if order != sys.byteorder:
                raise ValueError(f"numbers are in the byte order {order}")
        return read_value(self._zip.read(info))  # compares its CRC-32

    def tensor(self) -> SavedTensor:
        """The same, which must be a tensor."""
        value = self.value()
        if not isinstance(value, SavedTensor):
            raise ValueError(f"expected a tensor, found {type(value).__name__}")
        return value

    def place(self, saved: SavedTensor) -> tuple[int, int]:
        """Byte of the first element in the file, and how many elements follow."""
        info = self._member(f"data/{saved.storage_key}")
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError("its numbers are compressed")
        numbers = (*saved.shape, *saved.stride, saved.storage_offset)
        if any(not isinstance(n, int) or n < 0 for n in numbers):
            raise ValueError("bad shape or strides")
        if len(saved.shape) != len(saved.stride):
            raise ValueError("as many strides as dims expected")
        item = saved.dtype.itemsize
        available = info.file_size // item - saved.storage_offset
        pairs = zip(saved.shape, saved.stride, strict=True)
        needed = 0
        if 0 not in saved.shape:
            needed = 1 + sum((size - 1) * stride for size, stride in pairs)
        if needed > available:
            raise ValueError(f"{saved.shape} needs more than its {available} elements")
        self._region.seek(info.header_offset)
        header = self._region.read(30)
        name_length, extra_length = struct.unpack_from("<HH", header, 26)
        begin = info.header_offset + 30 + name_length + extra_length
        begin += self._region.begin + saved.storage_offset * item
        return begin, available

    def verify(self) -> None:
        """Compare all checksums."""
        if bad := self._zip.testzip():
            raise ValueError(f"{bad} is damaged (CRC-32)")

    def _member(self, name: str) -> zipfile.ZipInfo:
        found = [m for n, m in self._members.items() if n.partition("/")[2] == name]
        if len(found) != 1:
            raise ValueError(f"expected one {name}, found {len(found)}")
        return found[0]
