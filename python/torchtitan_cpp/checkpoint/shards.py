"""A rank's boxes: written to its own safetensors file, read from anybody's files."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from typing import Any, TypeVar

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.checkpoint.manifest import StoredBox, StoredFile, StoredTensor
from torchtitan_cpp.checkpoint.state import Json, TensorEntry

File = TypeVar("File", int, str)
Reader = TypeVar("Reader")

_NUM_KEPT_OPEN = 16
"""Files; a checkpoint may have thousands, and each keeps two blocks."""


def num_io_threads() -> int:
    """Threads of a rank that hash, and read or write, at once.

    More than a few do not speed up one file.
    """
    cores = len(os.sched_getaffinity(0))
    return max(1, min(4, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def kept_open(
    readers: dict[File, Reader], file: File, make: Callable[[], Reader]
) -> Reader:
    """The reader of a file, made if it is not among the last ones that were used."""
    reader = readers.pop(file, None)
    if reader is None:
        reader = make()
        if len(readers) == _NUM_KEPT_OPEN:
            del readers[next(iter(readers))]
    readers[file] = reader  # behind those that were used before
    return reader


def shard_name(rank: int) -> str:
    """File of a rank."""
    return f"rank-{rank:05d}.safetensors"


def write_shard(
    folder: str,
    rank: int,
    entries: Sequence[TensorEntry],
    *,
    export_dtype: torch.dtype | None,
) -> dict[str, Json]:
    """Write the boxes that this rank is the writer of; durable on return.

    Args:
        export_dtype: floating-point tensors are cast to it; None keeps all dtypes.
    Returns:
        A report for ``collect_shards``: ``file`` (None when there is nothing to write)
        and ``tensors``.
    """
    written = [entry for entry in entries if entry.is_writer]
    # Wider dtypes first, so that every tensor of the file is aligned.
    written.sort(key=lambda entry: -stored_dtype(entry, export_dtype).itemsize)
    keys: dict[str, int] = {}
    boxes: list[tuple[str, TensorEntry]] = []
    reports: list[dict[str, Json]] = []
    for entry in written:
        count = keys[entry.name] = keys.get(entry.name, 0) + 1
        key = entry.name if count == 1 else f"{entry.name}#{count}"
        reports.append(
            {
                "name": entry.name,
                "kind": entry.kind,
                "dtype": _C.storage.dtype_name(stored_dtype(entry, export_dtype)),
                "shape": entry.global_shape,
                "key": key,
                "offset": entry.offset,
                "size": entry.size,
            }
        )
        if entry.numel > 0:
            boxes.append((key, entry))
    if not boxes:
        return {"file": None, "tensors": reports}
    name = shard_name(rank)
    writer = _C.storage.SafetensorsWriter(
        os.path.join(folder, name),
        [(key, stored_dtype(e, export_dtype), e.size) for key, e in boxes],
        metadata={},
        num_threads=num_io_threads(),
    )
    for key, entry in boxes:
        dtype = stored_dtype(entry, export_dtype)
        writer.append(key, entry.numbers().to("cpu", dtype).contiguous())
    file = StoredFile.of(name, writer.finish())
    return {"file": asdict(file), "tensors": reports}


def collect_shards(
    reports: Sequence[Mapping[str, Any]],
) -> tuple[tuple[StoredFile, ...], dict[str, StoredTensor]]:
    """Files and tensors of a manifest from the reports of all ranks.

    Raises:
        ValueError: if two ranks describe one tensor differently.
    """
    files: list[StoredFile] = []
    heads: dict[str, tuple[Any, ...]] = {}
    boxes: dict[str, list[StoredBox]] = {}
    for rank, report in enumerate(reports):
        if report["file"] is not None:
            files.append(StoredFile(**report["file"]))
        for tensor in report["tensors"]:
            name = tensor["name"]
            head = (tensor["kind"], tensor["dtype"], tuple(tensor["shape"]))
            if heads.setdefault(name, head) != head:
                raise ValueError(
                    f"{name}: rank {rank} has {head}, a rank before it {heads[name]}"
                )
            held = boxes.setdefault(name, [])
            if 0 not in tensor["size"]:
                held.append(
                    StoredBox(
                        file=len(files) - 1,
                        key=tensor["key"],
                        offset=tuple(tensor["offset"]),
                        size=tuple(tensor["size"]),
                    )
                )
    tensors = {
        name: StoredTensor(
            kind=kind, dtype=dtype, shape=shape, boxes=tuple(boxes[name])
        )
        for name, (kind, dtype, shape) in heads.items()
    }
    return tuple(files), tensors


class BoxReader(ABC):
    """Reads boxes of the tensors of a checkpoint, whatever its files are."""

    def fill(self, entry: TensorEntry, stored: StoredTensor) -> None:
        """Fill the entry's local tensor, cast where its dtype is another."""
        if entry.numel == 0 or not stored.boxes:
            return
        dtype = self.dtype_of(stored)
        local = entry.local.detach()
        is_direct = local.device.type == "cpu" and local.dtype == dtype
        target = local if is_direct else torch.empty(entry.size, dtype=dtype)
        for box in stored.boxes:
            self._copy(box, entry, target)
        if not is_direct:
            local.copy_(target)

    @abstractmethod
    def dtype_of(self, stored: StoredTensor) -> torch.dtype | None:
        """Dtype of the numbers in the files; None for a tensor without elements."""

    @abstractmethod
    def read(
        self,
        box: StoredBox,
        out: torch.Tensor,
        *,
        offset: Sequence[int],
        size: Sequence[int],
        out_offset: Sequence[int],
    ) -> None:
        """Copy a part of a stored box into ``out`` (CPU, contiguous, same dtype)."""

    def _copy(self, box: StoredBox, entry: TensorEntry, out: torch.Tensor) -> None:
        """Copy the intersection of a stored box and the entry's box."""
        low = [max(a, b) for a, b in zip(box.offset, entry.offset, strict=True)]
        high = [
            min(a + m, b + n)
            for a, m, b, n in zip(
                box.offset, box.size, entry.offset, entry.size, strict=True
            )
        ]
        size = [h - start for start, h in zip(low, high, strict=True)]
        if any(s <= 0 for s in size):
            return
        self.read(
            box,
            out,
            offset=[start - o for start, o in zip(low, box.offset, strict=True)],
            size=size,
            out_offset=[start - o for start, o in zip(low, entry.offset, strict=True)],
        )


class ShardReader(BoxReader):
    """Reads the package's own files; keeps the last ones that it used open.

    What it reads is compared with ``StoredFile.block_sha256``, where there is one:
    ValueError for a file that is not what was written.
    """

    def __init__(self, folder: str, files: Sequence[StoredFile]) -> None:
        self._folder = folder
        self._files = files
        self._readers: dict[int, _C.storage.SafetensorsReader] = {}
        self._dtypes: dict[int, dict[str, torch.dtype]] = {}

    def dtype_of(self, stored: StoredTensor) -> torch.dtype | None:
        if not stored.boxes:
            return None
        first = stored.boxes[0]
        self._reader(first.file)
        return self._dtypes[first.file][first.key]

    def read(
        self,
        box: StoredBox,
        out: torch.Tensor,
        *,
        offset: Sequence[int],
        size: Sequence[int],
        out_offset: Sequence[int],
    ) -> None:
        self._reader(box.file).read_box(
            box.key, out, offset=offset, size=size, out_offset=out_offset
        )

    def _reader(self, file: int) -> _C.storage.SafetensorsReader:
        def make() -> _C.storage.SafetensorsReader:
            reader = _C.storage.SafetensorsReader(
                os.path.join(self._folder, self._files[file].name),
                blocks=self._files[file].block_sha256,
                num_threads=num_io_threads(),
            )
            self._dtypes[file] = {k: dtype for k, (dtype, _) in reader.entries.items()}
            return reader

        return kept_open(self._readers, file, make)


def stored_dtype(entry: TensorEntry, export_dtype: torch.dtype | None) -> torch.dtype:
    """Dtype of a box in its file."""
    if export_dtype is None or not entry.local.is_floating_point():
        return entry.local.dtype
    return export_dtype


def dtype_of(name: str) -> torch.dtype:
    """Of a name as ``StoredTensor.dtype`` has it.

    Raises:
        ValueError: for another name.
    """
    if name not in _dtypes():
        raise ValueError(f"no dtype has the name {name!r}")
    return _dtypes()[name]


@cache
def _dtypes() -> dict[str, torch.dtype]:
    found = {}
    for dtype in vars(torch).values():
        if isinstance(dtype, torch.dtype):
            with suppress(ValueError):  # one that files do not have
                found[_C.storage.dtype_name(dtype)] = dtype
    return found
