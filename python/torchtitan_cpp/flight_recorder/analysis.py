"""Which rank kept the others waiting, and in which collective."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from torchtitan_cpp.flight_recorder.records import Entry, Record, Records

_MAX_LINES = 4
"""Of one kind; the first ones tell the most."""


@dataclass(kw_only=True)
class _Stream:
    """Collectives that some ranks start in the same order."""

    name: str
    ranks: tuple[int, ...]
    entries: dict[int, dict[int, Entry]] = field(default_factory=dict)
    """By rank and sequence."""
    started: dict[int, int] = field(default_factory=dict)
    """By rank, where it is known."""

    def pending_from(self, sequence: int) -> list[int]:
        """Ranks with a collective of that number or a later one that has not ended."""
        return [
            rank
            for rank, own in self.entries.items()
            if any(n >= sequence and entry.is_pending for n, entry in own.items())
        ]

    def behind(self) -> Iterator[tuple[int, int, list[int]]]:
        """Rank, the number that it has not started, and who waits for it there."""
        for rank, started in self.started.items():
            waiting = [each for each in self.pending_from(started) if each != rank]
            if waiting:
                yield rank, started, waiting

    def example(self, sequence: int) -> Entry | None:
        """That collective, as the first rank has it that has it."""
        found = (own[sequence] for own in self.entries.values() if sequence in own)
        return next(found, None)

    def mismatch(self) -> int | None:
        """The first number for which ranks call different things."""
        numbers = sorted({n for own in self.entries.values() for n in own})
        for number in numbers:
            if len({_agreed(own[number]) for own in self._with(number)}) > 1:
                return number
        return None

    def _with(self, number: int) -> list[dict[int, Entry]]:
        return [own for own in self.entries.values() if number in own]

    def unfinished(self) -> int | None:
        """The first number that all ranks have started and some have not ended."""
        for number in sorted({n for own in self.entries.values() for n in own}):
            owners = self._with(number)
            pending = any(own[number].is_pending for own in owners)
            if pending and len(owners) == len(self.ranks):
                return number
        return None


def analyse(records: Records) -> list[str]:
    """What the records tell, in lines; the rank to look at comes first."""
    ranks = sorted(records.by_rank)
    lines = [
        f"{len(ranks)} of {records.world_size} ranks have written a record; step "
        f"{max(records.by_rank[rank].step for rank in ranks)}",
        *_causes(records),
    ]
    streams = _streams(records)
    found = [
        *_first(_absent_lines(records, streams)),
        *_first(_mismatch_lines(streams)),
        *_first(_behind_lines(records, streams)),
    ]
    found = found or list(_first(_unfinished_lines(streams)))
    lines += found or ["every recorded collective has ended on all of its ranks"]
    return [*lines, *(f"note: {note}" for note in records.notes)]


def _causes(records: Records) -> list[str]:
    causes = dict.fromkeys(record.cause for record in records.by_rank.values())
    return [f"cause: {cause}" for cause in causes]


def _streams(records: Records) -> list[_Stream]:
    """Of all groups and of all pairs of ranks with one tag."""
    streams: dict[object, _Stream] = {}
    for record in records.by_rank.values():
        for group in record.groups:
            stream = streams.setdefault(
                (group.name, group.ranks),
                _Stream(name=f"group '{group.name}'", ranks=group.ranks),
            )
            stream.started[record.rank] = group.started
            stream.entries.setdefault(record.rank, {})
        for entry in record.entries:
            group = record.groups[entry.group]
            key: object = (group.name, group.ranks)
            if entry.is_pair:
                key, stream = _pair(group.name, record.rank, entry)
                stream = streams.setdefault(key, stream)
                stream.started[record.rank] = entry.sequence + 1
            own = streams[key].entries.setdefault(record.rank, {})
            own[entry.sequence] = entry
    for stream in streams.values():
        for rank in set(stream.ranks) - stream.entries.keys():
            other = records.by_rank.get(rank)
            # Of a pair: it has none, unless later entries have pushed them out.
            if other and other.started == len(other.entries):
                stream.entries[rank], stream.started[rank] = {}, 0
    return list(streams.values())


def _pair(group: str, rank: int, entry: Entry) -> tuple[object, _Stream]:
    assert entry.peer is not None
    sends = entry.op == "send"
    ranks = (rank, entry.peer) if sends else (entry.peer, rank)
    name = f"group '{group}', rank {ranks[0]} to rank {ranks[1]}, tag {entry.tag}"
    return (group, *ranks, entry.tag), _Stream(name=name, ranks=ranks)


def _agreed(entry: Entry) -> object:
    """What all ranks must have in common."""
    return (entry.dtype, entry.numel) if entry.is_pair else entry.what


def _absent_lines(records: Records, streams: Sequence[_Stream]) -> Iterator[str]:
    absent = set(records.absent)
    if not absent:
        return
    yield (
        f"no record of {_names(absent)}: killed, or standing still as a whole process"
    )
    for stream in streams:
        missing = absent & set(stream.ranks)
        waiting = stream.pending_from(0)
        if missing and waiting:
            own = stream.entries[waiting[0]]
            first = min(n for n, entry in own.items() if entry.is_pending)
            yield (
                f"  {_names(waiting)} wait for {_names(missing)} in "
                f"{_collective(stream, first)}"
            )


def _mismatch_lines(streams: Iterable[_Stream]) -> Iterator[str]:
    for stream in streams:
        number = stream.mismatch()
        if number is None:
            continue
        by_what: dict[str, list[int]] = {}
        for rank, own in stream.entries.items():
            if number in own:
                by_what.setdefault(own[number].what, []).append(rank)
        sides = "; ".join(f"{_names(who)}: {what}" for what, who in by_what.items())
        yield f"ranks disagree in #{number} of {stream.name}: {sides}"


def _behind_lines(records: Records, streams: Iterable[_Stream]) -> Iterator[str]:
    found = []
    for stream in streams:
        for rank, number, waiting in stream.behind():
            example = stream.example(number)
            age = example.started_s if example else 0.0
            found.append((records.by_rank[rank], age, stream, number, waiting))
    # A rank that waits itself is late because of another one.
    free = [each for each in found if not each[0].is_blocked]
    if found and not free:
        yield "every rank that is missed waits for another one:"
    told = set()
    for record, age, stream, number, waiting in sorted(
        free or found, key=lambda each: -each[1]
    ):
        if record.rank in told:  # it is missed in several groups
            continue
        told.add(record.rank)
        yield (
            f"{record.name} has not started {_collective(stream, number)}; "
            f"{_names(waiting)} wait for it there, the first for {age:.1f} s"
        )
        yield f"  the last that it started: {_last(record)}"


def _unfinished_lines(streams: Iterable[_Stream]) -> Iterator[str]:
    for stream in streams:
        number = stream.unfinished()
        if number is None:
            continue
        pending = [
            rank for rank, own in stream.entries.items() if own[number].is_pending
        ]
        yield (
            f"all its ranks have started {_collective(stream, number)}, but it has "
            f"not ended on {_names(pending)}: look at the network between them"
        )


def _first(lines: Iterable[str]) -> Iterator[str]:
    for count, line in enumerate(lines):
        if count == 2 * _MAX_LINES:
            yield "  and more like these"
            return
        yield line


def _collective(stream: _Stream, number: int) -> str:
    entry = stream.example(number)
    if entry is None:
        return f"#{number} of {stream.name}"
    return (
        f"{entry.what}, #{number} of {stream.name} ({entry.bytes} bytes, step "
        f"{entry.step})"
    )


def _last(record: Record) -> str:
    if not record.entries:
        return "none"
    entry = record.entries[-1]
    return (
        f"{entry.what}, #{entry.sequence} of group "
        f"'{record.groups[entry.group].name}' in step {entry.step}, {entry.state}, "
        f"{entry.started_s:.1f} s before the record"
    )


def _names(ranks: Iterable[int]) -> str:
    each = sorted(ranks)
    shown = ", ".join(str(rank) for rank in each[:8])
    more = f" and {len(each) - 8} more" if len(each) > 8 else ""
    return f"{'rank' if len(each) == 1 else 'ranks'} {shown}{more}"
