"""Strict comparison of the names a run has with those a checkpoint has."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from torchtitan_cpp.checkpoint.agreement import all_agree
from torchtitan_cpp.checkpoint.nearest import nearest
from torchtitan_cpp.checkpoint.state import Ranks
from torchtitan_cpp.errors import UnusablePathError


def check_missing(
    source: str, wanted: Collection[str], stored: Collection[str]
) -> None:
    """Raise UnusablePathError if something wanted is not stored."""
    missing = sorted(name for name in wanted if name not in stored)
    if not missing:
        return
    unused = [name for name in stored if name not in wanted] or stored
    shown = ", ".join(f"{name}{nearest(name, unused)}" for name in missing[:5])
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    raise UnusablePathError(f"{source} does not hold {shown}{more}")


def check_unexpected(
    ranks: Ranks, source: str, wanted: Collection[str], stored: Sequence[str]
) -> None:
    """Raise UnusablePathError on all ranks if no rank wants something. Collective."""
    unused = [name for name in stored if name not in wanted]
    answers = all_agree(ranks, source, lambda: unused)
    unexpected = set(answers[0]).intersection(*answers[1:])
    if not unexpected:
        return
    names = [name for name in stored if name in unexpected]
    shown = ", ".join(f"{name}{nearest(name, wanted)}" for name in names[:5])
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    raise UnusablePathError(
        f"{source} holds {shown}{more}, which the model does not have"
    )
