"""Where a value came from, and what is wrong with it.

Nothing here stops at the first mistake: problems are collected and raised together.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where a value was given."""

    kind: Literal["default", "file", "flag", "code"]
    """Later kinds win over earlier ones; code is a config made in Python."""
    where: str
    """``run.toml:12:3``, ``--training.steps`` or the kind itself."""

    @property
    def precedence(self) -> int:
        """0 for a default, larger for what overrides it."""
        return ("default", "file", "flag", "code").index(self.kind)

    def __str__(self) -> str:
        return f"flag {self.where}" if self.kind == "flag" else self.where


DEFAULT = Origin(kind="default", where="default")
CODE = Origin(kind="code", where="JobConfig")


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One reason not to start."""

    field: str
    """Dotted name of the field; empty for a file that cannot be read at all."""
    origin: Origin
    """Where its value was given."""
    message: str
    """What was expected and what was found."""
    hint: str = ""
    """What to do about it."""

    def __str__(self) -> str:
        parts = [str(self.origin), self.field, self.message]
        text = ": ".join(part for part in parts if part)
        return f"{text}; {self.hint}" if self.hint else text


Values: TypeAlias = dict[str, tuple[Any, Origin]]
"""Given values by dotted name, each with where it was given."""


class ConfigError(ValueError):
    """The configuration cannot be run; the text lists every problem.

    Attributes:
        problems: all that was found, in the order of files and flags.
    """

    def __init__(self, problems: Iterable[Problem]) -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{count} problem{'s' if count > 1 else ''} in the configuration:"
        super().__init__("\n  ".join([head, *map(str, self.problems)]))


def nearest(name: str, known: Iterable[str]) -> str | None:
    """The most similar of the ``known`` names, or None if none is similar."""
    names = list(known)
    same = [other for other in names if other.lower() == name.lower()]
    matches = same or difflib.get_close_matches(name, names, n=1)
    return matches[0] if matches else None


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint with the nearest known name, or an empty text."""
    match = nearest(name, known)
    return f"did you mean {match!r}?" if match else ""
