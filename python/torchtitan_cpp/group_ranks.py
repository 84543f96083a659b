"""How the ranks of a run talk while checkpoints are saved and loaded."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from torchtitan_cpp.parallel import CollectiveError, Distributed, Group, Handle
from torchtitan_cpp.rank_thread import RankThread
from torchtitan_cpp.world import World

_GIVEN_UP = "given up, as a rank was lost"


class GroupRanks:
    """All ranks of the run, for the checkpoint manager.

    A rank that reads or writes may take its time: the others wait for it for as long as
    it lives. So they talk about CPU tensors, whose waits no library ends.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self._group = world.groups["world"]
        self.rank = int(self._group.rank)
        self.world_size = int(self._group.size)

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """The data of all ranks."""
        with self._world.patiently():
            return _all_gather(self._group, data, Handle.wait)


class BackgroundRanks:
    """All ranks once more, for a thread beside the step.

    They have connections of their own, so that what they exchange never comes between
    the messages of a step. Made by all ranks together.
    """

    def __init__(self, distributed: Distributed | RankThread) -> None:
        self._distributed = distributed
        self._group = distributed.make_background_group("checkpoint")
        self.rank = int(self._group.rank)
        self.world_size = int(self._group.size)

    def all_gather_bytes(self, data: bytes) -> list[bytes]:
        """The data of all ranks.

        Raises:
            CollectiveError: a rank was lost.
        """
        return _all_gather(self._group, data, self._wait)

    def _wait(self, handle: Handle) -> None:
        """Without a deadline, which the step has, and seen by no watch: a rank that
        waits here may be stalled in its step."""
        pause = 0.001
        while not handle.completed():
            if self._distributed.rank_lost:
                raise CollectiveError(_GIVEN_UP)
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        try:
            handle.wait()
        except CollectiveError as error:  # such as of a closed connection
            raise CollectiveError(_GIVEN_UP) from error


def _all_gather(
    group: Group, data: bytes, wait: Callable[[Handle], None]
) -> list[bytes]:
    """The data of all ranks: their lengths first, then padded to the longest."""
    size = int(group.size)
    mine = torch.tensor([len(data)])
    lengths = torch.empty(size, dtype=torch.int64)
    wait(group.all_gather(lengths, mine))
    sizes = [int(length) for length in lengths]
    longest = max(sizes)
    padded = torch.zeros(longest, dtype=torch.uint8)
    if data:
        padded[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
    everything = torch.empty(size * longest, dtype=torch.uint8)
    wait(group.all_gather(everything, padded))
    rows = everything.view(size, longest)
    return [
        row[:count].numpy().tobytes() for row, count in zip(rows, sizes, strict=True)
    ]
