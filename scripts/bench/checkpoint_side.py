"""One rank of checkpoint.py: saves and loads with both sides, in turns.

checkpoint_side.py FOLDER MEBIBYTES RUNS OUT   # environment as torchrun's
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as torch_checkpoint
from torch._C._distributed_c10d import HashStore

from torchtitan_cpp.checkpoint import CheckpointManager, TensorEntry, TrainingState
from torchtitan_cpp.config.checkpoint import Checkpoint
from torchtitan_cpp.group_ranks import BackgroundRanks
from torchtitan_cpp.parallel import Distributed, init_distributed

dcp: Any = torch_checkpoint  # whose names mypy does not take for exported

ROWS = (4096, 1024, 512, 1024, 64)
WIDTH = 1024
"""The state repeats float32 tensors of these shapes."""

Seconds = dict[str, list[float]]


class Side:
    """What all measurements share: the state of this rank and where it goes."""

    def __init__(self, folder: Path, num_bytes: int, distributed: Distributed) -> None:
        self.folder = folder
        self.rank = distributed.rank
        self.state: dict[str, torch.Tensor] = {}
        left = num_bytes // 4 // WIDTH
        while left > 0:
            rows = min(ROWS[len(self.state) % len(ROWS)], left)
            name = f"rank{self.rank}.{len(self.state)}"
            self.state[name] = torch.randn(rows, WIDTH)
            left -= rows
        self.num_bytes = sum(tensor.nbytes for tensor in self.state.values())
        self.ranks = BackgroundRanks(distributed)
        self.background = BackgroundRanks(distributed)

    def together(self) -> None:
        """All ranks are here, and what was written before is on the device.

        The free memory has been used just now: a virtual machine whose free pages went
        back to its host needs several times as long to write into them.
        """
        self.ranks.all_gather_bytes(b"")
        os.sync()
        with tempfile.TemporaryFile(dir="/dev/shm") as file:
            for _ in range(2 * self.num_bytes >> 20):
                file.write(bytes(1 << 20))
        self.ranks.all_gather_bytes(b"")

    def timed(self, action: Callable[[], Any]) -> float:
        """Seconds until all ranks have done it."""
        self.together()
        begin = time.perf_counter()
        action()
        self.ranks.all_gather_bytes(b"")
        return time.perf_counter() - begin

    def manager(self, kind: str, async_mode: str = "disabled") -> CheckpointManager:
        settings: Any = {"format": kind, "async_mode": async_mode, "keep_latest_k": 0}
        return CheckpointManager(
            Checkpoint(enable=True, **settings),
            base_folder=str(self.folder),
            ranks=self.ranks,
            background_ranks=self.background,
        )

    def training_state(self) -> TrainingState:
        return TrainingState(
            tensors=[
                TensorEntry(
                    name=name,
                    kind="model",
                    local=tensor,
                    global_shape=tuple(tensor.shape),
                    offset=(0, 0),
                    size=tuple(tensor.shape),
                    is_writer=True,
                )
                for name, tensor in self.state.items()
            ]
        )

    def clear(self) -> None:
        """Remove all checkpoints."""
        self.together()
        if self.rank == 0:
            for name in ("checkpoint", "torch"):
                shutil.rmtree(self.folder / name, ignore_errors=True)
        self.together()

    def torch_path(self) -> str:
        return str(self.folder / "torch")


def drop_from_cache(folder: Path) -> None:
    """What is loaded next comes from the device, as on another machine."""
    for path in folder.glob("*/**/*"):
        if path.is_file():
            with path.open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def save_and_load(side: Side, runs: int) -> tuple[Seconds, Seconds]:
    """Seconds of every run, by side."""
    saves: Seconds = {"native": [], "dcp": [], "torch": []}
    loads: Seconds = {"native": [], "dcp": [], "torch": []}
    order = list(saves)
    for _ in range(runs):
        for kind in order:
            if kind == "torch":
                writer = dcp.FileSystemWriter(side.torch_path(), sync_files=True)
                save = partial(dcp.save, side.state, storage_writer=writer)
                reader = dcp.FileSystemReader(side.torch_path())
                load = partial(dcp.load, side.state, storage_reader=reader)
            else:
                state = side.training_state()
                save = partial(side.manager(kind).save, 1, state)
                load = partial(side.manager(kind).load, state)
            saves[kind].append(side.timed(save))
            drop_from_cache(side.folder)
            loads[kind].append(side.timed(load))
            side.clear()
        order = order[1:] + order[:1]
    return saves, loads


def copy_seconds(side: Side, runs: int) -> list[float]:
    """Seconds of plain copies, the first into new memory."""
    targets = {name: torch.empty_like(tensor) for name, tensor in side.state.items()}

    def copy() -> None:
        for name, tensor in side.state.items():
            targets[name].copy_(tensor)

    return [side.timed(copy) for _ in range(runs + 1)]


def blocked_seconds(side: Side, runs: int) -> Seconds:
    """How long the callers of async saves wait, without the save before."""
    run, state = side.manager("native", "async"), side.training_state()
    run.prepare(lambda: state, range(1, 1000))  # as the trainer does
    ours, theirs = [], []
    for step in range(1, runs + 2):
        ours.append(side.timed(partial(run.save, step, state)))
        run.finish()
    side.clear()
    for _ in range(runs + 1):
        writer = dcp.FileSystemWriter(side.torch_path(), sync_files=True)
        futures: list[Any] = []

        def save(writer: Any = writer, futures: list[Any] = futures) -> None:
            futures.append(dcp.async_save(side.state, storage_writer=writer))

        theirs.append(side.timed(save))
        futures[0].result()
        side.clear()
    return {"ours": ours, "torch": theirs, "copy": copy_seconds(side, runs)}


def private_bytes() -> int:
    """Of this process, without files and memory file systems."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) << 10
    raise RuntimeError("/proc/self/status has no RssAnon")


def extra_memory(action: Callable[[], Any]) -> int:
    """The most private memory while ``action`` runs beyond what there was before."""
    before, ended = private_bytes(), threading.Event()
    peak = before

    def look() -> None:
        nonlocal peak
        while not ended.wait(0.002):
            peak = max(peak, private_bytes())

    thread = threading.Thread(target=look)
    thread.start()
    action()
    ended.set()
    thread.join()
    return peak - before


def memory_shares(side: Side) -> dict[str, float]:
    """Extra memory of saves as a share of this rank's state."""
    shares = {}
    for kind in ("native", "dcp"):
        for mode in ("disabled", "async"):
            run, state = side.manager(kind, mode), side.training_state()
            side.together()

            def save(run: Any = run, state: Any = state) -> None:
                run.save(1, state)
                run.finish()

            name = f"{kind}_{'sync' if mode == 'disabled' else mode}"
            shares[name] = round(extra_memory(save) / side.num_bytes, 3)
            del run, save
            side.clear()
    return shares


def first_and_later(seconds: Seconds) -> dict[str, dict[str, float]]:
    return {
        "first": {name: round(each[0], 4) for name, each in seconds.items()},
        "later": {
            name: round(statistics.median(each[1:]), 4)
            for name, each in seconds.items()
        },
    }


def main() -> None:
    folder, mebibytes, runs, out = sys.argv[1:]
    warnings.filterwarnings("ignore")
    distributed = init_distributed(
        device_type="cpu", init_timeout_seconds=300, train_timeout_seconds=300
    )
    if not dist.is_initialized():  # async_save needs a process group
        dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    num_bytes = (int(mebibytes) << 20) // distributed.world_size
    side = Side(Path(folder), num_bytes, distributed)
    saves, loads = save_and_load(side, int(runs))
    results = {
        "save": {name: statistics.median(each) for name, each in saves.items()},
        "load": {name: statistics.median(each) for name, each in loads.items()},
        "blocked": first_and_later(blocked_seconds(side, int(runs))),
        "extra_memory": memory_shares(side),
    }
    if side.rank == 0:
        Path(out).write_text(json.dumps(results))
    side.together()
    distributed.close()


if __name__ == "__main__":
    main()
