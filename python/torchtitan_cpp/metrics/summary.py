"""What a run is, before its first step, and where its files are, after its last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from torchtitan_cpp.metrics.progress import format_duration


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """Plain values of a run that is about to start; None leaves a line out."""

    model: str
    """Name and flavor, such as ``llama3 debugmodel``."""
    num_params: int
    """Parameters of the whole model."""
    flops_per_token: int | None
    """Of forward and backward."""
    mesh: Mapping[str, int]
    """Degree of every axis from slow to fast; axes of degree 1 are not shown."""
    device: str
    """Such as ``cpu (AMD EPYC 7763), 2 threads`` or ``cuda (NVIDIA H200)``."""
    local_batch_size: int
    """Sequences that a data-parallel rank computes at once."""
    num_data_ranks: int
    """Data-parallel ranks, dp_replicate x dp_shard."""
    accumulation: int
    """Microbatches that a rank computes for one step."""
    seq_len: int
    """Tokens of a sequence."""
    start_step: int
    """Steps finished before this start."""
    steps: int
    """The step after which the run ends."""
    dataset: str
    """Its name, and its path if one was given."""
    tokenizer: str | None
    """Its folder and number of entries."""
    param_dtype: str
    """Of the parameters that the optimizer updates."""
    compute_dtype: str
    """Of forward and backward."""
    reduce_dtype: str
    """Of the sum of gradients over ranks."""
    activation_checkpointing: str
    """Such as ``none``, ``full``, ``selective, every 2nd layer``."""
    optimizer: str
    """Such as ``AdamW, lr 8.0e-04, weight decay 0.1, fused``."""
    clipping: str
    """Such as ``global norm 1.0``, or why there is none."""
    schedule: str
    """Such as ``2 warmup steps, then linear to 0.0 over 8``."""
    checkpoint: str
    """Such as ``off`` or ``every 500 steps in outputs/checkpoint``."""
    dump_folder: str | None
    """Where everything that the run writes lies; None: it writes nothing."""
    seed: int | None = None
    """Of initial weights; None: drawn by the run."""
    bytes_by_axis: Mapping[str, int | None] = field(default_factory=dict)
    """That this rank exchanges in a step, by mesh axis; None: not known beforehand."""
    notes: tuple[str, ...] = ()
    """What a person should know about this run, a sentence each."""


def format_summary(run: RunSummary) -> str:
    """A short aligned text, ready for the log or the screen."""
    return _aligned(_rows(run), indent="  ")


def format_closing(
    *,
    steps: int,
    seconds: float,
    losses: Mapping[int, float],
    files: Mapping[str, Path],
    suggestions: Sequence[tuple[str, str]] = (),
    waited: Mapping[str, float] | None = None,
) -> str:
    """What came out of a run, where its files are and what to try next.

    Args:
        steps: steps that this start trained.
        seconds: that they took.
        losses: loss of each logged step, by step in ascending order.
        files: what a file or folder holds and where it is; only those that exist are
            shown.
        suggestions: what one could do next and the command for it.
        waited: seconds that steps of this rank spent in collectives, by mesh axis.
    """
    count = f"{steps:,} step{'' if steps == 1 else 's'}"
    outcome = f"Trained {count} in {format_duration(seconds)}"
    logged = list(losses.items())
    if len(logged) == 1:  # not as if the loss had not changed
        outcome += f"; loss {logged[0][1]:.4f} at step {logged[0][0]:,}"
    elif logged:
        outcome += f"; loss {logged[0][1]:.4f} -> {logged[-1][1]:.4f}"
    parts = [outcome + "."]
    if waited:
        times = ", ".join(f"{axis} {each:.2f} s" for axis, each in waited.items())
        parts.append(f"Steps of this rank spent in collectives: {times}.")
    found = [(label, str(path)) for label, path in files.items() if path.exists()]
    if found:
        parts.append("Files:\n" + _aligned(found, indent="  "))
    if suggestions:
        parts.append("Next:\n" + _aligned(suggestions, indent="  "))
    return "\n".join(parts)


def describe_mesh(mesh: Mapping[str, int]) -> str:
    """``8 ranks: dp_replicate 2 x dp_shard 4``; ``1 rank`` when there is only one."""
    world_size = 1
    for degree in mesh.values():
        world_size *= degree
    if world_size == 1:
        return "1 rank"
    axes = " x ".join(f"{axis} {mesh[axis]}" for axis in mesh if mesh[axis] > 1)
    return f"{world_size:,} ranks: {axes}"


def abbreviate(number: float) -> str:
    """Three significant digits and a suffix: ``6.16M``, ``8.03B``, ``405B``."""
    size, suffix = float(number), ""
    for suffix in ("", "K", "M", "B", "T", "P"):
        if abs(size) < 999.5 or suffix == "P":
            break
        size /= 1000
    if suffix == "":
        return f"{size:.3g}"
    decimals = 2 if abs(size) < 9.995 else 1 if abs(size) < 99.95 else 0
    return f"{size:.{decimals}f}{suffix}"


def _rows(run: RunSummary) -> list[tuple[str, str]]:
    sequences = run.local_batch_size * run.num_data_ranks * run.accumulation
    tokens = sequences * run.seq_len
    model = f"{run.model}, {run.num_params:,} parameters"
    if run.flops_per_token is not None:
        model += f", {abbreviate(run.flops_per_token)} flops a token"
    left = run.steps - run.start_step
    steps = (
        f"{run.start_step + 1:,} to {run.steps:,}, {abbreviate(tokens * left)} tokens"
    )
    if left <= 0:
        steps = (
            f"none: step {run.start_step:,} of training.steps = {run.steps:,} is done"
        )
    rows = [
        ("model", model),
        ("devices", f"{run.device}; {describe_mesh(run.mesh)}"),
        (
            "batch",
            f"{sequences:,} x {run.seq_len:,} = {tokens:,} tokens a step "
            f"({run.local_batch_size} sequences x {_count(run.num_data_ranks, 'rank')}"
            f" x {_count(run.accumulation, 'microbatch', 'microbatches')})",
        ),
        ("steps", steps),
        ("data", run.dataset),
        ("tokenizer", run.tokenizer),
        (
            "numbers",
            f"parameters {run.param_dtype}, computed in {run.compute_dtype}, "
            f"gradients summed in {run.reduce_dtype}",
        ),
        ("recompute", run.activation_checkpointing),
        ("optimizer", f"{run.optimizer}; clipping: {run.clipping}"),
        ("schedule", run.schedule),
        ("traffic", _describe_traffic(run.bytes_by_axis)),
        ("checkpoints", run.checkpoint),
        ("files", run.dump_folder),
        ("seed", None if run.seed is None else str(run.seed)),
    ]
    shown = [(label, value) for label, value in rows if value is not None]
    return shown + [("note", note) for note in run.notes]


def _describe_traffic(bytes_by_axis: Mapping[str, int | None]) -> str | None:
    if not bytes_by_axis:
        return None
    axes = ", ".join(
        f"{axis} {'only known when it runs' if each is None else f'{each:,}'}"
        for axis, each in bytes_by_axis.items()
    )
    return f"bytes of this rank a step: {axes}"


def _count(number: int, one: str, many: str | None = None) -> str:
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _aligned(rows: Sequence[tuple[str, str]], *, indent: str) -> str:
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{indent}{label:<{width}}  {value}" for label, value in rows)
