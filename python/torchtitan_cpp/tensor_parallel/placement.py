"""Where the parameters of a styled model lie, and whether that is possible."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from torchtitan_cpp.tensor_parallel.layouts import Shard
from torchtitan_cpp.tensor_parallel.plan import Styled
from torchtitan_cpp.tensor_parallel.styles import (
    ColwiseParallel,
    RowwiseParallel,
    SequenceParallel,
)

_OF_PARAMETERS = (ColwiseParallel, RowwiseParallel, SequenceParallel)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Of each parameter, under every name that it has."""

    dims: Mapping[str, int]
    """That are divided; all others are whole on every rank."""
    summed: frozenset[str]
    """Whole ones whose gradient each rank has a term of."""


def place(styled: Sequence[Styled]) -> Placement:
    """What the styles say of parameters."""
    dims: dict[str, int] = {}
    summed: set[str] = set()
    for each in styled:
        style, module, name = each.style, each.module, each.name
        is_embedding = isinstance(module, nn.Embedding)
        if isinstance(style, ColwiseParallel):
            dims[f"{name}.weight"] = 1 if is_embedding else 0
            if not is_embedding:
                dims[f"{name}.bias"] = 0
        elif isinstance(style, RowwiseParallel):
            dims[f"{name}.weight"] = 0 if is_embedding else 1
            if not is_embedding and isinstance(style.output_layouts, Shard):
                summed.add(f"{name}.bias")
        elif isinstance(style, SequenceParallel):
            summed |= {f"{name}.{key}" for key, _ in module.named_parameters()}
    return Placement(dims=dims, summed=frozenset(summed))


def problems_of(model: nn.Module, styled: Sequence[Styled], ranks: int) -> list[str]:
    """Why ``model`` cannot be divided so among ``ranks``."""
    problems = [
        f"{each.name}: {text}"
        for each in styled
        for text in _problems_of_module(each, ranks)
    ]
    sizes = {
        f"{each.name}.{field}": size for each in styled for field, size in _sizes(each)
    }
    if any(size % ranks for size in sizes.values()):
        problems.insert(0, _indivisible(sizes, ranks))
    heads = [each.name for each in styled if is_prediction(each)]
    if len(heads) > 1:
        problems.append(
            f"{' and '.join(heads)}: use_local_output=False is for the one module that "
            "gives the prediction"
        )
    return problems + _nested(styled) + _tied(model, place(styled))


def is_prediction(styled: Styled) -> bool:
    """Whether its divided result is the model's."""
    style = styled.style
    return isinstance(style, ColwiseParallel) and not style.use_local_output


def _problems_of_module(styled: Styled, ranks: int) -> Iterator[str]:
    style, module = styled.style, styled.module
    if not isinstance(style, (ColwiseParallel, RowwiseParallel)):
        return
    kind = type(style).__name__
    for base in (nn.Linear, nn.Embedding):
        if isinstance(module, base):
            if type(module).forward is not base.forward:
                yield (
                    f"{kind} takes nn.{base.__name__} with its own forward, but "
                    f"{type(module).__name__} has another one"
                )
                return
            break
    else:
        yield f"{kind} takes nn.Linear or nn.Embedding, found {type(module).__name__}"
        return
    if is_prediction(styled) and styled.name.startswith("layers."):
        yield (
            "use_local_output=False is for the module that gives the prediction; all "
            "results are local tensors here, so leave it out"
        )
    if isinstance(module, nn.Embedding):
        for option, value in (
            ("max_norm", module.max_norm is not None),
            ("scale_grad_by_freq", module.scale_grad_by_freq),
            ("sparse", module.sparse),
        ):
            if value:
                yield f"{kind} cannot take an nn.Embedding with {option}"
        if isinstance(style, RowwiseParallel):
            yield from _non_empty("num_embeddings", module.num_embeddings, ranks)
    elif isinstance(module, nn.Linear) and not list(_sizes(styled)):
        yield from _non_empty("out_features", module.out_features, ranks)


def _sizes(styled: Styled) -> Iterator[tuple[str, int]]:
    """What all ranks must have an equal part of: results that stay divided meet others.

    A vocabulary may be uneven.
    """
    style, module = styled.style, styled.module
    if isinstance(style, RowwiseParallel) and isinstance(module, nn.Linear):
        yield "in_features", module.in_features
    if isinstance(style, ColwiseParallel):
        if isinstance(module, nn.Embedding):
            yield "embedding_dim", module.embedding_dim
        elif (
            isinstance(module, nn.Linear)
            and style.use_local_output
            and isinstance(style.output_layouts, Shard)
        ):
            yield "out_features", module.out_features


def _indivisible(sizes: Mapping[str, int], ranks: int) -> str:
    common = math.gcd(*sizes.values())
    fits = [str(n) for n in range(1, min(common, 1024) + 1) if common % n == 0]
    shown = {size: field for field, size in reversed(list(sizes.items()))}
    named = ", ".join(f"{field} = {size}" for size, field in sorted(shown.items()))
    return f"expected a divisor of {named} ({', '.join(fits)}), found {ranks}"


def _non_empty(field: str, size: int, ranks: int) -> Iterator[str]:
    """The parts of torch.chunk may be uneven."""
    chunk = -(-size // ranks)
    if chunk * (ranks - 1) >= size:
        yield f"{field} = {size} leaves nothing for the last of {ranks} ranks"


def _nested(styled: Sequence[Styled]) -> list[str]:
    """A style for all parameters below a module, and another one there."""
    return [
        f"{inner.name}: SequenceParallel of {outer.name} is for it already"
        for outer in styled
        if isinstance(outer.style, SequenceParallel)
        for inner in styled
        if inner.name.startswith(f"{outer.name}.")
        and isinstance(inner.style, _OF_PARAMETERS)
    ]


def _tied(model: nn.Module, placement: Placement) -> list[str]:
    """A weight under two names that is to be in two places."""
    first: dict[int, str] = {}
    problems = []
    for name, parameter in model.named_parameters(remove_duplicate=False):
        other = first.setdefault(id(parameter), name)
        if placement.dims.get(name) != placement.dims.get(other):
            problems.append(
                f"{other} and {name} are one parameter, so both modules need styles "
                "that divide it alike"
            )
    return problems
