"""State-dict adapters that are tables: name here, name and layout there.

What a table says is known for every box of a weight, so a rank reads only its own part
of a Hugging Face folder.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar

import torch

from torchtitan_cpp.checkpoint.nearest import nearest
from torchtitan_cpp.checkpoint.state_dict_adapter import StateDictAdapter

_PLACE = re.compile(r"(?:\{rest\}$|\{\})")


@dataclass(frozen=True, kw_only=True)
class HfWeight:
    """How a weight lies in the Hugging Face model."""

    name: str
    rotary_heads: int = 0
    """Its rows belong to so many heads, whose rotated pairs are neighbours here and lie
    half a head apart there; 0: the rows have the same order."""
    transposed: bool = False
    """All dims are in reverse order there."""

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Of one side for the other side's."""
        return shape[::-1] if self.transposed else shape

    def rows(self, count: int) -> torch.Tensor | None:
        """For each of the ``count`` rows here its row there; None: the same.

        Raises:
            ValueError: if they do not split into heads of pairs.
        """
        heads = self.rotary_heads
        if heads == 0:
            return None
        if count % (2 * heads) != 0:
            raise ValueError(
                f"{self.name}: rotary weight of {count} rows does not split into "
                f"{heads} heads of pairs"
            )
        there = torch.arange(count).view(heads, 2, count // heads // 2)
        return there.transpose(1, 2).reshape(-1)

    def to_hf(self, weight: torch.Tensor) -> torch.Tensor:
        """A whole weight as it lies there."""
        rows = self.rows(weight.shape[0]) if self.rotary_heads else None
        if rows is not None:
            back = torch.empty_like(rows).scatter_(0, rows, torch.arange(len(rows)))
            weight = weight[back]
        return (
            weight.permute(*reversed(range(weight.dim())))
            if self.transposed
            else (weight)
        )

    def from_hf(self, weight: torch.Tensor) -> torch.Tensor:
        """A whole weight as it lies here."""
        if self.transposed:
            weight = weight.permute(*reversed(range(weight.dim())))
        rows = self.rows(weight.shape[0]) if self.rotary_heads else None
        return weight if rows is None else weight[rows]


class TableStateDictAdapter(StateDictAdapter):
    """An adapter whose subclass only says ``table``::

        class MyAdapter(TableStateDictAdapter):
            table = {
                "layers.{}.wq.weight": HfWeight(name="h.{}.q.weight", rotary_heads=8),
                "norm.weight": "final_norm.weight",
            }

    ``{}`` stands for a number, of a layer or an expert, and ``{rest}`` for any end of a
    name; both are the same on both sides. The first pattern that fits counts; those of
    ``not_written`` and ``not_loaded`` come before the table. What depends on
    ``model_args`` is set in ``__init__`` on ``self``.
    """

    table: Mapping[str, str | HfWeight]
    """Patterns of names here, and the names (or more) there."""
    not_written: Collection[str] = ()
    """Patterns of names here that are left out there."""
    not_loaded: Collection[str] = ()
    """Patterns of names there without a counterpart here, such as computed tables."""
    model_title: ClassVar[str] = "model"
    """For messages about names that no pattern fits."""

    def weight_of(self, name: str) -> HfWeight | None:
        """Where the weight with this name here lies there; None: nowhere.

        Raises:
            ValueError: for a name that is not in the table, with the nearest one.
        """
        for regex, weight in self._by_ours.values():
            if match := regex.fullmatch(name):
                if weight is None:
                    return None
                return replace(weight, name=_fill(weight.name, match.groups()))
        raise ValueError(_unknown(f"{self.model_title} weight", name, self._by_ours))

    def name_of(self, hf_name: str) -> str | None:
        """The name here of a weight there; None: it is not loaded.

        Raises:
            ValueError: for a name that is not in the table, with the nearest one.
        """
        for regex, ours in self._by_theirs.values():
            if match := regex.fullmatch(hf_name):
                return ours and _fill(ours, match.groups())
        raise ValueError(_unknown("Hugging Face weight", hf_name, self._by_theirs))

    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Raises ValueError for a name that is not in the table."""
        found = {name: self.weight_of(name) for name in state_dict}
        return {
            weight.name: weight.to_hf(state_dict[name])
            for name, weight in found.items()
            if weight is not None
        }

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        """Raises ValueError for a name that is not in the table."""
        renamed: dict[str, Any] = {}
        for hf_name, tensor in hf_state_dict.items():
            name = self.name_of(hf_name)
            weight = name and self.weight_of(name)
            if name and weight:
                renamed[name] = weight.from_hf(tensor)
        return renamed

    @cached_property
    def _by_ours(self) -> dict[str, tuple[re.Pattern[str], HfWeight | None]]:
        rows: dict[str, HfWeight | None] = dict.fromkeys(self.not_written)
        for ours, theirs in self.table.items():
            weight = theirs if isinstance(theirs, HfWeight) else HfWeight(name=theirs)
            pair = (ours, weight.name)
            places = [_PLACE.findall(pattern) for pattern in pair]
            if places[0] != places[1] or any(
                "{rest}" in pattern.removesuffix("{rest}") for pattern in pair
            ):
                raise ValueError(
                    f"{type(self).__name__}.table: {ours} and {weight.name} do not "
                    "hold {} equally often, or {rest} at the end"
                )
            rows[ours] = weight
        return {ours: (_regex(ours), weight) for ours, weight in rows.items()}

    @cached_property
    def _by_theirs(self) -> dict[str, tuple[re.Pattern[str], str | None]]:
        rows: dict[str, str | None] = dict.fromkeys(self.not_loaded)
        for ours, (_, weight) in self._by_ours.items():
            if weight is None:
                continue
            if weight.name in rows:
                raise ValueError(
                    f"{type(self).__name__}.table: {weight.name} occurs twice"
                )
            rows[weight.name] = ours
        return {theirs: (_regex(theirs), ours) for theirs, ours in rows.items()}


def _regex(pattern: str) -> re.Pattern[str]:
    places = iter([*_PLACE.findall(pattern), ""])
    return re.compile(
        "".join(
            re.escape(text) + {"{}": r"(\d+)", "{rest}": "(.+)"}.get(next(places), "")
            for text in _PLACE.split(pattern)
        )
    )


def _fill(pattern: str, found: Iterable[str]) -> str:
    first, *texts = _PLACE.split(pattern)
    pairs = zip(found, texts, strict=True)
    return first + "".join(value + text for value, text in pairs)


def _unknown(what: str, name: str, patterns: Iterable[str]) -> str:
    numbers = re.findall(r"(?<=\.)\d+(?=\.)", name)
    known = [
        _fill(pattern, numbers[:count])
        for pattern in patterns
        if (count := len(_PLACE.findall(pattern))) <= len(numbers)
        and not pattern.endswith("{rest}")
    ]
    return f"unknown {what} {name}{nearest(name, known)}"
