"""Files of a checkpoint that hold no tensors."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator

from torchtitan_cpp import _C
from torchtitan_cpp.checkpoint.manifest import StoredFile
from torchtitan_cpp.checkpoint.shards import num_io_threads

_PART_BYTES = 2**22


def write_file(folder: str, name: str, parts: Iterable[bytes]) -> StoredFile:
    """Create a file, readable by its owner only, durable on return.

    Its checksum is that of the parts, not of what a disk has made of them.

    Raises:
        OSError: with the path and the reason.
    """
    path = os.path.join(folder, name)
    file = _C.storage.HashedFile(path, num_threads=num_io_threads())
    for part in parts:
        file.write(part)
    return StoredFile.of(name, file.finish())


def parts_of(path: str) -> Iterator[bytes]:
    """The content of a file."""
    with open(path, "rb") as file:
        while part := file.read(_PART_BYTES):
            yield part
