"""What a run asks of tensor parallelism that a Python model's plan cannot give."""

from __future__ import annotations

from torch import nn

from torchtitan_cpp.config import JobConfig
from torchtitan_cpp.tensor_parallel.placement import problems_of
from torchtitan_cpp.tensor_parallel.plan import TensorParallelPlan

NO_PLAN = (
    "a model written in Python needs TrainSpec.parallelize_fn=tensor_parallel_plan({"
    '"layers.*.attention.wq": ColwiseParallel(), ...}), which says how its modules are '
    "divided (torchtitan_cpp.tensor_parallel); found None"
)


def tensor_misfits(
    model: nn.Module, plan: TensorParallelPlan | None, config: JobConfig
) -> dict[str, str]:
    """By field; empty without tensor parallelism.

    Args:
        model: whole, on any device.
    """
    parallelism = config.parallelism
    ranks, field = parallelism.tensor_parallel_degree, "tensor_parallel_degree"
    if ranks == 1:
        return {}
    if plan is None:
        return {f"parallelism.{field}": NO_PLAN}
    styled, problems = plan.match(model)
    problems += problems_of(model, styled, ranks)
    misfits = {}
    if problems:
        misfits[f"parallelism.{field}"] = "; ".join(
            f"TrainSpec.parallelize_fn: {problem}" for problem in problems
        )
    if parallelism.enable_async_tensor_parallel:
        misfits["parallelism.enable_async_tensor_parallel"] = (
            "not supported yet for models written in Python (found true); set false"
        )
    return misfits
