"""Which modules of a model have which style."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from torch import nn

from torchtitan_cpp.config.problems import did_you_mean
from torchtitan_cpp.tensor_parallel.styles import ParallelStyle


@dataclass(frozen=True, kw_only=True)
class Styled:
    """A module and its style."""

    name: str
    """Full name in the model."""
    module: nn.Module
    style: ParallelStyle


@dataclass(frozen=True, kw_only=True)
class TensorParallelPlan:
    """What ``TrainSpec.parallelize_fn`` may be; made by ``tensor_parallel_plan``."""

    styles: Mapping[str, ParallelStyle]
    """By pattern."""

    def match(self, model: nn.Module) -> tuple[list[Styled], list[str]]:
        """The modules with styles, in the order of the plan, and what is wrong."""
        found: dict[str, tuple[str, Styled]] = {}
        problems = []
        for pattern, style in self.styles.items():
            modules = list(_matching(model, pattern.split(".")))
            if not modules:
                known = _as_patterns(model, pattern)
                hint = did_you_mean(pattern, known)
                problems.append(
                    f"'{pattern}' is no module of {type(model).__name__}"
                    + (f"; {hint}" if hint else "")
                )
            for name, module in modules:
                if name in found:
                    problems.append(f"'{found[name][0]}' and '{pattern}': both {name}")
                else:
                    styled = Styled(name=name, module=module, style=style)
                    found[name] = (pattern, styled)
        return [styled for _, styled in found.values()], problems


def tensor_parallel_plan(styles: Mapping[str, ParallelStyle]) -> TensorParallelPlan:
    """How a model written in Python is divided by tensor parallelism.

    Args:
        styles: by name of a module, such as ``layers.*.attention.wq``. A ``*`` stands
            for anything between two dots.
    Returns:
        A value for ``TrainSpec.parallelize_fn``.
    Raises:
        ValueError: for a value that is no style of ``torchtitan_cpp.tensor_parallel``.
    """
    for pattern, style in styles.items():
        if isinstance(style, ParallelStyle):
            continue
        kind = type(style)
        found = f"{kind.__module__}.{kind.__qualname__}"
        message = (
            f"tensor_parallel_plan: '{pattern}': expected a style of "
            f"torchtitan_cpp.tensor_parallel, found {found}"
        )
        if any(
            kind.__name__ == each.__name__ for each in ParallelStyle.__subclasses__()
        ):
            message += (
                f"; use torchtitan_cpp.tensor_parallel.{kind.__name__}, which takes "
                "the same layouts"
            )
        raise ValueError(message)
    return TensorParallelPlan(styles=dict(styles))


def _matching(
    module: nn.Module, parts: list[str], prefix: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    for key, child in module.named_children():
        if fnmatchcase(key, parts[0]):
            name = f"{prefix}{key}"
            if len(parts) == 1:
                yield name, child
            else:
                yield from _matching(child, parts[1:], f"{name}.")


def _as_patterns(model: nn.Module, pattern: str) -> list[str]:
    """Names of modules, with the pattern's parts where they match."""
    parts = pattern.split(".")
    names = set()
    for name, _ in model.named_modules():
        own = name.split(".")
        for index, part in enumerate(parts[: len(own)]):
            if fnmatchcase(own[index], part):
                own[index] = part
        names.add(".".join(own))
    return sorted(names - {""})
