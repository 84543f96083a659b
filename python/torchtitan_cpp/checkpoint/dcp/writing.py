"""A rank's boxes as blobs of its file of a DCP folder."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import IO, Any, cast

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.checkpoint.dcp.blobs import address
from torchtitan_cpp.checkpoint.manifest import StoredFile
from torchtitan_cpp.checkpoint.shards import stored_dtype
from torchtitan_cpp.checkpoint.state import Json, TensorEntry, TorchSettings


class BlobWriter:
    """A new file of blobs, readable by its owner only.

    Raises:
        OSError: with the path and the reason, on a full disk the free bytes.
    """

    def __init__(self, folder: str, name: str) -> None:
        self._folder, self._name = folder, name
        self._path = os.path.join(folder, name)
        self._hash = hashlib.sha256()
        self._size = 0
        self._failure: OSError | None = None
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._descriptor = os.open(self._path, flags, 0o600)

    def save(self, value: Any) -> str:
        """Append what ``torch.save`` makes of a tensor or value; returns its address.

        A tensor must be on the CPU; only its own numbers are written, in their order.
        """
        begin = self._size
        if isinstance(value, torch.Tensor):
            value = _alone(value)
        torch.save(value, cast("IO[bytes]", self))
        self._check()
        return address(begin, self._size - begin)

    def write(self, data: Any) -> int:
        """For ``torch.save``: a failure is kept, for its C code expects none."""
        view = memoryview(data).cast("B")
        self._hash.update(view)
        total = len(view)
        while view and self._failure is None:
            try:
                count = os.write(self._descriptor, view)
            except OSError as error:
                self._failure = self._explain(error, f"write {total} bytes")
            else:
                view = view[count:]
        self._size += total
        return total

    def flush(self) -> None:
        """For ``torch.save``: nothing waits in memory."""

    def finish(self) -> StoredFile:
        """Make the file durable and close it."""
        self._check()
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise self._explain(error, "make durable") from None
        finally:
            self.close()
        return StoredFile(
            name=self._name, size_bytes=self._size, sha256=self._hash.hexdigest()
        )

    def close(self) -> None:
        """Also of a file that was not finished."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _check(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _explain(self, error: OSError, what: str) -> OSError:
        free = os.statvfs(self._folder)
        text = f"{self._path}: cannot {what}: {error.strerror}"
        text += f" ({free.f_bavail * free.f_frsize} bytes free)"
        explained = type(error)(text)
        explained.errno = error.errno
        return explained


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
    try:
        for entry in written:
            blob = ""
            if entry.numel > 0:
                dtype = stored_dtype(entry, export_dtype)
                blob = writer.save(entry.numbers().to("cpu", dtype))
            reports.append(_report(entry, export_dtype, blob))
        file = writer.finish()
    finally:
        writer.close()
    return {
        "file": {
            "name": file.name,
            "size_bytes": file.size_bytes,
            "sha256": file.sha256,
        },
        "tensors": reports,
    }


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


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    """The same numbers as a storage of their own, without a copy where that is so.

    ``torch.save`` writes the whole storage of a view, such as of a flat buffer.
    """
    whole = tensor.contiguous()
    if whole.untyped_storage().nbytes() == whole.nbytes:
        return whole
    data = torch.from_numpy(whole.reshape(-1).view(torch.uint8).numpy())
    return data.view(whole.dtype).view(whole.shape)
