"""Values of a TOML file, each with its line and column."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from torchtitan_cpp._C import config as core
from torchtitan_cpp.config.problems import Origin, Problem, Values, did_you_mean
from torchtitan_cpp.config.schema import Schema, nearest_field
from torchtitan_cpp.config.values import Mismatch, checked, printed

Table: TypeAlias = Mapping[str, core.TomlEntry]


@dataclass(frozen=True, kw_only=True)
class TomlFile:
    """A parsed file; empty if it could not be read."""

    path: str
    entries: Table

    def text(self, section: str, field: str) -> tuple[str, Origin] | None:
        """A text given for ``section.field``, before the fields are known."""
        table = self.entries.get(section)
        content = table.value.value if table else None
        entry = content.get(field) if isinstance(content, dict) else None
        value = entry.value if entry else None
        if value is None or not isinstance(value.value, str):
            return None
        return value.value, self._at(value)

    def values(self, schema: Schema) -> tuple[Values, list[Problem]]:
        """The values that the file gives, and what is wrong with them."""
        return self._values(self.entries, "", schema)

    def _values(
        self, table: Table, section: str, schema: Schema
    ) -> tuple[Values, list[Problem]]:
        values: Values = {}
        problems: list[Problem] = []
        for key, entry in table.items():
            name = f"{section}.{key}" if section else key
            origin = self._at(entry.value)
            content = entry.value.value
            if name in schema.sections and isinstance(content, dict):
                inner, inner_problems = self._values(content, name, schema)
                values.update(inner)
                problems.extend(inner_problems)
            elif name in schema.sections:
                message = f"expected a table, found {printed(_plain(entry.value))}"
                problems.append(Problem(field=name, origin=origin, message=message))
            elif name in schema.fields:
                try:
                    value = checked(schema.fields[name].kind, _plain(entry.value))
                    values[name] = (value, origin)
                except Mismatch as mismatch:
                    problems.append(mismatch.problem(name, origin))
            else:
                problems.append(
                    Problem(
                        field=name,
                        origin=self._at(entry),
                        message=f"unknown {'field' if section else 'section'}",
                        hint=nearest_field(name, schema),
                    )
                )
        return values, problems

    def _at(self, node: core.TomlEntry | core.TomlValue) -> Origin:
        return Origin(kind="file", where=f"{self.path}:{node.line}:{node.column}")


def read_toml(path: str, given_by: Origin) -> tuple[TomlFile, list[Problem]]:
    """Parse a file; if that fails, an empty one and the one reason.

    Args:
        given_by: where the path was given, to be named if there is no such file.
    """
    empty = TomlFile(path=path, entries={})
    try:
        text = Path(path).read_bytes()
    except OSError as error:
        message = f"cannot read {path!r}: {error.strerror}"
        beside = [str(found) for found in Path(path).parent.glob("*.toml")]
        return empty, [
            Problem(
                field="job.config_file",
                origin=given_by,
                message=message,
                hint=did_you_mean(path, beside),
            )
        ]
    try:
        return TomlFile(path=path, entries=core.parse_toml(text, source=path)), []
    except ValueError as error:
        reason = str(error).removeprefix(f"{path}:")
        position, _, message = reason.partition(": ")
        where = Origin(kind="file", where=f"{path}:{position}")
        return empty, [Problem(field="", origin=where, message=message)]


def _plain(value: core.TomlValue) -> object:
    content = value.value
    if isinstance(content, dict):
        return {key: _plain(entry.value) for key, entry in content.items()}
    if isinstance(content, list):
        return [_plain(item) for item in content]
    return content
