"""Reads what the flight recorders of a run have written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any


class FlightRecordError(ValueError):
    """The folder does not hold flight records; the message says why."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One collective of one rank; see csrc/collectives/flight_recorder.h."""

    group: int
    sequence: int
    op: str
    reduce: str | None
    dtype: str | None
    numel: int | None
    bytes: int
    peer: int | None
    tag: int | None
    step: int
    state: str
    started_s: float
    waited_s: float | None
    completed_s: float | None

    @property
    def is_pair(self) -> bool:
        """Whether it is one side of a message from one rank to another."""
        return self.op in ("send", "recv")

    @property
    def is_pending(self) -> bool:
        """Whether nobody has learned that it ended well."""
        return self.state != "completed"

    @property
    def what(self) -> str:
        """E.g. "all_reduce of Float[7]": equal where ranks agree."""
        reduce = "" if self.reduce in (None, "sum") else f" ({self.reduce})"
        root = f" from rank {self.peer}" if self.op == "broadcast" else ""
        if self.dtype is None:
            return self.op
        # Ranks of an all_to_all may differ in their number of rows.
        numel = "" if self.op == "all_to_all" else f"[{self.numel}]"
        return f"{self.op} of {self.dtype}{numel}{reduce}{root}"


@dataclass(frozen=True, kw_only=True)
class Group:
    """The ranks of one mesh axis that a rank belongs to."""

    name: str
    ranks: tuple[int, ...]
    started: int
    """Collectives of the group that the rank has started in all."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What one rank has written."""

    rank: int
    world_size: int
    run: str
    host: str
    pid: int
    step: int
    cause: str
    written_unix_s: float
    started: int
    """Entries in all; the file has the last ones."""
    groups: Sequence[Group]
    entries: Sequence[Entry]

    @property
    def name(self) -> str:
        return f"rank {self.rank} ({self.host}, pid {self.pid})"

    @property
    def is_blocked(self) -> bool:
        """Whether it waited for others when it wrote."""
        return any(each.state in ("waiting", "failed") for each in self.entries)


@dataclass(frozen=True, kw_only=True)
class Records:
    """Those of the last start of a job, by rank."""

    world_size: int
    by_rank: Mapping[int, Record]
    notes: Sequence[str]
    """What was left out, one line each."""

    @property
    def absent(self) -> list[int]:
        """Ranks that have written nothing."""
        return [rank for rank in range(self.world_size) if rank not in self.by_rank]


def read_records(folder: str | Path) -> Records:
    """Read all ``*.json`` of a folder.

    Records of an earlier start of the job, whose ranks have not written since, are left
    out and noted.

    Raises:
        FlightRecordError: there is no such folder, it holds none, or one is no record.
    """
    path = Path(folder)
    if not path.is_dir():
        raise FlightRecordError(f"{path} is no folder")
    files = sorted(path.glob("*.json"))
    if not files:
        raise FlightRecordError(
            f"{path} holds no flight record; ranks write them into "
            "comm.save_traces_folder when a run of several ranks ends badly and "
            "comm.trace_buf_size is not 0"
        )
    records = [(file, _read(file)) for file in files]
    newest = max((record for _, record in records), key=lambda r: r.written_unix_s)
    by_rank, notes = {}, []
    for file, record in records:
        if record.run == newest.run:
            by_rank[record.rank] = record
        else:
            notes.append(f"{file.name} is of another start of the job: left out")
    return Records(world_size=newest.world_size, by_rank=by_rank, notes=notes)


def _read(file: Path) -> Record:
    try:
        value = json.loads(file.read_text())
        record: Record = _make(
            Record,
            value,
            groups=[
                _make(Group, each, ranks=tuple(map(int, each["ranks"])))
                for each in value["groups"]
            ],
            entries=[_make(Entry, each) for each in value["entries"]],
        )
        return record
    except KeyError as error:
        raise FlightRecordError(f"{file} is no flight record: no {error}") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise FlightRecordError(f"{file} is no flight record: {error}") from error
    except OSError as error:
        raise FlightRecordError(f"{file} cannot be read: {error}") from error


def _make(kind: Any, value: Any, **others: Any) -> Any:
    """The dataclass ``kind`` from a JSON object, whose other names are left alone."""
    named = {each.name: value[each.name] for each in fields(kind)}
    return kind(**(named | others))
