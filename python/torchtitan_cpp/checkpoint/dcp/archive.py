"""A tensor as the archive that ``torch.save`` makes of it.

Written here, because ``torch.save`` makes its checksum by a table and copies the bytes
through Python. The archive is a ZIP of stored members: ``data.pkl`` (the pickle of
torch._utils._rebuild_tensor_v2 with its arguments), ``byteorder``, ``version``, and the
numbers in ``data/0``, aligned to 64 bytes. The sizes are 64-bit where they need to be.
"""

from __future__ import annotations

import io
import pickle
import struct
import sys
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from torchtitan_cpp import _C

_ALIGNMENT = 64
_VERSION = b"3\n"  # of the members that torch expects
_ROOT = "archive/"
_LIMIT = 0xFFFFFFFF  # what does not fit 32 bits is in an extra field
_CRC_FOLLOWS = 0x0008  # flag: behind the data
_ZIP64 = 45  # version needed to extract
_PADDING_ID = 0x4246  # extra field of a member of torch's


def write_archive(file: _C.storage.HashedFile, tensor: torch.Tensor) -> None:
    """Append the archive of a tensor on the CPU.

    Only its own numbers are written, in their order, not the storage of a view.
    """
    data = tensor.detach().contiguous()
    if data.dtype not in _storage_types():
        buffer = io.BytesIO()
        torch.save(data.clone(), buffer)
        file.write(buffer.getvalue())
        return
    writer = _ArchiveWriter(file)
    writer.add("data.pkl", _described(data))
    writer.add("byteorder", sys.byteorder.encode())
    writer.add_numbers("data/0", data)
    writer.add("version", _VERSION)
    writer.finish()


@dataclass(frozen=True, kw_only=True)
class _Member:
    """What the directory at the end says of a member."""

    name: bytes
    offset: int
    size: int
    crc: int
    flags: int


class _ArchiveWriter:
    def __init__(self, file: _C.storage.HashedFile) -> None:
        self._file = file
        self._begin = file.num_bytes
        self._members: list[_Member] = []

    def add(self, name: str, data: bytes) -> None:
        """A small member."""
        crc = zlib.crc32(data)
        member = self._member(name, size=len(data), crc=crc, flags=0)
        self._file.write(_local_header(member, crc=crc, size=len(data)) + data)
        self._members.append(member)

    def add_numbers(self, name: str, data: torch.Tensor) -> None:
        """The member whose checksum is made while it is written."""
        offset = self._offset()
        head = _local_header(
            self._member(name, size=0, crc=0, flags=_CRC_FOLLOWS), crc=0, size=0
        )
        padding = -(offset + len(head) + 4) % _ALIGNMENT
        extra = struct.pack("<HH", _PADDING_ID, padding) + b"Z" * padding
        head = head[:28] + struct.pack("<H", len(extra)) + head[30:]
        self._file.write(head + extra)
        crc = self._file.write_tensor(data)
        sizes = "<4sIQQ" if data.nbytes > _LIMIT else "<4sIII"
        self._file.write(struct.pack(sizes, b"PK\7\10", crc, data.nbytes, data.nbytes))
        self._members.append(
            _Member(
                name=(_ROOT + name).encode(),
                offset=offset,
                size=data.nbytes,
                crc=crc,
                flags=_CRC_FOLLOWS,
            )
        )

    def finish(self) -> None:
        """The directory of the members, and where it is."""
        begin = self._offset()
        entries = b"".join(_directory_entry(member) for member in self._members)
        count, size = len(self._members), len(entries)
        zip64_end = struct.pack(
            *("<4sQHHIIQQQQ", b"PK\6\6", 44, _ZIP64, _ZIP64),
            *(0, 0, count, count, size, begin),
        )
        locator = struct.pack("<4sIQI", b"PK\6\7", 0, begin + size, 1)
        end = struct.pack(
            *("<4sHHHHIIH", b"PK\5\6", 0, 0, count, count),
            *(size, min(begin, _LIMIT), 0),
        )
        self._file.write(entries + zip64_end + locator + end)

    def _offset(self) -> int:
        return self._file.num_bytes - self._begin

    def _member(self, name: str, *, size: int, crc: int, flags: int) -> _Member:
        return _Member(
            name=(_ROOT + name).encode(),
            offset=self._offset(),
            size=size,
            crc=crc,
            flags=flags,
        )


def _local_header(member: _Member, *, crc: int, size: int) -> bytes:
    fixed = struct.pack(
        *("<4sHHHHHIIIHH", b"PK\3\4", 0, member.flags, 0, 0, 0),
        *(crc, size, size, len(member.name), 0),
    )
    return fixed + member.name


def _directory_entry(member: _Member) -> bytes:
    numbers = (member.size, member.size, member.offset)
    large = b"".join(struct.pack("<Q", each) for each in numbers if each >= _LIMIT)
    extra = struct.pack("<HH", 1, len(large)) + large if large else b""
    size, offset = min(member.size, _LIMIT), min(member.offset, _LIMIT)
    needed = _ZIP64 if large else 0
    fixed = struct.pack(
        *("<4sHHHHHHIII", b"PK\1\2", 0, needed, member.flags, 0, 0, 0),
        *(member.crc, size, size),
    )
    rest = struct.pack("<HHHHHII", len(member.name), len(extra), 0, 0, 0, 0, offset)
    return fixed + rest + member.name + extra


class _Storage:
    """Pickled as the storage ``data/0`` of ``numel`` elements."""

    def __init__(self, dtype: torch.dtype, numel: int) -> None:
        self.dtype, self.numel = dtype, numel


class _Tensor:
    """Pickled as the call that makes the tensor of its storage."""

    def __init__(self, data: torch.Tensor) -> None:
        self._data = data

    def __reduce__(self) -> tuple[Any, ...]:
        data = self._data
        storage = _Storage(data.dtype, data.numel())
        shape, strides = tuple(data.shape), data.stride()
        arguments: tuple[Any, ...] = (storage, 0, shape, strides, False, OrderedDict())
        return (torch._utils._rebuild_tensor_v2, arguments)


@cache
def _storage_types() -> dict[torch.dtype, type]:
    """By dtype what a pickle names; torch writes younger dtypes in another way."""
    names: Any = torch.storage._dtype_to_storage_type_map()
    return {dtype: getattr(torch, name) for dtype, name in names.items()}


class _Pickler(pickle.Pickler):
    def persistent_id(self, value: Any) -> tuple[Any, ...] | None:
        if not isinstance(value, _Storage):
            return None
        kind = _storage_types()[value.dtype]
        return ("storage", kind, "0", "cpu", value.numel)


def _described(data: torch.Tensor) -> bytes:
    """The content of ``data.pkl``."""
    buffer = io.BytesIO()
    _Pickler(buffer, protocol=2).dump(_Tensor(data))
    return buffer.getvalue()
