"""The tensors of a DCP folder as those of any other checkpoint."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from torchtitan_cpp.checkpoint.dcp.blobs import BlobReader
from torchtitan_cpp.checkpoint.manifest import StoredBox, StoredFile, StoredTensor
from torchtitan_cpp.checkpoint.shards import BoxReader, dtype_of


class DcpBoxReader(BoxReader):
    """Reads boxes whose keys are addresses of blobs; keeps the files it used open."""

    def __init__(self, folder: str, files: Sequence[StoredFile]) -> None:
        self._blobs = BlobReader(folder, files)

    def dtype_of(self, stored: StoredTensor) -> torch.dtype | None:
        return dtype_of(stored.dtype) if stored.boxes else None

    def read(
        self,
        box: StoredBox,
        out: torch.Tensor,
        *,
        offset: Sequence[int],
        size: Sequence[int],
        out_offset: Sequence[int],
    ) -> None:
        self._blobs.read_box(
            box.file, box.key, out, offset=offset, size=size, out_offset=out_offset
        )
