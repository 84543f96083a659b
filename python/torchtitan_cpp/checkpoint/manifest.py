"""The manifest of a checkpoint as Python sees it; C++ checks it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal

from torchtitan_cpp.checkpoint.state import Json, Kind

Content = Literal["training", "model", "huggingface"]

FORMAT = "torchtitan_cpp checkpoint"
"""What a manifest of this package says that it is."""


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file of the checkpoint's folder."""

    name: str
    size_bytes: int
    sha256: str
    """Of ``block_sha256``; where that is empty, of the file."""
    block_sha256: str = ""
    """As csrc/storage/file.h has it; empty where others, or older ones of us, wrote."""

    @staticmethod
    def of(name: str, record: tuple[int, str, str]) -> StoredFile:
        """Of what ``_C.storage`` returns for a file."""
        size_bytes, sha256, block_sha256 = record
        return StoredFile(
            name=name, size_bytes=size_bytes, sha256=sha256, block_sha256=block_sha256
        )


@dataclass(frozen=True, kw_only=True)
class StoredBox:
    """A box of a tensor and where its numbers lie."""

    file: int
    """Index into ``Manifest.files``."""
    key: str
    """Name of the tensor in that file."""
    offset: tuple[int, ...]
    size: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class StoredTensor:
    """A global tensor; its boxes cover every element exactly once."""

    kind: Kind
    dtype: str
    """As safetensors names it, e.g. ``BF16``."""
    shape: tuple[int, ...]
    boxes: tuple[StoredBox, ...]


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """See csrc/storage/manifest.h for the meaning of every field."""

    step: int
    id: str
    parent: str
    sequence: int
    content: Content
    world_size: int
    config_hash: str
    torch_version: str
    torchtitan_cpp_version: str
    files: tuple[StoredFile, ...]
    tensors: dict[str, StoredTensor]
    scalars: dict[str, Json]
    gathered: dict[str, list[Json]]

    def dump(self) -> str:
        """JSON text for ``_C.storage.commit``."""
        format_fields = {"format": FORMAT, "format_version": 1}
        return json.dumps(format_fields | asdict(self), allow_nan=False)


@dataclass(frozen=True, kw_only=True)
class Parent:
    """A checkpoint that another one goes on from; as it is by default: none."""

    id: str = ""
    sequence: int = 0

    @classmethod
    def of(cls, manifest: Manifest) -> Parent:
        """The one with this manifest."""
        return cls(id=manifest.id, sequence=manifest.sequence)


def parse_manifest(text: str) -> Manifest:
    """A manifest from text that C++ has checked."""
    fields: dict[str, Any] = json.loads(text)
    del fields["format"], fields["format_version"]
    fields["files"] = tuple(StoredFile(**file) for file in fields["files"])
    fields["tensors"] = {
        name: StoredTensor(
            kind=tensor["kind"],
            dtype=tensor["dtype"],
            shape=tuple(tensor["shape"]),
            boxes=tuple(
                StoredBox(
                    file=box["file"],
                    key=box["key"],
                    offset=tuple(box["offset"]),
                    size=tuple(box["size"]),
                )
                for box in tensor["boxes"]
            ),
        )
        for name, tensor in fields["tensors"].items()
    }
    return Manifest(**fields)
