"""Whole runs whose checkpoints are written beside the steps."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from training_runs import assert_same_tensors, read_checkpoint, run

from torchtitan_cpp.parallel import EXIT_RANK_LOST

SAVING = (
    "--checkpoint.enable",
    "--checkpoint.interval=2",
    "--checkpoint.no-last-save-model-only",
    "--training.steps=7",
)

ASYNC = "--checkpoint.async-mode=async"


def scalars(path: Path) -> Any:
    manifest = json.loads((path / "manifest.json").read_text())
    return manifest["scalars"], manifest["gathered"]


@pytest.mark.parametrize(
    "world", [{"ranks": 2}, pytest.param({"threads": 2}, marks=pytest.mark.quick)]
)
def test_a_run_with_async_saves_equals_one_without(
    world: dict[str, int], tmp_path: Path
) -> None:
    plain = run(tmp_path / "plain", *SAVING, **world)
    beside = run(tmp_path / "async", *SAVING, ASYNC, **world, trainer="held_saving")
    assert beside.metrics() == plain.metrics()
    for step in (2, 4, 6, 7):
        paths = [
            f / "checkpoint" / f"step-{step}" for f in (plain.folder, beside.folder)
        ]
        assert_same_tensors(*(read_checkpoint(path) for path in paths))
        assert scalars(paths[0]) == scalars(paths[1])
    for step in (4, 6, 7):
        shutil.rmtree(beside.folder / "checkpoint" / f"step-{step}")
    resumed = run(beside.folder, *SAVING, ASYNC, **world)
    assert "training goes on after step 2" in resumed.output
    assert resumed.metrics() == plain.metrics()


@pytest.mark.parametrize("world", [{"ranks": 2}, {"threads": 2}])
def test_a_save_that_fails_beside_the_steps_ends_all_ranks_with_its_error(
    world: dict[str, int], tmp_path: Path
) -> None:
    ended = run(tmp_path, *SAVING, ASYNC, **world, trainer="failing_save", fails=True)
    assert all(code == 1 for code in ended.exit_codes)
    for output in ended.outputs:
        assert "step-2: rank 0: " in output
        assert "No space left on device" in output
    assert list((tmp_path / "checkpoint").iterdir()) == []


def test_a_run_that_fails_lets_the_save_beside_it_end(tmp_path: Path) -> None:
    ended = run(
        tmp_path, *SAVING, ASYNC, ranks=2, trainer="failing_beside_save", fails=True
    )
    assert ended.exit_codes == [EXIT_RANK_LOST, 1], ended.output
    assert "the disk of rank one is full" in ended.outputs[0]
    assert (tmp_path / "checkpoint" / "step-2" / "manifest.json").exists()


def test_a_save_that_loses_a_rank_is_given_up_and_told(tmp_path: Path) -> None:
    ended = run(tmp_path, *SAVING, ASYNC, ranks=2, trainer="dying_save", fails=True)
    assert ended.exit_codes == [EXIT_RANK_LOST, -signal.SIGKILL], ended.output
    assert "step-2 is not saved: given up, as a rank was lost" in ended.outputs[0]
    assert not (tmp_path / "checkpoint" / "step-2").exists()


def test_a_hugging_face_folder_is_written_at_the_end_of_an_async_run(
    tmp_path: Path,
) -> None:
    flags = (*SAVING[:2], "--checkpoint.last-save-model-only", ASYNC)
    ended = run(tmp_path, *flags, "--checkpoint.last-save-in-hf", ranks=2)
    names = {path.name for path in (ended.folder / "checkpoint" / "step-5").iterdir()}
    assert "config.json" in names
    assert (ended.folder / "checkpoint" / "step-4" / "manifest.json").exists()
