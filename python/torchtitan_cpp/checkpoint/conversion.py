"""Weights out of Hugging Face folders, under the names and layouts of a model here."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from torchtitan_cpp.checkpoint.adapter_table import HfWeight, TableStateDictAdapter
from torchtitan_cpp.checkpoint.hugging_face import HuggingFaceFolder, by_layer
from torchtitan_cpp.checkpoint.state import TensorEntry
from torchtitan_cpp.checkpoint.state_dict_adapter import (
    BaseStateDictAdapter,
    try_on_shapes,
)
from torchtitan_cpp.errors import UnusablePathError


@dataclass(frozen=True, kw_only=True)
class Head:
    """What is known of a weight before it is read."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class WeightSource(ABC):
    """The weights of a Hugging Face folder as a model here has them."""

    heads: Mapping[str, Head]
    """By name here, in the order in which reading them is cheapest."""

    @abstractmethod
    def read_box(
        self, name: str, *, offset: Sequence[int], size: Sequence[int]
    ) -> torch.Tensor:
        """A box, not empty, of a weight, on the CPU."""


def open_source(
    path: str,
    adapter: BaseStateDictAdapter,
    *,
    quantized: bool | None = None,
    hashes: Mapping[str, str] | None = None,
) -> WeightSource:
    """The weights in a Hugging Face folder; of its data nothing is read yet.

    Args:
        quantized, hashes: as ``HuggingFaceFolder`` has them.
    Raises:
        ValueError: for a bad folder, or names that the adapter does not know.
    """
    folder = HuggingFaceFolder(path, quantized=quantized, hashes=hashes)
    if isinstance(adapter, TableStateDictAdapter):
        return _TableSource(folder, adapter)
    return _FunctionSource(folder, adapter)


def check_shapes(
    path: str, source: WeightSource, entries: Iterable[TensorEntry]
) -> None:
    """Raise UnusablePathError for the first weight of another shape than here."""
    for entry in entries:
        head = source.heads.get(entry.name)
        if head is not None and head.shape != entry.global_shape:
            raise UnusablePathError(
                f"{path}: {entry.name} has the shape {head.shape}, the model "
                f"{entry.global_shape}"
            )


def fill_entries(source: WeightSource, entries: Iterable[TensorEntry]) -> None:
    """Read this rank's boxes, and nothing else where the adapter is a table.

    Beside the entries one box is in memory, in the dtype of the file. Entries that the
    source does not hold are left as they are.
    """
    by_name: dict[str, list[TensorEntry]] = {}
    for entry in entries:
        by_name.setdefault(entry.name, []).append(entry)
    for name in source.heads:
        for entry in by_name.get(name, []):
            if entry.numel > 0:
                box = source.read_box(name, offset=entry.offset, size=entry.size)
                entry.local.detach().copy_(box)


class _TableSource(WeightSource):
    """Reads boxes through the rows of a table."""

    def __init__(
        self, folder: HuggingFaceFolder, adapter: TableStateDictAdapter
    ) -> None:
        self._folder = folder
        self._weights: dict[str, HfWeight] = {}
        self.heads = heads = {}
        unknown = []
        for hf_name in folder:
            try:
                name = adapter.name_of(hf_name)
                weight = name and adapter.weight_of(name)
            except ValueError as error:
                unknown.append(str(error))
                continue
            if not name or not weight:
                continue
            self._weights[name] = weight
            shape = weight.shape(folder.shape(hf_name))
            heads[name] = Head(shape=shape, dtype=folder.dtype(hf_name))
        if unknown:
            more = f"; and {len(unknown) - 5} more" if len(unknown) > 5 else ""
            raise UnusablePathError(f"{folder.path}: {'; '.join(unknown[:5])}{more}")

    def read_box(
        self, name: str, *, offset: Sequence[int], size: Sequence[int]
    ) -> torch.Tensor:
        weight = self._weights[name]

        def read(start: int, length: int) -> torch.Tensor:
            """Rows of the box, in the order there."""
            if weight.transposed:
                box = {"offset": [start, *offset[1:]], "size": [length, *size[1:]]}
                box = {key: list(reversed(sizes)) for key, sizes in box.items()}
                stored = self._folder.read_box(weight.name, **box)
                return stored.permute(*reversed(range(stored.dim())))
            if not size:
                return self._folder.read_box(weight.name, offset=[], size=[])
            return self._folder.read_box(
                weight.name, offset=[start, *offset[1:]], size=[length, *size[1:]]
            )

        rows = weight.rows(self.heads[name].shape[0]) if weight.rotary_heads else None
        if rows is None:
            return read(*((offset[0], size[0]) if size else (0, 0)))
        return _gather(rows[offset[0] : offset[0] + size[0]], read)


class _FunctionSource(WeightSource):
    """Calls ``from_hf`` with whole layers, each read when a weight of it is wanted."""

    def __init__(
        self, folder: HuggingFaceFolder, adapter: BaseStateDictAdapter
    ) -> None:
        self._folder = folder
        self._adapter = adapter
        self._layer_of: dict[str, list[str]] = {}  # names there by name here
        self._held: tuple[list[str], dict[str, torch.Tensor]] = [], {}
        self.heads = heads = {}
        for layer in by_layer(folder):
            heads_there = {n: (folder.shape(n), folder.dtype(n)) for n in layer}
            for name, tensor in try_on_shapes(adapter.from_hf, heads_there).items():
                if name in heads:
                    raise ValueError(f"{folder.path}: from_hf gave {name} twice")
                self._layer_of[name] = layer
                heads[name] = Head(shape=tuple(tensor.shape), dtype=tensor.dtype)

    def read_box(
        self, name: str, *, offset: Sequence[int], size: Sequence[int]
    ) -> torch.Tensor:
        layer = self._layer_of[name]
        if self._held[0] is not layer:
            self._held = [], {}
            whole = {hf_name: self._folder.read(hf_name) for hf_name in layer}
            self._held = layer, self._adapter.from_hf(whole)
        tensor = self._held[1][name]
        for dim, (start, length) in enumerate(zip(offset, size, strict=True)):
            tensor = tensor.narrow(dim, start, length)
        return tensor


def _gather(
    rows: torch.Tensor, read: Callable[[int, int], torch.Tensor]
) -> torch.Tensor:
    """Rows in this order, neighbours read together."""
    ordered, places = rows.sort()
    breaks = (ordered.diff() != 1).nonzero().flatten() + 1
    edges = [0, *breaks.tolist(), len(rows)]
    out: torch.Tensor | None = None
    for begin, end in zip(edges, edges[1:], strict=False):
        piece = read(int(ordered[begin]), end - begin)
        if out is None:
            out = piece.new_empty((len(rows), *piece.shape[1:]))
        out[places[begin:end]] = piece
    assert out is not None  # a box that is not empty
    return out
