from collections.abc import Callable, Mapping, Sequence

import torch

class SafetensorsReader:
    """A safetensors file, its header checked strictly."""

    def __init__(self, path: str) -> None:
        """Raises ValueError for a bad file, OSError if it cannot be read."""
    @property
    def entries(self) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Tensors by name, in file order: (dtype, shape)."""
    @property
    def metadata(self) -> dict[str, str]:
        """Free strings of the header."""
    def read_box(
        self,
        name: str,
        out: torch.Tensor,
        *,
        offset: Sequence[int],
        size: Sequence[int],
        out_offset: Sequence[int],
    ) -> None:
        """Copy a box of a tensor into out (contiguous, CPU, same dtype), there at
        out_offset.
        """

class SafetensorsWriter:
    """Streams tensors into a new safetensors file."""

    def __init__(
        self,
        path: str,
        tensors: Sequence[tuple[str, torch.dtype, Sequence[int]]],
        *,
        metadata: Mapping[str, str],
    ) -> None:
        """tensors: (name, dtype, shape) in the order of the appends to come."""
    def append(self, name: str, data: torch.Tensor) -> None:
        """The data of the next tensor (contiguous, CPU)."""
    def finish(self) -> tuple[int, str]:
        """Make the file durable; returns its size in bytes and SHA-256."""

class FoundCheckpoint:
    """A folder named step-N."""

    @property
    def step(self) -> int: ...
    @property
    def path(self) -> str: ...
    @property
    def problem(self) -> str:
        """Why it cannot be used; empty when nothing is wrong."""
    @property
    def manifest(self) -> str | None:
        """JSON text; None when there is a problem."""

def create_staging(folder: str, *, step: int, id: str) -> str:
    """Create the folder that all ranks write a checkpoint into."""

def discard_staging(folder: str, *, step: int, id: str) -> None:
    """Delete the staging folder of a save that failed."""

def commit(
    folder: str, *, manifest: str, fault_hook: Callable[[str], None] | None = None
) -> str:
    """Publish a staging folder as step-N; returns its path, durable."""

def list_checkpoints(folder: str) -> tuple[list[FoundCheckpoint], list[str]]:
    """Checkpoints (those with a problem first, then newest first) and the names with
    'step-' in them that are none.
    """

def inspect_checkpoint(path: str) -> FoundCheckpoint:
    """The checkpoint in this folder, whatever its name."""

def verify_files(path: str, *, manifest: str, part: int, num_parts: int) -> None:
    """Compare size and SHA-256 of every num_parts-th file; ValueError names the first
    that differs.
    """

def purge(
    folder: str,
    *,
    keep_latest: int,
    head: str,
    fault_hook: Callable[[str], None] | None = None,
) -> list[int]:
    """Delete old checkpoints in the line of ancestors of head; returns their steps."""

def remove_leftovers(folder: str) -> list[str]:
    """Delete what killed processes left; returns the names."""

def dtype_name(dtype: torch.dtype) -> str:
    """Name of a torch dtype in safetensors, e.g. 'BF16'."""

def hash_file(folder: str, name: str) -> tuple[int, str]:
    """Size in bytes and SHA-256 of a file."""

def write_text(path: str, text: str) -> None:
    """Create a file with this content (UTF-8), durable on return."""

def check_plain_name(name: str, *, where: str) -> None:
    """ValueError unless name is one file name without any way out of its folder."""
