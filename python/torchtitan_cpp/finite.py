"""Loss and gradients that are not finite: what is said about them."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.build import Model
from torchtitan_cpp.errors import Explained
from torchtitan_cpp.world import World


class NotFiniteError(Explained, RuntimeError):
    """Loss or gradient norm is not finite; the message says which weights have changed.

    None in that step, unless ``optimizer.early_step_in_backward`` is set.
    """


def describe(
    step: int,
    result: _C.train.StepResult,
    model: Model,
    world: World,
    *,
    early_step: bool,
) -> str:
    """One line, the same on all ranks: the numbers and the first that is bad.

    All ranks call it together. A weight that was bad before the step is named before a
    rank whose loss is bad, and that before a gradient; among parameters the first one
    in the order of the model, with the lowest rank that holds bad rows of it.

    Args:
        early_step: every parameter group has stepped at its own last reduction, where
            its own gradient was finite.
    """
    names = model.parameter_names
    shards = [shard for group in model.applied.groups for shard in group.shards]
    weight = _first_bad({names.index(s.name): s.value for s in shards}, world)
    loss = _first_bad({0: result.local_loss}, world)
    gradient = _first_bad({names.index(s.name): s.gradient for s in shards}, world)
    if weight is not None:
        where = f"rank {weight[1]}: first bad parameter {names[weight[0]]}"
    elif gradient is not None:
        where = f"rank {gradient[1]}: first bad gradient {names[gradient[0]]}"
    else:
        where = "all gradients are finite"
    if loss is not None and weight is None:
        where = f"rank {loss[1]}: bad loss; {where}"
    changed, groups = _changed_groups(model, world) if early_step else (0, 0)
    weights = "no weight was changed"
    if changed:
        weights = (
            f"the weights of {changed} of {groups} parameter groups "
            "had been changed before (optimizer.early_step_in_backward)"
        )
    return (
        f"step {step}: loss {float(result.loss):g}, gradient norm "
        f"{float(result.grad_norm):g}; {where}; {weights}"
    )


def _changed_groups(model: Model, world: World) -> tuple[int, int]:
    """Groups whose gradient is finite on all ranks, which the step has updated, of all.

    A group stands at the place of its first parameter, because ranks of a pipeline have
    different ones.
    """
    codes = torch.zeros(
        len(model.parameter_names), dtype=torch.int64, device=world.device
    )
    for group in model.applied.groups:
        place = model.parameter_names.index(group.shards[0].name)
        codes[place] = 1 if bool(group.gradient.isfinite().all()) else 2
    world.groups["world"].all_reduce(codes, op=_C.collectives.ReduceOp.MAX).wait()
    return int((codes == 1).sum()), int((codes > 0).sum())


def _first_bad(
    tensors: Mapping[int, torch.Tensor], world: World
) -> tuple[int, int] | None:
    """Least index of a tensor that is not finite on any rank, and that rank."""
    size = world.parallel_dims.world_size
    bad = (i for i in sorted(tensors) if not bool(tensors[i].isfinite().all()))
    none = torch.iinfo(torch.int64).max
    first = next(bad, None)
    code = torch.tensor(
        none if first is None else first * size + world.rank, device=world.device
    )
    world.groups["world"].all_reduce(code, op=_C.collectives.ReduceOp.MIN).wait()
    return None if int(code) == none else divmod(int(code), size)
