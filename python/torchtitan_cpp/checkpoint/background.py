"""Saves that a thread writes beside the training, from a copy of the state."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextvars import copy_context

from torchtitan_cpp.checkpoint.agreement import CheckpointError, all_agree
from torchtitan_cpp.checkpoint.snapshot import Snapshot
from torchtitan_cpp.checkpoint.state import Ranks, TrainingState
from torchtitan_cpp.logging import logger

_NOTABLE_SECONDS = 1.0
"""From when on a wait for the save before is told."""


class BackgroundTask:
    """Runs one action at a time and keeps its error until somebody asks.

    The thread is no daemon: a process that ends orderly waits for it.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def has_failed(self) -> bool:
        """Whether the action has ended with an error that ``finish`` is to raise."""
        return self._error is not None

    @property
    def is_started(self) -> bool:
        """Whether there is an action that ``finish`` was not called for."""
        return self._thread is not None

    @property
    def is_running(self) -> bool:
        """Whether the action has not ended yet."""
        return self._thread is not None and self._thread.is_alive()

    def start(self, action: Callable[[], None]) -> None:
        """Run ``action`` in a thread that belongs to the rank of the caller.

        Raises:
            RuntimeError: the action before was not finished.
        """
        if self._thread is not None:
            raise RuntimeError(f"{self._name}: the task before is not finished")

        def run() -> None:
            try:
                action()
            except BaseException as error:  # raised again by finish, whatever it is
                self._error = error

        self._thread = threading.Thread(
            target=copy_context().run, args=(run,), name=self._name
        )
        self._thread.start()

    def wait(self, seconds: float = float("inf")) -> bool:
        """Wait at most this long; whether no action is running."""
        deadline = time.monotonic() + seconds
        while self.is_running and time.monotonic() < deadline:
            assert self._thread is not None
            self._thread.join(min(0.1, max(0.0, deadline - time.monotonic())))
        return not self.is_running

    def finish(self) -> None:
        """Wait for the action, if one was started; raises what it raised."""
        self.wait()
        self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error


class BackgroundSaves:
    """At most one save under way in the background.

    Args:
        ranks: all ranks of the run, with connections that nobody else uses.
        pinned: of the Snapshot.
    """

    def __init__(self, ranks: Ranks, *, pinned: bool) -> None:
        self._ranks = ranks
        self._snapshot = Snapshot(pinned=pinned)
        self._task = BackgroundTask("checkpoint")
        self._path = ""

    @property
    def has_failed(self) -> bool:
        """As ``BackgroundTask.has_failed``, of this rank."""
        return self._task.has_failed

    @property
    def is_started(self) -> bool:
        """As ``BackgroundTask.is_started``."""
        return self._task.is_started

    def prepare(self, state: TrainingState) -> None:
        """As ``Snapshot.prepare``."""
        self._snapshot.prepare(state)

    def start(
        self,
        path: str,
        state: TrainingState,
        write: Callable[[TrainingState, Ranks], None],
    ) -> None:
        """Copy the state, and let a thread call ``write`` with the copy.

        Args:
            path: what is saved, for messages.
            write: collective; raises CheckpointError.
        """
        copied: TrainingState | None = None
        failure: Exception | None = None
        try:
            copied = self._snapshot.take(state)
        except Exception as error:  # such as no memory: all ranks learn of it below
            failure = error
        ranks = self._ranks

        def check() -> None:
            if failure is not None:
                raise failure

        def act() -> None:
            try:
                all_agree(ranks, f"copying the state for {path}", check)
                assert copied is not None
                write(copied, ranks)
            except CheckpointError as error:
                if ranks.rank == 0:
                    logger.error(f"The save in the background failed: {error}")
                raise
            except Exception as error:  # such as a rank that was lost
                logger.error(f"{path} is not saved: {error}")
                raise

        self._path = path
        self._task.start(act)

    def finish(self) -> None:
        """Wait until the save under way is durable; raises what it raised."""
        waits, started = self._task.is_running, time.monotonic()
        self._task.finish()
        seconds = time.monotonic() - started
        if waits and seconds > _NOTABLE_SECONDS and self._ranks.rank == 0:
            logger.info(f"Waited {seconds:.1f} s until {self._path} was written")

    def wait(self, seconds: float) -> None:
        """Wait at most this long, and tell of a save that does not end."""
        if not self._task.wait(seconds):
            logger.error(
                f"{self._path} is not saved: the run ended while it was written"
            )

    def release(self) -> None:
        """Give back the memory of the copy, once the save has ended."""
        self._snapshot.release()
