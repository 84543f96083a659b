"""Makes styled modules exchange what their layouts say."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from torchtitan_cpp.tensor_parallel.collectives import Axis
from torchtitan_cpp.tensor_parallel.exchanges import (
    for_products,
    gather_columns,
    relayout,
    sum_parts,
)
from torchtitan_cpp.tensor_parallel.layouts import Layout, Replicate, Shard
from torchtitan_cpp.tensor_parallel.plan import Styled
from torchtitan_cpp.tensor_parallel.styles import (
    ColwiseParallel,
    PrepareModuleInput,
    PrepareModuleInputOutput,
    PrepareModuleOutput,
    RowwiseParallel,
    SequenceParallel,
)

Change = Callable[[torch.Tensor], torch.Tensor]

LOCAL_RESULT_OF = "_torchtitan_cpp_local_result_of"
"""Attribute of a divided result: the name of its module."""


def apply_styles(styled: Sequence[Styled], axis: Axis) -> None:
    """Change the modules' calls; their parameters become this rank's pieces elsewhere.

    Everything is done by hooks and by methods of the objects, so that names and types
    of modules stay.
    """
    for each in styled:
        style, module = each.style, each.module
        if isinstance(style, ColwiseParallel):
            _apply_colwise(module, style, each.name, axis)
        elif isinstance(style, RowwiseParallel):
            _apply_rowwise(module, style, axis)
        elif isinstance(style, SequenceParallel):
            _apply_sequence(module, style, axis)
        elif isinstance(style, PrepareModuleInput):
            _prepare_input(module, style, each.name, axis)
        elif isinstance(style, PrepareModuleOutput):
            _prepare_output(module, style, each.name, axis)
        elif isinstance(style, PrepareModuleInputOutput):
            into, out = style.parts()
            _prepare_input(module, into, each.name, axis)
            _prepare_output(module, out, each.name, axis)


def _apply_colwise(
    module: nn.Module, style: ColwiseParallel, name: str, axis: Axis
) -> None:
    have, want = style.input_layouts, style.output_layouts
    if isinstance(module, nn.Embedding):
        total = module.embedding_dim
        _change_input(module, lambda ids: relayout(ids, have, Replicate(), axis))
    else:
        assert isinstance(module, nn.Linear)
        total = module.out_features
        _change_input(module, lambda x: for_products(x, have, axis))

    def leave(y: torch.Tensor) -> torch.Tensor:
        if not isinstance(want, Shard):
            return gather_columns(y, total, axis)
        if style.use_local_output and not torch.compiler.is_compiling():
            setattr(y, LOCAL_RESULT_OF, name)
        return relayout(y, Shard(-1), want, axis)

    _change_output(module, leave)


def _apply_rowwise(module: nn.Module, style: RowwiseParallel, axis: Axis) -> None:
    want = style.output_layouts
    if isinstance(module, nn.Embedding):
        ids_have = style.input_layouts or Replicate()
        _change_input(module, lambda ids: relayout(ids, ids_have, Replicate(), axis))
        begin, end = axis.range_of(module.num_embeddings)

        def embed(self: nn.Embedding, ids: torch.Tensor) -> torch.Tensor:
            is_elsewhere = (ids < begin) | (ids >= end)
            padding = self.padding_idx
            if padding is not None:
                padding = padding - begin if begin <= padding < end else None
            rows = F.embedding(
                (ids - begin).masked_fill(is_elsewhere, 0), self.weight, padding
            )
            rows = rows.masked_fill(is_elsewhere.unsqueeze(-1), 0)
            return sum_parts(rows, want, axis)

        _replace_forward(module, embed)
        return
    have = style.input_layouts or Shard(-1)
    _change_input(module, lambda x: relayout(x, have, Shard(-1), axis))

    def multiply(self: nn.Linear, x: torch.Tensor) -> torch.Tensor:
        y = sum_parts(F.linear(x, self.weight), want, axis)
        return y if self.bias is None else y + self.bias

    _replace_forward(module, multiply)


def _apply_sequence(module: nn.Module, style: SequenceParallel, axis: Axis) -> None:
    dim = style.sequence_dim

    def drop(self: nn.Dropout, x: torch.Tensor) -> torch.Tensor:
        """Of the numbers that the whole tensor would draw, this rank's: all ranks'
        generators are alike and stay so."""
        if not self.training:
            return x
        shape = list(x.shape)
        own, shape[dim] = shape[dim], shape[dim] * axis.size
        mask = F.dropout(x.new_ones(shape), self.p)
        return x * mask.narrow(dim, axis.rank * own, own)

    if type(module).forward is nn.Dropout.forward:
        _replace_forward(module, drop)


def _prepare_input(
    module: nn.Module, style: PrepareModuleInput, name: str, axis: Axis
) -> None:
    pairs = _pairs(style.input_layouts, style.desired_input_layouts)
    have_by_name: Mapping[str, Layout] = style.input_kwarg_layouts or {}
    want_by_name: Mapping[str, Layout] = style.desired_input_kwarg_layouts or {}

    def prepare(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if pairs:
            args = _relayout_each(args, pairs, name, "inputs", axis)
        kwargs = dict(kwargs)
        for key, have in have_by_name.items():
            if kwargs.get(key) is not None:
                kwargs[key] = relayout(kwargs[key], have, want_by_name[key], axis)
        return args, kwargs

    module.register_forward_pre_hook(prepare, with_kwargs=True)


def _prepare_output(
    module: nn.Module, style: PrepareModuleOutput, name: str, axis: Axis
) -> None:
    pairs = _pairs(style.output_layouts, style.desired_output_layouts)

    def prepare(module: nn.Module, args: Any, result: Any) -> Any:
        several = isinstance(result, (tuple, list))
        each = tuple(result) if several else (result,)
        changed = _relayout_each(each, pairs, name, "results", axis)
        return changed if several else changed[0]

    module.register_forward_hook(prepare)


_Pairs = list[tuple[Layout | None, Layout | None]]


def _pairs(have: Any, want: Any) -> _Pairs:
    """Of layouts that a style's checks have made tuples."""
    return list(zip(have, want, strict=True))


def _relayout_each(
    values: tuple[Any, ...], pairs: _Pairs, name: str, what: str, axis: Axis
) -> tuple[Any, ...]:
    if len(values) != len(pairs):
        raise ValueError(
            f"TrainSpec.parallelize_fn: {name} has {len(values)} {what}, its style "
            f"{len(pairs)} layouts"
        )
    return tuple(
        value
        if value is None or have is None or want is None
        else relayout(value, have, want, axis)
        for value, (have, want) in zip(values, pairs, strict=True)
    )


def _change_input(module: nn.Module, change: Change) -> None:
    """Of the one input."""

    def hook(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {key: change(value) for key, value in kwargs.items()}

    module.register_forward_pre_hook(hook, with_kwargs=True)


def _change_output(module: nn.Module, change: Change) -> None:
    def hook(module: nn.Module, args: Any, result: torch.Tensor) -> torch.Tensor:
        return change(result)

    module.register_forward_hook(hook)


def _replace_forward(module: nn.Module, forward: Callable[..., torch.Tensor]) -> None:
    # A method, so that a copy of the module calls it with the copy.
    module.forward = MethodType(forward, module)
