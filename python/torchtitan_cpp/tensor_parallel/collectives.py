"""Exchanges along one dim of a tensor, as functions that autograd does not see.

Operators of torch's dispatcher, so that a compiler traces them and activation
checkpointing by operation tells them apart.
"""

from __future__ import annotations

import itertools
import weakref

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.rank_thread import pause

Group = _C.collectives.Group


class Axis:
    """The ranks of a tensor axis; ``key`` names them to the operators."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.rank = int(group.rank)
        self.size = int(group.size)
        self.key = next(_keys)
        _axes[self.key] = self

    def range_of(self, total: int) -> tuple[int, int]:
        """Begin and end of this rank's part of a dim, divided like torch.chunk."""
        chunk = -(-total // self.size)
        return min(self.rank * chunk, total), min((self.rank + 1) * chunk, total)

    def all_gather(self, x: torch.Tensor, dim: int, total: int) -> torch.Tensor:
        """The ranks' parts of ``dim``, divided like torch.chunk, to all ``total``."""
        if x.is_meta:  # the operator is not run there, and nothing would be counted
            return _all_gather(x, dim, total, self)
        return torch.ops.torchtitan_cpp.all_gather(x, dim, total, self.key)  # type: ignore[no-any-return]

    def reduce_scatter(self, x: torch.Tensor, dim: int) -> torch.Tensor:
        """This rank's part of ``dim`` of the sum over the ranks; equal parts.

        Raises:
            ValueError: for a dim that cannot be divided equally.
        """
        if x.is_meta:
            return _reduce_scatter(x, dim, self)
        return torch.ops.torchtitan_cpp.reduce_scatter(x, dim, self.key)  # type: ignore[no-any-return]

    def all_reduce(self, x: torch.Tensor) -> torch.Tensor:
        """The sum over the ranks, added in float32 or wider."""
        if x.is_meta:
            return _all_reduce(x, self)
        return torch.ops.torchtitan_cpp.all_reduce(x, self.key)  # type: ignore[no-any-return]


_keys = itertools.count()
_axes: weakref.WeakValueDictionary[int, Axis] = weakref.WeakValueDictionary()


def _all_gather(x: torch.Tensor, dim: int, total: int, axis: Axis) -> torch.Tensor:
    # Rows of the dim first, so that the ranks' parts follow each other.
    rows = x.movedim(dim, 0)
    chunk = -(-total // axis.size)
    if rows.shape[0] < chunk:
        rows = torch.cat([rows, rows.new_zeros(chunk - rows.shape[0], *rows.shape[1:])])
    rows = rows.contiguous()
    every = rows.new_empty(axis.size * chunk, *rows.shape[1:])
    with pause():
        axis.group.all_gather(every, rows).wait()
    return every[:total].movedim(0, dim).contiguous()


def _reduce_scatter(x: torch.Tensor, dim: int, axis: Axis) -> torch.Tensor:
    check_divisible(x, dim, axis)
    rows = x.movedim(dim, 0).contiguous()
    own = rows.new_empty(rows.shape[0] // axis.size, *rows.shape[1:])
    with pause():
        axis.group.reduce_scatter(own, rows).wait()
    return own.movedim(0, dim).contiguous()


def _all_reduce(x: torch.Tensor, axis: Axis) -> torch.Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    total = x.to(wide, copy=True, memory_format=torch.contiguous_format)
    with pause():
        axis.group.all_reduce(total).wait()
    return total.to(x.dtype)


def check_divisible(x: torch.Tensor, dim: int, axis: Axis) -> None:
    """
    Raises:
        ValueError: unless the ranks can have equal parts of ``dim``.
    """
    if x.shape[dim] % axis.size:
        raise ValueError(
            f"dim {dim} of a tensor of shape {list(x.shape)} cannot be divided among "
            f"{axis.size} ranks of tensor parallelism"
        )


@torch.library.custom_op("torchtitan_cpp::all_gather", mutates_args=())
def _all_gather_op(x: torch.Tensor, dim: int, total: int, axis: int) -> torch.Tensor:
    return _all_gather(x, dim, total, _axes[axis])


@_all_gather_op.register_fake
def _(x: torch.Tensor, dim: int, total: int, axis: int) -> torch.Tensor:
    shape = list(x.shape)
    shape[dim] = total
    return x.new_empty(shape)


@torch.library.custom_op("torchtitan_cpp::reduce_scatter", mutates_args=())
def _reduce_scatter_op(x: torch.Tensor, dim: int, axis: int) -> torch.Tensor:
    return _reduce_scatter(x, dim, _axes[axis])


@_reduce_scatter_op.register_fake
def _(x: torch.Tensor, dim: int, axis: int) -> torch.Tensor:
    shape = list(x.shape)
    shape[dim] = shape[dim] // _axes[axis].size
    return x.new_empty(shape)


@torch.library.custom_op("torchtitan_cpp::all_reduce", mutates_args=())
def _all_reduce_op(x: torch.Tensor, axis: int) -> torch.Tensor:
    total = _all_reduce(x, _axes[axis])
    return total


@_all_reduce_op.register_fake
def _(x: torch.Tensor, axis: int) -> torch.Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)
