"""Groups without processes: ranks that are threads of this one, or only pretended."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from torchtitan_cpp import _C

CollectiveError = _C.collectives.CollectiveError
FlightRecorder = _C.collectives.FlightRecorder
Group = _C.collectives.Group
LocalWorld = _C.collectives.LocalWorld
Recorder = _C.collectives.Recorder
fake_group = _C.collectives.fake_group
recorded = _C.collectives.recorded
traced = _C.collectives.traced

AxisRanks = Mapping[str, Sequence[Sequence[int]]]
"""Ranks of every group of every axis: each rank is in one group of each axis."""

_T = TypeVar("_T")

_SECONDS_BETWEEN_LOOKS = 0.1
"""How late the caller of run_local may learn of a failure."""


def own_ranks(
    all_ranks: Sequence[Sequence[int]], axis: str, rank: int, world_size: int
) -> list[int]:
    """The group of ``axis`` that ``rank`` belongs to.

    Raises:
        ValueError: unless the groups hold every rank of the world once.
    """
    if sorted(r for ranks in all_ranks for r in ranks) != list(range(world_size)):
        raise ValueError(
            f"axis {axis!r} must hold each of {world_size} ranks once, but is "
            f"{[list(ranks) for ranks in all_ranks]}"
        )
    return next(list(ranks) for ranks in all_ranks if rank in ranks)


def make_local_groups(
    world: LocalWorld,
    axes: AxisRanks,
    *,
    rank: int,
    recorder: Recorder | None = None,
    flight_recorder: FlightRecorder | None = None,
) -> dict[str, Group]:
    """Like ``Distributed.make_groups`` for a rank that is a thread of this process."""
    groups = {}
    for axis, all_ranks in axes.items():
        ranks = own_ranks(all_ranks, axis, rank, world.size)
        group = world.group(rank, name=axis, ranks=ranks)
        if flight_recorder:
            group = traced(group, flight_recorder, ranks=ranks)
        groups[axis] = recorded(group, recorder) if recorder else group
    return groups


def make_fake_groups(
    axes: AxisRanks, *, rank: int, world_size: int, recorder: Recorder | None = None
) -> dict[str, Group]:
    """Like ``Distributed.make_groups`` for one process that plays ``rank`` alone."""
    groups = {}
    for axis, all_ranks in axes.items():
        ranks = own_ranks(all_ranks, axis, rank, world_size)
        group = fake_group(axis, rank=ranks.index(rank), size=len(ranks))
        groups[axis] = recorded(group, recorder) if recorder else group
    return groups


def run_local(
    world: LocalWorld,
    body: Callable[[int], _T],
    *,
    num_threads: int = 1,
    grace_seconds: float = float("inf"),
) -> list[_T]:
    """Call ``body(rank)`` in one thread for each rank and return the results by rank.

    When a rank fails, all others that wait for it end with its message, and its own
    exception is raised here. So does an interrupt of the caller, Ctrl-C, end them.

    Args:
        num_threads: that each rank computes with.
        grace_seconds: ranks that go on for longer after a failure are left behind.
    """
    results: dict[int, _T] = {}
    first_error: list[BaseException] = []
    lock = threading.Lock()
    failed = threading.Event()

    def fail(who: str, error: BaseException) -> None:
        with lock:
            first_error.append(error)
        world.abort(f"{who}: {type(error).__name__}: {first_line(error)}")
        failed.set()

    def run_rank(rank: int) -> None:
        try:
            torch.set_num_threads(num_threads)
            results[rank] = body(rank)
        except BaseException as error:  # raised again below, whatever it is
            fail(f"rank {rank}", error)

    # A rank that is left behind must not keep the process alive.
    threads = [
        threading.Thread(
            target=run_rank, args=(rank,), name=f"rank {rank}", daemon=True
        )
        for rank in range(world.size)
    ]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads) and not failed.is_set():
            for thread in threads:
                thread.join(_SECONDS_BETWEEN_LOOKS / world.size)
    except BaseException as error:
        fail("the main thread", error)
    deadline = time.monotonic() + grace_seconds
    for thread in threads:
        while thread.is_alive() and time.monotonic() < deadline:
            thread.join(_SECONDS_BETWEEN_LOOKS)
    if first_error:
        raise first_error[0]
    return [results[rank] for rank in range(world.size)]


def first_line(error: BaseException) -> str:
    """Of its message, or its type."""
    return (str(error).splitlines() or [type(error).__name__])[0]
