"""Whether a configuration can be run here: all problems at once, before any process
group exists."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, Literal

from torchtitan_cpp.config.inputs import missing_inputs
from torchtitan_cpp.config.job_config import JobConfig
from torchtitan_cpp.config.load import Loaded
from torchtitan_cpp.config.problems import (
    CODE,
    ConfigError,
    Origin,
    Problem,
    did_you_mean,
)
from torchtitan_cpp.config.rules import RULES, RUN_RULES, Rule, Run
from torchtitan_cpp.config.schema import schema_of
from torchtitan_cpp.config.supported import NOT_SUPPORTED_YET
from torchtitan_cpp.config.values import Mismatch, checked

Known = Mapping[str, Collection[str]]
"""Registered names by field, e.g. ``{"model.name": ["llama3"]}``."""


def check_run(
    given: Loaded | JobConfig,
    *,
    world_size: int,
    device: Literal["cpu", "cuda"] = "cpu",
    known: Known | None = None,
) -> None:
    """Raise all reasons not to start this run.

    Args:
        given: what ``read_config`` or ``load_config`` returned, with the origins of its
            values, or a configuration made in Python.
        world_size: ranks of the run.
        device: kind of device of each rank.
        known: names that some fields may have, where only the caller knows them: models
            and flavors, optimizers, datasets.
    Raises:
        ConfigError: a ValueError that lists every problem with where it was given.
    """
    problems = run_problems(given, world_size=world_size, device=device, known=known)
    if problems:
        raise ConfigError(problems)


def run_problems(
    given: Loaded | JobConfig,
    *,
    world_size: int,
    device: Literal["cpu", "cuda"] = "cpu",
    known: Known | None = None,
) -> list[Problem]:
    """The problems that ``check_run`` raises."""
    loaded = given if isinstance(given, Loaded) else _made_in_python(given)
    run = Run(config=loaded.config, world_size=world_size, device=device)
    problems = [
        *loaded.problems,
        *_unknown_names(loaded, known or {}),
        *_broken(loaded, [*RULES, *RUN_RULES], run),
        *unsupported(loaded),
    ]
    if loaded.config.comm.mode != "fake_backend":
        problems += [
            Problem(field=name, origin=loaded.origin(name), message=message, hint=hint)
            for name, message, hint in missing_inputs(loaded.config)
        ]
    return problems


def contradictions(loaded: Loaded) -> list[Problem]:
    """Values that contradict each other on any machine."""
    run = Run(config=loaded.config, world_size=1, device="cpu")
    return _broken(loaded, RULES, run)


def unsupported(loaded: Loaded) -> list[Problem]:
    """Values that need what is not built yet."""
    problems = []
    for row in NOT_SUPPORTED_YET:
        if row.needed(loaded.config):
            value = value_of(loaded.config, row.field)
            message = f"not supported yet: {row.what} (found {value!r})"
            problems.append(
                Problem(
                    field=row.field,
                    origin=loaded.origin(row.field),
                    message=message,
                    hint=row.hint,
                )
            )
    return problems


def value_of(config: JobConfig, name: str) -> Any:
    """The value of the field with this dotted name."""
    value: Any = config
    for part in name.split("."):
        value = getattr(value, part)
    return value


def _broken(loaded: Loaded, rules: Iterable[Rule], run: Run) -> list[Problem]:
    problems = []
    for rule in rules:
        message = rule.found(run)
        if message is not None:
            problems.append(
                Problem(
                    field=rule.field,
                    origin=loaded.origin(rule.field),
                    message=message,
                    hint=rule.hint,
                )
            )
    return problems


def _unknown_names(loaded: Loaded, known: Known) -> list[Problem]:
    problems = []
    for field, names in known.items():
        value = value_of(loaded.config, field)
        if value not in names:
            listed = ", ".join(sorted(names))
            problems.append(
                Problem(
                    field=field,
                    origin=loaded.origin(field),
                    message=f"expected one of {listed}; found {value!r}",
                    hint=did_you_mean(value, names),
                )
            )
    return problems


def _made_in_python(config: JobConfig) -> Loaded:
    schema = schema_of(type(config))
    origins: dict[str, Origin] = {}
    problems: list[Problem] = []
    for name, field in schema.fields.items():
        value = value_of(config, name)
        if value != field.default:
            origins[name] = CODE
        try:
            checked(field.kind, value)
        except Mismatch as mismatch:
            problems.append(mismatch.problem(name, CODE))
    return Loaded(config=config, origins=origins, problems=tuple(problems))
