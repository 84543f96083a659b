"""How a module is divided among the ranks of a tensor axis, by torch's names.

The classes mean what those of ``torch.distributed.tensor.parallel`` mean. There are no
DTensors here: modules pass each other plain tensors that hold what their layout says,
so every result is local and ``use_local_output`` has one use only.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torchtitan_cpp.tensor_parallel.layouts import (
    Layout,
    Layouts,
    Replicate,
    Shard,
    as_layout,
    as_layouts,
)


class ParallelStyle:
    """Base of the styles."""


@dataclass(frozen=True, kw_only=True)
class ColwiseParallel(ParallelStyle):
    """Each rank computes a part of the outputs of an ``nn.Linear`` or ``nn.Embedding``.

    A linear's weight and bias are divided by rows (its output features), an embedding's
    weight by columns.
    """

    input_layouts: Layout = field(default_factory=Replicate)
    """Of the input as it comes; it is made whole."""
    output_layouts: Layout = field(default_factory=lambda: Shard(-1))
    """Of the result."""
    use_local_output: bool = True
    """False, with ``Shard(-1)``: this is the model's prediction, whose loss is computed
    from divided classes unless ``parallelism.disable_loss_parallel``."""

    def __post_init__(self) -> None:
        _convert(self, "input_layouts", "output_layouts")
        if not self.use_local_output and self.output_layouts != Shard(-1):
            raise ValueError(
                "ColwiseParallel: use_local_output=False is for a prediction with "
                f"output_layouts=Shard(-1), found {self.output_layouts}; leave it out"
            )


@dataclass(frozen=True, kw_only=True)
class RowwiseParallel(ParallelStyle):
    """Each rank computes a term of the outputs of an ``nn.Linear`` or ``nn.Embedding``.

    A linear's weight is divided by columns (its input features), its bias is whole and
    added once. An embedding's weight is divided by rows (the vocabulary).
    """

    input_layouts: Layout | None = None
    """Of the input as it comes; None: ``Shard(-1)``, ids of an embedding whole."""
    output_layouts: Layout = field(default_factory=Replicate)
    """Of the sum: ``Replicate`` by all-reduce, ``Shard`` by reduce-scatter."""

    def __post_init__(self) -> None:
        _convert(self, "input_layouts", "output_layouts")


@dataclass(frozen=True, kw_only=True)
class SequenceParallel(ParallelStyle):
    """A module with whole parameters that sees its rank's part of dim ``sequence_dim``.

    Its inputs are such parts already; the gradients of its parameters, and of those of
    its children, are summed over the ranks.
    """

    sequence_dim: int = 1


@dataclass(frozen=True, kw_only=True)
class PrepareModuleInput(ParallelStyle):
    """Inputs of any module are brought from one layout to another.

    Several positional inputs take a tuple with a layout, or None, for each.
    """

    input_layouts: Layouts | None = None
    desired_input_layouts: Layouts | None = None
    input_kwarg_layouts: Mapping[str, Layout] | None = None
    desired_input_kwarg_layouts: Mapping[str, Layout] | None = None

    def __post_init__(self) -> None:
        have = as_layouts(self.input_layouts)
        want = as_layouts(self.desired_input_layouts)
        _check_pairs("PrepareModuleInput", have, want)
        have_by_name = dict(self.input_kwarg_layouts or {})
        want_by_name = dict(self.desired_input_kwarg_layouts or {})
        if have_by_name.keys() != want_by_name.keys():
            raise ValueError(
                "PrepareModuleInput: input_kwarg_layouts and "
                "desired_input_kwarg_layouts must have the same names, found "
                f"{sorted(have_by_name)} and {sorted(want_by_name)}"
            )
        _set(self, "input_layouts", have)
        _set(self, "desired_input_layouts", want)
        for name, layouts in (
            ("input_kwarg_layouts", have_by_name),
            ("desired_input_kwarg_layouts", want_by_name),
        ):
            _set(self, name, {k: as_layout(each) for k, each in layouts.items()})


@dataclass(frozen=True, kw_only=True)
class PrepareModuleOutput(ParallelStyle):
    """Results of any module are brought from one layout to another."""

    output_layouts: Layouts
    desired_output_layouts: Layouts

    def __post_init__(self) -> None:
        have = as_layouts(self.output_layouts)
        want = as_layouts(self.desired_output_layouts)
        _check_pairs("PrepareModuleOutput", have, want)
        _set(self, "output_layouts", have)
        _set(self, "desired_output_layouts", want)


@dataclass(frozen=True, kw_only=True)
class PrepareModuleInputOutput(ParallelStyle):
    """Both, for one module."""

    input_layouts: Layouts | None = None
    desired_input_layouts: Layouts | None = None
    input_kwarg_layouts: Mapping[str, Layout] | None = None
    desired_input_kwarg_layouts: Mapping[str, Layout] | None = None
    output_layouts: Layouts
    desired_output_layouts: Layouts

    def __post_init__(self) -> None:
        self.parts()

    def parts(self) -> tuple[PrepareModuleInput, PrepareModuleOutput]:
        return (
            PrepareModuleInput(
                input_layouts=self.input_layouts,
                desired_input_layouts=self.desired_input_layouts,
                input_kwarg_layouts=self.input_kwarg_layouts,
                desired_input_kwarg_layouts=self.desired_input_kwarg_layouts,
            ),
            PrepareModuleOutput(
                output_layouts=self.output_layouts,
                desired_output_layouts=self.desired_output_layouts,
            ),
        )


def _set(style: ParallelStyle, name: str, value: Any) -> None:
    object.__setattr__(style, name, value)


def _convert(style: ParallelStyle, *names: str) -> None:
    for name in names:
        if (given := getattr(style, name)) is not None:
            _set(style, name, as_layout(given))


def _check_pairs(
    style: str, have: tuple[Layout | None, ...], want: tuple[Layout | None, ...]
) -> None:
    if [each is None for each in have] != [each is None for each in want]:
        raise ValueError(
            f"{style}: each layout needs a desired one, found {have} and {want}"
        )
