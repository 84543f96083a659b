"""From a configuration and a TrainSpec to the parts of a training: read as a recipe."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchtitan_cpp import _C
from torchtitan_cpp.config import JobConfig, compute_dtype, reduce_dtype
from torchtitan_cpp.loss import build_cross_entropy_loss
from torchtitan_cpp.nn import CppModule, adopt
from torchtitan_cpp.optim import OptimizersContainer
from torchtitan_cpp.train_spec import TrainSpec
from torchtitan_cpp.world import World


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model laid out over the mesh."""

    module: nn.Module
    """Its parameters are this rank's rows."""
    args: Any
    num_params: int
    """Of the whole model."""
    flops_per_token: int
    core: _C.nn.Model
    applied: _C.parallel.Applied


def build_model(
    spec: TrainSpec, job_config: JobConfig, world: World, *, accumulation: int
) -> Model:
    """Build on meta, lay out over the mesh, without initial values yet.

    Raises:
        ValueError: for model arguments that do not fit together.
    """
    training = job_config.training
    args = spec.model_args[job_config.model.flavor]
    args.update_from_config(job_config)
    with torch.device("meta"):
        module = spec.model_cls(args)
    num_params, flops = args.get_nparams_and_flops(module, training.seq_len)
    dtype = getattr(torch, compute_dtype(training))
    if not isinstance(module, CppModule):
        raise ValueError(
            f"model.name: {job_config.model.name!r} is not a C++ model; Python modules "
            "are not supported yet"
        )
    if spec.build_loss_fn is not build_cross_entropy_loss:
        raise ValueError("TrainSpec.build_loss_fn: own losses are not supported yet")
    core = module.build_core(
        head="loss",
        device=world.device,
        dtype=torch.float64 if dtype == torch.float64 else torch.float32,
    )
    ac = job_config.activation_checkpoint
    selective = ac.mode == "selective"
    applied = _C.parallel.apply(
        core,
        shards=world.groups["fsdp"],
        replicas=world.groups["dp_replicate"],
        master_dtype=getattr(torch, training.dtype),
        compute_dtype=dtype,
        reduce_dtype=getattr(torch, reduce_dtype(training)),
        device=world.device,
        reshard_after_forward=job_config.parallelism.fsdp_reshard_after_forward,
        overlap_depth=1,
        recompute=ac.mode,
        recompute_every=int(ac.selective_ac_option) if selective else 1,
        num_microbatches=accumulation,
        early_optimizer_step=job_config.optimizer.early_step_in_backward,
    )
    adopt(module, applied.groups)
    return Model(
        module=module,
        args=args,
        num_params=num_params,
        flops_per_token=flops,
        core=core,
        applied=applied,
    )


def initialize(model: Model, seed: int) -> None:
    """Fill this rank's rows with the initial values of the seed."""
    for group in model.applied.groups:
        group.initialize(seed)


def build_step(
    model: Model, optimizers: OptimizersContainer, job_config: JobConfig, world: World
) -> _C.train.Step:
    """The C++ step that runs the model's program."""
    return _C.train.Step(
        model.core,
        model.applied,
        optimizers.optimizers[0].core,
        loss_axis=world.groups["loss"],
        max_norm=job_config.training.max_norm,
    )
