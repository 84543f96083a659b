"""Short runs that save and load, for the checkpoint tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from checkpoint_ranks import (
    Grid,
    example_tensors,
    is_box_of,
    state_of,
)

from torchtitan_cpp.checkpoint import (
    CheckpointManager,
    LoadedState,
    SingleRank,
)
from torchtitan_cpp.config.checkpoint import Checkpoint

ENABLED = Checkpoint(enable=True, interval=10, keep_latest_k=0)


ONE = Grid()


SCALARS = {"train_state": {"step": 10, "loss": 0.1 + 0.2}, "lr_scheduler": [1, -0.0]}


def manager(folder: Path, settings: Checkpoint = ENABLED, **kwargs: Any) -> Any:
    arguments = {"ranks": SingleRank(), "base_folder": str(folder)} | kwargs
    return CheckpointManager(settings, **arguments)


def save_steps(folder: Path, *steps: int, settings: Checkpoint = ENABLED) -> None:
    """One run that saves these steps; the tensors are example_tensors(step)."""
    run = manager(folder, settings)
    for step in steps:
        run.save(step, state_of(example_tensors(step), ONE, 0, scalars=SCALARS))


def load(folder: Path, settings: Checkpoint = ENABLED) -> tuple[LoadedState, int]:
    """The loaded state, and the seed of the tensors that were filled in."""
    state = state_of(example_tensors(), ONE, 0, zeros=True, scalars=SCALARS)
    loaded = manager(folder, settings).load(state)
    assert loaded is not None
    step = next(entry for entry in state.tensors if entry.name == "optimizer.step")
    seed = int(step.local.item()) - 3
    for entry in state.tensors:
        assert is_box_of(entry, example_tensors(seed)[entry.name])
    return loaded, seed


def load_plain(folder: Path) -> int:
    """Step of the newest checkpoint, all tensors compared, without scalars."""
    state = state_of(example_tensors(), ONE, 0, zeros=True)
    loaded = manager(folder).load(state)
    for entry in state.tensors:
        assert is_box_of(entry, example_tensors(loaded.step)[entry.name])
    return loaded.step  # type: ignore[no-any-return]


def steps_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "checkpoint"))


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
