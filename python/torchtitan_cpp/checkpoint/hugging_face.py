"""Model folders of Hugging Face: ``model.safetensors`` alone, or many with an index."""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.checkpoint.state_dict_adapter import INDEX_NAME
from torchtitan_cpp.logging import logger

SINGLE_NAME = "model.safetensors"
MAX_FILE_BYTES = 5 * 10**9
"""Size at which transformers, too, starts the next file."""


class HuggingFaceFolder:
    """Reads the tensors of a model folder one by one.

    Raises:
        FileNotFoundError: if it holds neither an index nor ``model.safetensors``.
        ValueError: for a bad file, an index whose file names lead out of the folder, or
            one that does not fit its files.
    """

    def __init__(self, path: str) -> None:
        self.path = path
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
            raise FileNotFoundError(
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
            raise ValueError(f"{index}: {name} is not in {self._file_of[name]}")

    def __iter__(self) -> Iterator[str]:
        """Names, those of one layer one after the other."""
        return iter(self._file_of)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._entries[name][1]

    def read(self, name: str) -> torch.Tensor:
        """The whole tensor, in its stored dtype, on the CPU."""
        dtype, shape = self._entries[name]
        out = torch.empty(shape, dtype=dtype)
        zeros = [0] * len(shape)
        self._open(self._file_of[name]).read_box(
            name, out, offset=zeros, size=shape, out_offset=zeros
        )
        return out

    def _open(self, file: str) -> _C.storage.SafetensorsReader:
        if file not in self._readers:
            path = os.path.join(self.path, file)
            self._readers[file] = _C.storage.SafetensorsReader(path)
        return self._readers[file]


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


class HuggingFaceWriter:
    """Writes tensors, as they come, into the files of a model folder.

    Files are split at ``max_file_bytes``, or as ``file_of`` says (name to number from
    1). A file is written when it is complete, so about one file is held in memory.
    """

    def __init__(
        self,
        folder: str,
        *,
        file_of: Mapping[str, int] | None = None,
        max_file_bytes: int = MAX_FILE_BYTES,
    ) -> None:
        self._folder = folder
        self._file_of = file_of
        self._expected = Counter((file_of or {}).values())  # tensors by file number
        self._max_file_bytes = max_file_bytes
        self._seen: set[str] = set()
        self._waiting: dict[int, dict[str, torch.Tensor]] = {}
        self._names: dict[int, list[str]] = {}  # of written files
        self._total_bytes = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Take a tensor; raises ValueError for a name given twice or not foreseen."""
        if name in self._seen:
            raise ValueError(f"{name}: written twice")
        self._seen.add(name)
        self._total_bytes += tensor.nbytes
        if self._file_of is None:
            number = len(self._names) + 1
            held = self._waiting.setdefault(number, {})
            if held and _nbytes(held) + tensor.nbytes > self._max_file_bytes:
                self._write(number)
                held = self._waiting.setdefault(number + 1, {})
            held[name] = tensor
            return
        if name not in self._file_of:
            raise ValueError(f"{name}: not in the index of the original model folder")
        number = self._file_of[name]
        held = self._waiting.setdefault(number, {})
        held[name] = tensor
        if len(held) == self._expected[number]:
            self._write(number)

    def finish(self) -> list[str]:
        """Write what is left and the index; returns the names of all files."""
        for number in sorted(self._waiting):
            self._write(number)
        numbers = sorted(self._names)
        if not numbers:
            raise ValueError("a model folder needs at least one tensor")
        if numbers == [1]:
            os.rename(self._path(_part_name(1)), self._path(SINGLE_NAME))
            return [SINGLE_NAME]
        count = max(numbers)
        weight_map: dict[str, str] = {}
        for number in numbers:
            final = f"model-{number:05d}-of-{count:05d}.safetensors"
            os.rename(self._path(_part_name(number)), self._path(final))
            weight_map.update(dict.fromkeys(self._names[number], final))
        index = {
            "metadata": {"total_size": self._total_bytes},
            "weight_map": dict(sorted(weight_map.items())),
        }
        _C.storage.write_text(
            self._path(INDEX_NAME), json.dumps(index, indent=2) + "\n"
        )
        return [*dict.fromkeys(weight_map.values()), INDEX_NAME]

    def _write(self, number: int) -> None:
        tensors = self._waiting.pop(number)
        ordered = sorted(tensors.items(), key=lambda item: -item[1].dtype.itemsize)
        writer = _C.storage.SafetensorsWriter(
            self._path(_part_name(number)),
            [(name, tensor.dtype, tuple(tensor.shape)) for name, tensor in ordered],
            metadata={"format": "pt"},
        )
        for name, tensor in ordered:
            writer.append(name, tensor.contiguous())
        writer.finish()
        self._names[number] = list(tensors)

    def _path(self, name: str) -> str:
        return os.path.join(self._folder, name)


def _part_name(number: int) -> str:
    """Of a file while the number of files is not known yet."""
    return f"part-{number:05d}.safetensors"


def _nbytes(tensors: Mapping[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


def _read_weight_map(path: str) -> dict[str, str]:
    with open(path, encoding="utf-8") as file:
        try:
            index = json.load(file)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f'{path}: expected an object "weight_map" of names to files')
    for name, file_name in weight_map.items():
        if not isinstance(file_name, str):
            raise ValueError(f"{path}: expected a file name for {name}")
        _C.storage.check_plain_name(file_name, where=f"{path}: {name}")
        if not file_name.endswith(".safetensors"):
            raise ValueError(
                f"{path}: expected a .safetensors file for {name}, found {file_name!r}"
            )
    return dict(weight_map)
