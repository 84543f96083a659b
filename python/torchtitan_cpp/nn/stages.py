"""Parts of a module for pipeline parallelism; names of what is left do not change."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

from torch import nn


def keep_modules(module: nn.Module, names: Collection[str]) -> None:
    """Leave of ``module`` only these children: others become None, as in torchtitan.

    Args:
        names: of children, and ``layers.<key>`` for those of ``layers``.
    """
    for name, child in list(module.named_children()):
        if name == "layers":
            _drop_layers(child, names)
        elif name not in names:
            setattr(module, name, None)


def stage_view(module: nn.Module, names: Collection[str]) -> nn.Module:
    """The same with a module of its own, whose children are those of ``module``."""
    view = copy.copy(module)
    view._modules = dict(module._modules)
    layers = view._modules.get("layers")
    if layers is not None:
        view._modules["layers"] = copy.copy(layers)
        view._modules["layers"]._modules = dict(layers._modules)  # type: ignore[union-attr]
    keep_modules(view, names)
    return view


def drop_parameters(module: nn.Module, kept: Collection[str]) -> None:
    """Remove all parameters but these, and modules in which none is left."""
    for prefix, owner in list(module.named_modules()):
        for key in list(owner._parameters):
            if (f"{prefix}.{key}" if prefix else key) not in kept:
                del owner._parameters[key]
    _drop_empty(module)


def shared_between(module: nn.Module, stages: Sequence[Collection[str]]) -> str | None:
    """The name of a parameter that modules of different stages have in common."""
    users: dict[int, int] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        for index, stage in enumerate(stages):
            is_user = _owner(name) in stage
            if is_user and users.setdefault(id(parameter), index) != index:
                return name
    return None


def held_by_all(module: nn.Module, stages: Sequence[Collection[str]]) -> str | None:
    """The name of a parameter of no child of ``module``: no stage has it alone."""
    for name, _ in module.named_parameters(remove_duplicate=False):
        if not any(_owner(name) in stage for stage in stages):
            return name
    return None


def without_parameters(
    module: nn.Module, parts: Sequence[Collection[str]]
) -> int | None:
    """Which part has no parameter, if there is one."""
    owners = {_owner(name) for name, _ in module.named_parameters()}
    for index, names in enumerate(parts):
        if not owners & set(names):
            return index
    return None


def _owner(parameter: str) -> str:
    """The child, or layer, that a parameter's name begins with."""
    parts = parameter.split(".")
    return ".".join(parts[:2]) if parts[0] == "layers" else parts[0]


def _drop_layers(layers: nn.Module, names: Collection[str]) -> None:
    # Of a list too, which can still be iterated: keys are parts of parameters' names.
    for key in list(layers._modules):
        if f"layers.{key}" not in names:
            del layers._modules[key]


def _drop_empty(module: nn.Module) -> None:
    for key, child in list(module._modules.items()):
        if child is None:
            continue
        _drop_empty(child)
        if not any(True for _ in child.parameters()):
            del module._modules[key]
