"""What a run asks of tensor parallelism that a Python model's plan cannot give."""

from __future__ import annotations

from typing import Any

from torch import nn

from torchtitan_cpp.config import JobConfig
from torchtitan_cpp.tensor_parallel.placement import problems_of
from torchtitan_cpp.tensor_parallel.plan import TensorParallelPlan
from torchtitan_cpp.tensor_parallel.trial import failure_of_division, largest_that_fits

NO_PLAN = (
    "a model written in Python needs TrainSpec.parallelize_fn=tensor_parallel_plan({"
    '"layers.*.attention.wq": ColwiseParallel(), ...}), which says how its modules are '
    "divided (torchtitan_cpp.tensor_parallel); found None"
)


def tensor_misfits(
    model: nn.Module, plan: TensorParallelPlan | None, config: JobConfig, args: Any
) -> dict[str, str]:
    """By field; empty without tensor parallelism.

    Args:
        model: whole, on any device.
        args: that it was made of.
    """
    parallelism = config.parallelism
    ranks, field = parallelism.tensor_parallel_degree, "tensor_parallel_degree"
    if ranks == 1:
        return {}
    if plan is None:
        return {f"parallelism.{field}": NO_PLAN}
    styled, problems = plan.match(model)
    problems += problems_of(model, styled, ranks)
    if not problems and _may_cut_heads(args, ranks):
        problems += _forward_problems(model, plan, config)
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


def _may_cut_heads(args: Any, ranks: int) -> bool:
    """Whether some number of heads (``n_heads``, ``n_kv_heads`` and the like) is not
    divided by the ranks. Trying costs two seconds: torch's first operation on meta
    imports its compiler."""
    return any(
        "heads" in name and type(count) is int and count % ranks
        for name, count in getattr(args, "__dict__", {}).items()
    )


def _forward_problems(
    model: nn.Module, plan: TensorParallelPlan, config: JobConfig
) -> list[str]:
    ranks = config.parallelism.tensor_parallel_degree
    shape = (config.training.local_batch_size, config.training.seq_len)
    failure = failure_of_division(model, plan, ranks, shape)
    if failure is None:
        return []
    fits = largest_that_fits(model, plan, ranks, shape)
    return [
        f"forward of {type(model).__name__} cannot compute with what {ranks} ranks "
        f"have of its modules, e.g. a part of a head: {failure}; {fits} fits"
    ]
