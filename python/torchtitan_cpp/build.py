"""From a configuration and a TrainSpec to the parts of a training: read as a recipe."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchtitan_cpp import _C
from torchtitan_cpp.activation_checkpoint import (
    host_store,
    is_by_operation,
    recompute_options,
    recompute_policy,
)
from torchtitan_cpp.compilation import compile_model
from torchtitan_cpp.config import JobConfig, compute_dtype, reduce_dtype
from torchtitan_cpp.errors import SettingError
from torchtitan_cpp.input_data import check_length
from torchtitan_cpp.loss import LossFunction, cross_entropy_loss
from torchtitan_cpp.nn import CppModule, adopt
from torchtitan_cpp.nn.initial_values import (
    copy_buffers,
    default_dtype,
    make_whole,
    named_values,
)
from torchtitan_cpp.nn.on_meta import on_meta
from torchtitan_cpp.nn.python_model import PythonModel, Stage, load_whole
from torchtitan_cpp.nn.stages import drop_parameters, keep_modules
from torchtitan_cpp.optim import OptimizersContainer
from torchtitan_cpp.own_optimizers import OwnOptimizers
from torchtitan_cpp.pipeline import Pipeline, modules_of, plan_pipeline
from torchtitan_cpp.rank_thread import turn
from torchtitan_cpp.tensor_parallel.division import Division
from torchtitan_cpp.tensor_parallel.misfits import NO_PLAN
from torchtitan_cpp.train_spec import TrainSpec
from torchtitan_cpp.world import World


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model laid out over the mesh."""

    module: nn.Module
    """Its parameters are this rank's pieces; it has this rank's stages only."""
    args: Any
    num_params: int
    """Of the whole model."""
    flops_per_token: int
    core: _C.nn.Model
    """The whole model; of one written in Python, this rank's part."""
    attention: _C.nn.AttentionKernel
    """Which tokens of each sequence are here."""
    applied: _C.parallel.Applied
    parameter_names: tuple[str, ...]
    """Of the whole model."""
    pipeline: Pipeline | None
    tensor_ranks: int
    """That share every matrix."""
    initialize: Callable[[int], None]
    """Fills this rank's pieces with the initial values of a seed."""

    def deal(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What the segments read of a batch: this rank's tokens, and document starts.

        Args:
            batch: whole sequences, ``input`` and ``labels`` ``[B, S]``.
        Raises:
            SettingError: for a length that a C++ model does not take.
        """
        if isinstance(self.module, CppModule):
            check_length(
                batch["input"].size(1),
                positions=self.module.generation_sizes().max_len,
                tensor_ranks=self.tensor_ranks,
            )
            batch = {**batch, **self.module.attention_inputs(batch["input"])}
        return self.attention.deal(batch)

    def deal_for_evaluation(
        self, batch: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """As ``deal``, for ``Step.evaluate``, which divides the rows into microbatches.

        How tokens are dealt out may depend on the documents of their microbatch.
        """
        parts = self.pipeline.evaluation.num_microbatches if self.pipeline else 1
        if parts == 1:
            return self.deal(batch)
        divided = zip(*(each.chunk(parts) for each in batch.values()), strict=True)
        dealt = [self.deal(dict(zip(batch, rows, strict=True))) for rows in divided]
        return {name: torch.cat([each[name] for each in dealt]) for name in dealt[0]}


def build_model(
    spec: TrainSpec, job_config: JobConfig, world: World, *, accumulation: int
) -> Model:
    """Build on meta, lay out over the mesh, without initial values yet.

    Raises:
        ValueError: for model arguments that do not fit together.
    """
    training = job_config.training
    args = copy.deepcopy(spec.model_args[job_config.model.flavor])
    args.update_from_config(job_config)
    master_dtype: torch.dtype = getattr(torch, training.dtype)
    with turn(), on_meta(), default_dtype(master_dtype):
        module = spec.model_cls(args)
    num_params, flops = args.get_nparams_and_flops(module, training.seq_len)
    dtype = getattr(torch, compute_dtype(training))
    loss_fn = build_loss(spec, job_config, world)
    names = tuple(name for name, _ in module.named_parameters())
    pipeline = None
    if world.parallel_dims.pp > 1:
        pipeline = plan_pipeline(
            job_config, modules_of(module), accumulation=accumulation
        )
    python: PythonModel | None = None
    host = host_store(job_config, world)
    attention = _build_attention(job_config, world)
    if isinstance(module, CppModule):
        core = _build_cpp_core(module, loss_fn, dtype, attention, job_config, world)
        part = _C.parallel.whole(core)
        if pipeline:  # which takes segments away from the model that it is given
            mine = _build_cpp_core(module, loss_fn, dtype, attention, job_config, world)
            part = _take_part(mine, pipeline, world)
    else:
        division = _divide(module, spec, world)
        stages = _cut(module, pipeline, world)
        is_cross_entropy = loss_fn is cross_entropy_loss
        loss_fn = compile_model(module, loss_fn, job_config)
        if division is None:
            python = PythonModel(module, loss_fn, stages)
            core = python.build_core()
        else:
            loss_fn = division.loss(
                loss_fn,
                loss_parallel=is_cross_entropy
                and not job_config.parallelism.disable_loss_parallel,
            )
            python = PythonModel(module, loss_fn, stages, division.on_the_way)
            core = division.divide(python.build_core())
        part = _C.parallel.whole(core)
        if pipeline:
            part = _C.parallel.as_part(
                core,
                segments_per_stage=python.segments_per_stage,
                rank_of_stage=pipeline.rank_of_stage,
                rank=world.groups["pp"].rank,
            )
    applied = _C.parallel.apply(
        part,
        shards=world.groups["fsdp"],
        replicas=world.groups["dp_replicate"],
        tensor=world.groups["tp"],
        master_dtype=master_dtype,
        compute_dtype=dtype,
        reduce_dtype=getattr(torch, reduce_dtype(training)),
        device=world.device,
        reshard_after_forward=job_config.parallelism.fsdp_reshard_after_forward,
        overlap_depth=1,
        recompute=recompute_policy(
            job_config,
            rows=(pipeline.microbatch_size if pipeline else training.local_batch_size),
            dtype=dtype,
            is_python=python is not None,
        ),
        num_microbatches=pipeline.num_microbatches if pipeline else accumulation,
        early_optimizer_step=job_config.optimizer.early_step_in_backward,
        pipeline=_C.parallel.PipelineOptions(
            group=world.groups["pp"],
            training=pipeline.schedule,
            rounds=pipeline.rounds,
            evaluation=pipeline.evaluation,
        )
        if pipeline
        else None,
        host=host,
    )
    if python is None:
        if pipeline:
            held = {s.name for group in applied.groups for s in group.shards}
            drop_parameters(module, held)
        adopt(module, applied.groups)
    else:
        python.bind(
            applied.groups,
            applied.recompute,
            device=world.device,
            how=recompute_options(job_config),
            recomputed_modules=(
                job_config.activation_checkpoint.per_op_sac_force_recompute_mm_shapes_by_fqns
                if is_by_operation(job_config)
                else None
            ),
        )

    def initialize(seed: int) -> None:
        if python is None:
            for group in applied.groups:
                group.initialize(seed)
        elif not world.is_fake:
            _initialize_python(
                module, applied, lambda: spec.model_cls(args), seed, master_dtype, world
            )

    return Model(
        module=module,
        args=args,
        num_params=num_params,
        flops_per_token=flops,
        core=core,
        attention=attention,
        applied=applied,
        parameter_names=names,
        pipeline=pipeline,
        tensor_ranks=world.parallel_dims.tp,
        initialize=initialize,
    )


def _take_part(core: _C.nn.Model, pipeline: Pipeline, world: World) -> _C.parallel.Part:
    """The segments of this rank's stages."""
    sizes = [
        sum(name in modules for name in core.segments) for modules in pipeline.modules
    ]
    # What follows the layers has names of its own.
    sizes[-1] += len(core.segments) - sum(sizes)
    return _C.parallel.take_part(
        core,
        segments_per_stage=sizes,
        rank_of_stage=pipeline.rank_of_stage,
        rank=world.groups["pp"].rank,
    )


def _divide(module: nn.Module, spec: TrainSpec, world: World) -> Division | None:
    """A whole Python module by the styles that its spec has for it."""
    if world.parallel_dims.tp == 1:
        return None
    if spec.parallelize_fn is None:
        raise ValueError(f"parallelism.tensor_parallel_degree: {NO_PLAN}")
    return Division(module, spec.parallelize_fn, world.groups["tp"])


def _cut(
    module: nn.Module, pipeline: Pipeline | None, world: World
) -> list[Stage] | None:
    """Leave of a Python module the stages of this rank, and say which they are."""
    if pipeline is None:
        return None
    last = len(pipeline.modules) - 1
    stages = [
        Stage(names=names, is_first=index == 0, is_last=index == last)
        for index, names in enumerate(pipeline.modules)
        if pipeline.rank_of_stage[index] == world.groups["pp"].rank
    ]
    keep_modules(module, {name for stage in stages for name in stage.names})
    return stages


def build_loss(spec: TrainSpec, job_config: JobConfig, world: World) -> LossFunction:
    """Builders written for torchtitan may take more than the configuration."""
    extra = {"parallel_dims": world.parallel_dims, "ft_manager": None}
    accepted = inspect.signature(spec.build_loss_fn).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    loss_fn: LossFunction = spec.build_loss_fn(
        job_config, **{k: v for k, v in extra.items() if takes_any or k in accepted}
    )
    return loss_fn


def _build_attention(job_config: JobConfig, world: World) -> _C.nn.AttentionKernel:
    parallelism = job_config.parallelism
    return _C.parallel.context_attention(
        world.groups["cp"],
        rotate_method=parallelism.context_parallel_rotate_method,
        load_balancer=parallelism.context_parallel_load_balancer or "none",
    )


def _build_cpp_core(
    module: CppModule,
    loss_fn: LossFunction,
    dtype: torch.dtype,
    attention: _C.nn.AttentionKernel,
    job_config: JobConfig,
    world: World,
) -> _C.nn.Model:
    """The package's own loss is fused into the head; another one follows the logits."""
    is_fused = loss_fn is cross_entropy_loss
    core = module.build_core(
        head="loss" if is_fused else "logits",
        device=world.device,
        dtype=torch.float64 if dtype == torch.float64 else torch.float32,
        tensor_axis=world.groups["tp"],
        overlap_exchanges=job_config.parallelism.enable_async_tensor_parallel,
        loss_parallel=not job_config.parallelism.disable_loss_parallel,
        attention=attention,
    )
    return core if is_fused else core.with_loss(loss_fn)


def _initialize_python(
    module: nn.Module,
    applied: _C.parallel.Applied,
    make: Callable[[], nn.Module],
    seed: int,
    dtype: torch.dtype,
    world: World,
) -> None:
    """Parameters are drawn in float32 whatever they are stored in; buffers are not."""
    with turn():
        whole = make_whole(make, seed=seed, dtype=torch.float32)
        load_whole(applied.groups, named_values(whole))
        if dtype != torch.float32:
            whole = make_whole(make, seed=seed, dtype=dtype)
        copy_buffers(module, whole, world.device)
        # Ranks that read different rows draw different numbers, for dropout.
        torch.manual_seed(seed + 1 + world.data_rank)


def build_step(
    model: Model,
    optimizers: OptimizersContainer | OwnOptimizers,
    job_config: JobConfig,
    world: World,
) -> _C.train.Step:
    """The C++ step that runs the model's program.

    Raises:
        SettingError: for an optimizer of one's own that is to step during backward.
    """
    if isinstance(optimizers, OwnOptimizers):
        if job_config.optimizer.early_step_in_backward:
            raise SettingError(
                "optimizer.early_step_in_backward: not supported with an optimizer of "
                "one's own (TrainSpec.build_optimizers_fn); set false"
            )
        groups = model.applied.groups
        optimizer: _C.optim.Optimizer = _C.optim.CalledOptimizer(
            [group.gradient for group in groups], optimizers.update
        )
    else:
        optimizer = optimizers.optimizers[0].core
    return _C.train.Step(
        model.applied,
        optimizer,
        loss_axis=world.groups["loss"],
        max_norm=job_config.training.max_norm,
    )
