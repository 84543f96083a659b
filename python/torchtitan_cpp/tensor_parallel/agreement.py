"""Whether the ranks of a tensor axis agree where a plan says that they do.

A plan may be complete and wrong: a module without a style may get a part of the tokens,
or divided logits may reach the loss. Nothing fails then, it only trains something else.
So what every rank should have alike is compared, once, in the first microbatch.
"""

from __future__ import annotations

from typing import Any

import torch

from torchtitan_cpp.tensor_parallel.collectives import Axis

_TOLERANCE = 0.01
"""Relative. Alike are the same bits, but for kernels that add in any order."""


class Compared:
    """A whole parameter on its way to the module that reads it."""

    def __init__(self, name: str, axis: Axis) -> None:
        self.name = name
        self._axis = axis
        self._is_done = False

    def __call__(self, parameter: torch.Tensor) -> torch.Tensor:
        if self._is_done or parameter.is_meta or not torch.is_grad_enabled():
            return parameter
        same: torch.Tensor = _Compare.apply(parameter, self)  # type: ignore[no-untyped-call]
        return same

    def check(self, gradient: torch.Tensor) -> None:
        """
        Raises:
            ValueError: on all ranks, if their gradients differ.
        """
        if self._is_done:
            return
        self._is_done = True
        if _spread(gradient, self._axis) > _TOLERANCE:
            raise ValueError(
                f"TrainSpec.parallelize_fn: {self.name} has another gradient on each "
                "rank of tensor parallelism, so its module sees a part of the tokens "
                "or features only; give the module a style, SequenceParallel() for a "
                "part of the tokens"
            )


def check_loss(loss: torch.Tensor, axis: Axis) -> None:
    """
    Raises:
        ValueError: on all ranks, if their losses differ.
    """
    if not loss.is_meta and _spread(loss.detach(), axis) > _TOLERANCE:
        raise ValueError(
            "TrainSpec.parallelize_fn: the ranks of tensor parallelism find different "
            f"losses ({float(loss.detach()):.6g} here), so the model's prediction is "
            "divided or not summed; the last module needs output_layouts=Replicate(), "
            "or Shard(-1) with use_local_output=False"
        )


def _spread(x: torch.Tensor, axis: Axis) -> float:
    """The largest distance of a rank's tensor from their mean, relative to that."""
    own = x.double()
    mean = axis.all_reduce(own) / axis.size
    # In one tensor, as the largest of all ranks is the same on all of them.
    distances = own.new_zeros(axis.size)
    distances[axis.rank] = (own - mean).norm()
    largest = float(axis.all_reduce(distances).max())
    norm = float(mean.norm())
    return largest / norm if norm > 0 else (float("inf") if largest > 0 else 0.0)


class _Compare(torch.autograd.Function):
    """The identity."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, compared: Compared) -> torch.Tensor:
        ctx.compared = compared
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> Any:
        ctx.compared.check(gradient)
        return gradient, None
