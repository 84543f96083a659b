"""``debug.replica_check_interval``: compares the bits of what ranks share.

Replicas of weights and of the optimizer's moments start equal and get equal updates, so
they stay equal bit by bit unless memory, a link or a device has failed. Buffers are
compared too, but only the model knows whether its ranks are to have the same: those
that differ are told, once.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.errors import Explained
from torchtitan_cpp.group_ranks import GroupRanks
from torchtitan_cpp.logging import logger
from torchtitan_cpp.training_state import model_entries, moment_entries
from torchtitan_cpp.world import World

if TYPE_CHECKING:
    from torchtitan_cpp.checkpoint.state import Ranks, TensorEntry
    from torchtitan_cpp.trainer import Trainer

_KEY_BYTES = 9
_BUFFER, _NO_BUFFER = b"\1", b"\0"  # begin keys


class ReplicaError(Explained, RuntimeError):
    """Copies of a tensor differ; the message names step, tensor and ranks."""


@dataclass(frozen=True, kw_only=True)
class _Copies:
    """One box of a tensor and the ranks that hold it."""

    key: str
    columns: dict[int, int]
    """Rank to the place of its hash in its row of ``_gather()``."""

    @property
    def is_buffer(self) -> bool:
        return bytes.fromhex(self.key).startswith(_BUFFER)


class ReplicaCheck:
    """Which tensors of this rank others hold too, and whether they are equal.

    Args:
        interval: steps from one check to the next; 0: none is due.
        entries: of this rank; asked at each check, for an optimizer may replace the
            tensors of its state. A box of a tensor is the same one on every rank that
            has it, whatever the layout: replicas of data parallelism, and what tensor
            parallelism does not divide.
        ranks: all ranks of the run, to learn what they hold.
        world: with the group that they compare over.
        on_difference: called before the error is raised.
    """

    def __init__(
        self,
        interval: int,
        entries: Callable[[], Sequence[TensorEntry]],
        ranks: Ranks,
        world: World,
        on_difference: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_difference = on_difference
        self._interval = interval
        self._world = world
        self._ranks = ranks
        self._entries = entries
        self._copies: list[_Copies] = []
        self._held = torch.zeros(0, dtype=torch.int64)
        """[ranks]: what each of them held when copies were looked for."""
        self._told: set[str] = set()
        self._width = 1
        self._pairs = torch.empty(3, 0, dtype=torch.int64)

    def is_due(self, step: int) -> bool:
        """Whether what is there after this step is compared."""
        several = self._world.parallel_dims.world_size > 1
        return several and self._interval > 0 and step % self._interval == 0

    def check(self, step: int) -> None:
        """Compare; collective. Warns of buffers that differ.

        Raises:
            ReplicaError: on all ranks, if copies of anything else differ.
        """
        entries = {_key(entry): entry for entry in self._entries() if entry.numel > 0}
        hashes = self._gather(entries)
        if not torch.equal(hashes[:, 0], self._held):
            self._find_copies(entries)
            hashes = self._gather(entries)
            self._held = hashes[:, 0]
        flat = hashes.flatten()
        differs = flat[self._pairs[0]] != flat[self._pairs[1]]
        if not differs.any():
            return
        numbers = set(self._pairs[2][differs].tolist())
        copies = [self._copies[number] for number in sorted(numbers)]
        rows, names = hashes.tolist(), self._names_of(copies, entries)
        buffers = [each for each in copies if each.is_buffer]
        if new := [each for each in buffers if each.key not in self._told]:
            self._told.update(each.key for each in new)
            if self._ranks.rank == 0:
                text = _describe(new, names, rows)
                logger.warning(f"Step {step}: {text}. Further ones are not told")
        if others := [each for each in copies if not each.is_buffer]:
            self._on_difference()
            text = _describe(others, names, rows)
            raise ReplicaError(
                f"step {step}: {text}. Something other than training has changed them; "
                "go on from a checkpoint"
            )

    def _find_copies(self, entries: Mapping[str, TensorEntry]) -> None:
        """Boxes that several ranks hold, in the same order on all ranks."""
        gathered = self._ranks.all_gather_bytes(
            b"".join(bytes.fromhex(key) for key in entries)
        )
        holders: dict[str, list[int]] = defaultdict(list)
        for rank, data in enumerate(gathered):
            for start in range(0, len(data), _KEY_BYTES):
                holders[data[start : start + _KEY_BYTES].hex()].append(rank)
        used = Counter(dict.fromkeys(range(len(gathered)), 1))  # 0: what it holds
        self._copies = []
        for key in sorted(holders):
            if len(holders[key]) == 1:
                continue
            columns = {}
            for rank in holders[key]:
                columns[rank] = used[rank]
                used[rank] += 1
            self._copies.append(_Copies(key=key, columns=columns))
        self._width = max(used.values())
        pairs = []
        for number, each in enumerate(self._copies):
            first, *others = (
                rank * self._width + column for rank, column in each.columns.items()
            )
            pairs += [(first, other, number) for other in others]
        self._pairs = torch.tensor(pairs, dtype=torch.int64).view(-1, 3).t()

    def _gather(self, entries: Mapping[str, TensorEntry]) -> torch.Tensor:
        """[ranks, width] int64: what a rank holds, and the hashes of what it shares."""
        own = torch.zeros(self._width, dtype=torch.int64)
        own[0] = _hash_keys(entries)
        shared = [each for each in self._copies if self._ranks.rank in each.columns]
        values = {
            each.columns[self._ranks.rank]: entries[each.key].local.detach()
            for each in shared
            if each.key in entries  # else it is told by what this rank holds
        }
        for on_cpu in (True, False):  # a call hashes tensors of one kind of device
            columns = [c for c, value in values.items() if value.is_cpu == on_cpu]
            if columns:
                own[columns] = _C.core.hash_bits([values[c] for c in columns])
        own = own.to(self._world.device)  # where the group communicates
        everything = own.new_empty(self._ranks.world_size * self._width)
        self._world.groups["world"].all_gather(everything, own).wait()
        return everything.cpu().view(-1, self._width)

    def _names_of(
        self, copies: Sequence[_Copies], entries: Mapping[str, TensorEntry]
    ) -> dict[str, str]:
        """By key, also of what this rank does not hold."""
        known = {e.key: entries[e.key].name for e in copies if e.key in entries}
        names: dict[str, str] = {}
        for data in self._ranks.all_gather_bytes(json.dumps(known).encode()):
            names |= json.loads(data)
        return names


def build_replica_check(trainer: Trainer) -> ReplicaCheck:
    """Of all the run keeps; nothing is saved once it has found a difference."""
    told: list[str] = []

    def entries() -> list[TensorEntry]:
        found = model_entries(trainer)
        try:
            return found + moment_entries(trainer)
        except ValueError as error:  # one of the user's own, whose state has no pieces
            if not told and trainer.world.rank == 0:
                told.append(str(error))
                logger.warning(f"The optimizer's state is not compared: {error}")
            return found

    return ReplicaCheck(
        trainer.job_config.debug.replica_check_interval,
        entries,
        GroupRanks(trainer.world),
        trainer.world,
        lambda: trainer.checkpointer.forbid_saving("replicas differ"),
    )


def _describe(
    differing: Sequence[_Copies],
    names: Mapping[str, str],
    hashes: Sequence[Sequence[int]],
) -> str:
    """Which tensor, and who differs from whom; the same on all ranks."""
    # A moment first: it changes its weight in the next step, whereas gradients of
    # copies of a weight are summed before they change a moment. Keys have no order
    # that means anything.
    first = min(
        differing,
        key=lambda e: (not names[e.key].startswith("optimizer."), names[e.key]),
    )
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
    kind = "buffer " if first.is_buffer else ""
    return f"the copies of {kind}{names[first.key]} differ{more}: {who}"


def _key(entry: TensorEntry) -> str:
    """Of a box of a tensor: the same on all ranks, other boxes have others."""
    box = json.dumps([entry.name, list(entry.offset), list(entry.size)])
    digest = hashlib.blake2b(box.encode(), digest_size=_KEY_BYTES - 1).digest()
    return ((_BUFFER if entry.is_buffer else _NO_BUFFER) + digest).hex()


def _hash_keys(keys: Iterable[str]) -> int:
    digest = hashlib.blake2b("".join(keys).encode(), digest_size=7).digest()
    return 1 + int.from_bytes(digest, "big")  # 0: nothing has been looked for


def _ranks(ranks: Sequence[int]) -> str:
    shown = ", ".join(str(rank) for rank in ranks[:8])
    more = f" and {len(ranks) - 8} more" if len(ranks) > 8 else ""
    return f"{'rank' if len(ranks) == 1 else 'ranks'} {shown}{more}"
