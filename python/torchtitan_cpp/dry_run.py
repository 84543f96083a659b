"""One rank of any mesh, played alone: shapes, memory and traffic without computing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.logging import logger
from torchtitan_cpp.optim import CoreOptimizer

if TYPE_CHECKING:
    from torchtitan_cpp.plan.make import Plan
    from torchtitan_cpp.trainer import Trainer

_MIB = 1024 * 1024


def run(trainer: Trainer) -> None:
    """Run the program of ``training.steps`` steps on meta tensors and report."""
    from torchtitan_cpp.plan.make import make_plan  # which imports the trainer

    plan = make_plan(trainer.job_config, trainer.world, model=trainer.model)
    if trainer.model.pipeline:
        # What other stages would send is known on paper only.
        logger.info("%s", "\n" + report(trainer, plan, plan.traffic))
        return
    training = trainer.job_config.training
    shape = (training.local_batch_size, training.seq_len)
    for step in range(1, training.steps + 1):
        trainer.world.recorder.reset()
        microbatches = [
            trainer.model.deal(
                {
                    name: torch.empty(shape, dtype=torch.int64, device="meta")
                    for name in ("input", "labels")
                }
            )
            for _ in range(trainer.accumulation)
        ]
        trainer.executor.run(microbatches, learning_rate=0.0, step=step)
    logger.info("%s", "\n" + report(trainer, plan, trainer.world.recorder.totals()))


def report(
    trainer: Trainer,
    plan: Plan,
    traffic: Mapping[tuple[str, str], _C.plan.Traffic | Any],
) -> str:
    """Memory that the rank needs and bytes that it moves in a step, by axis."""
    from torchtitan_cpp.plan.report import unknown_traffic_lines

    training, dims = trainer.job_config.training, trainer.world.parallel_dims
    tokens = training.local_batch_size * training.seq_len * trainer.accumulation
    lines = [
        f"  tokens a step: {tokens:,} a rank, {tokens * dims.batch:,} in all",
        f"  kept by rank 0 of {dims.world_size:,}:",
    ]
    kept = {
        "parameters": [g.master for g in trainer.model.applied.groups],
        "gradients": [g.gradient for g in trainer.model.applied.groups],
        "optimizer state": [
            moment
            for optimizer in trainer.optimizers
            if isinstance(optimizer, CoreOptimizer)
            for index in range(len(optimizer.core))
            for moment in (
                optimizer.core.exp_avg(index),
                optimizer.core.exp_avg_sq(index),
            )
        ],
    }
    together = 0
    for name, tensors in kept.items():
        size = sum(tensor.nbytes for tensor in tensors)
        together += size
        lines.append(f"    {name:<16} {size / _MIB:>12,.1f} MiB")
    lines.append(f"    {'together':<16} {together / _MIB:>12,.1f} MiB")
    at_peak = plan.memory.peak.total() / _MIB
    unknown = "" if plan.knows_segments else " and what the Python model keeps"
    lines.append(f"  at the peak of a step {at_peak:>11,.1f} MiB{unknown}")
    if plan.memory.host_peak > 0:
        on_host = plan.memory.host_peak / _MIB
        lines.append(f"  in host memory at most {on_host:>10,.1f} MiB")
    lines.append("  collectives a step:")
    for (axis, verb), total in sorted(traffic.items()):
        lines.append(
            f"    {axis:<14} {verb:<16} {total.calls:>6} calls "
            f"{total.bytes / _MIB:>12,.1f} MiB"
        )
    lines += unknown_traffic_lines(plan)
    return "\n".join(lines)
