"""Ranges of configuration values, written beside the fields by ``typing.Annotated``.

A constraint knows only a value of the right type: it says whether the value is allowed
and describes what is, for the error message. Every float must also be finite, unless
the field says ``MayBeInfinite``.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Protocol, runtime_checkable

INT64_MAX = 2**63 - 1


@runtime_checkable
class Constraint(Protocol):
    """What may be attached to a field's type."""

    def allows(self, value: object) -> bool:
        """Whether ``value``, already of the field's type, is in range."""

    def __str__(self) -> str:
        """The range as it completes the sentence "expected ..."."""


@dataclass(frozen=True)
class Within:
    """A number between two bounds; ``or_value`` is one more allowed number."""

    low: float
    high: float = float("inf")
    open_low: bool = False
    open_high: bool = False
    or_value: int | None = None

    def allows(self, value: object) -> bool:
        if not isinstance(value, int | float):
            return False
        if self.or_value is not None and value == self.or_value:
            return True
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def __str__(self) -> str:
        if self.high == float("inf"):
            bounds = f"{'>' if self.open_low else '>='} {self.low:g}"
        else:
            left, right = "(" if self.open_low else "[", ")" if self.open_high else "]"
            bounds = f"in {left}{self.low:g}, {self.high:g}{right}"
        return bounds if self.or_value is None else f"{bounds} or {self.or_value}"


@dataclass(frozen=True)
class OneOf:
    """One of a few words."""

    choices: tuple[str, ...]

    def allows(self, value: object) -> bool:
        return value in self.choices

    def __str__(self) -> str:
        return "one of " + ", ".join(repr(choice) for choice in self.choices)


@dataclass(frozen=True)
class Matching:
    """A text of a certain form; ``form`` says it in words."""

    pattern: str
    form: str

    def allows(self, value: object) -> bool:
        return isinstance(value, str) and bool(re.fullmatch(self.pattern, value))

    def __str__(self) -> str:
        return self.form


@dataclass(frozen=True)
class MayBeInfinite:
    """Lets a float be ``inf``; NaN is refused everywhere."""


@dataclass(frozen=True)
class InputPath:
    """The text is a path that is read; ``package:<package>/<path>`` is resolved."""


Positive = Annotated[int, Within(1)]
NonNegative = Annotated[int, Within(0)]
PositiveOrMinusOne = Annotated[int, Within(1, or_value=-1)]
NonNegativeOrMinusOne = Annotated[int, Within(0, or_value=-1)]
Ratio = Annotated[float, Within(0, 1)]
NonNegativeFloat = Annotated[float, Within(0)]
Path = Annotated[str, InputPath()]
Name = Annotated[str, Matching(r"(?s).+", "a text that is not empty")]
