"""When checkpoints are saved, how a save fails, and which are deleted."""

from __future__ import annotations

import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_ranks import (
    Grid,
    example_tensors,
    results,
    run_ranks,
    state_of,
    with_unknown_dtype,
)
from checkpoint_runs import (
    ENABLED,
    ONE,
    SCALARS,
    load,
    load_plain,
    manager,
    save_steps,
    steps_in,
)

from torchtitan_cpp import _C
from torchtitan_cpp.checkpoint import (
    CheckpointError,
    TensorEntry,
    TrainingState,
)
from torchtitan_cpp.errors import needs_traceback


def test_saving_is_due_at_the_interval_the_last_and_on_request_the_first_step(
    tmp_path: Path,
) -> None:
    run = manager(tmp_path)
    due = [step for step in range(1, 31) if run.should_save(step, last_step=step == 25)]
    assert due == [10, 20, 25, 30]
    first = replace(ENABLED, enable_first_step_checkpoint=True)
    assert manager(tmp_path, first).should_save(1)
    for off in (replace(ENABLED, enable=False), replace(ENABLED, load_only=True)):
        assert not manager(tmp_path, off).should_save(10, last_step=True)
    run.save(10, state_of(example_tensors(), ONE, 0))
    assert not run.should_save(10, last_step=True)


def test_a_step_that_was_just_saved_is_not_saved_again(tmp_path: Path) -> None:
    run = manager(tmp_path)
    state = state_of(example_tensors(), ONE, 0)
    path = run.save(10, state)
    before = os.stat(path).st_ino
    assert run.save(10, state) == path
    assert os.stat(path).st_ino == before


def test_after_going_back_the_new_checkpoint_is_the_latest_and_is_not_purged(
    tmp_path: Path,
) -> None:
    save_steps(tmp_path, 100, 200, 300)
    settings = replace(ENABLED, load_step=100, keep_latest_k=2)
    run = manager(tmp_path, settings)
    state = state_of(example_tensors(100), ONE, 0, scalars=SCALARS)
    assert run.load(state).step == 100
    run.save(110, state_of(example_tensors(110), ONE, 0, scalars=SCALARS))
    assert load(tmp_path)[0].step == 110
    assert steps_in(tmp_path) == ["step-100", "step-110", "step-200", "step-300"]


def test_only_the_latest_k_checkpoints_are_kept(tmp_path: Path) -> None:
    for k, kept in [(1, ["step-50"]), (2, ["step-40", "step-50"]), (0, 5)]:
        folder = tmp_path / str(k)
        save_steps(
            folder, 10, 20, 30, 40, 50, settings=replace(ENABLED, keep_latest_k=k)
        )
        assert steps_in(folder) == kept if k else len(steps_in(folder)) == kept


def test_an_old_checkpoint_that_holds_something_else_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = replace(ENABLED, keep_latest_k=1)
    save_steps(tmp_path, 10, settings=settings)
    (tmp_path / "checkpoint/step-10/scores.csv").write_text("mine")
    run = manager(tmp_path, settings)
    run.load(state_of(example_tensors(), ONE, 0, scalars=SCALARS))
    for step in (20, 30):
        run.save(step, state_of(example_tensors(step), ONE, 0, scalars=SCALARS))
    assert steps_in(tmp_path) == ["step-10", "step-30"]
    assert "Not deleted, for it holds more than a checkpoint: " in caplog.text


def test_keeping_goes_on_across_a_resumed_run(tmp_path: Path) -> None:
    settings = replace(ENABLED, keep_latest_k=2)
    save_steps(tmp_path, 10, 20, settings=settings)
    run = manager(tmp_path, settings)
    run.load(state_of(example_tensors(), ONE, 0, scalars=SCALARS))
    run.save(30, state_of(example_tensors(30), ONE, 0, scalars=SCALARS))
    assert steps_in(tmp_path) == ["step-20", "step-30"]


def entry(offset: int, size: int, *, is_writer: bool = True) -> TensorEntry:
    return TensorEntry(
        name="w",
        kind="model",
        local=torch.ones(size),
        global_shape=(10,),
        offset=(offset,),
        size=(size,),
        is_writer=is_writer,
    )


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([entry(0, 5), entry(4, 6)], r"boxes \[0:5\] and \[4:10\] overlap"),
        ([entry(0, 10), entry(0, 10)], "overlap"),
        ([entry(0, 5), entry(6, 4)], "the boxes hold 9 of its 10 elements"),
        ([entry(0, 10, is_writer=False)], "w: no rank is its writer"),
        ([entry(0, 10, is_writer=False), entry(0, 0)], "hold 0 of its 10 elements"),
    ],
    ids=["overlap", "two writers", "hole", "no writer", "box without writer"],
)
def test_a_save_that_would_not_cover_every_element_once_fails(
    entries: list[TensorEntry], text: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=text):
        manager(tmp_path).save(10, TrainingState(tensors=entries))
    assert steps_in(tmp_path) == []


def test_an_entry_must_fit_its_box() -> None:
    for fields, text in [
        ({"offset": (6,), "size": (5,)}, "lies outside"),
        ({"offset": (0, 0)}, "do not fit"),
        ({"local": torch.ones(4)}, "expected a contiguous tensor of shape"),
        ({"local": torch.ones(10)[::2]}, "contiguous"),
    ]:
        with pytest.raises(ValueError, match=text):
            replace(entry(0, 5), **fields)  # type: ignore[arg-type]


def test_a_failure_on_one_rank_fails_the_save_on_all_and_keeps_the_old_one(
    tmp_path: Path,
) -> None:
    grid = Grid(rows=3)

    def save(ranks: Any) -> None:
        run = manager(tmp_path, ranks=ranks)
        run.save(10, state_of(example_tensors(10), grid, ranks.rank))
        state = state_of(example_tensors(20), grid, ranks.rank)
        run.save(20, with_unknown_dtype(state) if ranks.rank == 1 else state)

    outcomes = run_ranks(3, save)
    assert all(isinstance(outcome, CheckpointError) for outcome in outcomes)
    assert len({str(outcome) for outcome in outcomes}) == 1
    assert "rank 1: safetensors has no dtype for ComplexDouble" in str(outcomes[0])
    assert steps_in(tmp_path) == ["step-10"]
    assert load_plain(tmp_path) == 10


@pytest.mark.parametrize("format", ["native", "dcp"])
def test_where_there_is_too_little_room_the_error_says_how_much_is_needed(
    format: str, tmp_path: Path
) -> None:
    """A limit of the process in place of a small disk."""
    local = torch.ones(100_000)
    whole = TensorEntry(
        name="w",
        kind="model",
        local=local,
        global_shape=(local.numel(),),
        offset=(0,),
        size=(local.numel(),),
        is_writer=True,
    )
    run = manager(tmp_path, replace(ENABLED, format=format))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (local.nbytes // 2, before[1]))
    try:
        with pytest.raises(CheckpointError, match=r"step-10\.tmp-.*take 400000 bytes"):
            run.save(10, TrainingState(tensors=[whole]))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert steps_in(tmp_path) == []


def test_a_disk_that_became_read_only_fails_the_save_alike_on_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Then what was written cannot be deleted either, which rank 0 tells besides."""

    def refuse(*arguments: object, **options: object) -> None:
        raise OSError(30, "Read-only file system")

    def save(ranks: Any) -> None:
        state = state_of(example_tensors(10), Grid(rows=2), ranks.rank)
        manager(tmp_path, ranks=ranks, fault_hook=refuse).save(10, state)

    monkeypatch.setattr(_C.storage, "discard_staging", refuse)
    outcomes = run_ranks(2, save)
    assert all(isinstance(outcome, CheckpointError) for outcome in outcomes)
    assert len({str(outcome) for outcome in outcomes}) == 1
    assert "Left for the next save to delete: " in caplog.text
    monkeypatch.undo()
    save_steps(tmp_path, 10)
    assert steps_in(tmp_path) == ["step-10"]


def test_state_that_differs_between_ranks_is_not_saved(tmp_path: Path) -> None:
    def save(ranks: Any) -> None:
        scalars = {"rng": 1, "train_state": ranks.rank}
        state = state_of(example_tensors(), Grid(rows=2), ranks.rank, scalars=scalars)
        manager(tmp_path, ranks=ranks).save(10, state)

    outcomes = run_ranks(2, save)
    assert all("train_state of rank 1 is not rank 0's" in str(o) for o in outcomes)


@pytest.mark.parametrize("value", [float("nan"), 2**64, {1, 2}, b"x", "\ud800"])
def test_state_that_json_cannot_hold_is_not_saved(value: Any, tmp_path: Path) -> None:
    state = state_of(example_tensors(), ONE, 0, scalars={"rng": value})
    with pytest.raises(CheckpointError):
        manager(tmp_path).save(10, state)
    assert steps_in(tmp_path) == []


@pytest.mark.parametrize(
    "point", ["before manifest", "manifest written", "before rename"]
)
def test_a_fault_while_publishing_keeps_the_old_checkpoint(
    point: str, tmp_path: Path
) -> None:
    def fail(reached: str) -> None:
        if reached == point:
            raise OSError(28, "No space left on device")

    save_steps(tmp_path, 10)
    run = manager(tmp_path, fault_hook=fail)
    with pytest.raises(CheckpointError, match="No space left"):
        run.save(20, state_of(example_tensors(20), ONE, 0))
    assert steps_in(tmp_path) == ["step-10"]
    assert load(tmp_path)[0].step == 10


def test_a_state_that_json_would_change_is_refused(tmp_path: Path) -> None:
    for value, text in [({"rows": {3: 1}}, "the key 3 is no text"), ({1}, "set")]:
        state = TrainingState(tensors=[entry(0, 10)], gathered={"dataloader": value})  # type: ignore[dict-item]  # the point
        with pytest.raises(CheckpointError, match=text):
            manager(tmp_path).save(10, state)


def test_buffers_are_saved_by_rank_0_and_a_difference_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def save(ranks: Any) -> None:
        names = ("same", "other")
        values = (7, 7 + ranks.rank)
        buffers = [
            replace(
                entry(0, 10, is_writer=ranks.rank == 0),
                name=name,
                local=torch.full((10,), value),
                is_buffer=True,
            )
            for name, value in zip(names, values, strict=True)
        ]
        manager(tmp_path, ranks=ranks).save(10, TrainingState(tensors=buffers))

    results(run_ranks(2, save))
    assert "different values of the buffer other; those of rank 0" in caplog.text
    loaded = [
        replace(entry(0, 10), name=n, local=torch.zeros(10, dtype=torch.int64))
        for n in ("same", "other")
    ]
    manager(tmp_path).load(TrainingState(tensors=loaded))
    assert [each.local.tolist() for each in loaded] == [[7] * 10] * 2


def test_no_save_is_tried_once_a_rank_has_died(tmp_path: Path) -> None:
    run = manager(tmp_path)
    run.forbid_saving("rank 3 has died")
    assert not run.should_save(10, last_step=True)
    with pytest.raises(CheckpointError, match="step-10 is not saved: rank 3 has died"):
        run.save(10, state_of(example_tensors(), ONE, 0))
    assert not (tmp_path / "checkpoint").exists()


def test_load_only_never_saves(tmp_path: Path) -> None:
    save_steps(tmp_path, 10)
    run = manager(tmp_path, replace(ENABLED, load_only=True))
    with pytest.raises(CheckpointError, match="load_only"):
        run.save(20, state_of(example_tensors(), ONE, 0))
    assert load(tmp_path, replace(ENABLED, load_only=True))[0].step == 10


def test_what_killed_processes_left_is_cleaned_up_by_the_next_save(
    tmp_path: Path,
) -> None:
    save_steps(tmp_path, 10)
    for name in (f"step-20.tmp-{'a' * 16}", f".trash-step-5-{'b' * 16}"):
        shutil.copytree(tmp_path / "checkpoint/step-10", tmp_path / "checkpoint" / name)
    assert load(tmp_path)[0].step == 10
    save_steps(tmp_path, 20)
    assert steps_in(tmp_path) == ["step-10", "step-20"]


def test_a_second_run_in_the_same_folder_is_named_as_the_reason(tmp_path: Path) -> None:
    state = state_of(example_tensors(), ONE, 0)

    def save_too(point: str) -> None:
        if point == "before manifest":
            manager(tmp_path).save(20, state)

    message = r"step-10\.tmp-\w+ was deleted while .*does another run save into the sa"
    with pytest.raises(CheckpointError, match=message) as caught:
        manager(tmp_path, fault_hook=save_too).save(10, state)
    assert not needs_traceback(caught.value)
    assert steps_in(tmp_path) == ["step-20"]
