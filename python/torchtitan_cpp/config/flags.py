"""Command line flags: ``--section.field value``, ``=value``, ``--section.no-field``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torchtitan_cpp.config.problems import Origin, Problem, Values
from torchtitan_cpp.config.schema import Schema, nearest_field
from torchtitan_cpp.config.values import Mismatch, checked, from_text, is_boolean

HELP = ("-h", "--help")


@dataclass(frozen=True, kw_only=True)
class Flag:
    """One flag as it was written; ``name`` has ``_`` for every ``-``."""

    name: str
    written: str
    text: str | None

    @property
    def origin(self) -> Origin:
        """Where its value comes from."""
        return Origin(kind="flag", where=self.written)


def peek(argv: Sequence[str], name: str) -> Flag | None:
    """The last flag ``name`` with a value, before the fields are known."""
    found = [flag for flag in _split(argv, {}) if isinstance(flag, Flag)]
    return next(
        (f for f in reversed(found) if f.name == name and f.text is not None), None
    )


def read_flags(argv: Sequence[str], schema: Schema) -> tuple[Values, list[Problem]]:
    """The values that the flags give, and what is wrong with them.

    A flag that is given again overrides what it said before, as in a shell alias with
    options of its own.
    """
    booleans = {n: n for n, field in schema.fields.items() if is_boolean(field.kind)}
    for name in list(booleans):
        section, _, leaf = name.rpartition(".")
        negated = f"{section}.no_{leaf}"
        if negated not in schema.fields:
            booleans[negated] = name
    values: Values = {}
    problems: list[Problem] = []
    for flag in _split(argv, booleans):
        if isinstance(flag, str):
            where = Origin(kind="flag", where=flag)
            message = "expected a flag that begins with --"
            problems.append(Problem(field="", origin=where, message=message))
            continue
        name = booleans.get(flag.name, flag.name)
        try:
            values[name] = (_value(flag, name, schema), flag.origin)
        except Mismatch as mismatch:
            problems.append(mismatch.problem(name, flag.origin))
        except KeyError:
            problems.append(_unknown(flag, schema))
    return values, problems


def _split(argv: Sequence[str], booleans: dict[str, str]) -> Iterator[Flag | str]:
    """Flags with their values, and as plain texts the arguments that are no flags."""
    position = 0
    while position < len(argv):
        argument = argv[position]
        position += 1
        if argument in HELP:
            continue
        if not argument.startswith("--"):
            yield argument
            continue
        written, equals, value = argument.partition("=")
        name = written[2:].replace("-", "_")
        text: str | None = value if equals else None
        if not equals and position < len(argv):
            following = argv[position]
            if name in booleans:
                takes = following.lower() in ("true", "false")
            else:
                takes = not following.startswith("--")
            if takes:
                text = following
                position += 1
        yield Flag(name=name, written=written, text=text)


def _value(flag: Flag, name: str, schema: Schema) -> object:
    kind = schema.fields[name].kind
    if name != flag.name:  # --section.no-field
        if flag.text is not None:
            raise Mismatch("no value after a flag that says no", flag.text)
        return False
    if flag.text is None:
        if is_boolean(kind):
            return True
        raise Mismatch("a value after the flag", None)
    return checked(kind, from_text(kind, flag.text))


def _unknown(flag: Flag, schema: Schema) -> Problem:
    if flag.name in schema.sections:
        fields = ", ".join(schema.members(flag.name))
        message, hint = "expected a field of this section", f"it has {fields}"
    else:
        message = "unknown flag"
        hint = nearest_field(flag.name, schema)
    return Problem(field=flag.name, origin=flag.origin, message=message, hint=hint)
