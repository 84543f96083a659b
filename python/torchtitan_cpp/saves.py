"""What a run does about saves that take long, or fail."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torchtitan_cpp.checkpoint import CheckpointManager
from torchtitan_cpp.checkpoint.failed_saves import FailedSaves
from torchtitan_cpp.parallel import CollectiveError
from torchtitan_cpp.world import World

_SECONDS_AFTER_LOSS = 10.0
"""For a save in the background to end once a rank is lost; most then cannot."""


class Saves:
    """Waits for saves in the background and counts those that fail.

    Args:
        max_failed: ``checkpoint.max_failed_saves``.
    """

    def __init__(
        self, checkpointer: CheckpointManager, world: World, max_failed: int
    ) -> None:
        self._checkpointer = checkpointer
        self._world = world
        self._failed = FailedSaves(max_failed)

    @contextmanager
    def counted(self, *, final: bool) -> Iterator[None]:
        """Around a save, for which the ranks wait as long as it takes. Collective.

        Args:
            final: no later save can make up for this one.
        Raises:
            CheckpointError: on all ranks: it has failed, and may not.
        """
        counted = self._failed.counted(
            final=final, is_durable=lambda: not self._checkpointer.is_saving
        )
        with self._world.patiently(), counted:
            yield

    def finish(self, *, final: bool) -> None:
        """Wait for the save in the background, if any; as ``counted``."""
        if self._checkpointer.is_saving:
            with self.counted(final=final):
                self._checkpointer.finish()

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """No end of the run, whatever its reason, cuts off a save in the background."""
        try:
            yield
        except BaseException as error:
            is_lost = isinstance(error, CollectiveError)
            with self._world.patiently():
                self._checkpointer.wait_for_save(
                    seconds=_SECONDS_AFTER_LOSS if is_lost else float("inf")
                )
            raise
        self.finish(final=True)
