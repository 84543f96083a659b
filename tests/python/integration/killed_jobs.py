"""A job under torchrun whose ranks are killed, again and again, at moments drawn."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from training_runs import import_path, merged

PHASES = ("starting", "loading", "step", "saving")
"""Of a rank that is killed: before it has built its model; around the load; between two
saves; while a staging folder is there."""

_MARK = "TORCHTITAN_TEST_MARK"
_LONGEST = 240.0  # seconds that anything is waited for


@dataclass
class KilledJob:
    """What was done to a job and what came of it."""

    output: str
    exit_code: int
    phases: list[str] = field(default_factory=list)
    """Of the ranks that were killed, in order."""
    orphans: int = 0
    """Processes of the job that were there after its end."""

    def lost_steps(self) -> list[tuple[int, int]]:
        """Steps that were told to be saved and what a later start went on from."""
        saved, lost = 0, []
        for match in re.finditer(
            r"Saved \S+/step-(\d+)|training goes on after step (\d+)", self.output
        ):
            if match[1]:
                saved = int(match[1])
            elif int(match[2]) < saved:
                lost.append((saved, int(match[2])))
        return lost


def run_with_kills(
    folder: Path, *flags: str, ranks: int, kills: int, seed: int
) -> KilledJob:
    """Run a job by torchrun, which starts it anew after each of ``kills`` SIGKILLs.

    The rank, the phase and the moment in it are drawn from ``seed``.
    """
    folder.mkdir(parents=True)
    path = folder / "output.txt"
    mark = uuid.uuid4().hex
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}", f"--max-restarts={kills}"]
    command += ["--monitor-interval=0.05", "-m", "torchtitan_cpp.train"]
    command += merged(f"--job.dump-folder={folder}", *flags)
    variables = {"OMP_NUM_THREADS": "1", "PYTHONPATH": import_path(), _MARK: mark}
    with path.open("w") as output:
        launcher = subprocess.Popen(
            command, env=os.environ | variables, stdout=output, stderr=output
        )
    killer = _Killer(launcher, mark, path, ranks)
    draw = random.Random(seed)
    try:
        while len(killer.phases) < kills and killer.kill(draw):
            pass
        launcher.wait(_LONGEST)
    finally:
        launcher.kill()
        launcher.wait()
        orphans = _processes(mark)
        for pid in orphans:
            _send(pid)
    return KilledJob(
        output=path.read_text(),
        exit_code=launcher.returncode,
        phases=killer.phases,
        orphans=len(orphans),
    )


class _Killer:
    def __init__(
        self, launcher: subprocess.Popen[bytes], mark: str, output: Path, ranks: int
    ) -> None:
        self.phases: list[str] = []
        self._launcher = launcher
        self._mark = mark
        self._output = output
        self._checkpoints = output.parent / "checkpoint"
        self._ranks = ranks
        self._seen: set[int] = set()  # processes of earlier starts
        self._started: dict[int, int] = {}  # by rank

    def kill(self, draw: random.Random) -> bool:
        """Kill one rank of the next start; False if the job has ended before."""
        phase, victim, moment = (
            draw.choice(PHASES),
            draw.randrange(self._ranks),
            draw.random(),
        )
        steps = draw.randrange(1, 12)
        before = self._output.stat().st_size

        def has_told(text: str, times: int = 1) -> bool:
            with self._output.open() as file:
                file.seek(before)
                return file.read().count(text) >= times

        reached = self._wait(self._have_started, every=0.02)
        if phase == "loading" and "Saved " in self._output.read_text():
            reached = reached and self._wait(lambda: has_told("goes on after step"))
            moment *= 0.005
        elif phase in ("starting", "loading"):
            moment *= 4
        else:
            reached = reached and self._wait(lambda: has_told("step: ", steps))
            moment *= 0.03
        if phase == "saving":
            reached = reached and self._wait(self._is_saving)
        time.sleep(moment)
        if not reached or not _send(self._started[victim]):
            return False
        self.phases.append(phase)
        self._seen.update(self._started.values())
        return True

    def _have_started(self) -> bool:
        processes = _ranks(self._mark).items()
        self._started = {rank: pid for pid, rank in processes if pid not in self._seen}
        return len(self._started) == self._ranks

    def _is_saving(self) -> bool:
        return any(self._checkpoints.glob("step-*.tmp-*"))

    def _wait(self, holds: Callable[[], bool], *, every: float = 0.001) -> bool:
        """Until it holds; False if the job ends first."""
        deadline = time.monotonic() + _LONGEST
        while not holds():
            if self._launcher.poll() is not None:
                return False
            assert time.monotonic() < deadline, self._output.read_text()
            time.sleep(every)
        return True


def _ranks(mark: str) -> dict[int, int]:
    """Rank by process."""
    found = {}
    for pid in _processes(mark):
        match = re.search(r"(?:^|\0)RANK=(\d+)\0", _environment(pid))
        if match:
            found[pid] = int(match[1])
    return found


def _processes(mark: str) -> list[int]:
    pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
    return [pid for pid in pids if f"{_MARK}={mark}" in _environment(pid)]


def _environment(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/environ").read_text(errors="replace")
    except OSError:
        return ""  # it has ended, or is another user's


def _send(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True
