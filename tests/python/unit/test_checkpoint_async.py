"""Saves that are written beside the training."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_ranks import (
    Grid,
    ThreadRanks,
    example_tensors,
    is_box_of,
    results,
    run_ranks,
    state_of,
    with_unknown_dtype,
)
from checkpoint_runs import ENABLED, ONE, SCALARS, load, manager, steps_in

from torchtitan_cpp.checkpoint import CheckpointError, SingleRank
from torchtitan_cpp.checkpoint import snapshot as snapshot_module
from torchtitan_cpp.checkpoint.background import BackgroundTask
from torchtitan_cpp.checkpoint.snapshot import Snapshot

ASYNC = replace(ENABLED, async_mode="async")


class HeldRanks(SingleRank):
    """Nothing is written before ``gate`` is open."""

    def __init__(self) -> None:
        self.gate = threading.Event()

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        assert self.gate.wait(timeout=60)
        return [data]


def example_state(step: int) -> Any:
    return state_of(example_tensors(step), ONE, 0, scalars=SCALARS)


@pytest.mark.parametrize("mode", ["async", "async_with_pinned_mem"])
@pytest.mark.parametrize("format", ["native", "dcp"])
def test_what_changes_behind_a_save_does_not_change_what_is_saved(
    mode: str, format: str, tmp_path: Path
) -> None:
    ranks = HeldRanks()
    settings = replace(ENABLED, async_mode=mode, format=format)
    run = manager(tmp_path, settings, background_ranks=ranks)
    scalars: Any = {"train_state": {"step": 10}, "lr_scheduler": [1, [2.5]]}
    gathered: Any = {"dataloader": {"row": [3]}}
    tensors = {n: t.clone() for n, t in example_tensors(10).items()}
    state = state_of(tensors, ONE, 0, scalars=scalars, gathered=gathered)
    run.save(10, state)
    assert not (tmp_path / "checkpoint").exists()
    for entry in state.tensors:
        entry.local.fill_(7)
    scalars["lr_scheduler"][1][0] = 0.0
    gathered["dataloader"]["row"].append(4)
    ranks.gate.set()
    run.finish()
    target = state_of(
        example_tensors(),
        ONE,
        0,
        zeros=True,
        scalars={"train_state": 0, "lr_scheduler": 0},
        gathered={"dataloader": 0},
    )
    loaded = manager(tmp_path).load(target)
    for entry in target.tensors:
        assert is_box_of(entry, example_tensors(10)[entry.name]), entry.name
    assert loaded.scalars["lr_scheduler"] == [1, [2.5]]
    assert loaded.gathered["dataloader"] == [{"row": [3]}]


def test_the_next_save_waits_for_the_one_before(tmp_path: Path) -> None:
    ranks = HeldRanks()
    run = manager(tmp_path, ASYNC, background_ranks=ranks)
    run.save(10, example_state(10))
    assert not run.should_save(10)
    threading.Timer(0.1, ranks.gate.set).start()
    run.save(20, example_state(20))
    assert "step-10" in steps_in(tmp_path)
    run.finish()
    assert steps_in(tmp_path) == ["step-10", "step-20"]
    assert load(tmp_path)[1] == 20


def test_the_last_save_and_one_before_a_stop_are_durable_on_return(
    tmp_path: Path,
) -> None:
    run = manager(tmp_path, ASYNC)
    run.save(10, example_state(10))
    run.save(20, example_state(20), stopping=True)
    assert steps_in(tmp_path) == ["step-10", "step-20"]
    run.save(25, example_state(25), last_step=True)
    assert "step-25" in steps_in(tmp_path)


def test_only_the_latest_k_are_kept_and_a_line_is_continued(tmp_path: Path) -> None:
    run = manager(tmp_path, replace(ASYNC, keep_latest_k=2))
    for step in (10, 20, 30, 40):
        run.save(step, example_state(step))
    run.finish()
    assert steps_in(tmp_path) == ["step-30", "step-40"]


def test_a_failure_in_the_background_is_raised_once_and_keeps_the_old_checkpoint(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    failing = False

    def fail(point: str) -> None:
        if failing and point == "before rename":
            raise OSError(28, "No space left on device")

    run = manager(tmp_path, ASYNC, fault_hook=fail)
    run.save(10, example_state(10))
    run.finish()
    failing = True
    run.save(20, example_state(20))
    run.wait_for_save()
    assert run.has_failed
    assert "The save in the background failed" in caplog.text
    with pytest.raises(CheckpointError, match="step-20: .*No space left"):
        run.finish()
    run.finish()
    assert steps_in(tmp_path) == ["step-10"]
    failing = False
    run.save(20, example_state(20))  # the step is not taken for saved
    run.finish()
    assert load(tmp_path)[1] == 20


def on_ranks(
    world_size: int, body: Callable[[ThreadRanks, ThreadRanks], None]
) -> list[Any]:
    """Run ``body(ranks, background ranks)`` on every rank."""
    barrier, slots = threading.Barrier(world_size), [b""] * world_size
    return run_ranks(
        world_size,
        lambda ranks: body(ranks, ThreadRanks(ranks.rank, barrier, slots)),
    )


def test_a_failure_on_one_rank_surfaces_on_all_with_its_error(tmp_path: Path) -> None:
    grid = Grid(rows=3)

    def save(ranks: ThreadRanks, background: ThreadRanks) -> None:
        run = manager(tmp_path, ASYNC, ranks=ranks, background_ranks=background)
        run.save(10, state_of(example_tensors(10), grid, ranks.rank))
        state = state_of(example_tensors(20), grid, ranks.rank)
        run.save(20, with_unknown_dtype(state) if ranks.rank == 1 else state)
        run.finish()

    outcomes = on_ranks(3, save)
    assert all(isinstance(outcome, CheckpointError) for outcome in outcomes)
    assert len({str(outcome) for outcome in outcomes}) == 1
    assert "rank 1: safetensors has no dtype for ComplexDouble" in str(outcomes[0])
    assert steps_in(tmp_path) == ["step-10"]


def test_a_copy_that_fails_on_one_rank_fails_the_save_on_all(tmp_path: Path) -> None:
    grid = Grid(rows=2)

    def save(ranks: ThreadRanks, background: ThreadRanks) -> None:
        run = manager(tmp_path, ASYNC, ranks=ranks, background_ranks=background)
        state = state_of(example_tensors(10), grid, ranks.rank)
        if ranks.rank == 1:
            cannot_be_copied: Any = {"dataloader": threading.Lock()}
            state = replace(state, gathered=cannot_be_copied)
        run.save(10, state)
        run.finish()

    outcomes = on_ranks(2, save)
    assert len({str(outcome) for outcome in outcomes}) == 1
    assert "copying the state for" in str(outcomes[0])
    assert "rank 1: cannot pickle" in str(outcomes[0])


def test_all_ranks_write_their_own_copies(tmp_path: Path) -> None:
    grid = Grid(replicas=2, rows=2)

    def save(ranks: ThreadRanks, background: ThreadRanks) -> None:
        run = manager(tmp_path, ASYNC, ranks=ranks, background_ranks=background)
        for step in (10, 20):
            run.save(step, state_of(example_tensors(step), grid, ranks.rank))
        run.finish()

    results(on_ranks(4, save))
    target = state_of(example_tensors(), ONE, 0, zeros=True)
    assert manager(tmp_path).load(target).step == 20
    for entry in target.tensors:
        assert is_box_of(entry, example_tensors(20)[entry.name]), entry.name


def test_several_ranks_need_connections_for_the_background(tmp_path: Path) -> None:
    ranks = ThreadRanks(0, threading.Barrier(2), [b"", b""])
    with pytest.raises(ValueError, match="background_ranks"):
        manager(tmp_path, ASYNC, ranks=ranks)


def test_a_run_that_ends_tells_of_a_save_that_does_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ranks = HeldRanks()
    run = manager(tmp_path, ASYNC, background_ranks=ranks)
    run.save(10, example_state(10))
    run.wait_for_save(seconds=0.01)
    assert "step-10 is not saved: the run ended while it was written" in caplog.text
    ranks.gate.set()
    caplog.clear()
    run.wait_for_save()
    assert "not saved" not in caplog.text
    assert steps_in(tmp_path) == ["step-10"]


def test_the_memory_of_a_copy_is_used_again_and_given_back_at_the_end(
    tmp_path: Path,
) -> None:
    snapshot = Snapshot(pinned=False)
    first = snapshot.take(example_state(10))
    held = sum(entry.local.nbytes for entry in first.tensors)
    assert held <= snapshot.num_bytes <= held + 64 * len(first.tensors)
    places = [entry.local.data_ptr() for entry in first.tensors if entry.numel]
    second = snapshot.take(example_state(20))
    assert places == [e.local.data_ptr() for e in second.tensors if e.numel]
    for entry in second.tensors:
        assert is_box_of(entry, example_tensors(20)[entry.name])
    snapshot.release()
    assert snapshot.num_bytes == 0


def test_memory_is_made_beforehand_where_an_async_save_is_due(tmp_path: Path) -> None:
    run = manager(tmp_path, ASYNC)
    state = example_state(10)
    snapshot = run._saves._snapshot
    run.prepare(lambda: state, range(1, 10))
    assert snapshot._making is None
    run.prepare(lambda: state, range(1, 11))
    assert snapshot._making is not None
    snapshot._making.join()
    made = snapshot._memory.data_ptr()
    copied = snapshot.take(state)
    assert snapshot._memory.data_ptr() == made
    for entry in copied.tensors:
        assert is_box_of(entry, example_tensors(10)[entry.name]), entry.name
    synchronous = manager(tmp_path, ENABLED)
    synchronous.prepare(lambda: state, range(1, 11))
    assert synchronous._saves._snapshot._making is None


def test_pages_are_locked_by_the_device_of_the_rank(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Any other would get a context, which takes some of its memory."""
    told: list[object] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", told.append)
    monkeypatch.setattr(snapshot_module, "_pin", lambda _: told.append("locked"))
    snapshot = Snapshot(pinned=True)
    snapshot.prepare(example_state(1))
    snapshot.release()  # waits for the thread
    assert told == [3, "locked"]


def test_only_what_a_rank_writes_is_copied() -> None:
    snapshot = Snapshot(pinned=False)
    state = state_of(example_tensors(), Grid(replicas=2), 1)
    snapshot.prepare(state)
    assert snapshot.take(state).tensors == state.tensors
    assert snapshot.num_bytes == 0


def test_a_task_is_finished_before_the_next_one_starts() -> None:
    task = BackgroundTask("example")
    task.start(lambda: None)
    with pytest.raises(RuntimeError, match="not finished"):
        task.start(lambda: None)
    task.finish()
    task.start(lambda: None)
    task.finish()
