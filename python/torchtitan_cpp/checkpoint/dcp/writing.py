"""A rank's boxes as blobs of its file of a DCP folder."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.checkpoint.dcp.archive import write_archive
from torchtitan_cpp.checkpoint.dcp.blobs import address
from torchtitan_cpp.checkpoint.manifest import StoredFile
from torchtitan_cpp.checkpoint.shards import num_io_threads, stored_dtype
from torchtitan_cpp.checkpoint.state import Json, TensorEntry, TorchSettings


class BlobWriter:
    """A new file of blobs, readable by its owner only.

    Raises:
        OSError: with the path and the reason, on a full disk the free bytes.
    """

    def __init__(self, folder: str, name: str) -> None:
        self._name = name
        self._file = _C.storage.HashedFile(
            os.path.join(folder, name), num_threads=num_io_threads()
        )

    def save(self, value: Any) -> str:
        """Append what ``torch.save`` makes of a tensor or value; returns its address.

        A tensor must be on the CPU; only its own numbers are written, in their order.
        """
        begin = self._file.num_bytes
        if isinstance(value, torch.Tensor):
            write_archive(self._file, value)
        else:
            buffer = io.BytesIO()
            torch.save(value, buffer)
            self.write(buffer.getvalue())
        return address(begin, self._file.num_bytes - begin)

    def write(self, data: bytes) -> None:
        """Append bytes that are no blob."""
        self._file.write(data)

    def finish(self) -> StoredFile:
        """Make the file durable."""
        return StoredFile.of(self._name, self._file.finish())


def write_dcp_shard(
    folder: str,
    rank: int,
    entries: Sequence[TensorEntry],
    *,
    export_dtype: torch.dtype | None,
) -> dict[str, Json]:
    """Write the boxes that this rank is the writer of; durable on return.

    Arguments and result are those of ``shards.write_shard``; the key of a box is its
    blob's address.
    """
    reports: list[dict[str, Json]] = []
    written = [entry for entry in entries if entry.is_writer]
    if not any(entry.numel for entry in written):
        return {
            "file": None,
            "tensors": [_report(e, export_dtype, "") for e in written],
        }
    writer = BlobWriter(folder, f"__{rank}_0.distcp")
    for entry in written:
        blob = ""
        if entry.numel > 0:
            dtype = stored_dtype(entry, export_dtype)
            blob = writer.save(entry.numbers().to("cpu", dtype))
        reports.append(_report(entry, export_dtype, blob))
    return {"file": asdict(writer.finish()), "tensors": reports}


def report_settings(settings: TorchSettings | None) -> dict[str, Json]:
    """This rank's parameter groups, equal ones once, as JSON."""
    groups: list[Mapping[str, Json]] = []
    group_of: dict[str, Json] = {}
    for fqn, group in (settings.param_groups if settings else {}).items():
        if group not in groups:
            groups.append(group)
        group_of[fqn] = groups.index(group)
    return {"groups": groups, "group_of": group_of}


def _report(
    entry: TensorEntry, export_dtype: torch.dtype | None, blob: str
) -> dict[str, Json]:
    return {
        "name": entry.name,
        "kind": entry.kind,
        "dtype": _C.storage.dtype_name(stored_dtype(entry, export_dtype)),
        "shape": entry.global_shape,
        "key": blob,
        "offset": entry.offset,
        "size": entry.size,
    }
