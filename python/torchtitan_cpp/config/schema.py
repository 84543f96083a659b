"""The fields of a configuration class by dotted name, and their documentation."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, get_type_hints

from torchtitan_cpp.config.problems import did_you_mean

MERGED_FROM = "__merged_from__"


@dataclass(frozen=True, kw_only=True)
class FieldInfo:
    """One value that a user may give."""

    name: str
    """Dotted name, e.g. ``training.dataloader.num_workers``."""
    kind: Any
    """Its type, constraints included."""
    default: Any
    """Default value; ``dataclasses.MISSING`` if one must be given."""


@dataclass(frozen=True, kw_only=True)
class Schema:
    """All sections and fields below one configuration class, in their order."""

    config_class: type
    fields: Mapping[str, FieldInfo]
    sections: Mapping[str, type]

    def members(self, section: str) -> list[str]:
        """Names (not dotted) of the fields and sections right below a section."""
        start = f"{section}." if section else ""
        return [
            name[len(start) :]
            for name in (*self.sections, *self.fields)
            if name.startswith(start) and name and "." not in name[len(start) :]
        ]


def schema_of(config_class: type) -> Schema:
    """Read the schema of a dataclass whose sections are dataclasses.

    Raises:
        TypeError: if an annotation names something that does not exist.
    """
    found_fields: dict[str, FieldInfo] = {}
    sections: dict[str, type] = {"": config_class}

    def visit(section_class: type, start: str) -> None:
        for field, kind in typed_fields(section_class):
            name = start + field.name
            if isinstance(kind, type) and is_dataclass(kind):
                sections[name] = kind
                visit(kind, f"{name}.")
                continue
            default: Any = field.default
            if field.default_factory is not MISSING:
                default = field.default_factory()
            found_fields[name] = FieldInfo(name=name, kind=kind, default=default)

    visit(config_class, "")
    return Schema(config_class=config_class, fields=found_fields, sections=sections)


def documentation(schema: Schema) -> dict[str, str]:
    """The text below each field, by dotted name; left out where there is none."""
    return {
        f"{section}.{name}": doc
        for section, section_class in schema.sections.items()
        for name, doc in field_docs(section_class).items()
        if f"{section}.{name}" in schema.fields
    }


def nearest_field(name: str, schema: Schema) -> str:
    """A hint with the field meant by an unknown dotted name, or an empty text.

    It may be one of the same section, of the same name elsewhere, or a similar one.
    """
    section, _, leaf = name.rpartition(".")
    members = schema.members(section) if section in schema.sections else []
    hint = did_you_mean(leaf, members)
    elsewhere = [n for n in schema.fields if n.rpartition(".")[2] == leaf]
    if hint and section:
        return hint.replace("mean '", f"mean '{section}.")
    if hint or not elsewhere:
        return hint or did_you_mean(name, schema.fields)
    return "did you mean " + " or ".join(repr(name) for name in elsewhere) + "?"


def typed_fields(section_class: type) -> Iterator[tuple[Field[Any], Any]]:
    """The fields of a dataclass with their evaluated types."""
    try:
        hints = get_type_hints(section_class, include_extras=True)
    except NameError as error:
        raise TypeError(f"{section_class.__qualname__}: {error}") from error
    for field in fields(section_class):
        yield field, hints[field.name]


def field_docs(section_class: type) -> dict[str, str]:
    """The text below each field; empty where the source cannot be read."""
    docs: dict[str, str] = {}
    for base in reversed(section_class.__mro__[:-1]):
        for origin in base.__dict__.get(MERGED_FROM, ()):
            docs.update(field_docs(origin))
        docs.update(_docs_in_source(base))
    return docs


def _docs_in_source(section_class: type) -> dict[str, str]:
    try:
        source = textwrap.dedent(inspect.getsource(section_class))
        body = ast.parse(source).body[0]
    except (OSError, TypeError, SyntaxError, IndexError):
        return {}
    docs: dict[str, str] = {}
    if not isinstance(body, ast.ClassDef):
        return docs
    for line, below in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(line, ast.AnnAssign)
            and isinstance(line.target, ast.Name)
            and isinstance(below, ast.Expr)
            and isinstance(below.value, ast.Constant)
            and isinstance(below.value.value, str)
        ):
            docs[line.target.id] = " ".join(below.value.value.split())
    return docs
