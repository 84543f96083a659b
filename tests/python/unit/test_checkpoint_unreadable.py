"""Checkpoints that the system refuses to show, to all ranks or to one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from checkpoint_ranks import example_tensors, run_ranks, state_of
from checkpoint_runs import ENABLED, ONE, SCALARS, load, manager, save_steps

from torchtitan_cpp.checkpoint import CheckpointError
from torchtitan_cpp.checkpoint.agreement import UnreadableError
from torchtitan_cpp.checkpoint.selection import inspect_on_all


def refuse(step: Path) -> Path:
    """Let the system refuse to open the manifest; where it is now."""
    kept = step.parent / f"{step.name}.json"
    (step / "manifest.json").rename(kept)
    (step / "manifest.json").symlink_to("manifest.json")
    return kept


def test_a_run_does_not_go_back_before_what_it_cannot_read(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_steps(tmp_path, 10, 20)
    folder = tmp_path / "checkpoint"
    kept = refuse(folder / "step-20")
    with pytest.raises(CheckpointError, match=r"step-20.*checkpoint\.load_step"):
        load(tmp_path)
    assert load(tmp_path, replace(ENABLED, load_step=10))[0].step == 10
    kept.replace(folder / "step-20/manifest.json")
    refuse(folder / "step-10")
    assert load(tmp_path)[0].step == 20
    assert "step-10" in caplog.text


def test_a_rank_that_alone_sees_no_checkpoint_is_told_of_and_none_goes_back(
    tmp_path: Path,
) -> None:
    save_steps(tmp_path, 10, 20)
    steps = [tmp_path / "checkpoint/step-20", tmp_path / "elsewhere"]

    def look(ranks: Any) -> None:
        inspect_on_all(str(steps[ranks.rank]), ranks)

    for outcome in run_ranks(2, look):
        assert isinstance(outcome, UnreadableError)
        assert "rank 1: " in str(outcome)
    steps[1] = tmp_path / "checkpoint/step-10"
    for outcome in run_ranks(2, look):
        assert isinstance(outcome, UnreadableError)
        assert "rank 1 sees another folder" in str(outcome)
    steps = [tmp_path / "elsewhere"] * 2
    for outcome in run_ranks(2, look):
        assert isinstance(outcome, CheckpointError)


def test_what_is_saved_is_newer_than_what_it_went_on_from_even_if_that_is_unreadable(
    tmp_path: Path,
) -> None:
    save_steps(tmp_path, 10)
    run = manager(tmp_path)
    run.load(state_of(example_tensors(), ONE, 0, zeros=True, scalars=SCALARS))
    folder = tmp_path / "checkpoint"
    kept = refuse(folder / "step-10")
    run.save(20, state_of(example_tensors(20), ONE, 0, scalars=SCALARS))
    kept.replace(folder / "step-10/manifest.json")
    assert load(tmp_path)[1] == 20
