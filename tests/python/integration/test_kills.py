"""A job whose ranks are killed at any moment ends as one that was left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from killed_jobs import run_with_kills
from training_runs import assert_same_tensors, read_checkpoint, run

STEPS = 200

SAVING = (
    "--checkpoint.enable",
    "--checkpoint.interval=4",
    "--checkpoint.keep-latest-k=2",
    "--checkpoint.no-last-save-model-only",
    f"--training.steps={STEPS}",
)


def check_kills(folder: Path, *, ranks: int, kills: int, seed: int) -> None:
    job = run_with_kills(
        folder / "killed", *SAVING, ranks=ranks, kills=kills, seed=seed
    )
    assert job.exit_code == 0, job.output
    assert len(job.phases) == kills, (job.phases, job.output)
    assert job.lost_steps() == []
    assert job.orphans == 0
    names = sorted(path.name for path in (folder / "killed/checkpoint").iterdir())
    assert names == [f"step-{STEPS - 4}", f"step-{STEPS}"]
    whole = run(folder / "whole", *SAVING, ranks=ranks)
    for name in names:
        assert_same_tensors(
            read_checkpoint(folder / "killed/checkpoint" / name),
            read_checkpoint(whole.folder / "checkpoint" / name),
        )


def test_four_kills_under_torchrun_change_nothing(tmp_path: Path) -> None:
    check_kills(tmp_path, ranks=2, kills=4, seed=27)


@pytest.mark.nightly
@pytest.mark.parametrize("seed", range(10))
def test_fifty_kills_under_torchrun_change_nothing(seed: int, tmp_path: Path) -> None:
    check_kills(tmp_path, ranks=2 + seed % 3, kills=5, seed=100 + seed)
