"""Pickles read without running anything: only the names listed here are known.

Objects of torch's checkpoint classes become plain records, tensors become descriptions
of where their numbers lie. Every other global name is refused, so that a pickle can
call nothing but the small functions of this module.
"""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
}

_STORAGES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64,
    "ComplexDoubleStorage": torch.complex128,
}


class Record:
    """An object of a class that is not imported: its fields, nothing else."""

    fields: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.fields = state


class Metadata(Record):
    """Of a whole folder."""


class TensorMetadata(Record):
    """Of a tensor: properties, size, chunks."""


class BytesMetadata(Record):
    """Of anything else."""


class Chunk(Record):
    """Offsets and sizes of a box."""


class Properties(Record):
    """``fields[0]`` is the dtype."""


class Index(Record):
    """Name and offset of a box; name alone for anything else."""


class Place(Record):
    """File, offset and length in bytes."""


class MemoryFormat(Record):
    """``arguments[0]`` is its number, or its name."""


class Storage(NamedTuple):
    """The numbers of a tensor: a file of the archive that holds it."""

    dtype: torch.dtype | None
    """None: that of the tensor."""
    key: str


class SavedTensor(NamedTuple):
    """What ``torch.save`` says about a tensor; lengths in elements."""

    dtype: torch.dtype
    storage_key: str
    storage_offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def read_metadata(data: bytes) -> Any:
    """What a file ``.metadata`` holds, as records.

    Raises:
        ValueError: for other names than those of a checkpoint, or no pickle at all.
    """
    return _read(data, _METADATA_NAMES)


def read_value(data: bytes) -> Any:
    """What ``torch.save`` has pickled: numbers, texts, containers, tensors' places.

    Raises:
        ValueError: as in ``read_metadata``.
    """
    return _read(data, _VALUE_NAMES)


class _Unpickler(pickle.Unpickler):
    def __init__(self, data: bytes, names: Mapping[tuple[str, str], Any]) -> None:
        super().__init__(io.BytesIO(data))
        self._names = names

    def find_class(self, module: str, name: str) -> Any:
        if module == "torch" and name in _DTYPES:
            return _DTYPES[name]
        if (module, name) not in self._names:
            raise pickle.UnpicklingError(
                f"{module}.{name} does not belong into a checkpoint"
            )
        return self._names[module, name]

    def persistent_load(self, pid: Any) -> Storage:
        kind, storage, key, _, _ = pid
        if kind != "storage" or not isinstance(storage, Storage):
            raise pickle.UnpicklingError("expected the storage of a tensor")
        return Storage(storage.dtype, str(key))


def _read(data: bytes, names: Mapping[tuple[str, str], Any]) -> Any:
    try:
        return _Unpickler(data, names).load()
    except Exception as error:  # a damaged pickle raises whatever its bytes ask for
        raise ValueError(str(error) or type(error).__name__) from error


def _size(values: Any = ()) -> tuple[int, ...]:
    return tuple(values)


def _member(owner: Any, name: Any) -> MemoryFormat:
    """In place of ``getattr``, by which some releases of Python 3.11 pickle an enum."""
    if owner is not MemoryFormat or not isinstance(name, str):
        raise pickle.UnpicklingError("getattr does not belong into a checkpoint")
    return MemoryFormat(name)


def _tensor_v2(
    storage: Storage, offset: int, shape: Any, stride: Any, *_: Any
) -> SavedTensor:
    if storage.dtype is None:
        raise ValueError("a tensor without a dtype")
    return SavedTensor(storage.dtype, storage.key, offset, tuple(shape), tuple(stride))


def _tensor_v3(
    *arguments: Any,
) -> SavedTensor:
    storage, offset, shape, stride, _, _, dtype = arguments[:7]
    if not isinstance(dtype, torch.dtype):
        raise ValueError("a tensor without a dtype")
    return SavedTensor(dtype, storage.key, offset, tuple(shape), tuple(stride))


_CHECKPOINT = "torch.distributed.checkpoint."
_METADATA_NAMES: dict[tuple[str, str], Any] = {
    (_CHECKPOINT + "metadata", "Metadata"): Metadata,
    (_CHECKPOINT + "metadata", "TensorStorageMetadata"): TensorMetadata,
    (_CHECKPOINT + "metadata", "BytesStorageMetadata"): BytesMetadata,
    (_CHECKPOINT + "metadata", "ChunkStorageMetadata"): Chunk,
    (_CHECKPOINT + "metadata", "TensorProperties"): Properties,
    (_CHECKPOINT + "metadata", "MetadataIndex"): Index,
    (_CHECKPOINT + "metadata", "StorageMeta"): Record,
    (_CHECKPOINT + "metadata", "_MEM_FORMAT_ENCODING"): MemoryFormat,
    ("builtins", "getattr"): _member,
    (_CHECKPOINT + "filesystem", "_StorageInfo"): Place,
    ("torch", "Size"): _size,
    ("torch.serialization", "_get_layout"): Record,
    ("collections", "OrderedDict"): OrderedDict,
    ("pathlib", "PosixPath"): Record,
    ("pathlib", "WindowsPath"): Record,
    ("pathlib._local", "PosixPath"): Record,
    ("pathlib._local", "WindowsPath"): Record,
}
_VALUE_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("torch", "Size"): _size,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor_v2,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor_v3,
    ("torch.storage", "UntypedStorage"): Storage(None, ""),
    **{("torch", name): Storage(dtype, "") for name, dtype in _STORAGES.items()},
}
