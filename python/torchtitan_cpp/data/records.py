"""Records of a dataset: a usable document, or what is wrong with it and where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from torchtitan_cpp.errors import Explained

MAX_BAD_RECORDS = 100
"""Bad records of one dataset (of one row in a stream) that are skipped before an error.

``training.max_bad_records`` of a job configuration replaces it, where there is one."""

MAX_RECORD_BYTES = 16 * 2**20
"""A longer line or text is a bad record: 16 MiB, about four million tokens."""

Cursor = list[int]
"""Where reading goes on; its numbers belong to the source. JSON-able."""


class BadRecordsError(Explained, ValueError):
    """More bad records than allowed; names the last one and the first ones."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """One record, good (``text``) or bad (``problem``)."""

    place: str
    """Where it is, for people: ``file:line``."""
    cursor: Cursor
    """Where the record after it begins."""
    text: str = ""
    """The document; empty exactly if the record is bad."""
    num_bytes: int = 0
    """Size of the document in UTF-8."""
    problem: str = ""
    """Why the record is unusable; empty exactly if it is good."""


@runtime_checkable
class DocumentSource(Protocol):
    """Documents in a fixed order that can be read from any cursor."""

    @property
    def identity(self) -> str:
        """Hash of the content: the same for the same data on every machine."""

    @property
    def cache_key(self) -> str:
        """Hash that changes whenever a file may have changed (on this machine)."""

    def read(self, cursor: Cursor) -> Iterator[Record]:
        """Records from ``cursor`` on; the empty cursor is the beginning."""


def make_record(value: Any, *, place: str, cursor: Cursor) -> Record:
    """A record from what should be a text.

    Bad are: no string, the empty string, more than ``MAX_RECORD_BYTES`` bytes, NUL
    characters, and characters that UTF-8 cannot hold.
    """
    problem, num_bytes = "", 0
    if not isinstance(value, str):
        problem = f"expected a text, got {type(value).__name__}"
    elif not value:
        problem = "empty text"
    elif "\0" in value:
        problem = "NUL character"
    else:
        try:
            num_bytes = len(value.encode("utf-8"))
        except UnicodeEncodeError:
            problem = "lone surrogate (not valid Unicode)"
        if num_bytes > MAX_RECORD_BYTES:
            problem = f"text of {num_bytes} bytes, more than {MAX_RECORD_BYTES}"
    if problem:
        return Record(place=place, cursor=cursor, problem=problem)
    return Record(place=place, cursor=cursor, text=value, num_bytes=num_bytes)


def bad_record(problem: str, *, place: str, cursor: Cursor) -> Record:
    """A record that could not even be parsed."""
    return Record(place=place, cursor=cursor, problem=problem)


def check_bad_records(bad: list[tuple[str, str]], limit: int, dataset: str) -> None:
    """Raise BadRecordsError if ``bad`` (place, problem) is longer than ``limit``."""
    if len(bad) <= limit:
        return
    place, problem = bad[limit]
    others = "; ".join(f"{where}: {what}" for where, what in bad[: min(limit, 3)])
    raise BadRecordsError(
        f"{place}: {problem}. Dataset {dataset} has more than {limit} bad records "
        "(training.max_bad_records)" + (f"; the first ones: {others}" if others else "")
    )
