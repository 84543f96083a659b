"""When each action of a step began and ended on each rank: written and read back.

A rank writes one JSON file for a recorded step. Its times are seconds of the clock that
all processes of its machine share, so they compare directly on one machine. Between
machines they are converted by the system clocks, whose differences they then have.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchtitan_cpp import _C
from torchtitan_cpp.logging import logger
from torchtitan_cpp.profiling import StepProfiler

if TYPE_CHECKING:
    from torchtitan_cpp.trainer import Trainer

_PATTERN = "rank*_timeline.json"


@dataclass(frozen=True, kw_only=True)
class RecordedStep:
    """What the ranks of a run did in one step."""

    step: int
    model: str
    device: str
    num_machines: int
    programs: Sequence[Sequence[_C.plan.Action]]
    """By rank."""
    spans: Sequence[Sequence[tuple[float, float]]]
    """By rank and action: seconds since the first action of any rank began. Of a start
    that is waited for: until the end of its Wait."""

    @property
    def seconds(self) -> float:
        """From the first begin to the last end."""
        return max(end for rank in self.spans for _, end in rank)

    @property
    def idle_share(self) -> float:
        """Of the time of all ranks, without compute or optimizer."""
        return _C.plan.idle_share(self.programs, self.spans)

    @property
    def title(self) -> str:
        """What the times are of."""
        words = (
            f"{self.model}: step {self.step} on {len(self.programs)} ranks, measured"
        )
        if self.device != "cpu":
            words += " by the host"
        if self.num_machines > 1:
            words += f", clocks of {self.num_machines} machines"
        return words


@contextmanager
def maybe_record_times(trainer: Trainer) -> Iterator[StepProfiler | None]:
    """Record every ``profile_freq``-th step where ``profiling.enable_timeline`` is set.

    Writes ``iteration_<N>/rank<r>_timeline.json`` below
    ``<job.dump_folder>/<profiling.save_timeline_folder>``.

    Yields:
        What to call ``step()`` on after each training step; None when off.
    """
    config = trainer.job_config.profiling
    if not config.enable_timeline:
        yield None
        return
    folder = Path(trainer.job_config.job.dump_folder, config.save_timeline_folder)
    num_written = 0

    def record(step: int) -> bool:
        return step % config.profile_freq == 0

    def on_step(step: int) -> None:
        nonlocal num_written
        if record(step):
            write_times(trainer, step, folder / f"iteration_{step}")
            num_written += 1
        trainer.executor.record_times(record(step + 1))

    trainer.executor.record_times(record(trainer.step + 1))
    steps = StepProfiler(trainer.step, on_step)
    yield steps
    if num_written == 0:
        logger.warning(
            "No times were recorded: the run ended at step %d, and one step in %d is "
            "recorded (profiling.profile_freq)",
            steps.step_num,
            config.profile_freq,
        )


def write_times(trainer: Trainer, step: int, folder: Path) -> None:
    """The times of the last step that ``trainer.executor`` has recorded."""
    world, applied = trainer.world, trainer.model.applied
    model = trainer.job_config.model
    program = _C.plan.with_stages(applied.training_actions, applied.shape)
    recorded = {
        "step": step,
        "rank": world.rank,
        "num_ranks": world.parallel_dims.world_size,
        "model": f"{model.name} {model.flavor}",
        "device": world.device.type,
        "machine": _machine(),
        "unix_minus_monotonic": time.time() - time.monotonic(),
        "segments": [segment.name for segment in applied.shape.segments],
        "groups": [group.name for group in applied.shape.groups],
        "actions": [
            [str(action), begin, end]
            for action, (begin, end) in zip(
                program, trainer.executor.times, strict=True
            )
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rank{world.rank}_timeline.json"
    path.write_text(json.dumps(recorded), encoding="utf-8")
    logger.info("Wrote when the actions of step %d ran to %s", step, path)


def read_times(folder: Path) -> RecordedStep:
    """The step that the ranks of a run have recorded in this folder.

    Raises:
        ValueError: if it has not one file of each rank of one step.
        OSError: if it cannot be read.
    """
    ranks = [_read(path) for path in folder.glob(_PATTERN)]
    if not ranks:
        raise ValueError(
            f"{folder}: no file {_PATTERN}; expected a folder iteration_<N> that a run "
            "with profiling.enable_timeline has written"
        )
    ranks.sort(key=lambda each: int(each["rank"]))
    first = ranks[0]
    for name in ("step", "num_ranks", "model"):
        found = {str(each[name]) for each in ranks}
        if len(found) > 1:
            raise ValueError(
                f"{folder}: files of different runs: {name} is "
                f"{' and '.join(sorted(found))}"
            )
    missing = set(range(first["num_ranks"])) - {each["rank"] for each in ranks}
    if missing:
        raise ValueError(
            f"{folder}: expected a file of each of {first['num_ranks']} ranks, missing "
            f"rank {min(missing)}"
        )
    machines = {each["machine"] for each in ranks}
    spans = []
    for each in ranks:
        offset = each["unix_minus_monotonic"] if len(machines) > 1 else 0.0
        spans.append([(b + offset, e + offset) for _, b, e in each["actions"]])
    start = min(begin for rank in spans for begin, _ in rank)
    return RecordedStep(
        step=first["step"],
        model=first["model"],
        device=first["device"],
        num_machines=len(machines),
        programs=[
            [_C.plan.Action(text) for text, _, _ in each["actions"]] for each in ranks
        ],
        spans=[[(b - start, e - start) for b, e in rank] for rank in spans],
    )


def describe_times(recorded: RecordedStep) -> str:
    """What each rank did with its time, a line a rank."""
    lines = [
        recorded.title,
        f"  {recorded.seconds:,.4g} s, {recorded.idle_share:.1%} of all ranks' idle",
    ]
    for rank, (program, spans) in enumerate(
        zip(recorded.programs, recorded.spans, strict=True)
    ):
        idle = _C.plan.idle_share([program], [spans])
        end = max(end for _, end in spans)
        waiting = sum(
            end - begin
            for action, (begin, end) in zip(program, spans, strict=True)
            if action.kind == "Wait"
        )
        lines.append(
            f"  rank {rank}: {len(program):,} actions, computing "
            f"{(1 - idle) * end:,.4g} s, waiting {waiting:,.4g} s"
        )
    return "\n".join(lines)


def _machine() -> str:
    """Equal for processes that share a clock: since when the machine has been up."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else platform.node()


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
