"""Weights into a Hugging Face folder, its files divided among the ranks.

Every rank makes the same plan from what has been stored, and writes every n-th file,
one tensor in memory at a time. Rank 0 adds the index and what a model folder holds
beside weights.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.checkpoint.adapter_table import HfWeight, TableStateDictAdapter
from torchtitan_cpp.checkpoint.hugging_face import SINGLE_NAME, by_layer
from torchtitan_cpp.checkpoint.manifest import StoredFile, StoredTensor
from torchtitan_cpp.checkpoint.plain_files import write_file
from torchtitan_cpp.checkpoint.shards import (
    BoxReader,
    ShardReader,
    dtype_of,
    num_io_threads,
)
from torchtitan_cpp.checkpoint.state import TensorEntry
from torchtitan_cpp.checkpoint.state_dict_adapter import (
    INDEX_NAME,
    BaseStateDictAdapter,
    try_on_shapes,
)
from torchtitan_cpp.logging import logger

MAX_FILE_BYTES = 5 * 10**9
"""Of a file that holds more than one tensor."""
MIN_SHARE_BYTES = 5 * 10**8
"""Files are made smaller, so that every rank writes one, but not smaller than this."""


@dataclass(frozen=True, kw_only=True)
class ExportedTensor:
    """A tensor of the folder, read when it is written."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    read: Callable[[], torch.Tensor]

    @property
    def nbytes(self) -> int:
        """In its file."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


@dataclass(frozen=True, kw_only=True)
class ExportedFile:
    """A file of weights of the folder."""

    name: str
    tensors: Sequence[ExportedTensor]

    def write(self, folder: str) -> StoredFile:
        """Write it, durable on return."""
        # Wider dtypes first, so that every tensor of the file is aligned.
        ordered = sorted(self.tensors, key=lambda each: -each.dtype.itemsize)
        writer = _C.storage.SafetensorsWriter(
            os.path.join(folder, self.name),
            [(each.name, each.dtype, each.shape) for each in ordered],
            metadata={"format": "pt"},
            num_threads=num_io_threads(),
        )
        for each in ordered:
            writer.append(each.name, each.read().contiguous())
        file = StoredFile.of(self.name, writer.finish())
        logger.info(f"Wrote {self.name}, {file.size_bytes / 2**20:.1f} MiB")
        return file


def plan_export(
    tensors: Mapping[str, StoredTensor],
    reader: BoxReader,
    adapter: BaseStateDictAdapter,
    *,
    world_size: int,
) -> list[ExportedFile]:
    """The files of the folder; the same on all ranks.

    The split is that of the index in ``hf_assets_path`` if it is of this model.

    Raises:
        ValueError: for names that the adapter does not know, or no tensor at all.
    """
    if isinstance(adapter, TableStateDictAdapter):
        exported = _by_table(tensors, reader, adapter)
    else:
        exported = _by_function(tensors, reader, adapter)
    if not exported:
        raise ValueError("a model folder needs at least one tensor")
    file_of = adapter.fqn_to_index_mapping
    if file_of and (other := [t.name for t in exported if t.name not in file_of]):
        logger.warning(
            f"{adapter.hf_assets_path}: its {INDEX_NAME} is of another model, without "
            f"{other[0]}: weights are split by size"
        )
        file_of = None
    if file_of:
        return _named({t.name: file_of[t.name] for t in exported}, exported)
    return split_by_size(exported, world_size=world_size)


def split_by_size(
    exported: Sequence[ExportedTensor],
    *,
    world_size: int,
    max_file_bytes: int = MAX_FILE_BYTES,
    min_share_bytes: int = MIN_SHARE_BYTES,
) -> list[ExportedFile]:
    """Files of at most ``max_file_bytes``, unless a tensor alone has more."""
    share = -(-sum(each.nbytes for each in exported) // world_size)
    limit = min(max_file_bytes, max(share, min_share_bytes))
    numbers: dict[str, int] = {}
    number, held = 1, 0
    for each in exported:
        if held and held + each.nbytes > limit:
            number, held = number + 1, 0
        held += each.nbytes
        numbers[each.name] = number
    return _named(numbers, exported)


def write_index(folder: str, files: Sequence[ExportedFile]) -> list[StoredFile]:
    """Write the index that several files need; what was written."""
    if len(files) == 1:
        return []
    weight_map = {each.name: file.name for file in files for each in file.tensors}
    index = {
        "metadata": {
            "total_size": sum(each.nbytes for file in files for each in file.tensors)
        },
        "weight_map": dict(sorted(weight_map.items())),
    }
    text = json.dumps(index, indent=2) + "\n"
    return [write_file(folder, INDEX_NAME, [text.encode()])]


def _named(
    numbers: Mapping[str, int], exported: Sequence[ExportedTensor]
) -> list[ExportedFile]:
    """Files from 1 on with the tensors that have their number."""
    count = max(numbers.values())
    if count == 1:
        return [ExportedFile(name=SINGLE_NAME, tensors=exported)]
    return [
        ExportedFile(
            name=f"model-{number:05d}-of-{count:05d}.safetensors",
            tensors=[each for each in exported if numbers[each.name] == number],
        )
        for number in sorted(set(numbers.values()))
    ]


def _by_table(
    tensors: Mapping[str, StoredTensor],
    reader: BoxReader,
    adapter: TableStateDictAdapter,
) -> list[ExportedTensor]:
    def exported(name: str, weight: HfWeight) -> ExportedTensor:
        stored = tensors[name]
        return ExportedTensor(
            name=weight.name,
            dtype=dtype_of(stored.dtype),
            shape=weight.shape(stored.shape),
            read=lambda: weight.to_hf(read_whole(name, stored, reader)),
        )

    weights = {name: adapter.weight_of(name) for name in tensors}
    return [exported(name, weight) for name, weight in weights.items() if weight]


def _by_function(
    tensors: Mapping[str, StoredTensor],
    reader: BoxReader,
    adapter: BaseStateDictAdapter,
) -> list[ExportedTensor]:
    """Calls ``to_hf`` with whole layers: first on meta, then as they are written."""
    held: tuple[int, dict[str, torch.Tensor]] = -1, {}
    layers = by_layer(tensors)

    def read(index: int, hf_name: str) -> torch.Tensor:
        nonlocal held
        if held[0] != index:
            held = -1, {}
            layer = {n: read_whole(n, tensors[n], reader) for n in layers[index]}
            held = index, adapter.to_hf(layer)
        return held[1][hf_name]

    exported: list[ExportedTensor] = []
    seen: set[str] = set()
    for index, layer in enumerate(layers):
        heads = {n: (tensors[n].shape, dtype_of(tensors[n].dtype)) for n in layer}
        for hf_name, tensor in try_on_shapes(adapter.to_hf, heads).items():
            if hf_name in seen:
                raise ValueError(f"{hf_name}: written twice")
            seen.add(hf_name)
            exported.append(
                ExportedTensor(
                    name=hf_name,
                    dtype=tensor.dtype,
                    shape=tuple(tensor.shape),
                    read=partial(read, index, hf_name),
                )
            )
    return exported


def check_exportable(
    entries: Sequence[TensorEntry], adapter: BaseStateDictAdapter
) -> None:
    """Raise ValueError, long before the save, for weights that the adapter refuses."""
    stored = {
        entry.name: StoredTensor(
            kind="model",
            dtype=_C.storage.dtype_name(entry.local.dtype),
            shape=entry.global_shape,
            boxes=(),
        )
        for entry in entries
        if entry.kind == "model"
    }
    if stored:  # a rank of a pipeline may hold none
        plan_export(stored, ShardReader("", ()), adapter, world_size=1)


def read_whole(name: str, stored: StoredTensor, reader: BoxReader) -> torch.Tensor:
    """A whole stored tensor on the CPU, in its stored dtype."""
    entry = TensorEntry(
        name=name,
        kind="model",
        local=torch.empty(stored.shape, dtype=dtype_of(stored.dtype)),
        global_shape=stored.shape,
        offset=(0,) * len(stored.shape),
        size=stored.shape,
        is_writer=False,
    )
    reader.fill(entry, stored)
    return entry.local
