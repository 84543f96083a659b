"""Prints what a training would do, without starting ranks, data or computation.

``NGPU=64 python -m torchtitan_cpp.plan --job.config_file run.toml [flags]`` takes the
flags of ``torchtitan_cpp.train`` and prints, for any number of ranks, the mesh, the
program of one rank, the memory it needs and the bytes it moves in a step.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.build import Model, build_model
from torchtitan_cpp.config import (
    ConfigError,
    JobConfig,
    check_run,
    compute_dtype,
    read_config,
    reduce_dtype,
    state_dtype,
)
from torchtitan_cpp.metrics.summary import describe_mesh
from torchtitan_cpp.nn import CppModule
from torchtitan_cpp.train import EXIT_BAD_INPUT, import_custom_code, known_names
from torchtitan_cpp.train_spec import get_train_spec
from torchtitan_cpp.world import World, build_world, find_world_size

_MIB = 1024 * 1024
_MESH_AXES = ("pp", "dp_replicate", "dp_shard", "cp", "tp")
_MEMORY_USES = (
    "constant",
    "parameters",
    "gradients",
    "optimizer",
    "gathered",
    "whole_gradients",
    "activations",
    "temporaries",
)


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
    knows_activations: bool
    """False for a Python model: what its segments need shows only when they run."""

    @property
    def tokens(self) -> int:
        """Of a rank in a step."""
        return self.rows * self.seq_len * self.shape.num_microbatches


def make_plan(job_config: JobConfig, world: World | None = None) -> Plan:
    """Build on meta tensors, measure each segment, verify the program and predict.

    Args:
        job_config: as ``check_run`` accepted it, with ``comm.mode`` "fake_backend".
        world: where the model is laid out; None: rank 0 of the configuration's mesh.
    Raises:
        ValueError: if model, mesh and configuration do not fit together.
    """
    if world is None:
        world = build_world(job_config)
    training, dims = job_config.training, world.parallel_dims
    rows = training.local_batch_size
    accumulation = max(1, training.global_batch_size // (rows * dims.batch))
    model = build_model(
        get_train_spec(job_config.model.name),
        job_config,
        world,
        accumulation=accumulation,
    )
    shape = _with_optimizer(model.applied.shape, job_config)
    is_cpp = isinstance(model.module, CppModule)
    if is_cpp:
        shape = _measure(model, shape, job_config)
    program = model.applied.training_actions
    _C.plan.verify(program, shape, _C.plan.ProgramKind.TRAINING)
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
        knows_activations=is_cpp,
    )


def _measure(
    model: Model, shape: _C.plan.StepShape, job_config: JobConfig
) -> _C.plan.StepShape:
    """The shape with the bytes of each segment, from a microbatch on meta."""
    training = job_config.training
    batch = {
        name: torch.empty(
            training.local_batch_size,
            training.seq_len,
            dtype=torch.int64,
            device="meta",
        )
        for name in ("input", "labels")
    }
    return _C.nn.measure(
        model.core,
        batch,
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


def describe(plan: Plan) -> str:
    """Mesh, program, memory and traffic, in lines of at most about 88 characters."""
    shape, everywhere = plan.shape, plan.tokens * plan.num_data_ranks
    lines = [
        f"mesh      {describe_mesh(plan.mesh)}",
        f"model     {plan.model}: {plan.num_params:,} parameters in "
        f"{len(shape.groups)} groups, {len(shape.segments)} segments",
        f"step      {shape.num_microbatches} x {plan.rows} rows of {plan.seq_len:,} "
        f"tokens: {plan.tokens:,} a rank, {everywhere:,} in all",
        "",
        f"program of a rank: {len(plan.program):,} actions, the most MiB in each",
        *_program_lines(plan),
        "",
        "memory of a rank (tensors, MiB)",
        *_memory_lines(plan),
        "",
        "collectives of a rank in a step",
        *_traffic_lines(plan),
    ]
    return "\n".join(lines)


def _program_lines(plan: Plan) -> Iterator[str]:
    for index, action in enumerate(plan.program):
        name = ""
        if action.segment >= 0:
            name = plan.shape.segments[action.segment].name
        elif action.group >= 0:
            name = plan.shape.groups[action.group].name
        mib = plan.memory.totals[index] / _MIB
        yield f"  {index:>5}  {action!s:<30} {name:<24} {mib:>12,.1f}"


def _memory_lines(plan: Plan) -> Iterator[str]:
    memory = plan.memory
    yield f"  {'':<18} {'between steps':>16} {'at the peak':>16}"
    for use in (*_MEMORY_USES, "total"):
        kept, peak = getattr(memory.before, use), getattr(memory.peak, use)
        if use == "total":
            kept, peak = kept(), peak()
        label = use.replace("_", " ")
        yield f"  {label:<18} {kept / _MIB:>16,.1f} {peak / _MIB:>16,.1f}"
    if not plan.knows_activations:
        yield "  without the activations of the Python model, which it cannot foresee"
    if memory.peak_action >= 0:
        action = plan.program[memory.peak_action]
        yield f"  the peak is in action {memory.peak_action}, {action}"


def _traffic_lines(plan: Plan) -> Iterator[str]:
    if not plan.traffic:
        yield "  none"
    for (axis, verb), traffic in sorted(plan.traffic.items()):
        mib = traffic.bytes / _MIB
        yield f"  {axis:<14} {verb:<16} {traffic.calls:>7,} calls {mib:>14,.1f} MiB"


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, check, plan, print; the exit code.

    Args:
        argv: flags of ``torchtitan_cpp.train``; None: those of this process.
    """
    flags = list(sys.argv[1:] if argv is None else argv)
    try:
        loaded = read_config([*flags, "--comm.mode=fake_backend"])
        import_custom_code(loaded)
        config = check_run(
            loaded,
            world_size=find_world_size(loaded.config),
            known=known_names(loaded),
        )
        plan = make_plan(config)
    except (ConfigError, ValueError) as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    print(describe(plan))
    return 0


if __name__ == "__main__":
    sys.exit(main())
