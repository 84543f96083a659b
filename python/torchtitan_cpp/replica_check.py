"""``debug.replica_check_interval``: compares the bits of weights that ranks share.

Replicas start equal and get equal updates, so they stay equal bit by bit unless memory,
a link or a device has failed.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.errors import Explained
from torchtitan_cpp.group_ranks import GroupRanks
from torchtitan_cpp.world import World

if TYPE_CHECKING:
    from torchtitan_cpp.checkpoint.state import Ranks
    from torchtitan_cpp.trainer import Trainer

_KEY_BYTES = 8


class ReplicaError(Explained, RuntimeError):
    """Copies of a tensor differ; the message names step, tensor and ranks."""


@dataclass(frozen=True, kw_only=True)
class _Copies:
    """One box of a tensor and the ranks that hold it."""

    key: str
    columns: dict[int, int]
    """Rank to the place of its hash among its own."""


class ReplicaCheck:
    """Which shards of this rank others hold too, and whether they are equal.

    Args:
        interval: steps from one check to the next; 0: none is due.
        shards: of this rank. A box of a tensor is the same one on every rank that has
            it, whatever the layout: replicas of data parallelism, and what tensor
            parallelism does not divide.
        ranks: all ranks of the run, to learn what they hold.
        world: with the group that they compare over.
        on_difference: called before the error is raised.
    """

    def __init__(
        self,
        interval: int,
        shards: Sequence[_C.nn.ParameterShard],
        ranks: Ranks,
        world: World,
        on_difference: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_difference = on_difference
        self._interval = interval
        self._world = world
        self._ranks = ranks
        self._names = {_key(shard): shard.name for shard in shards}
        self._shards = {
            _key(shard): shard for shard in shards if shard.value.numel() > 0
        }
        self._copies: list[_Copies] | None = None
        self._values: list[torch.Tensor] = []
        self._width = 0
        self._pairs = torch.empty(3, 0, dtype=torch.int64)

    def is_due(self, step: int) -> bool:
        """Whether the weights after this step are compared."""
        several = self._world.parallel_dims.world_size > 1
        return several and self._interval > 0 and step % self._interval == 0

    def check(self, step: int) -> None:
        """Compare; collective.

        Raises:
            ReplicaError: on all ranks, if any copies differ.
        """
        if self._copies is None:
            self._copies = self._find_copies()
        if not self._copies:
            return
        hashes = self._gather()
        differs = hashes[self._pairs[0]] != hashes[self._pairs[1]]
        if differs.any():
            numbers = set(self._pairs[2][differs].tolist())
            differing = [self._copies[number] for number in sorted(numbers)]
            self._on_difference()
            rows = hashes.view(-1, self._width).tolist()
            raise ReplicaError(f"step {step}: {self._describe(differing, rows)}")

    def _find_copies(self) -> list[_Copies]:
        """Once: boxes that several ranks hold, in the same order on all ranks."""
        gathered = self._ranks.all_gather_bytes(
            b"".join(bytes.fromhex(key) for key in self._shards)
        )
        holders: dict[str, list[int]] = defaultdict(list)
        for rank, data in enumerate(gathered):
            for start in range(0, len(data), _KEY_BYTES):
                holders[data[start : start + _KEY_BYTES].hex()].append(rank)
        used: Counter[int] = Counter()
        copies = []
        for key in sorted(holders):
            if len(holders[key]) == 1:
                continue
            columns = {}
            for rank in holders[key]:
                columns[rank] = used[rank]
                used[rank] += 1
            copies.append(_Copies(key=key, columns=columns))
        self._width = max(used.values(), default=0)
        self._pairs = self._pairs_to_compare(copies)
        rank = self._ranks.rank
        self._values = [
            self._shards[each.key].value.detach()
            for each in copies
            if rank in each.columns
        ]
        return copies

    def _pairs_to_compare(self, copies: Sequence[_Copies]) -> torch.Tensor:
        """[3, pairs]: places of two hashes in ``_gather()``, and whose copies."""
        pairs = []
        for number, each in enumerate(copies):
            first, *others = (
                rank * self._width + column for rank, column in each.columns.items()
            )
            pairs += [(first, other, number) for other in others]
        return torch.tensor(pairs, dtype=torch.int64).view(-1, 3).t().contiguous()

    def _gather(self) -> torch.Tensor:
        """Rank by rank the hashes of what it shares with others, int64."""
        own = torch.zeros(self._width, dtype=torch.int64)
        own[: len(self._values)] = _C.core.hash_bits(self._values)
        own = own.to(self._world.device)  # where the group communicates
        everything = own.new_empty(self._ranks.world_size * self._width)
        self._world.groups["world"].all_gather(everything, own).wait()
        return everything.cpu()

    def _describe(
        self, differing: Sequence[_Copies], hashes: Sequence[Sequence[int]]
    ) -> str:
        """One line, the same on all ranks."""
        known = {
            each.key: self._names[each.key]
            for each in differing
            if each.key in self._shards
        }
        names: dict[str, str] = {}
        for data in self._ranks.all_gather_bytes(json.dumps(known).encode()):
            names |= json.loads(data)
        # By name: the keys have no order that means anything.
        first = min(differing, key=lambda each: names[each.key])
        by_hash: dict[int, list[int]] = defaultdict(list)
        for rank, column in first.columns.items():
            by_hash[hashes[rank][column]].append(rank)
        sides = sorted(by_hash.values(), key=lambda ranks: (-len(ranks), ranks))
        majority, others = sides[0], sorted(rank for side in sides[1:] for rank in side)
        if len(majority) > len(others):
            who = f"{_ranks(others)} from {_ranks(majority)}, which agree"
        else:
            who = " from ".join(_ranks(side) for side in sides)
            who += "; no majority tells which is right"
        more = f" (and {len(differing) - 1} more tensors)" if differing[1:] else ""
        return (
            f"the copies of {names[first.key]} differ{more}: {who}. Something other "
            "than training has changed them; go on from a checkpoint"
        )


def build_replica_check(trainer: Trainer) -> ReplicaCheck:
    """Of all weights of the run; nothing is saved once it has found a difference."""
    return ReplicaCheck(
        trainer.job_config.debug.replica_check_interval,
        [shard for group in trainer.model.applied.groups for shard in group.shards],
        GroupRanks(trainer.world),
        trainer.world,
        lambda: trainer.checkpointer.forbid_saving("replicas of weights differ"),
    )


def _key(shard: _C.nn.ParameterShard) -> str:
    """Of a box of a tensor: the same on all ranks, other boxes have others."""
    box = json.dumps([shard.name, list(shard.offset), list(shard.value.shape)])
    return hashlib.blake2b(box.encode(), digest_size=_KEY_BYTES).hexdigest()


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(str(rank) for rank in ranks[:8])
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {shown}{more}"
