"""One rank of a run whose ranks are threads of one process.

``Distributed`` tells a process where it stands; ``RankThread`` tells a thread. What
torch keeps for the process, its generator and its default dtype, ranks use in turns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar, copy_context
from typing import Any

import torch

from torchtitan_cpp.local_ranks import (
    AxisRanks,
    CollectiveError,
    FlightRecorder,
    Group,
    LocalWorld,
    Recorder,
    first_line,
    make_local_groups,
)

_current: ContextVar[RankThread | None] = ContextVar("rank", default=None)
_whose_turn = threading.Lock()


class RankThread:
    """A thread among all ranks of the process; its generator starts as torch's is now.

    Args:
        world: all ranks.
        rank: of this thread.
        train_timeout_seconds: longest wait for others after the first step.
        flight_recorder: of its collectives.
    """

    def __init__(
        self,
        world: LocalWorld,
        rank: int,
        *,
        train_timeout_seconds: float,
        flight_recorder: FlightRecorder | None = None,
    ) -> None:
        self.rank = rank
        self.world_size = int(world.size)
        self.device = torch.device("cpu")
        self._world = world
        self._train_timeout_seconds = train_timeout_seconds
        self.flight_recorder = flight_recorder
        self._num_patient = 0
        self._random_state = torch.get_rng_state()
        self._has_turn = False

    @contextmanager
    def here(self) -> Iterator[None]:
        """``current_rank()`` is this one inside."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    def make_groups(
        self, axes: AxisRanks, *, recorder: Recorder | None = None
    ) -> dict[str, Group]:
        """As ``Distributed.make_groups``."""
        return make_local_groups(
            self._world,
            axes,
            rank=self.rank,
            recorder=recorder,
            flight_recorder=self.flight_recorder,
        )

    def make_background_group(self, name: str) -> Group:
        """As ``Distributed.make_background_group``; a loss ends its operations."""
        return self._world.group(
            self.rank, name=name, ranks=list(range(self.world_size))
        )

    @property
    def rank_lost(self) -> bool:
        """Operations say so themselves."""
        return False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """See the function ``turn``."""
        if self._has_turn:
            yield
            return
        self._take_turn()
        try:
            yield
        finally:
            self._pass_turn()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """See the function ``pause``."""
        had_turn = self._has_turn
        if had_turn:
            self._pass_turn()
        try:
            yield
        finally:
            if had_turn:
                self._take_turn()

    def _take_turn(self) -> None:
        _whose_turn.acquire()
        self._has_turn = True
        torch.set_rng_state(self._random_state)

    def _pass_turn(self) -> None:
        self._random_state = torch.get_rng_state()
        self._has_turn = False
        _whose_turn.release()

    def begin_step(self, step: int) -> None:
        """Note the step for the flight record."""
        if self.flight_recorder:
            self.flight_recorder.step = step

    def first_step_passed(self) -> None:
        """As ``Distributed.first_step_passed``."""
        self._world.set_timeout(self._train_timeout_seconds)

    @contextmanager
    def patiently(self) -> Iterator[None]:
        """Waits of this rank inside have no deadline. May be nested."""
        self._num_patient += 1
        self._world.set_patient(self.rank, True)
        try:
            yield
        finally:
            self._num_patient -= 1
            self._world.set_patient(self.rank, self._num_patient > 0)

    def report_failure(self, error: BaseException) -> str:
        """As ``Distributed.report_failure``; the others end at their next wait."""
        if isinstance(error, CollectiveError):
            return first_line(error)
        line = f"rank {self.rank} failed: {type(error).__name__}: {first_line(error)}"
        self._world.abort(line)
        return line

    def close(self, *, failed: bool = False) -> None:
        """Nothing is to be given back."""


def current_rank() -> RankThread | None:
    """Whose thread runs this; None where ranks are processes."""
    return _current.get()


def turn() -> AbstractContextManager[None]:
    """This rank alone inside, and torch's generator as this rank left it.

    For code that may draw random numbers or set the default dtype: the process has only
    one of each. Whoever waits for other ranks inside does so in a ``pause``. May be
    nested; nothing to do where ranks are processes.
    """
    rank = current_rank()
    return rank.turn() if rank else nullcontext()


def pause() -> AbstractContextManager[None]:
    """Other ranks may have their turn inside, if it is this one's now."""
    rank = current_rank()
    return rank.pause() if rank else nullcontext()


def start_helper(name: str, body: Callable[..., None], *args: Any) -> threading.Thread:
    """A thread in the background that belongs to the rank of its starter."""
    thread = threading.Thread(
        target=copy_context().run, args=(body, *args), name=name, daemon=True
    )
    thread.start()
    return thread
