"""Model folders of Hugging Face: ``model.safetensors`` alone, or many with an index."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.checkpoint.quantized import (
    FLOAT8,
    SCALE_SUFFIX,
    dequantize,
    pair_scales,
    read_block_size,
    touched_blocks,
)
from torchtitan_cpp.checkpoint.shards import kept_open, num_io_threads
from torchtitan_cpp.checkpoint.state_dict_adapter import INDEX_NAME
from torchtitan_cpp.errors import MissingPathError, UnusablePathError
from torchtitan_cpp.logging import logger

SINGLE_NAME = "model.safetensors"


class HuggingFaceFolder:
    """Reads boxes of the tensors of a model folder.

    Args:
        quantized: whether it holds float8 weights with scales, which are then seen as
            float32; None: either will do.
        hashes: what files are compared with while they are read, by name
            (``StoredFile.block_sha256``).
    Raises:
        FileNotFoundError: if it holds neither an index nor ``model.safetensors``.
        ValueError: for a bad file, an index whose file names lead out of the folder or
            that does not fit its files, scales that do not fit their weights, or a
            folder that is not quantized or quantized against ``quantized``.
    """

    def __init__(
        self,
        path: str,
        *,
        quantized: bool | None = None,
        hashes: Mapping[str, str] | None = None,
    ) -> None:
        self.path = path
        self._hashes = hashes or {}
        self._readers: dict[str, _C.storage.SafetensorsReader] = {}
        self._entries: dict[str, tuple[torch.dtype, tuple[int, ...]]] = {}
        index = os.path.join(path, INDEX_NAME)
        if os.path.isfile(index):
            self._file_of = _read_weight_map(index)
        elif os.path.isfile(os.path.join(path, SINGLE_NAME)):
            self._file_of = dict.fromkeys(
                self._open(SINGLE_NAME).entries.keys(), SINGLE_NAME
            )
        else:
            raise MissingPathError(
                f"{path}: holds neither {INDEX_NAME} nor {SINGLE_NAME}"
            )
        for file in dict.fromkeys(self._file_of.values()):
            entries = self._open(file).entries
            self._entries.update(
                {n: e for n, e in entries.items() if self._file_of.get(n) == file}
            )
            if extra := [n for n in entries if self._file_of.get(n) != file]:
                logger.warning(
                    f"{path}: {file} holds {extra[0]}, which its index does not"
                )
        if missing := [name for name in self._file_of if name not in self._entries]:
            name = missing[0]
            raise UnusablePathError(f"{index}: {name} is not in {self._file_of[name]}")
        self._pair_scales(quantized)

    def __iter__(self) -> Iterator[str]:
        """Names, those of one layer one after the other; without scales."""
        return (name for name in self._file_of if name not in self._hidden)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._entries[name][1]

    def dtype(self, name: str) -> torch.dtype:
        """Dtype of the numbers that are read."""
        return torch.float32 if name in self._scales_of else self._entries[name][0]

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor, on the CPU."""
        shape = self.shape(name)
        return self.read_box(name, offset=[0] * len(shape), size=shape)

    def read_box(
        self, name: str, *, offset: Sequence[int], size: Sequence[int]
    ) -> torch.Tensor:
        """A box of a tensor, on the CPU; nothing else of its data is read.

        Raises:
            ValueError: for a box outside of the tensor, scales that are no scales, or
                bytes that are not those of ``hashes``.
        """
        if name not in self._scales_of or 0 in size:
            empty = torch.empty(tuple(size), dtype=self.dtype(name))
            return empty if 0 in size else self._stored(name, offset, size)
        scales = self._scales_of[name]
        stored = self._stored(name, offset, size)
        factors = self._stored(scales, *touched_blocks(offset, size, self._block))
        try:
            return dequantize(stored, factors, offset=offset, block=self._block)
        except ValueError as error:
            raise UnusablePathError(f"{self.path}: {scales}: {error}") from None

    def _stored(
        self, name: str, offset: Sequence[int], size: Sequence[int]
    ) -> torch.Tensor:
        out = torch.empty(tuple(size), dtype=self._entries[name][0])
        reader = self._open(self._file_of[name])
        try:
            reader.read_box(
                name, out, offset=offset, size=size, out_offset=[0] * len(size)
            )
        except ValueError as error:  # its bytes are not what was written
            raise UnusablePathError(str(error)) from None
        return out

    def _pair_scales(self, quantized: bool | None) -> None:
        is_marked = any(
            name.endswith(SCALE_SUFFIX) or dtype == FLOAT8
            for name, (dtype, _) in self._entries.items()
        )
        self._block = read_block_size(self.path) if is_marked else (1, 1)
        self._scales_of = pair_scales(self.path, self._entries, self._block)
        self._hidden = frozenset(self._scales_of.values())
        if quantized is False and self._scales_of:
            raise UnusablePathError(
                f"{self.path}: {next(iter(self._scales_of))} is quantized to float8; "
                "set checkpoint.initial_load_in_hf_quantized"
            )
        if quantized and not self._scales_of:
            raise UnusablePathError(
                f"{self.path}: holds no float8 weights with scales; leave out "
                "checkpoint.initial_load_in_hf_quantized"
            )

    def _open(self, file: str) -> _C.storage.SafetensorsReader:
        path = os.path.join(self.path, file)

        def make() -> _C.storage.SafetensorsReader:
            return _C.storage.SafetensorsReader(
                path,
                blocks=self._hashes.get(file, ""),
                num_threads=num_io_threads(),
            )

        try:
            return kept_open(self._readers, file, make)
        except FileNotFoundError:
            raise MissingPathError(f"{path} does not exist") from None
        except ValueError as error:
            raise UnusablePathError(str(error)) from None


def by_layer(names: Iterable[str]) -> list[list[str]]:
    """Names that hold the same first number together; others each alone.

    ``layers.3.a``, ``layers.3.b`` are one list; ``norm.weight`` is another.
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        match = re.search(r"^(.*?)\.(\d+)\.", name)
        key = f"{match.group(1)}.{match.group(2)}." if match else name
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def _read_weight_map(path: str) -> dict[str, str]:
    with open(path, encoding="utf-8") as file:
        try:
            index = json.load(file)
        except ValueError as error:
            raise UnusablePathError(f"{path}: {error}") from None
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise UnusablePathError(
            f'{path}: expected an object "weight_map" of names to files'
        )
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str):
            raise UnusablePathError(f"{path}: expected a file name for {name}")
        _C.storage.check_plain_name(file_name, where=f"{path}: {name}")
        if not file_name.endswith(".safetensors"):
            raise UnusablePathError(
                f"{path}: expected a .safetensors file for {name}, found {file_name!r}"
            )
    return dict(weight_map)
