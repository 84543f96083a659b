"""How the ranks of a tensor axis hold an activation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias


@dataclass(frozen=True)
class Replicate:
    """Every rank has the same whole tensor, and the whole gradient of it."""


@dataclass(frozen=True)
class Shard:
    """Every rank has an equal part of dim ``dim``, in rank order."""

    dim: int
    """Negative: counted from the end."""


Layout: TypeAlias = Replicate | Shard
Layouts: TypeAlias = Layout | tuple[Layout | None, ...]
"""Of several tensors, in order; None: not a tensor, or left as it is."""


def as_layout(given: Any) -> Layout:
    """A layout of ours, or torch's placement of the same name.

    Raises:
        ValueError: for anything else.
    """
    if isinstance(given, (Replicate, Shard)):
        return given
    name = type(given).__name__
    if type(given).__module__.startswith("torch.distributed.tensor"):
        if name == "Replicate":
            return Replicate()
        if name == "Shard":
            return Shard(int(given.dim))
    raise ValueError(f"a layout is Replicate() or Shard(dim), found {given!r}")


def as_layouts(given: Any) -> tuple[Layout | None, ...]:
    """One layout, a sequence with None for what has none, or None."""
    if given is None:
        return ()
    if isinstance(given, (tuple, list)):
        return tuple(None if each is None else as_layout(each) for each in given)
    return (as_layout(given),)
