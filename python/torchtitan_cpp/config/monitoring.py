"""Sections metrics and profiling."""

from __future__ import annotations

from dataclasses import dataclass

from torchtitan_cpp.config.constraints import Name, NonNegative, Positive


@dataclass(frozen=True, kw_only=True)
class Metrics:
    """What is measured, how often it is logged and where."""

    log_freq: Positive = 10
    """Steps between two logged lines; the first step is always logged."""
    enable_tensorboard: bool = False
    """Write TensorBoard event files."""
    disable_color_printing: bool = False
    """Print without colors; they are off anyway when the output is no terminal."""
    save_tb_folder: Name = "tb"
    """Folder of the TensorBoard files, below job.dump_folder."""
    save_for_all_ranks: bool = False
    """Write TensorBoard and W&B metrics of every rank, not of the first only."""
    enable_wandb: bool = False
    """Log to Weights & Biases."""


@dataclass(frozen=True, kw_only=True)
class Profiling:
    """Traces and times of a few steps, and snapshots of the memory."""

    enable_profiling: bool = False
    """Record a trace of profiler_active steps every profile_freq steps."""
    save_traces_folder: Name = "profile_traces"
    """Folder of the traces, below job.dump_folder."""
    profile_freq: Positive = 10
    """Steps between the ends of two traces, snapshots or recorded times."""
    profiler_active: Positive = 1
    """Steps that each trace records."""
    profiler_warmup: NonNegative = 3
    """Steps that the profiler runs before it records."""
    enable_memory_snapshot: bool = False
    """Record every allocation and write a snapshot each profile_freq steps (CUDA)."""
    save_memory_snapshot_folder: Name = "memory_snapshot"
    """Folder of the snapshots, below job.dump_folder."""
    enable_timeline: bool = False
    """Not v0.2.2's: record when actions of every profile_freq-th step begin and end."""
    save_timeline_folder: Name = "timelines"
    """Not v0.2.2's: folder of the recorded times, below job.dump_folder."""
