"""Traces of torch.profiler for Perfetto, and snapshots of CUDA's memory."""

from __future__ import annotations

import os
import pickle
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch._C._profiler import _ExperimentalConfig

from torchtitan_cpp.logging import logger

MEMORY_SNAPSHOT_MAX_ENTRIES = 100_000
"""Allocations and releases that a memory snapshot looks back on."""


class ProfilingConfig(Protocol):
    """The section ``profiling``."""

    @property
    def enable_profiling(self) -> bool: ...
    @property
    def save_traces_folder(self) -> str: ...
    @property
    def profile_freq(self) -> int: ...
    @property
    def profiler_active(self) -> int: ...
    @property
    def profiler_warmup(self) -> int: ...
    @property
    def enable_memory_snapshot(self) -> bool: ...
    @property
    def save_memory_snapshot_folder(self) -> str: ...


class StepProfiler:
    """Counts finished steps for a profiler that dumps by step number."""

    def __init__(self, step_num: int, on_step: Callable[[int], None]) -> None:
        self.step_num = step_num
        self._on_step = on_step

    def step(self) -> None:
        """One more training step has finished."""
        self.step_num += 1
        self._on_step(self.step_num)


def check_profiling(config: ProfilingConfig, device: torch.device) -> None:
    """Refuse a section that cannot work, before any process group exists.

    Raises:
        ValueError: naming the field, what was expected and what was found.
    """
    if config.enable_profiling:
        _check_windows(config)
    if config.enable_memory_snapshot:
        _check_snapshots(config, device)


@contextmanager
def maybe_enable_profiling(
    profiling_config: ProfilingConfig,
    *,
    global_step: int = 0,
    base_folder: str = "",
    leaf_folder: str = "",
    rank: int = 0,
    all_threads: bool = False,
) -> Iterator[StepProfiler | None]:
    """Trace the last ``profiler_active`` of every ``profile_freq`` steps.

    Writes ``<base>/<save_traces_folder>/iteration_<N>/<leaf>/rank<r>_trace.json``,
    which Perfetto (ui.perfetto.dev) and chrome://tracing open.

    Args:
        global_step: steps finished before; windows lie at the same steps after a
            resume.
        all_threads: not only what this thread does: ranks may be threads.
    Yields:
        What to call ``step()`` on after each training step; None when off.
    Raises:
        ValueError: if the window does not fit into ``profile_freq`` steps.
    """
    if not profiling_config.enable_profiling:
        yield None
        return
    _check_windows(profiling_config)
    # Read when the profiler first starts: without it every window prints its stages.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    folder = Path(base_folder, profiling_config.save_traces_folder)
    folder.mkdir(parents=True, exist_ok=True)
    logger.info("Profiling active. Traces will be saved at %s", folder)
    warmup, active = profiling_config.profiler_warmup, profiling_config.profiler_active
    plan = torch.profiler.schedule(
        wait=profiling_config.profile_freq - (warmup + active),
        warmup=warmup,
        active=active,
    )
    num_traces = 0

    def write_trace(profiler: torch.profiler.profile) -> None:
        nonlocal num_traces
        num_traces += 1
        step = global_step + profiler.step_num
        target = folder / f"iteration_{step}" / leaf_folder
        target.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        profiler.export_chrome_trace(str(target / f"rank{rank}_trace.json"))
        logger.info(
            "Wrote the profiler trace of step %d in %.2f seconds",
            step,
            time.monotonic() - begin,
        )

    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(
        activities=activities,
        schedule=lambda step: plan(global_step + step),
        on_trace_ready=write_trace,
        record_shapes=True,
        experimental_config=_ExperimentalConfig(profile_all_threads=all_threads),
    ) as profiler:

        def on_step(step: int) -> None:
            with warnings.catch_warnings():
                # Each cycle has a file of its own; that earlier ones are dropped from
                # memory is what we want.
                warnings.filterwarnings("ignore", message=".*Profiler clears events")
                profiler.step()

        steps = StepProfiler(global_step, on_step)
        yield steps
    if num_traces == 0:
        logger.warning(
            "No profiler trace was written: the run ended at step %d, and a trace is "
            "complete every %d steps (profiling.profile_freq)",
            steps.step_num,
            profiling_config.profile_freq,
        )


@contextmanager
def maybe_enable_memory_snapshot(
    profiling_config: ProfilingConfig,
    *,
    global_step: int = 0,
    base_folder: str = "",
    leaf_folder: str = "",
    rank: int = 0,
    device: torch.device | None = None,
) -> Iterator[StepProfiler | None]:
    """Write CUDA's memory history every ``profile_freq`` steps and when it runs out.

    Writes ``iteration_<N>/<leaf>/rank<r>_memory_snapshot.pickle`` below
    ``<base>/<save_memory_snapshot_folder>``; ``iteration_<N>_exit`` is the state in
    which memory ran out after ``N`` finished steps. pytorch.org/memory_viz opens it.

    Args:
        device: where the model lies; by default CUDA when there is one.
    Yields:
        What to call ``step()`` on after each training step; None when off.
    Raises:
        ValueError: on a CPU, which keeps no such history.
    """
    if not profiling_config.enable_memory_snapshot:
        yield None
        return
    if device is None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    _check_snapshots(profiling_config, device)
    memory: Any = torch.cuda.memory  # the history's functions are not typed
    folder = Path(base_folder, profiling_config.save_memory_snapshot_folder)
    folder.mkdir(parents=True, exist_ok=True)
    logger.info("Memory profiler active. Snapshots will be saved at %s", folder)

    def write_snapshot(name: str) -> None:
        target = folder / name / leaf_folder
        target.mkdir(parents=True, exist_ok=True)
        begin = time.monotonic()
        with (target / f"rank{rank}_memory_snapshot.pickle").open("wb") as file:
            pickle.dump(memory._snapshot(), file)
        logger.info(
            "Wrote the memory snapshot %s in %.2f seconds",
            name,
            time.monotonic() - begin,
        )

    def on_step(step: int) -> None:
        if step % profiling_config.profile_freq == 0:
            write_snapshot(f"iteration_{step}")

    memory._record_memory_history(max_entries=MEMORY_SNAPSHOT_MAX_ENTRIES)
    steps = StepProfiler(global_step, on_step)
    try:
        yield steps
    except torch.OutOfMemoryError:
        write_snapshot(f"iteration_{steps.step_num}_exit")
        raise
    finally:
        memory._record_memory_history(enabled=None)


def _check_windows(config: ProfilingConfig) -> None:
    if config.profiler_active < 1 or config.profiler_warmup < 0:
        raise ValueError(
            "profiling: expected profiler_active of at least 1 and profiler_warmup "
            f"of at least 0, but found {config.profiler_active} and "
            f"{config.profiler_warmup}"
        )
    window = config.profiler_warmup + config.profiler_active
    if config.profile_freq < window:
        raise ValueError(
            f"profiling.profile_freq: expected at least profiler_warmup + "
            f"profiler_active = {window} steps, but found {config.profile_freq}"
        )


def _check_snapshots(config: ProfilingConfig, device: torch.device) -> None:
    if device.type != "cuda":
        raise ValueError(
            "profiling.enable_memory_snapshot: snapshots are taken by CUDA's "
            f"allocator, but this run is on {device.type}. Leave it off; "
            "metrics.jsonl has the peak memory of every logged step."
        )
    if config.profile_freq < 1:
        raise ValueError(
            f"profiling.profile_freq: expected at least 1, but found "
            f"{config.profile_freq}"
        )
