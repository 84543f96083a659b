"""Ties a module's parameters to the parameter groups that own their memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from torchtitan_cpp import _C

_ATTRIBUTE = "_parameter_groups"


class _Groups(tuple[_C.nn.ParameterGroup, ...]):
    """Stays behind when the module is copied or pickled: copies own their memory."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (tuple, ())


def adopt(module: nn.Module, groups: Sequence[_C.nn.ParameterGroup]) -> None:
    """Make each parameter of ``module`` this rank's piece in the group's buffer.

    The module and the step then share storage: an update by either is seen by both.
    With sharded groups a parameter has this rank's rows only, perhaps none; over a
    tensor axis also of its columns, where those are divided. A module
    under which a tied weight has two names gets both.
    """
    same: dict[int, list[tuple[nn.Module, str]]] = {}
    names: dict[str, int] = {}
    for prefix, owner in module.named_modules():
        for leaf, parameter in owner._parameters.items():
            if parameter is None:
                continue
            same.setdefault(id(parameter), []).append((owner, leaf))
            names[f"{prefix}.{leaf}" if prefix else leaf] = id(parameter)
    for group in groups:
        for shard in group.shards:
            adopted = nn.Parameter(shard.value)
            owner, leaf = same[names[shard.name]][0]
            # What was set on the parameter, such as marks for an optimizer.
            adopted.__dict__.update(owner._parameters[leaf].__dict__)
            adopted.grad = (
                shard.gradient if (shard.gradient.dtype == shard.value.dtype) else None
            )
            for owner, leaf in same[names[shard.name]]:
                owner.register_parameter(leaf, adopted)
    object.__setattr__(module, _ATTRIBUTE, _Groups(groups))


def parameter_groups(module: nn.Module) -> tuple[_C.nn.ParameterGroup, ...]:
    """The groups that ``adopt`` tied to this module.

    Raises:
        ValueError: if there are none.
    """
    groups = getattr(module, _ATTRIBUTE, None)
    if not groups:
        raise ValueError(
            f"{type(module).__name__}: its parameters lie in no parameter groups; "
            "optimizers are built after the model was laid out over the mesh"
        )
    assert isinstance(groups, tuple)
    return groups
