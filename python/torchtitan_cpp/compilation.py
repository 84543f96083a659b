"""``torch.compile`` for models written in Python: layer by layer, and the loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from torchtitan_cpp.activation_checkpoint import (
    has_budget_of_compiler,
    is_by_operation,
)
from torchtitan_cpp.config import JobConfig
from torchtitan_cpp.loss import LossFunction


def compile_model(
    module: nn.Module, loss_fn: LossFunction, job_config: JobConfig
) -> LossFunction:
    """Compile each child of ``module.layers`` in place; returns the compiled loss.

    Does what ``job_config.compile`` asks for; everything is compiled at its first call.
    With a memory budget the compiler chooses what it recomputes.

    Args:
        job_config: without ``compile_misfits``.
    """
    section = job_config.compile
    if not section.enable:
        return loss_fn
    if "model" in section.components:
        # A data-dependent number in a layer is no reason to break its graph.
        torch._dynamo.config.capture_scalar_outputs = True
        if job_config.parallelism.pipeline_parallel_degree > 1:
            # The halves of a divided backward both read what a layer saved.
            torch._functorch.config.donated_buffer = False
        _set_memory_budget(job_config)
        for layer in getattr(module, "layers", nn.ModuleList()).children():
            # As layer.compile() does, which does nothing for a layer of torch's own.
            layer._compiled_call_impl = torch.compile(
                _in_a_frame(layer._call_impl), backend=section.backend, fullgraph=True
            )
    if "loss" in section.components:
        compiled: LossFunction = torch.compile(loss_fn, backend=section.backend)
        return compiled
    return loss_fn


def _in_a_frame(call: Callable[..., Any]) -> Callable[..., Any]:
    """The compiler begins with no frame of torch's own modules."""

    def run(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    return run


def compile_misfits(job_config: JobConfig) -> dict[str, str]:
    """What ``job_config.compile`` asks for and cannot have, by field."""
    section = job_config.compile
    if not section.enable:
        return {}
    misfits = {}
    backends = torch._dynamo.list_backends(exclude_tags=())
    if section.backend not in backends:
        misfits["compile.backend"] = (
            f"expected one of {', '.join(sorted(backends))}, found '{section.backend}'"
        )
    if "model" in section.components and is_by_operation(job_config):
        # A compiled layer has no operations that could be told apart.
        misfits["activation_checkpoint.selective_ac_option"] = (
            '"op" cannot be combined with compile.enable for models written in '
            "Python; set a number, or mode memory_budget, with which the compiler "
            "chooses, or mode none or full"
        )
    return misfits


def _set_memory_budget(job_config: JobConfig) -> None:
    if not has_budget_of_compiler(job_config):
        return
    ac, config = job_config.activation_checkpoint, torch._functorch.config
    config.activation_memory_budget = ac.memory_budget
    if ac.visualize_memory_budget_pareto:
        config.visualize_memory_budget_pareto = True
        config.memory_budget_pareto_dir = (
            f"{job_config.job.dump_folder}/memory_budget_pareto"
        )
