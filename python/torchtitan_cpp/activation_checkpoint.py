"""The section ``activation_checkpoint`` as the C++ policy and the options of layers."""

from __future__ import annotations

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.config import JobConfig
from torchtitan_cpp.nn.recomputation import RecomputeOptions
from torchtitan_cpp.world import World, find_device_type


def is_by_operation(job_config: JobConfig) -> bool:
    """Whether a list of operations says what a layer keeps."""
    ac = job_config.activation_checkpoint
    return ac.mode == "selective" and ac.selective_ac_option == "op"


def has_budget_of_compiler(job_config: JobConfig) -> bool:
    """Whether the compiler of Python layers is given the memory budget."""
    section = job_config.compile
    return (
        section.enable
        and "model" in section.components
        and job_config.activation_checkpoint.mode == "memory_budget"
    )


def recompute_policy(
    job_config: JobConfig, *, rows: int, dtype: torch.dtype, is_python: bool
) -> _C.parallel.Recompute:
    """Which segments run again before their backward.

    Args:
        rows: of a microbatch.
        dtype: of the computation.
        is_python: whether the model is written in Python.
    """
    ac = job_config.activation_checkpoint
    if is_python and has_budget_of_compiler(job_config):
        return _C.parallel.Recompute(mode="none")
    by_operation = is_by_operation(job_config)
    every = ac.selective_ac_option if ac.mode == "selective" else "1"
    return _C.parallel.Recompute(
        mode="per_operation" if by_operation else ac.mode,
        every=1 if by_operation else int(every),
        # A layer in Python finds its linears itself (recomputed_shapes).
        recomputed_modules=(
            [] if is_python else ac.per_op_sac_force_recompute_mm_shapes_by_fqns
        ),
        budget=ac.memory_budget,
        rows=rows,
        length=(
            job_config.training.seq_len
            // job_config.parallelism.context_parallel_degree
        ),
        dtype=dtype,
    )


def recompute_options(job_config: JobConfig) -> RecomputeOptions:
    """How the layers of a Python model run again."""
    ac = job_config.activation_checkpoint
    return RecomputeOptions(
        preserve_rng_state=ac.preserve_rng_state,
        determinism_check=ac.determinism_check,
        early_stop=ac.early_stop,
        debug=ac.debug,
    )


def host_store(job_config: JobConfig, world: World) -> _C.nn.HostStore | None:
    """Where what blocks save waits for their backward; None: on the device."""
    if not job_config.activation_checkpoint.offload:
        return None
    device = find_device_type() if world.is_fake else world.device.type
    return _C.nn.host_is_device() if device == "cpu" else _C.nn.copies_on_host()
