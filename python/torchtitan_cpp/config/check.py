"""Whether a configuration can be run here: all problems at once, before any process
group exists."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Literal

from torchtitan_cpp.config.job_config import JobConfig
from torchtitan_cpp.config.load import Loaded, from_python
from torchtitan_cpp.config.paths import unusable_paths
from torchtitan_cpp.config.problems import (
    DEFAULT,
    ConfigError,
    Problem,
    did_you_mean,
)
from torchtitan_cpp.config.rules import RULES, RUN_RULES, Rule, Run
from torchtitan_cpp.config.supported import NOT_SUPPORTED_YET
from torchtitan_cpp.config.values import printed

Known = Mapping[str, Collection[str]]
"""Registered names by field, e.g. ``{"model.name": ["llama3"]}``."""

Misfits = Mapping[str, str]
"""What was expected and found, by field."""


def check_run(
    given: Loaded | JobConfig,
    *,
    world_size: int,
    device: Literal["cpu", "cuda"] = "cpu",
    known: Known | None = None,
    misfits: Misfits | None = None,
) -> JobConfig:
    """The configuration to run, or all reasons not to start at once.

    Args:
        given: what ``read_config`` or ``load_config`` returned, with the origins of its
            values, or a configuration made in Python.
        world_size: ranks of the run.
        device: kind of device of each rank.
        known: names that some fields may have, where only the caller knows them: models
            and flavors, optimizers, datasets.
        misfits: values that only the caller knows not to fit, such as degrees of
            parallelism that the model cannot take.
    Returns:
        The configuration, with old names and package paths resolved.
    Raises:
        ConfigError: a ValueError that lists every problem with where it was given.
    """
    loaded = given if isinstance(given, Loaded) else from_python(given)
    problems = run_problems(
        loaded, world_size=world_size, device=device, known=known, misfits=misfits
    )
    if problems:
        raise ConfigError(problems)
    return loaded.config


def run_problems(
    given: Loaded | JobConfig,
    *,
    world_size: int,
    device: Literal["cpu", "cuda"] = "cpu",
    known: Known | None = None,
    misfits: Misfits | None = None,
) -> list[Problem]:
    """The problems that ``check_run`` raises."""
    loaded = given if isinstance(given, Loaded) else from_python(given)
    run = Run(config=loaded.config, world_size=world_size, device=device)
    problems = [
        *loaded.problems,
        *_unknown_names(loaded, known or {}),
        *_broken(loaded, [*RULES, *RUN_RULES], run),
        *_misfitting(loaded, misfits or {}),
        *unsupported(loaded),
    ]
    if loaded.config.comm.mode != "fake_backend":
        problems += unusable_paths(loaded)
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
            found = printed(loaded.value(row.field))
            message = f"not supported yet: {row.what} (found {found})"
            problems.append(
                Problem(
                    field=row.field,
                    origin=loaded.origin(row.field),
                    message=message,
                    hint=row.hint,
                )
            )
    return problems


def _broken(loaded: Loaded, rules: Iterable[Rule], run: Run) -> list[Problem]:
    problems = []
    for rule in rules:
        message = rule.found(run)
        if message is not None:
            places = [loaded.origin(n) for n in (rule.field, *rule.given_with)]
            given = [origin for origin in places if origin is not DEFAULT]
            problems.append(
                Problem(
                    field=rule.field,
                    origin=given[0] if given else DEFAULT,
                    message=message,
                    hint=rule.hint,
                )
            )
    return problems


def _misfitting(loaded: Loaded, misfits: Misfits) -> list[Problem]:
    return [
        Problem(field=field, origin=loaded.origin(field), message=message)
        for field, message in misfits.items()
    ]


def _unknown_names(loaded: Loaded, known: Known) -> list[Problem]:
    problems = []
    for field, names in known.items():
        value = loaded.value(field)
        if field.endswith(".dataset"):
            value = value.lower()  # as the registry of datasets looks them up
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
