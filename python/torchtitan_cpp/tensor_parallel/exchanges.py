"""Changes of an activation's layout, for autograd.

A layout says of a gradient what it says of its tensor: with ``Replicate`` every rank
has the same whole gradient, with ``Shard`` its part. In two cases the ranks' gradients
are parts of a sum: where divided products read a whole tensor, and where a whole
parameter meets a part of the tokens. The functions named ``..._for_products`` and
``sum_gradients...`` add them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from torchtitan_cpp.tensor_parallel.collectives import Axis, check_divisible
from torchtitan_cpp.tensor_parallel.layouts import Layout, Shard

_FOR_PRODUCTS = "_torchtitan_cpp_for_products"
"""Attribute of a whole tensor: its version, and itself for divided products."""


def relayout(x: torch.Tensor, have: Layout, want: Layout, axis: Axis) -> torch.Tensor:
    """``x`` in another layout.

    Raises:
        ValueError: for a dim that cannot be divided equally.
    """
    if isinstance(have, Shard) and isinstance(want, Shard):
        if have.dim % x.dim() == want.dim % x.dim():
            return x
        return _own_part(_gather(x, have, axis), want.dim, axis)
    if isinstance(have, Shard):
        return _gather(x, have, axis)
    if isinstance(want, Shard):
        return _own_part(x, want.dim, axis)
    return x


def gather_columns(x: torch.Tensor, total: int, axis: Axis) -> torch.Tensor:
    """The last dim, ``total`` in all, which may be divided unevenly."""
    return _apply(_Gather, x, -1, total, axis)


def for_products(x: torch.Tensor, have: Layout, axis: Axis) -> torch.Tensor:
    """The whole tensor, where each rank multiplies it by its part of a weight.

    Products that read the same tensor share the exchange of their gradients.
    """
    if isinstance(have, Shard):
        total = x.shape[have.dim] * axis.size
        return _apply(_GatherForProducts, x, have.dim, total, axis)
    # A compiler's graph has no place for the attribute; on a leaf it would keep itself
    # alive, by way of its graph.
    if torch.compiler.is_compiling() or x.is_leaf:
        return sum_gradients(x, axis)
    version, shared = getattr(x, _FOR_PRODUCTS, (-1, x))
    if version != x._version:
        shared = sum_gradients(x, axis)
        setattr(x, _FOR_PRODUCTS, (x._version, shared))
    return shared


def sum_gradients(x: torch.Tensor, axis: Axis) -> torch.Tensor:
    """The same tensor; its gradient is the sum over the ranks."""
    (same,) = sum_gradients_of([x], axis)
    return same


def sum_gradients_of(
    tensors: Sequence[torch.Tensor], axis: Axis
) -> tuple[torch.Tensor, ...]:
    """The same of several tensors of one dtype, by one exchange."""
    return _SumGradients.apply(axis, *tensors)  # type: ignore[no-any-return, no-untyped-call]


def sum_parts(x: torch.Tensor, want: Layout, axis: Axis) -> torch.Tensor:
    """The sum over the ranks of what each has, in a layout."""
    if isinstance(want, Shard):
        return _apply(_SumScatter, x, want.dim, axis)
    return _apply(_SumAll, x, axis)


def _own_part(x: torch.Tensor, dim: int, axis: Axis) -> torch.Tensor:
    check_divisible(x, dim, axis)
    return _apply(_OwnPart, x, dim, axis)


def _gather(x: torch.Tensor, have: Shard, axis: Axis) -> torch.Tensor:
    total = x.shape[have.dim] * axis.size
    whole = _apply(_Gather, x, have.dim, total, axis)
    if whole.requires_grad and not torch.compiler.is_compiling():
        # Its products scatter the sum of their gradients at once.
        known = _apply(_KnownGather, x, whole.detach(), have.dim, axis)
        setattr(whole, _FOR_PRODUCTS, (whole._version, known))
    return whole


def _apply(function: type[torch.autograd.Function], *args: Any) -> torch.Tensor:
    result: torch.Tensor = function.apply(*args)  # type: ignore[no-untyped-call]
    return result


def _narrow(x: torch.Tensor, dim: int, axis: Axis) -> torch.Tensor:
    begin, end = axis.range_of(x.shape[dim])
    return x.narrow(dim, begin, end - begin)


class _Gather(torch.autograd.Function):
    """Parts to the whole; backward takes the part."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, dim: int, total: int, axis: Axis
    ) -> torch.Tensor:
        ctx.dim, ctx.axis = dim, axis
        return axis.all_gather(x, dim, total)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return _narrow(gradient, ctx.dim, ctx.axis).contiguous(), None, None, None


class _GatherForProducts(torch.autograd.Function):
    """Parts to the whole; backward takes the part of the sum."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, dim: int, total: int, axis: Axis
    ) -> torch.Tensor:
        ctx.dim, ctx.axis = dim, axis
        return axis.all_gather(x, dim, total)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return ctx.axis.reduce_scatter(gradient, ctx.dim), None, None, None


class _KnownGather(torch.autograd.Function):
    """The same where the whole is there already."""

    @staticmethod
    def forward(
        ctx: Any, x: torch.Tensor, whole: torch.Tensor, dim: int, axis: Axis
    ) -> torch.Tensor:
        ctx.dim, ctx.axis = dim, axis
        return whole.view_as(whole)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return ctx.axis.reduce_scatter(gradient, ctx.dim), None, None, None


class _OwnPart(torch.autograd.Function):
    """The whole to parts; backward gathers."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int, axis: Axis) -> torch.Tensor:
        ctx.dim, ctx.axis, ctx.total = dim, axis, x.shape[dim]
        return _narrow(x, dim, axis).clone(memory_format=torch.contiguous_format)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return ctx.axis.all_gather(gradient, ctx.dim, ctx.total), None, None


class _SumAll(torch.autograd.Function):
    """The sum on every rank; backward is the identity."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, axis: Axis) -> torch.Tensor:
        return axis.all_reduce(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return gradient, None


class _SumScatter(torch.autograd.Function):
    """Parts of the sum; backward gathers."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dim: int, axis: Axis) -> torch.Tensor:
        ctx.dim, ctx.axis, ctx.total = dim, axis, x.shape[dim]
        return axis.reduce_scatter(x, dim)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        return ctx.axis.all_gather(gradient, ctx.dim, ctx.total), None, None


class _SumGradients(torch.autograd.Function):
    """The identity; backward sums."""

    @staticmethod
    def forward(
        ctx: Any, axis: Axis, *tensors: torch.Tensor
    ) -> tuple[torch.Tensor, ...]:
        ctx.axis = axis
        return tuple(x.view_as(x) for x in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        if len(gradients) == 1:
            return None, ctx.axis.all_reduce(gradients[0])
        total = ctx.axis.all_reduce(torch.cat([each.flatten() for each in gradients]))
        parts = total.split([each.numel() for each in gradients])
        pairs = zip(parts, gradients, strict=True)
        return None, *(part.view(like.shape) for part, like in pairs)
