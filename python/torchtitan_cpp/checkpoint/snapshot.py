"""A copy of a rank's state, so that training may change it while it is written."""

from __future__ import annotations

import copy
import mmap
import threading
import weakref
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.checkpoint.shards import num_io_threads
from torchtitan_cpp.checkpoint.state import TensorEntry, TrainingState

_ALIGNMENT = 64

_PREPARED_AT_ONCE = 64 << 20
"""Bytes whose pages are touched by one call: too few for torch's threads."""


class Snapshot:
    """Host memory that holds one copy at a time and is filled again by the next.

    Args:
        pinned: lock the pages, so that a CUDA device copies faster into them. Without
            CUDA the memory is plain.
    """

    def __init__(self, *, pinned: bool) -> None:
        self._pinned = pinned and torch.cuda.is_available()
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._making: threading.Thread | None = None

    @property
    def num_bytes(self) -> int:
        """Host memory that is held."""
        return self._memory.numel()

    def prepare(self, state: TrainingState) -> None:
        """Let a thread make the memory that ``take`` needs for ``state``.

        Pages that are new cost several times what it costs to copy into them.
        """
        self.release()
        total = _places(_copied(state))[1]
        if total == 0:
            return

        # A thread begins with device 0, where locking pages would take memory.
        device = torch.cuda.current_device() if self._pinned else None

        def make() -> None:
            with suppress(MemoryError, OSError, RuntimeError):  # take tries it again
                if device is not None:
                    torch.cuda.set_device(device)
                memory = _allocate(total, pinned=self._pinned)
                for begin in range(0, total, _PREPARED_AT_ONCE):
                    memory[begin : begin + _PREPARED_AT_ONCE : mmap.PAGESIZE] = 0
                self._memory = memory

        self._making = threading.Thread(target=make, name="memory of checkpoints")
        self._making.start()

    def take(self, state: TrainingState) -> TrainingState:
        """A state of the same content that no later change of ``state`` reaches.

        It shares memory with this object: a copy taken before is overwritten. Of the
        tensors, what this rank writes or compares is copied (``is_writer``,
        ``is_buffer``); the other entries stay those of ``state``. Returns when the
        copies are complete.
        """
        self._wait_until_made()
        copied = _copied(state)
        places, total = _places(copied)
        if total > self.num_bytes:
            self.release()
            self._memory = _allocate(total, pinned=self._pinned)
        targets = {
            id(entry): self._memory[begin : begin + entry.local.nbytes]
            .view(entry.local.dtype)
            .view(entry.size)
            for entry, begin in zip(copied, places, strict=True)
        }
        on_host: list[tuple[torch.Tensor, torch.Tensor]] = []
        with torch.no_grad():
            for entry in copied:
                target, numbers = targets[id(entry)], entry.numbers().detach()
                if numbers.is_cpu and _same_layout(target, numbers):
                    on_host.append((target, numbers))
                else:
                    target.copy_(numbers, non_blocking=self._pinned)
        _C.storage.stream_copy(on_host, num_threads=num_io_threads())
        if any(entry.local.is_cuda for entry in copied):
            torch.cuda.current_stream().synchronize()
        return replace(
            state,
            tensors=[
                replace(entry, local=targets[id(entry)])
                if id(entry) in targets
                else entry
                for entry in state.tensors
            ],
            scalars=copy.deepcopy(dict(state.scalars)),
            gathered=copy.deepcopy(dict(state.gathered)),
            torch_settings=copy.deepcopy(state.torch_settings),
        )

    def release(self) -> None:
        """Give the memory back, once nobody uses the last copy any more."""
        self._wait_until_made()
        self._memory = torch.empty(0, dtype=torch.uint8)

    def _wait_until_made(self) -> None:
        if self._making is not None:
            self._making.join()
            self._making = None


def _copied(state: TrainingState) -> list[TensorEntry]:
    """What this rank writes or compares."""
    return [e for e in state.tensors if (e.is_writer or e.is_buffer) and e.numel]


def _same_layout(target: torch.Tensor, source: torch.Tensor) -> bool:
    """Whether the bytes of one are those of the other."""
    return source.is_contiguous() and source.dtype == target.dtype


def _places(entries: Sequence[TensorEntry]) -> tuple[list[int], int]:
    """First byte of every entry, and the bytes of all."""
    places, end = [], 0
    for entry in entries:
        places.append(end)
        end += -(-entry.local.nbytes // _ALIGNMENT) * _ALIGNMENT
    return places, end


def _allocate(num_bytes: int, *, pinned: bool) -> torch.Tensor:
    """Memory of its own, which nothing rounds up and ``release`` gives to the system.

    The size of its pages is the system's choice: asking for large ones took four times
    as long on a virtual machine whose free large pages are its host's.
    """
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory = torch.frombuffer(pages, dtype=torch.uint8)
    if pinned:
        _pin(memory)
    return memory


def _pin(memory: torch.Tensor) -> None:
    """Lock the pages for as long as the tensor lives.

    Not by ``torch.empty(pin_memory=True)``, which rounds up to a power of two.
    """
    runtime: Any = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    address = memory.data_ptr()
    code = int(runtime.cudaHostRegister(address, memory.numel(), 1))
    if code != 0:
        raise RuntimeError(
            f"cannot lock {memory.numel()} bytes of host memory for async checkpoints "
            f"(CUDA error {code}); set checkpoint.async_mode = 'async'"
        )
    weakref.finalize(memory, runtime.cudaHostUnregister, address)
