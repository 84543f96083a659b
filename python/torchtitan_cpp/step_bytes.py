"""What a rank will exchange in each step, before the first one."""

from __future__ import annotations

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.build import Model
from torchtitan_cpp.config import JobConfig, compute_dtype, reduce_dtype
from torchtitan_cpp.nn import CppModule
from torchtitan_cpp.world import World


def bytes_by_axis(
    model: Model, job_config: JobConfig, world: World
) -> dict[str, int | None]:
    """Bytes of the larger side of each collective of a step, by mesh axis.

    Exactly what ``StepTraffic`` then measures in every step, but for the first of a
    pipeline, which also sends the shapes of its messages (80 bytes for each tensor
    that crosses a border between ranks). Nothing is computed.

    Returns:
        The axes that a step uses. None is what only shows when it runs: what a model
        written in Python exchanges within its layers and between its stages.
    """
    shape, unknown = model.applied.shape, []
    if isinstance(model.module, CppModule):
        shape = _with_exchanges(model, model.module, job_config, world)
    else:
        degrees = {"pp": world.parallel_dims.pp, "tp": world.parallel_dims.tp}
        unknown = [axis for axis, degree in degrees.items() if degree > 1]
    traffic = _C.plan.traffic(
        model.applied.training_actions, shape, loss_ranks=world.groups["loss"].size
    )
    totals: dict[str, int | None] = {axis: 0 for axis, _ in sorted(traffic)}
    for axis in totals:
        totals[axis] = sum(
            each.bytes for key, each in traffic.items() if key[0] == axis
        )
    return totals | {axis: None for axis in unknown}


def _with_exchanges(
    model: Model, module: CppModule, job_config: JobConfig, world: World
) -> _C.plan.StepShape:
    training = job_config.training
    rows = (
        model.pipeline.microbatch_size if model.pipeline else training.local_batch_size
    )
    tokens = training.seq_len // world.parallel_dims.cp
    return _C.parallel.with_exchanges(
        model.applied,
        model.applied.shape,
        hidden=module.hidden_sizes(rows, tokens, tensor_ranks=world.parallel_dims.tp),
        tokens=[rows, tokens],
        compute_dtype=getattr(torch, compute_dtype(training)),
        reduce_dtype=getattr(torch, reduce_dtype(training)),
        device=world.device,
    )
