"""Whether a run goes on when its state could not be saved."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torchtitan_cpp.checkpoint.agreement import CheckpointError
from torchtitan_cpp.logging import logger


class FailedSaves:
    """Counts saves that failed one after the other, alike on all ranks.

    Args:
        allowed: how many in a row the run goes on after
            (``checkpoint.max_failed_saves``).
    """

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self._in_a_row = 0

    @contextmanager
    def counted(
        self, *, final: bool, is_durable: Callable[[], bool] = lambda: True
    ) -> Iterator[None]:
        """Around a save, or around the wait for one in the background.

        Args:
            final: no later save can make up for this one.
            is_durable: asked afterwards; what is still being written may yet fail.
        Raises:
            CheckpointError: of the save, if it is final or one too many has failed.
        """
        try:
            yield
        except CheckpointError as error:
            self._in_a_row += 1
            if final or self._in_a_row > self._allowed:
                raise
            logger.error(
                "%s; training goes on (%d of %d saves in a row may fail)",
                error,
                self._in_a_row,
                self._allowed,
            )
        else:
            if is_durable():
                self._in_a_row = 0
