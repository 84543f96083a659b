"""Threads as ranks, and layouts of tensors over them, for the checkpoint tests."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch

from torchtitan_cpp.checkpoint import TensorEntry, TrainingState
from torchtitan_cpp.checkpoint.state import Json

Result = TypeVar("Result")


class ThreadRanks:
    """One rank of a world of threads."""

    def __init__(self, rank: int, barrier: threading.Barrier, slots: list[bytes]):
        self.rank = rank
        self.world_size = barrier.parties
        self._barrier = barrier
        self._slots = slots

    def barrier(self) -> None:
        self._barrier.wait(timeout=60)

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        self._slots[self.rank] = data
        self.barrier()
        gathered = list(self._slots)
        self.barrier()
        return gathered


def run_ranks(world_size: int, body: Callable[[ThreadRanks], Result]) -> list[Any]:
    """What ``body`` returned or raised on each rank."""
    barrier = threading.Barrier(world_size)
    slots = [b""] * world_size

    def act(rank: int) -> Result | Exception:
        try:
            return body(ThreadRanks(rank, barrier, slots))
        except Exception as error:
            return error

    with ThreadPoolExecutor(world_size) as pool:
        return list(pool.map(act, range(world_size)))


def results(outcomes: list[Any]) -> list[Any]:
    """The outcomes of ranks that all must have succeeded."""
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
    return outcomes


@dataclass(frozen=True)
class Grid:
    """Ranks as replicas x parts of dim 0 x parts of dim 1; chunks as torch.chunk."""

    replicas: int = 1
    rows: int = 1
    columns: int = 1

    @property
    def world_size(self) -> int:
        return self.replicas * self.rows * self.columns

    def box(
        self, rank: int, shape: tuple[int, ...]
    ) -> tuple[tuple[int, ...], tuple[int, ...], bool]:
        """Offset, size, and whether this rank writes the box."""
        rest, column = divmod(rank, self.columns)
        replica, row = divmod(rest, self.rows)
        offset, size = [0] * len(shape), list(shape)
        is_writer = replica == 0
        for dim, (index, parts) in enumerate(
            [(row, self.rows), (column, self.columns)]
        ):
            if dim >= len(shape):
                is_writer = is_writer and index == 0  # not split: replicated
                continue
            chunk = math.ceil(shape[dim] / parts)
            offset[dim] = min(chunk * index, shape[dim])
            size[dim] = min(chunk, shape[dim] - offset[dim])
        return tuple(offset), tuple(size), is_writer


def state_of(
    tensors: Mapping[str, torch.Tensor],
    grid: Grid,
    rank: int,
    *,
    zeros: bool = False,
    scalars: Mapping[str, Json] | None = None,
    gathered: Mapping[str, Json] | None = None,
) -> TrainingState:
    """The rank's boxes of global tensors, or zeros to be filled."""
    entries = []
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        offset, size, is_writer = grid.box(rank, shape)
        local = tensor
        for dim in range(tensor.dim()):
            local = local.narrow(dim, offset[dim], size[dim])
        local = torch.zeros(size, dtype=tensor.dtype) if zeros else local.contiguous()
        entries.append(
            TensorEntry(
                name=name,
                kind="optimizer" if name.startswith("optimizer.") else "model",
                local=local,
                global_shape=shape,
                offset=offset,
                size=size,
                is_writer=is_writer,
            )
        )
    return TrainingState(
        tensors=entries, scalars=scalars or {}, gathered=gathered or {}
    )


def with_unknown_dtype(state: TrainingState) -> TrainingState:
    """A state that this rank cannot write: no file has the dtype of its last tensor."""
    bad = torch.zeros((), dtype=torch.complex128)
    extra = replace(state.tensors[-1], name="bad", local=bad, is_writer=True)
    return replace(state, tensors=[*state.tensors, extra])


def is_box_of(entry: TensorEntry, tensor: torch.Tensor) -> bool:
    """Whether the local tensor is, bit for bit, that box of the global one."""
    for dim in range(tensor.dim()):
        tensor = tensor.narrow(dim, entry.offset[dim], entry.size[dim])
    return entry.local.dtype == tensor.dtype and torch.equal(entry.local, tensor)


def example_tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    """Uneven sizes, several dtypes, a scalar, one smaller than the world, one empty."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"layers.0.wq.weight": (7, 5), "norm.weight": (13,), "tiny": (2, 3)}
    tensors = {
        name: torch.randn(shape, generator=generator) for name, shape in shapes.items()
    }
    tensors["half"] = torch.randn(9, 4, generator=generator).bfloat16()
    tensors["empty"] = torch.empty(0, 4)
    tensors["optimizer.exp_avg.layers.0.wq.weight"] = torch.randn(
        7, 5, generator=generator
    )
    tensors["optimizer.step"] = torch.tensor(float(seed + 3))
    return tensors
