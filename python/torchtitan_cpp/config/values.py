"""From what a file or flag says to a value of a field's type, or to a clear refusal.

Works on plain values (None, bool, int, float, str, list, dict), which TOML, JSON and
flags all give; types are those that fields may have, constraints included.
"""

from __future__ import annotations

import json
import math
import re
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from torchtitan_cpp.config.constraints import (
    Constraint,
    InputPath,
    MayBeInfinite,
    OneOf,
)
from torchtitan_cpp.config.package_path import resolve_package_path
from torchtitan_cpp.config.problems import Origin, Problem, did_you_mean

_NAMES: dict[Any, str] = {
    bool: "true or false",
    int: "an integer",
    float: "a number",
    str: "a text",
    type(None): "None",
}


class Mismatch(Exception):
    """A value that a type does not take."""

    def __init__(self, expected: str, found: object, hint: str = "") -> None:
        super().__init__(f"expected {expected}, found {printed(found)}")
        self.expected = expected
        self.hint = hint

    def problem(self, field: str, origin: Origin) -> Problem:
        """The same as a problem of a field."""
        return Problem(field=field, origin=origin, message=str(self), hint=self.hint)


def printed(value: object) -> str:
    """A found value as messages show it: with its kind, unless that is obvious."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | str) or value is None:
        return repr(value)
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return f"the list {value!r}"
    return str(getattr(value, "text", value))


def expected(kind: Any) -> str:
    """A type and its constraints in words, completing "expected ..."."""
    base, constraints = _split(kind)
    if _is_union(base):
        arms = get_args(base)
        return " or ".join(expected(arm) for arm in arms)
    if get_origin(base) is Literal:
        text = "one of " + ", ".join(repr(choice) for choice in get_args(base))
    elif get_origin(base) is list:
        item = expected(get_args(base)[0]).removeprefix("a ").removeprefix("an ")
        text = f"a list ({item} each)"
    else:
        text = _NAMES.get(base, f"a value of type {getattr(base, '__name__', base)}")
    for constraint in constraints:
        if isinstance(constraint, OneOf):
            text = str(constraint)
        elif isinstance(constraint, Constraint):
            form = str(constraint)
            text = form if form.startswith("a ") else f"{text} {form}"
    return text


def checked(kind: Any, value: object) -> Any:
    """``value`` if ``kind`` takes it; integers become floats where floats are meant.

    Raises:
        Mismatch: with what was expected and what was found.
    """
    base, constraints = _split(kind)
    if base is Any:
        return value
    if _is_union(base):
        return _checked_union(base, value)
    if get_origin(base) is list:
        return _checked_list(kind, base, value)
    if get_origin(base) is dict:
        if not isinstance(value, dict):
            raise Mismatch("a table", value)
        item = get_args(base)[1]
        return {key: checked(item, inner) for key, inner in value.items()}
    if get_origin(base) is Literal:
        for choice in get_args(base):
            if type(choice) is type(value) and choice == value:
                return value
        choices = [str(choice) for choice in get_args(base)]
        raise Mismatch(expected(kind), value, did_you_mean(str(value), choices))
    result = _checked_scalar(kind, base, constraints, value)
    for constraint in constraints:
        if isinstance(constraint, Constraint) and not constraint.allows(result):
            choices = list(constraint.choices) if isinstance(constraint, OneOf) else []
            raise Mismatch(expected(kind), value, did_you_mean(str(value), choices))
        if isinstance(constraint, InputPath):
            try:
                result = resolve_package_path(result)
            except ValueError as error:
                raise Mismatch(f"a path ({error})", value) from None
    return result


def from_text(kind: Any, text: str) -> object:
    """The plain value that a flag's ``text`` stands for, to be given to ``checked``.

    Lists are comma-separated, "" is the empty list, lists of lists are JSON, and
    "None" is None where the type allows it.

    Raises:
        Mismatch: if the text cannot be read as a value of this kind.
    """
    base, _ = _split(kind)
    if _is_union(base):
        arms = [arm for arm in get_args(base) if arm is not type(None)]
        if len(arms) < len(get_args(base)) and text == "None":
            return None
        return _from_text_of_first(kind, arms, text)
    if base is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        raise Mismatch(expected(kind), text)
    if base is int:
        if re.fullmatch(r"[+-]?[0-9]+(_[0-9]+)*", text):
            return int(text)
        raise Mismatch(expected(kind), text)
    if base is float:
        try:
            return float(text)
        except ValueError:
            raise Mismatch(expected(kind), text) from None
    if get_origin(base) is list and get_origin(_split(get_args(base)[0])[0]) is None:
        items = [item.strip() for item in text.split(",")] if text else []
        if "" in items:
            raise Mismatch(f"{expected(kind)}, comma-separated", text)
        return [from_text(get_args(base)[0], item) for item in items]
    if base is str or get_origin(base) is Literal:
        for choice in get_args(base):
            if str(choice) == text:
                return choice
        return text
    try:
        return json.loads(text)
    except ValueError:
        raise Mismatch(f"{expected(kind)}, as JSON", text) from None


def is_boolean(kind: Any) -> bool:
    """Whether the type is bool, so that its flag needs no value."""
    return _split(kind)[0] is bool


def _split(kind: Any) -> tuple[Any, tuple[Any, ...]]:
    if get_origin(kind) is Annotated:
        base, *constraints = get_args(kind)
        return base, tuple(constraints)
    return kind, ()


def _is_union(base: Any) -> bool:
    return get_origin(base) in (Union, types.UnionType)


def _checked_union(base: Any, value: object) -> Any:
    arms = get_args(base)
    if value is None and type(None) in arms:
        return None
    failures = []
    for arm in arms:
        if arm is type(None):
            continue
        try:
            return checked(arm, value)
        except Mismatch as failure:
            failures.append(failure)
    if len(failures) == 1 and type(None) in arms:  # more exact than the union's words
        raise Mismatch(f"{failures[0].expected} or None", value, failures[0].hint)
    raise Mismatch(expected(base), value)


def _checked_list(kind: Any, base: Any, value: object) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise Mismatch(expected(kind), value)
    result = []
    for index, item in enumerate(value):
        try:
            result.append(checked(get_args(base)[0], item))
        except Mismatch as failure:
            text = f"{expected(kind)}; item {index} is {printed(item)}"
            raise Mismatch(text, list(value), failure.hint) from None
    return result


def _checked_scalar(
    kind: Any, base: Any, constraints: tuple[Any, ...], value: object
) -> Any:
    if isinstance(value, bool) and base in (int, float):
        raise Mismatch(expected(kind), value)
    if base is float and isinstance(value, int | float):
        number = float(value)
        infinite = any(isinstance(entry, MayBeInfinite) for entry in constraints)
        if math.isnan(number) or (math.isinf(number) and not infinite):
            raise Mismatch(f"{expected(kind)}, finite", value)
        return number
    if not isinstance(base, type) or not isinstance(value, base):
        raise Mismatch(expected(kind), value)
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise Mismatch(f"{expected(kind)} of 64 bits", value)
    return value


def _from_text_of_first(kind: Any, arms: list[Any], text: str) -> object:
    for arm in arms:
        try:
            value = from_text(arm, text)
            checked(arm, value)
        except Mismatch:
            continue
        return value
    if len(arms) == 1:  # its own words are more exact than those of the union
        return from_text(arms[0], text)
    raise Mismatch(expected(kind), text)
