"""A plan: what one step of one rank does, found without doing it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.build import Model, build_model
from torchtitan_cpp.config import (
    JobConfig,
    compute_dtype,
    reduce_dtype,
    state_dtype,
)
from torchtitan_cpp.nn import CppModule
from torchtitan_cpp.pipeline import Pipeline
from torchtitan_cpp.plan.rates import Rates, predict_times
from torchtitan_cpp.train_spec import get_train_spec
from torchtitan_cpp.world import (
    World,
    build_fake_world,
    build_world,
    find_device_type,
    ranks_of_pipeline,
)

_MESH_AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")


@dataclass(frozen=True, kw_only=True)
class TimedRank:
    """The step of one rank of a pipeline, or of the one rank without."""

    program: Sequence[_C.plan.Action]
    """With the pipeline stages of compute actions."""
    time: _C.plan.Simulation


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One step of one rank, on paper."""

    mesh: Mapping[str, int]
    """Degree of each parallelism, slow to fast."""
    model: str
    num_params: int
    """Of the whole model."""
    rows: int
    """Of a microbatch."""
    seq_len: int
    shape: _C.plan.StepShape
    program: Sequence[_C.plan.Action]
    memory: _C.plan.MemoryEstimate
    """Tensor bytes of the rank."""
    traffic: Mapping[tuple[str, str], _C.plan.Traffic]
    """By mesh axis and verb."""
    num_data_ranks: int
    """Ranks that read different rows."""
    flops: int
    """Of the rank in a step, in matrix products; forwards that run again included
    where the segments are known."""
    recomputed_flops: int
    """Of ``flops``, in forwards that run again before their backward."""
    knows_segments: bool
    """False for a Python model: what its segments need shows only when they run."""
    pipeline: Pipeline | None
    rates: Rates | None
    timed_ranks: Sequence[TimedRank]
    """At ``rates``; empty without them."""
    pipeline_rank: int
    """Which of ``timed_ranks`` the plan is of."""
    budget_curve: Sequence[tuple[int, int]] = ()
    """Bytes that the blocks keep of a microbatch and flops that they compute again, for
    every memory budget; empty unless the configuration asks to see it."""

    @property
    def num_ranks(self) -> int:
        """Of the whole run."""
        return math.prod(self.mesh.values())

    @property
    def time(self) -> _C.plan.Simulation | None:
        """Of this rank, at ``rates``; None without them."""
        return self.timed_ranks[self.pipeline_rank].time if self.timed_ranks else None

    @property
    def seconds(self) -> float:
        """Of a step, until the last rank of the pipeline has ended it.

        Raises:
            ValueError: if the plan was made without rates.
        """
        return max(rank.time.seconds for rank in self.timed_ranks)

    @property
    def idle_share(self) -> float:
        """Of the predicted time of all ranks of the pipeline, without work."""
        return _C.plan.idle_share(
            [rank.program for rank in self.timed_ranks],
            [rank.time.spans for rank in self.timed_ranks],
        )

    @property
    def tokens(self) -> int:
        """Of a rank in a step."""
        return self.rows * self.seq_len * self.shape.num_microbatches


def make_plan(
    job_config: JobConfig,
    world: World | None = None,
    *,
    rates: Rates | None = None,
    model: Model | None = None,
) -> Plan:
    """Build on meta tensors, measure each segment, verify the program and predict.

    Args:
        job_config: as ``check_run`` accepted it, with ``comm.mode`` "fake_backend".
        world: where the model is laid out; None: rank 0 of the configuration's mesh.
        rates: of the machine, if the time is to be predicted.
        model: as ``build_model`` made it for the configuration and world; None: made.
    Raises:
        ValueError: if model, mesh and configuration do not fit together, or the time of
            a Python model is asked for.
    """
    if world is None:
        world = build_world(job_config)
    training, dims = job_config.training, world.parallel_dims
    if model is None:
        model = _build(job_config, world)
    rows = (
        model.pipeline.microbatch_size if model.pipeline else training.local_batch_size
    )
    is_cpp = isinstance(model.module, CppModule)
    if rates is not None and not is_cpp:
        raise ValueError(
            "--tflops: the time of a Python model cannot be predicted, because its "
            "segments do not say what they compute"
        )
    shape = _shape(model, job_config, rows)
    program = model.applied.training_actions
    _C.plan.verify(program, shape, _C.plan.ProgramKind.TRAINING)
    flops = _flops_by_kind(program, shape)
    if not is_cpp:
        tokens = rows * training.seq_len * shape.num_microbatches
        # What ranks that share a batch compute is taken to be alike.
        flops["Forward"] = model.flops_per_token * tokens // (dims.pp * dims.tp)
    return Plan(
        mesh={axis: getattr(dims, axis) for axis in _MESH_AXES},
        model=f"{job_config.model.name} {job_config.model.flavor}",
        num_params=model.num_params,
        rows=rows,
        seq_len=training.seq_len,
        shape=shape,
        program=program,
        memory=_C.plan.estimate_memory(program, shape),
        traffic=_C.plan.traffic(program, shape, loss_ranks=world.groups["loss"].size),
        num_data_ranks=dims.batch,
        flops=sum(flops.values()),
        recomputed_flops=flops["Recompute"],
        knows_segments=is_cpp,
        pipeline=model.pipeline,
        rates=rates,
        timed_ranks=_predict(job_config, world, program, shape, rates),
        pipeline_rank=world.groups["pp"].rank,
        budget_curve=(
            model.applied.memory_budget_curve
            if job_config.activation_checkpoint.visualize_memory_budget_pareto
            else ()
        ),
    )


def _build(job_config: JobConfig, world: World) -> Model:
    training = job_config.training
    rows = training.local_batch_size * world.parallel_dims.batch
    return build_model(
        get_train_spec(job_config.model.name),
        job_config,
        world,
        accumulation=max(1, training.global_batch_size // rows),
    )


def _shape(model: Model, job_config: JobConfig, rows: int) -> _C.plan.StepShape:
    """What is known of a rank's step; of a Python model nothing of its segments."""
    shape = _with_optimizer(model.applied.shape, job_config)
    if find_device_type() == "cpu":
        shape = shape.with_transport_buffers()  # the ranks would talk over Gloo
    if isinstance(model.module, CppModule):
        shape = _measure(model, shape, job_config, rows)
    return shape


def _predict(
    job_config: JobConfig,
    world: World,
    program: Sequence[_C.plan.Action],
    shape: _C.plan.StepShape,
    rates: Rates | None,
) -> list[TimedRank]:
    """The steps of all ranks of the pipeline; ``program`` and ``shape`` of this one."""
    if rates is None:
        return []
    programs, shapes = [], []
    for rank in ranks_of_pipeline(job_config, world.rank):
        if rank != world.rank:
            model = _build(job_config, build_fake_world(job_config, rank))
            assert model.pipeline is not None
            program = model.applied.training_actions
            shape = _shape(model, job_config, model.pipeline.microbatch_size)
            _C.plan.verify(program, shape, _C.plan.ProgramKind.TRAINING)
        programs.append(program)
        shapes.append(shape)
    axes = {axis: group.size for axis, group in world.groups.items()}
    times = predict_times(programs, shapes, rates, axes)
    return [
        TimedRank(program=_C.plan.with_stages(program, shape), time=time)
        for program, shape, time in zip(programs, shapes, times, strict=True)
    ]


def _flops_by_kind(
    program: Sequence[_C.plan.Action], shape: _C.plan.StepShape
) -> dict[str, int]:
    """Of the segments that the program runs, by the kind of action."""
    flops = {"Forward": 0, "Recompute": 0, "Backward": 0}
    for action in program:
        if action.kind in ("Forward", "Recompute", "Backward", "BackwardInput"):
            segment = shape.segments[action.segment]
            of_kind = {
                "Forward": segment.forward_flops,
                "Recompute": segment.recompute_flops,
                "Backward": segment.backward_flops,
            }
            kind = action.kind.removesuffix("Input")  # with its other half
            flops[kind] += of_kind[kind]
    return flops


def _measure(
    model: Model, shape: _C.plan.StepShape, job_config: JobConfig, rows: int
) -> _C.plan.StepShape:
    """The shape with flops and bytes of each segment, from a microbatch on meta."""
    training = job_config.training
    batch = {
        name: torch.empty(
            rows,
            training.seq_len,
            dtype=torch.int64,
            device="meta",
        )
        for name in ("input", "labels")
    }
    return _C.parallel.measure(
        model.core,
        model.applied,
        model.deal(batch),
        shape,
        master_dtype=getattr(torch, training.dtype),
        compute_dtype=getattr(torch, compute_dtype(training)),
        reduce_dtype=getattr(torch, reduce_dtype(training)),
    )


def _with_optimizer(
    shape: _C.plan.StepShape, job_config: JobConfig
) -> _C.plan.StepShape:
    """The shape with the bytes of Adam's two moments in their own dtype."""
    moments = state_dtype(job_config.optimizer.state_dtype, job_config.training.dtype)
    return shape.with_optimizer_bytes(2 * getattr(torch, moments).itemsize)
