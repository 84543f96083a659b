"""DCP folders without a manifest of ours: of torchtitan, or any other program."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.checkpoint.dcp.blobs import BlobReader, address
from torchtitan_cpp.checkpoint.dcp.keys import (
    PARTS,
    TRAIN_STATE_KEYS,
    Path,
    key_of,
    optimizer_state_of,
    own_moment,
    param_group_of,
    path_of,
)
from torchtitan_cpp.checkpoint.dcp.metadata import METADATA_NAME
from torchtitan_cpp.checkpoint.dcp.unpickling import (
    BytesMetadata,
    Chunk,
    Index,
    Metadata,
    Place,
    Properties,
    TensorMetadata,
    read_metadata,
)
from torchtitan_cpp.checkpoint.manifest import (
    Manifest,
    StoredBox,
    StoredFile,
    StoredTensor,
)
from torchtitan_cpp.checkpoint.shards import dtype_of
from torchtitan_cpp.checkpoint.state import Json

_MAX_METADATA_BYTES = 1 << 30


def is_foreign(path: str) -> bool:
    """Whether the folder is one of DCP that has no manifest beside it."""
    manifest = os.path.join(path, "manifest.json")
    return os.path.isfile(os.path.join(path, METADATA_NAME)) and not os.path.lexists(
        manifest
    )


def read_foreign(path: str) -> Manifest:
    """What the folder holds, under the names of a run here; no tensor is read.

    As torchtitan does, only the weights of a folder named ``step-0`` are taken. The
    files of the result have no checksums: ``check_blobs`` compares those of the blobs.

    Raises:
        ValueError: for a folder that is damaged, incomplete or refers out of itself.
        OSError: if it cannot be read.
    """
    source = os.path.join(path, METADATA_NAME)
    data = _read_bounded(source)
    try:
        table = _table_of(read_metadata(data), path)
        reader = BlobReader(path, table.files)
        content = _content_of(table, reader)
    except OSError:
        raise
    except Exception as error:  # a damaged table may hold anything
        raise ValueError(f"{source}: {error}") from error
    named = re.fullmatch(r"step-(\d+)", os.path.basename(os.path.normpath(path)))
    train_state: Any = content.scalars.get("train_state", {})
    step = int(named[1]) if named else int(train_state.get("step", 0))
    if named and train_state and train_state["step"] != step:
        raise ValueError(f"{path}: its train_state is of step {train_state['step']}")
    is_full = bool(content.scalars) and step > 0
    return Manifest(
        step=step,
        id=hashlib.sha256(data).hexdigest()[:16],
        parent="",
        sequence=0,
        content="training" if is_full else "model",
        world_size=1,
        config_hash="",
        torch_version="",
        torchtitan_cpp_version="",
        files=table.files,
        tensors={
            name: tensor
            for name, tensor in content.tensors.items()
            if is_full or tensor.kind == "model"
        },
        scalars=content.scalars if is_full else {},
        gathered={},
    )


def read_param_groups(
    path: str, names: Collection[str]
) -> dict[str, dict[str, object]]:
    """Of settings of the optimizer that the folder holds: by name, by parameter.

    Raises:
        ValueError: for a folder that ``read_foreign`` refuses, or values that are no
            plain ones.
        OSError: if it cannot be read.
    """
    data = _read_bounded(os.path.join(path, METADATA_NAME))
    table = _table_of(read_metadata(data), path)
    reader = BlobReader(path, table.files)
    found: dict[str, dict[str, object]] = {}
    try:
        for key, box in table.values.items():
            setting = param_group_of(table.paths[key])
            if setting is not None and setting[1] in names:
                value = reader.value(box.file, box.key)
                found.setdefault(setting[1], {})[setting[0]] = value
    finally:
        reader.close()
    return found


def _read_bounded(source: str) -> bytes:
    size = os.path.getsize(source)
    if size > _MAX_METADATA_BYTES:
        raise ValueError(f"{source}: {size} bytes are too many")
    with open(source, "rb") as file:
        return file.read()


@dataclass(frozen=True, kw_only=True)
class _Table:
    """A checked ``.metadata``."""

    files: tuple[StoredFile, ...]
    tensors: Mapping[str, StoredTensor]
    values: Mapping[str, StoredBox]
    paths: Mapping[str, Path]


@dataclass(frozen=True, kw_only=True)
class _Content:
    tensors: dict[str, StoredTensor]
    scalars: dict[str, Json]


def _table_of(metadata: Any, folder: str) -> _Table:
    """Check every field, place and size, and that chunks cover their tensors."""
    described = _dict(_field(metadata, Metadata, "state_dict_metadata"))
    numbers: dict[str, int] = {}
    sizes: list[int] = []
    blobs: dict[tuple[str, tuple[int, ...] | None], tuple[int, str]] = {}
    for index, place in _dict(_field(metadata, Metadata, "storage_data")).items():
        key = _text(_field(index, Index, "fqn"))
        offset = index.fields.get("offset")
        name = _text(_field(place, Place, "relative_path"))
        if place.fields.get("transform_descriptors"):
            raise ValueError(f"{key}: its bytes are transformed (compressed?)")
        if name not in numbers:
            _C.storage.check_plain_name(name, where=key)
            numbers[name] = len(numbers)
            sizes.append(os.path.getsize(os.path.join(folder, name)))
        begin, length = (
            _integer(_field(place, Place, f)) for f in ("offset", "length")
        )
        if begin + length > sizes[numbers[name]]:
            raise ValueError(
                f"{key}: expected {begin + length} bytes in {name}, found "
                f"{sizes[numbers[name]]}"
            )
        where = None if offset is None else _integers(offset)
        blobs[key, where] = (numbers[name], address(begin, length))
    tensors: dict[str, StoredTensor] = {}
    values: dict[str, StoredBox] = {}
    for key, entry in described.items():
        if isinstance(entry, BytesMetadata):
            file, blob = _blob(blobs, key, None)
            values[key] = StoredBox(file=file, key=blob, offset=(), size=())
        else:
            tensors[key] = _tensor(key, entry, blobs)
    stored_paths = metadata.fields.get("planner_data") or {}
    paths = {
        key: tuple(str(each) for each in stored_paths[key])
        if key in stored_paths
        else path_of(key)
        for key in described
    }
    for key, path in paths.items():
        if key_of(path) != key:
            raise ValueError(f"{key}: its path is {path}")
    files = tuple(
        StoredFile(name=name, size_bytes=size, sha256="")
        for name, size in zip(numbers, sizes, strict=True)
    )
    return _Table(files=files, tensors=tensors, values=values, paths=paths)


def _tensor(key: str, entry: Any, blobs: Mapping[Any, tuple[int, str]]) -> StoredTensor:
    properties = _field(entry, TensorMetadata, "properties")
    shape = _integers(_field(entry, TensorMetadata, "size"))
    if not isinstance(properties, Properties) or not isinstance(
        properties.fields, tuple
    ):
        raise ValueError(f"{key}: expected the properties of a tensor")
    dtype = properties.fields[0]
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"{key}: expected a dtype")
    boxes = []
    for chunk in _field(entry, TensorMetadata, "chunks"):
        offset = _integers(_field(chunk, Chunk, "offsets"))
        size = _integers(_field(chunk, Chunk, "sizes"))
        if 0 in size:
            continue  # a rank that holds nothing of it
        file, blob = _blob(blobs, key, offset)
        boxes.append(StoredBox(file=file, key=blob, offset=offset, size=size))
    _C.storage.check_exact_cover(key, shape, [(box.offset, box.size) for box in boxes])
    return StoredTensor(
        kind="model",
        dtype=_C.storage.dtype_name(dtype),
        shape=shape,
        boxes=tuple(boxes),
    )


def _content_of(table: _Table, reader: BlobReader) -> _Content:
    """The tensors and scalars of a run here."""
    tensors: dict[str, StoredTensor] = {}
    numbers: dict[str, dict[str, float]] = {}  # by name, by parameter
    for key, stored in table.tensors.items():
        path = table.paths[key]
        state = optimizer_state_of(path)
        if state is not None:
            fqn, name = state
            parameter = table.tensors.get(fqn)
            if stored.shape == () and (parameter is None or parameter.shape != ()):
                box = stored.boxes[0]
                number = float(reader.value(box.file, box.key))
                numbers.setdefault(name, {})[fqn] = number
            else:
                moment = replace(stored, kind="optimizer")
                tensors[own_moment(fqn, name)] = moment
        elif path[0] not in PARTS or len(path) == 1:
            tensors[key] = stored
    found: dict[str, dict[str, Any]] = {}  # by part, by name: what a run here reads
    for key, box in table.values.items():
        path = table.paths[key]
        state = optimizer_state_of(path)
        if state is not None:
            number = float(reader.value(box.file, box.key))
            numbers.setdefault(state[1], {})[state[0]] = number
        elif path in _READ_VALUES:
            found.setdefault(path[0], {})[path[1]] = reader.value(box.file, box.key)
    scalars: dict[str, Json] = {}
    train_state = found.get("train_state", {})
    if train_state.keys() == set(TRAIN_STATE_KEYS.values()):
        scalars["train_state"] = {
            ours: int(train_state[theirs]) for ours, theirs in TRAIN_STATE_KEYS.items()
        }
    if "lr_scheduler" in found:
        scalars["lr_scheduler"] = {
            "last_epoch": int(found["lr_scheduler"]["last_epoch"])
        }
    if numbers:
        scalars["optimizer_numbers"] = numbers
    if steps := numbers.get("step"):
        updates = sorted(set(steps.values()))
        if len(updates) > 1:
            raise ValueError(
                f"the optimizer has updated parameters {updates[0]:g} and "
                f"{updates[-1]:g} times; expected all alike"
            )
        scalars["optimizer_step"] = int(updates[0])
    return _Content(tensors=tensors, scalars=scalars)


_READ_VALUES = {
    *(("train_state", theirs) for theirs in TRAIN_STATE_KEYS.values()),
    ("lr_scheduler", "last_epoch"),
}
"""All others (generators, positions in the data) are never opened; settings of the
optimizer only by ``read_param_groups``."""


def check_blobs(path: str, manifest: Manifest, *, part: int, num_parts: int) -> None:
    """Compare the CRC-32 of every num_parts-th blob, its dtype and its shape.

    Raises:
        ValueError: that names file and place of the first that differs.
    """
    reader = BlobReader(path, manifest.files)
    boxes = [(t.dtype, box) for t in manifest.tensors.values() for box in t.boxes]
    try:
        for dtype, box in boxes[part::num_parts]:
            reader.verify(box.file, box.key, dtype=dtype_of(dtype), shape=box.size)
    finally:
        reader.close()


def _blob(
    blobs: Mapping[Any, tuple[int, str]], key: str, offset: tuple[int, ...] | None
) -> tuple[int, str]:
    if (key, offset) not in blobs:
        raise ValueError(f"{key}: nothing is stored at {offset}")
    return blobs[key, offset]


def _field(record: Any, kind: type[Any], name: str) -> Any:
    fields = record.fields if isinstance(record, kind) else None
    if not isinstance(fields, dict) or name not in fields:
        raise ValueError(f"expected {name} of {kind.__name__}")
    return fields[name]


def _dict(value: Any) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise ValueError(f"expected a dict, found {type(value).__name__}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a text, found {type(value).__name__}")
    return value


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
        raise ValueError(f"expected a size, found {value!r}")
    return value


def _integers(values: Any) -> tuple[int, ...]:
    if not isinstance(values, tuple):
        raise ValueError(f"expected sizes, found {values!r}")
    return tuple(_integer(value) for value in values)
