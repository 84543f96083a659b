"""All that looks at single steps of a run, as the section ``profiling`` asks for it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torchtitan_cpp.profiling import (
    maybe_enable_memory_snapshot,
    maybe_enable_profiling,
)
from torchtitan_cpp.recorded_times import maybe_record_times

if TYPE_CHECKING:
    from torchtitan_cpp.trainer import Trainer


@contextmanager
def profile_steps(trainer: Trainer) -> Iterator[Callable[[], None]]:
    """Yields what to call after each training step."""
    section = trainer.job_config.profiling
    where: dict[str, Any] = {
        "global_step": trainer.step,
        "base_folder": trainer.job_config.job.dump_folder,
        "rank": trainer.world.rank,
    }
    device = trainer.world.device
    with ExitStack() as stack:
        profilers = [
            stack.enter_context(each)
            for each in (
                maybe_enable_profiling(section, **where),
                maybe_enable_memory_snapshot(section, **where, device=device),
                maybe_record_times(trainer),
            )
        ]

        def finished_step() -> None:
            for profiler in profilers:
                if profiler:
                    profiler.step()

        yield finished_step
