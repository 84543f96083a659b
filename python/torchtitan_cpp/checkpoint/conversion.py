"""Weights in and out of Hugging Face folders, a layer at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.checkpoint.hugging_face import (
    HuggingFaceFolder,
    HuggingFaceWriter,
    by_layer,
)
from torchtitan_cpp.checkpoint.manifest import StoredTensor
from torchtitan_cpp.checkpoint.shards import ShardReader
from torchtitan_cpp.checkpoint.state import TensorEntry
from torchtitan_cpp.checkpoint.state_dict_adapter import BaseStateDictAdapter


def export_weights(
    folder: str,
    tensors: Mapping[str, StoredTensor],
    reader: ShardReader,
    adapter: BaseStateDictAdapter,
    *,
    dtype: torch.dtype,
) -> list[str]:
    """Write the stored tensors into ``folder`` as a Hugging Face model.

    Args:
        dtype: of the stored floating-point tensors, noted in ``config.json``.
    Returns:
        Names of the files written.
    """
    writer = HuggingFaceWriter(folder, file_of=adapter.fqn_to_index_mapping)
    for names in by_layer(tensors):
        layer = {name: _whole(name, tensors[name], reader, dtype) for name in names}
        for name, tensor in adapter.to_hf(layer).items():
            writer.add(name, tensor)
    files = writer.finish()
    hf_config = getattr(adapter, "hf_config", None)
    if hf_config is not None:
        config = {**hf_config(), "torch_dtype": str(dtype).removeprefix("torch.")}
        path = os.path.join(folder, "config.json")
        _C.storage.write_text(path, json.dumps(config, indent=2) + "\n")
        files.append("config.json")
    return files


def import_weights(
    path: str, adapter: BaseStateDictAdapter, entries: Sequence[TensorEntry]
) -> list[str]:
    """Fill the entries from a Hugging Face model folder.

    Returns:
        Names that ``from_hf`` gave, in order; those without an entry are skipped.
    Raises:
        ValueError: for a bad folder, a shape that differs or an entry left unfilled.
    """
    folder = HuggingFaceFolder(path)
    by_name: dict[str, list[TensorEntry]] = {}
    for entry in entries:
        by_name.setdefault(entry.name, []).append(entry)
    found: list[str] = []
    for names in by_layer(folder):
        layer = adapter.from_hf({name: folder.read(name) for name in names})
        for name, tensor in layer.items():
            found.append(name)
            for entry in by_name.get(name, []):
                _fill(entry, tensor, path)
    return found


def _whole(
    name: str, stored: StoredTensor, reader: ShardReader, dtype: torch.dtype
) -> torch.Tensor:
    """The whole stored tensor on the CPU, in the dtype of the file."""
    entry = TensorEntry(
        name=name,
        kind="model",
        local=torch.empty(stored.shape, dtype=reader.dtype_of(stored) or dtype),
        global_shape=stored.shape,
        offset=(0,) * len(stored.shape),
        size=stored.shape,
        is_writer=False,
    )
    reader.fill(entry, stored)
    return entry.local


def _fill(entry: TensorEntry, tensor: torch.Tensor, path: str) -> None:
    if tuple(tensor.shape) != entry.global_shape:
        raise ValueError(
            f"{path}: {entry.name} has the shape {tuple(tensor.shape)}, the model "
            f"{entry.global_shape}"
        )
    for dim, (start, length) in enumerate(zip(entry.offset, entry.size, strict=True)):
        tensor = tensor.narrow(dim, start, length)
    entry.local.detach().copy_(tensor)
