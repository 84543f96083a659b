"""Threads that are ranks: each has its numbers, its lines and its helpers."""

from __future__ import annotations

import gc
import io
import threading
import time

import pytest
import torch

from torchtitan_cpp import parallel
from torchtitan_cpp.garbage_collection import GarbageCollection
from torchtitan_cpp.logging import init_logger, logger
from torchtitan_cpp.metrics.processor import _global_rank
from torchtitan_cpp.nn.initial_values import default_dtype
from torchtitan_cpp.rank_thread import (
    RankThread,
    current_rank,
    pause,
    start_helper,
    turn,
)


def run_ranks(size, body):
    """``body(group)`` of each rank in a thread that knows its rank."""
    world = parallel.LocalWorld(size, timeout_seconds=30)

    def run(rank):
        with RankThread(world, rank, train_timeout_seconds=30).here():
            return body(world.group(rank))

    return parallel.run_local(world, run)


def test_every_rank_draws_the_numbers_of_its_own_seed():
    def body(group):
        with turn():
            torch.manual_seed(group.rank)
        drawn = []
        for _ in range(5):
            with turn():
                drawn.append(torch.rand(3))
            group.barrier().wait()
        return torch.stack(drawn)

    expected = [
        torch.rand(5, 3, generator=torch.Generator().manual_seed(rank))
        for rank in range(3)
    ]
    for drawn, numbers in zip(run_ranks(3, body), expected, strict=True):
        assert torch.equal(drawn, numbers)


def test_whoever_pauses_waits_for_ranks_that_need_their_turn():
    """Without the pause the first one would wait for the second one for ever."""

    def body(group):
        with turn():
            torch.manual_seed(group.rank)
            first = torch.rand(2)
            with pause():
                group.barrier().wait()
            return torch.cat([first, torch.rand(2)])

    expected = [
        torch.rand(4, generator=torch.Generator().manual_seed(rank)) for rank in (0, 1)
    ]
    for drawn, numbers in zip(run_ranks(2, body), expected, strict=True):
        assert torch.equal(drawn, numbers)


def test_a_default_dtype_is_that_of_one_rank():
    before = torch.get_default_dtype()

    def body(group):
        mine = (torch.float64, torch.float32, torch.float16)[group.rank]
        found = []
        for _ in range(20):
            with turn(), default_dtype(mine):
                time.sleep(0.001)
                found.append(torch.ones(1).dtype == mine)
        return all(found)

    assert run_ranks(3, body) == [True] * 3
    assert torch.get_default_dtype() == before


def test_without_ranks_in_threads_nothing_is_to_be_waited_for():
    assert current_rank() is None
    with turn(), pause(), turn():
        assert torch.rand(1).numel() == 1


def test_lines_have_the_rank_of_their_thread_and_of_its_helpers():
    stream = io.StringIO()
    init_logger(shown_ranks=(1,), stream=stream)

    def body(group):
        logger.info("step of %d", group.rank)
        start_helper("reader", logger.warning, "bad row").join()
        return _global_rank()

    assert run_ranks(2, body) == [0, 1]
    lines = [line.split(" - ")[-1] for line in stream.getvalue().splitlines()]
    assert sorted(lines) == ["bad row", "rank 0: bad row", "step of 1"]


def test_garbage_is_collected_once_for_a_process():
    assert gc.isenabled()
    other = GarbageCollection(leads_process=False)
    assert gc.isenabled()
    first = GarbageCollection()
    assert not gc.isenabled()
    other.close()
    assert not gc.isenabled()
    first.close()
    assert gc.isenabled()


def test_every_rank_counts_the_tensors_that_it_has_made():
    from torchtitan_cpp import _C

    def body(group):
        counter = _C.core.thread_memory()
        before = counter.live
        kept = torch.empty(1000 * (group.rank + 1), dtype=torch.uint8)
        group.barrier().wait()
        return counter.live - before, kept

    assert [counted for counted, _ in run_ranks(3, body)] == [1000, 2000, 3000]


def test_a_rank_is_waited_for_patiently_and_else_until_the_timeout_of_training():
    world = parallel.LocalWorld(2, timeout_seconds=30)

    def body(rank):
        me = RankThread(world, rank, train_timeout_seconds=0.05)
        me.first_step_passed()
        if rank == 1:
            time.sleep(0.3)
        with me.patiently(), me.patiently():
            world.group(rank).barrier().wait()
        if rank == 0:
            world.group(rank).barrier().wait()

    with pytest.raises(
        parallel.CollectiveError, match=r"rank 1 did not .* within 0.05 s"
    ):
        parallel.run_local(world, body)


def test_ranks_that_go_on_after_a_failure_are_left_behind():
    world = parallel.LocalWorld(2, timeout_seconds=30)
    released = threading.Event()

    def body(rank):
        if rank == 0:
            raise KeyError("no such row")
        released.wait()

    with pytest.raises(KeyError, match="no such row"):
        parallel.run_local(world, body, grace_seconds=0.2)
    released.set()


def test_an_interrupt_of_the_caller_ends_the_ranks(monkeypatch):
    world = parallel.LocalWorld(2, timeout_seconds=30)
    seen = []
    join = threading.Thread.join

    def interrupted(thread, timeout=None):
        monkeypatch.setattr(threading.Thread, "join", join)
        raise KeyboardInterrupt

    def body(rank):
        if rank == 0:
            monkeypatch.setattr(threading.Thread, "join", interrupted)
            try:
                world.group(rank).barrier().wait()
            except parallel.CollectiveError as error:
                seen.append(str(error))
                raise

    with pytest.raises(KeyboardInterrupt):
        parallel.run_local(world, body)
    assert seen == ["the main thread: KeyboardInterrupt: KeyboardInterrupt"]
