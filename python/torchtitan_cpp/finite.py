"""Loss and gradients that are not finite: what is said about them."""

from __future__ import annotations

from torchtitan_cpp import _C
from torchtitan_cpp.build import Model


class NotFiniteError(RuntimeError):
    """Loss or gradient norm is not finite; no weight was changed by that step."""


def describe(step: int, rank: int, result: _C.train.StepResult, model: Model) -> str:
    """One line: the numbers of the step and the first bad gradient of this rank."""
    bad = next(
        (
            shard.name
            for group in model.applied.groups
            for shard in group.shards
            if not bool(shard.gradient.isfinite().all())
        ),
        None,
    )
    where = (
        f"first bad gradient on this rank: {bad}"
        if bad
        else "all gradients of this rank are finite"
    )
    return (
        f"step {step}: loss {float(result.loss):g}, gradient norm "
        f"{float(result.grad_norm):g}; rank {rank}: loss sum "
        f"{float(result.local_loss):g}, {where}; no weight was changed"
    )
