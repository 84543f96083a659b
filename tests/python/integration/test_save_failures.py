"""Runs whose state cannot be saved: all ranks stop, or all go on, as they are told."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from training_runs import assert_same_tensors, read_checkpoint, run

SAVING = (
    "--checkpoint.enable",
    "--checkpoint.interval=1",
    "--checkpoint.no-last-save-model-only",
    "--training.steps=4",
)

ERROR = re.compile(
    r"step-2: rank 1: .*cannot write \d+ of \d+ bytes: File too large: "
    r"'.*/step-2\.tmp-\w+/rank-00001\.safetensors'"
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoint").iterdir())


def test_a_failed_save_stops_all_ranks_and_the_next_run_goes_on_before_it(
    tmp_path: Path,
) -> None:
    ended = run(tmp_path, *SAVING, ranks=2, trainer="full_disk", fails=True)
    assert ended.exit_codes == [1, 1], ended.output
    for output in ended.outputs:
        assert ERROR.search(output), output
        assert "Traceback" not in output
    assert names(tmp_path) == ["step-1"]
    resumed = run(tmp_path, *SAVING, ranks=2)
    assert "training goes on after step 1" in resumed.output


def test_a_run_that_may_goes_on_and_changes_nothing_but_what_is_saved(
    tmp_path: Path,
) -> None:
    allowed = "--checkpoint.max-failed-saves=1"
    ended = run(tmp_path / "a", *SAVING, allowed, ranks=2, trainer="full_disk")
    assert ERROR.search(ended.outputs[0])
    assert "training goes on (1 of 1 saves in a row may fail)" in ended.outputs[0]
    assert names(tmp_path / "a") == ["step-1", "step-3", "step-4"]
    whole = run(tmp_path / "b", *SAVING, ranks=2)
    last = "checkpoint/step-4"
    assert_same_tensors(
        read_checkpoint(ended.folder / last), read_checkpoint(whole.folder / last)
    )


@pytest.mark.quick
def test_the_last_save_may_never_fail(tmp_path: Path) -> None:
    flags = (*SAVING, "--training.steps=2", "--checkpoint.max-failed-saves=9")
    ended = run(tmp_path, *flags, ranks=2, trainer="full_disk", fails=True)
    assert ended.exit_codes == [1, 1], ended.output
    assert names(tmp_path) == ["step-1"]
