"""Stored tensors that are read when they are written, and the progress of that."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial

import torch

from torchtitan_cpp.checkpoint.conversion import WeightSource
from torchtitan_cpp.checkpoint.exporting import read_whole
from torchtitan_cpp.checkpoint.selection import Candidate
from torchtitan_cpp.checkpoint.shards import dtype_of
from torchtitan_cpp.checkpoint.state import Kind, TensorEntry


@dataclass(frozen=True, kw_only=True)
class _StoredEntry(TensorEntry):
    """A whole tensor, on meta until it is written."""

    read: Callable[[], torch.Tensor]
    progress: Progress

    def numbers(self) -> torch.Tensor:
        whole = self.read()
        self.progress.add(whole.nbytes)
        return whole


def entries_of_checkpoint(
    candidate: Candidate, names: Iterable[str]
) -> list[TensorEntry]:
    """Tensors of a checkpoint of this package or of torch."""
    reader, tensors = candidate.open(), candidate.manifest.tensors
    progress = Progress()
    return [
        _entry(
            name,
            tensors[name].kind,
            tensors[name].shape,
            dtype_of(tensors[name].dtype),
            partial(read_whole, name, tensors[name], reader),
            progress,
        )
        for name in names
    ]


def entries_of_source(source: WeightSource) -> list[TensorEntry]:
    """Weights of a Hugging Face folder."""
    progress = Progress()
    return [
        _entry(
            name,
            "model",
            head.shape,
            head.dtype,
            partial(
                source.read_box, name, offset=[0] * len(head.shape), size=head.shape
            ),
            progress,
        )
        for name, head in source.heads.items()
    ]


def _entry(
    name: str,
    kind: Kind,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    read: Callable[[], torch.Tensor],
    progress: Progress,
) -> TensorEntry:
    local = torch.empty(shape, dtype=dtype, device="meta")
    progress.total += local.nbytes
    return _StoredEntry(
        name=name,
        kind=kind,
        local=local,
        global_shape=shape,
        offset=(0,) * len(shape),
        size=shape,
        is_writer=True,
        read=read,
        progress=progress,
    )


class Progress:
    """A line for every tenth of the bytes."""

    def __init__(self) -> None:
        self.total = 0
        self._done = 0

    def add(self, num_bytes: int) -> None:
        """Bytes that have just been read."""
        before = 10 * self._done // max(self.total, 1)
        self._done += num_bytes
        if 10 * self._done // max(self.total, 1) > before:
            mib = self._done / 2**20, self.total / 2**20
            print(f"{mib[0]:.1f} of {mib[1]:.1f} MiB", file=sys.stderr)
