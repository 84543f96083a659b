"""The text of a plan."""

from __future__ import annotations

from collections.abc import Iterator

from torchtitan_cpp.metrics.summary import describe_mesh
from torchtitan_cpp.pipeline import NOT_OVERLAPPED
from torchtitan_cpp.plan.make import Plan

_MIB = 1024 * 1024
_COLLECTIVES = ("CountTokens", "Unshard", "ReduceGradient", "AllReduceGradient")
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


def describe(plan: Plan) -> str:
    """Mesh, program, memory and traffic, in lines of at most about 88 characters."""
    shape, everywhere = plan.shape, plan.tokens * plan.num_data_ranks
    lines = [
        f"mesh      {describe_mesh(plan.mesh)}",
        f"model     {plan.model}: {plan.num_params:,} parameters in "
        f"{len(shape.groups)} groups, {len(shape.segments)} segments",
        f"step      {shape.num_microbatches} x {plan.rows} rows of {plan.seq_len:,} "
        f"tokens: {plan.tokens:,} a rank, {everywhere:,} in all",
        f"products  {plan.flops / 1e12:,.4g} Tflop a rank, "
        f"{plan.recomputed_flops / 1e12:,.4g} of it in forwards that run again",
        *_pipeline_lines(plan),
        "",
        f"program of a rank: {len(plan.program):,} actions, the most MiB in each"
        + (", ms at its begin" if plan.time else ""),
        *_program_lines(plan),
        "",
        "memory of a rank (tensors, MiB)",
        *memory_lines(plan),
        "",
        "collectives of a rank in a step",
        *_traffic_lines(plan),
        *_budget_lines(plan),
        *_time_lines(plan),
    ]
    return "\n".join(lines)


def _pipeline_lines(plan: Plan) -> Iterator[str]:
    if plan.pipeline is None:
        return
    schedule, rounds = plan.pipeline.schedule, plan.pipeline.rounds
    simulation = plan.pipeline.simulate()
    repeated = f", {rounds} rounds of it" if rounds > 1 else ""
    yield (
        f"pipeline  {schedule.num_stages} stages on {schedule.num_ranks} ranks, "
        f"{schedule.num_microbatches} microbatches{repeated}"
    )
    live = max(rank.peak_live for rank in simulation.ranks)
    yield (
        f"          with equal stages {simulation.bubble:.1%} idle, at most {live} "
        "live pairs of stage and microbatch a rank"
    )
    if not plan.knows_segments and schedule.overlaps:
        yield f"          {NOT_OVERLAPPED}"


def _program_lines(plan: Plan) -> Iterator[str]:
    for index, action in enumerate(plan.program):
        name = ""
        if action.segment >= 0:
            name = plan.shape.segments[action.segment].name
        elif action.group >= 0:
            name = plan.shape.groups[action.group].name
        mib = plan.memory.totals[index] / _MIB
        begin = f" {plan.time.spans[index][0] * 1e3:>10,.1f}" if plan.time else ""
        yield f"  {index:>5}  {action!s:<30} {name:<24} {mib:>12,.1f}{begin}"


def memory_lines(plan: Plan) -> Iterator[str]:
    """A table of the rank's tensors by use, between steps and at the peak."""
    memory = plan.memory
    yield f"  {'':<18} {'between steps':>16} {'at the peak':>16}"
    for use in (*_MEMORY_USES, "total"):
        kept, peak = getattr(memory.before, use), getattr(memory.peak, use)
        if use == "total":
            kept, peak = kept(), peak()
        label = use.replace("_", " ")
        yield f"  {label:<18} {kept / _MIB:>16,.1f} {peak / _MIB:>16,.1f}"
    if any(action.kind == "Offload" for action in plan.program):
        if plan.shape.host_is_device:
            yield "  what is offloaded stays: host memory is the memory of a CPU run"
        elif plan.knows_segments:
            label, peak = "on the host, most", memory.host_peak
            yield f"  {label:<18} {'':>16} {peak / _MIB:>16,.1f}"
    if not plan.knows_segments:
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
    yield from unknown_traffic_lines(plan)
    if plan.mesh["tp"] > 1 and plan.mesh["pp"] == 1 and not plan.knows_segments:
        yield "  without those of tp inside the Python model: a dry run counts them"
        yield "  (python -m torchtitan_cpp.train --comm.mode fake_backend)"


def unknown_traffic_lines(plan: Plan) -> Iterator[str]:
    """What the traffic of a Python model in stages lacks, also in a dry run."""
    if plan.knows_segments or plan.mesh["pp"] == 1:
        return
    inside = " and exchange over tp" if plan.mesh["tp"] > 1 else ""
    yield f"  without the bytes that stages of the Python model send{inside}, which"
    yield "  the metrics of a run tell"


def _budget_lines(plan: Plan) -> Iterator[str]:
    if not plan.budget_curve:
        return
    yield ""
    yield "what the blocks keep of a microbatch and compute again, by memory budget"
    most = plan.budget_curve[-1][0]
    for tenth in range(11):
        within = [cost for cost in plan.budget_curve if 10 * cost[0] <= tenth * most]
        kept, again = within[-1]
        yield (
            f"  {tenth / 10:<14.1f} {kept / _MIB:>16,.1f} MiB "
            f"{again / 1e12:>14,.4g} Tflop"
        )


def _time_lines(plan: Plan) -> Iterator[str]:
    rates, time = plan.rates, plan.time
    if rates is None or time is None:
        return
    at = f"{rates.tflops:g} Tflop/s, memory {rates.memory_gb_per_second:g} GB/s"
    if plan.num_ranks > 1:
        at += f", network {rates.network_gb_per_second:g} GB/s"
        at += f" after {rates.network_latency_us:g} us"
    yield ""
    yield f"time of a step at {at}"
    yield f"  computing      {time.compute_seconds:>12,.4g} s"
    yield f"  waiting        {time.exposed_seconds:>12,.4g} s"
    each = plan.tokens / plan.seconds
    yield (
        f"  together       {plan.seconds:>12,.4g} s: {each:,.0f} tokens/s a rank, "
        f"{each * plan.num_data_ranks:,.0f} in all"
    )
    if plan.pipeline is not None:
        yield f"  bubble         {plan.idle_share:>12.1%} of the pipeline's time"
        return  # its messages are waited for by ranks without work
    moving = sum(
        end - begin
        for action, (begin, end) in zip(plan.program, time.spans, strict=True)
        if action.kind in _COLLECTIVES
    )
    if moving > 0:
        hidden = max(0.0, 1 - time.exposed_seconds / moving)
        yield f"  communicating  {moving:>12,.4g} s, {hidden:.0%} of it while computing"
