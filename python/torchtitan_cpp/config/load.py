"""From the command line to a JobConfig: flags over a TOML file over defaults."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, replace
from pathlib import Path
from typing import Any

from torchtitan_cpp.config.aliases import apply_aliases
from torchtitan_cpp.config.flags import HELP, peek, read_flags
from torchtitan_cpp.config.help import help_text
from torchtitan_cpp.config.job_config import JobConfig
from torchtitan_cpp.config.merge import merge_module
from torchtitan_cpp.config.package_path import resolve_package_path
from torchtitan_cpp.config.problems import (
    CODE,
    DEFAULT,
    ConfigError,
    Origin,
    Problem,
    Values,
)
from torchtitan_cpp.config.schema import Schema, nearest_field, schema_of
from torchtitan_cpp.config.toml_file import TomlFile, read_toml
from torchtitan_cpp.config.values import Mismatch, checked

DEFAULT_FILE = Path(__file__).parents[1] / "configs" / "llama3" / "debug_model.toml"
"""The configuration of a run that names none; it travels in the package."""


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A configuration, where its values come from, and what is wrong with it."""

    config: JobConfig
    """Fields with a problem have their default here."""
    origins: Mapping[str, Origin] = field(default_factory=dict)
    """Where each value was given, by dotted name; defaults are left out."""
    problems: tuple[Problem, ...] = ()
    """Why the configuration cannot be used, in the order of file and flags."""
    notes: tuple[str, ...] = ()
    """What a person should know although nothing is wrong."""

    def origin(self, name: str) -> Origin:
        """Where the value of the field with this dotted name comes from."""
        return self.origins.get(name, DEFAULT)

    def value(self, name: str) -> Any:
        """The value of the field with this dotted name."""
        value: Any = self.config
        for part in name.split("."):
            value = getattr(value, part)
        return value


def load_config(argv: Sequence[str] | None = None) -> Loaded:
    """Read a configuration, or raise all that is wrong with its values at once.

    What needs the number of ranks or is not supported yet is checked by ``check_run``.

    Args:
        argv: flags without the program's name. None: those of this process.
    Raises:
        ConfigError: a ValueError that lists every problem with where it was given.
    """
    loaded = read_config(argv)
    if loaded.problems:
        raise ConfigError(loaded.problems)
    return loaded


class ConfigManager:
    """torchtitan's way to ask for a configuration."""

    def parse_args(self, args: Sequence[str] | None = None) -> JobConfig:
        """``load_config(args).config``."""
        return load_config(args).config


def read_config(argv: Sequence[str] | None = None) -> Loaded:
    """Like ``load_config``, but returns the problems, to be reported with others."""
    argv = list(sys.argv[1:] if argv is None else argv)
    file, problems = _read_file(argv)
    schema, merge_problems = _find_schema(argv, file)
    if any(argument in HELP for argument in argv):
        print(help_text(schema))
        raise SystemExit(0)
    file_values, file_problems = file.values(schema)
    flag_values, flag_problems = read_flags(argv, schema)
    if "job.config_file" in file_values:
        _, origin = file_values.pop("job.config_file")
        message = "expected only as the flag --job.config_file"
        file_problems.append(
            Problem(field="job.config_file", origin=origin, message=message)
        )
    problems += [*merge_problems, *file_problems, *flag_problems]
    values = {**file_values, **flag_values}
    return _build(schema, values, problems)


def config_from_dict(
    data: Mapping[str, Any], *, like: JobConfig | None = None
) -> JobConfig:
    """The configuration whose ``to_dict()`` (or JSON of it) is ``data``.

    Args:
        like: a configuration of the same class, if fields were added to it.
    Raises:
        ConfigError: if a field is unknown or a value is not allowed.
    """
    loaded = _from_dict(schema_of(type(like or JobConfig())), data)
    if loaded.problems:
        raise ConfigError(loaded.problems)
    return loaded.config


def from_python(config: JobConfig) -> Loaded:
    """A configuration made in Python, checked and resolved as one from a file is."""
    loaded = _from_dict(schema_of(type(config)), config.to_dict())
    default = schema_of(type(config)).fields
    origins = {
        name: origin
        for name, origin in loaded.origins.items()
        if loaded.value(name) != default[name].default
    }
    return replace(loaded, origins=origins)


def _from_dict(schema: Schema, data: Mapping[str, Any]) -> Loaded:
    values: Values = {}
    problems: list[Problem] = []

    def visit(table: Mapping[str, Any], section: str) -> None:
        for key, value in table.items():
            name = f"{section}.{key}" if section else key
            if name in schema.sections and isinstance(value, Mapping):
                visit(value, name)
            elif name in schema.fields:
                try:
                    values[name] = (checked(schema.fields[name].kind, value), CODE)
                except Mismatch as mismatch:
                    problems.append(mismatch.problem(name, CODE))
            else:
                hint = nearest_field(name, schema)
                problems.append(
                    Problem(field=name, origin=CODE, message="unknown", hint=hint)
                )

    visit(data, "")
    return _build(schema, values, problems)


def _read_file(argv: Sequence[str]) -> tuple[TomlFile, list[Problem]]:
    flag = peek(argv, "job.config_file")
    if flag is None or flag.text is None or flag.text == "None":
        return read_toml(str(DEFAULT_FILE), DEFAULT)
    try:
        path = resolve_package_path(flag.text)
    except ValueError:  # reported when the flags are read
        return TomlFile(path=flag.text, entries={}), []
    return read_toml(path, flag.origin)


def _find_schema(argv: Sequence[str], file: TomlFile) -> tuple[Schema, list[Problem]]:
    """The schema, with the fields of the user's module if one is named."""
    for section, name in (
        ("job", "custom_config_module"),
        ("experimental", "custom_args_module"),
    ):
        flag = peek(argv, f"{section}.{name}")
        given = (flag.text, flag.origin) if flag else file.text(section, name)
        if not given or not given[0]:
            continue
        try:
            return schema_of(merge_module(JobConfig, given[0])), []
        except (ValueError, TypeError) as error:
            problem = Problem(
                field=f"{section}.{name}", origin=given[1], message=str(error)
            )
            return schema_of(JobConfig), [problem]
    return schema_of(JobConfig), []


def _build(schema: Schema, values: Values, problems: list[Problem]) -> Loaded:
    notes, alias_problems = apply_aliases(values)
    problems = [*problems, *alias_problems]
    config = _construct(schema, "", values, problems)
    return Loaded(
        config=config,
        origins={name: origin for name, (_, origin) in values.items()},
        problems=tuple(problems),
        notes=tuple(notes),
    )


def _construct(
    schema: Schema, section: str, values: Values, problems: list[Problem]
) -> Any:
    section_class = schema.sections[section]
    arguments: dict[str, Any] = {}
    for member in schema.members(section):
        name = f"{section}.{member}" if section else member
        if name in schema.sections:
            arguments[member] = _construct(schema, name, values, problems)
        elif name in values:
            arguments[member] = values[name][0]
        elif schema.fields[name].default is MISSING:
            missing = Problem(
                field=name, origin=DEFAULT, message="expected a value, found none"
            )
            raise ConfigError([*problems, missing])
    try:
        return section_class(**arguments)
    except (ValueError, TypeError, AssertionError) as error:  # a check of the user's
        given = [values[n][1] for n in values if n.rpartition(".")[0] == section]
        origin = given[-1] if given else DEFAULT
        problems.append(Problem(field=section, origin=origin, message=str(error)))
        return section_class()
