"""Whether a model's own code can compute on the parts that a plan leaves it.

Styles know sizes of weights, not what ``forward`` makes of them: with fewer columns
than a head has, ``x.view(batch, tokens, -1, head_dim)`` fails. On meta that costs no
numbers.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from torchtitan_cpp import _C
from torchtitan_cpp.errors import place_in_own_code
from torchtitan_cpp.nn.on_meta import on_meta
from torchtitan_cpp.tensor_parallel.apply import apply_styles
from torchtitan_cpp.tensor_parallel.collectives import Axis
from torchtitan_cpp.tensor_parallel.placement import place
from torchtitan_cpp.tensor_parallel.plan import TensorParallelPlan


def failure_of_division(
    model: nn.Module, plan: TensorParallelPlan, ranks: int, shape: tuple[int, int]
) -> str | None:
    """What the forward of the first of ``ranks`` fails with.

    Args:
        model: whole, on any device; is left as it is.
        plan: of which each style can be applied.
        shape: of the tokens, batch x sequence.
    Returns:
        None too where not even the whole model computes on meta.
    """
    whole = copy.deepcopy(model).to("meta")
    if _failure(whole, shape) is not None:
        return None
    return _failure(_divided(whole, plan, ranks), shape)


def largest_that_fits(
    model: nn.Module, plan: TensorParallelPlan, ranks: int, shape: tuple[int, int]
) -> int:
    """Of the divisors of ``ranks``, which divide the world as well."""
    divisors = (n for n in range(ranks // 2, 1, -1) if ranks % n == 0)
    fits = (n for n in divisors if not failure_of_division(model, plan, n, shape))
    return next(fits, 1)


def _divided(model: nn.Module, plan: TensorParallelPlan, ranks: int) -> nn.Module:
    """``model``, changed to what the first rank has of it."""
    styled, _ = plan.match(model)
    axis = Axis(_C.collectives.fake_group("tp", rank=0, size=ranks))
    for name, dim in place(styled).dims.items():
        parent, _, key = name.rpartition(".")
        module = model.get_submodule(parent)
        if (parameter := module._parameters[key]) is not None:
            begin, end = axis.range_of(parameter.shape[dim])
            part = parameter.detach().narrow(dim, begin, end - begin)
            module._parameters[key] = nn.Parameter(part, requires_grad=False)
    apply_styles(styled, axis)
    return model


def _failure(model: nn.Module, shape: tuple[int, int]) -> str | None:
    try:
        with torch.no_grad(), on_meta():
            model(torch.empty(shape, dtype=torch.int64))
    except Exception as failure:  # whatever a model's code may raise
        return str(failure).partition("\n")[0] + place_in_own_code(failure)
    return None
