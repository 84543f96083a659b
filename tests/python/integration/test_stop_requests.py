"""SIGTERM in every phase of a run, to one rank, to all, and to the launcher."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from training_runs import Job, import_path, merged, run

RANKS = 2
LIMIT_SECONDS = 120
"""For a loaded machine; the table of scripts/nightly.sh shows what it takes."""

FLAGS = (
    "--checkpoint.enable",
    "--checkpoint.interval=3",
    "--checkpoint.no-last-save-model-only",
    "--training.steps=1000000",
    "--validation.enable",
    "--validation.dataset=tiny_text",
    "--validation.local-batch-size=2",
    "--validation.seq-len=16",
    "--validation.freq=4",
    "--validation.steps=1000",
)
NO_VALIDATION = (*FLAGS[:4], "--validation.no-enable")

SAVED = {
    "step": (*NO_VALIDATION, ["step-2"]),
    "validation": (*FLAGS, ["step-1"]),  # the first one follows step 1
    "save": (*NO_VALIDATION, ["step-3"]),
    "load": (*NO_VALIDATION, ["step-3"]),
}
"""By phase the flags, and what is in the checkpoint folder after it."""

nightly = pytest.mark.nightly


def prepare(folder: Path, phase: str) -> tuple[list[str], list[str]]:
    """Flags, and the checkpoints that are to be there in the end."""
    *flags, expected = SAVED[phase]
    if phase == "load":
        run(folder, *flags, "--training.steps=3", ranks=RANKS)
    return flags, expected


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoint").iterdir())


@pytest.mark.parametrize(
    ("phase", "targets"),
    [
        ("validation", [1]),
        ("save", None),
        ("load", [1]),
        pytest.param("step", [0], marks=nightly),
        pytest.param("step", None, marks=nightly),
        pytest.param("validation", None, marks=nightly),
        pytest.param("save", [0], marks=nightly),
        pytest.param("load", None, marks=nightly),
    ],
)
def test_sigterm_saves_once_and_all_ranks_leave(
    phase: str, targets: list[int] | None, tmp_path: Path
) -> None:
    flags, expected = prepare(tmp_path, phase)
    with Job(tmp_path, *flags, ranks=RANKS, trainer="phases", PHASE=phase) as job:
        job.wait_for(f"in {phase}")
        job.signal(signal.SIGTERM, targets)
        ended = job.finish(LIMIT_SECONDS)
    assert ended.exit_codes == [0] * RANKS, ended.output
    assert "as SIGTERM asks" in ended.output
    assert checkpoints(tmp_path) == expected


@pytest.mark.parametrize(
    "phase",
    [
        "step",
        pytest.param("validation", marks=nightly),
        pytest.param("save", marks=nightly),
        pytest.param("load", marks=nightly),
    ],
)
def test_sigterm_to_the_launcher_saves_once_and_all_ranks_leave(
    phase: str, tmp_path: Path
) -> None:
    check_signal_to_launcher(signal.SIGTERM, phase, tmp_path)


@pytest.mark.parametrize("phase", ["step", pytest.param("save", marks=nightly)])
def test_ranks_whose_launcher_was_killed_save_once_and_leave(
    phase: str, tmp_path: Path
) -> None:
    check_signal_to_launcher(signal.SIGKILL, phase, tmp_path)


def check_signal_to_launcher(number: int, phase: str, tmp_path: Path) -> None:
    flags, expected = prepare(tmp_path, phase)
    flags.append("--training.steps=300")  # an end for ranks that were left alone
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={RANKS}", "-m", "trial_trainers"]
    command += merged(f"--job.dump-folder={tmp_path}", *flags)
    output = tmp_path / "launched.txt"
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": import_path(), "PHASE": phase}
    with (
        output.open("w") as file,
        subprocess.Popen(
            command, env=os.environ | environment, stdout=file, stderr=file
        ) as launcher,
    ):
        try:
            wait_for(f"in {phase}", output, launcher)
            launcher.send_signal(number)
            launcher.wait(LIMIT_SECONDS)
        finally:
            launcher.kill()
    ends = [f"rank {rank} exits with 0" for rank in range(RANKS)]
    deadline = time.monotonic() + LIMIT_SECONDS  # a killed launcher waits for nobody
    while not all(end in output.read_text() for end in ends):
        assert time.monotonic() < deadline, output.read_text()
        time.sleep(0.02)
    assert checkpoints(tmp_path) == expected


def wait_for(text: str, output: Path, launcher: subprocess.Popen[bytes]) -> None:
    while text not in output.read_text():
        try:
            launcher.wait(0.02)
        except subprocess.TimeoutExpired:
            continue
        raise AssertionError(output.read_text())
