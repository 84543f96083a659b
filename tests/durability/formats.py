"""Faults in saves of every format, as a rank of a run makes them.

    python formats.py --module FOLDER/_C.so [--formats dcp] [--every 1] [--seed 1]

The module is the extension with fault points (csrc/storage/fault.h), which only tests
have. Two ranks that are threads have saved two checkpoints and save a third one, as
native shards, in the format of torch.distributed.checkpoint or as a folder for Hugging
Face. Their process is killed or stopped, or has an operation fail or a bit flip, at
every n-th time that the save reaches a point. What must hold afterwards:

* What is loaded is, bit for bit, the new checkpoint or the one before it; never a part.
* A save that has returned is there, unless a bit was flipped; then it is right or told
  to be damaged.
* A save that has failed says where, and the checkpoint before it is the newest.
* The next save succeeds and leaves nothing behind.

One line of JSON says how often what happened; the exit status is 0 only if all held.
"""

from __future__ import annotations

import argparse
import gc
import importlib.util
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
ASSETS = ROOT / "python/torchtitan_cpp/assets/tokenizer"
FORMATS = ("native", "dcp", "huggingface")
POINTS = ("create", "open", "read", "write", "sync", "mkdir", "rename", "remove")
NAMED = (
    "before manifest",
    "manifest written",
    "before rename",
    "renamed",
    "durable",
    "purge renamed",
    "purge deleted",
)
ERRORS = {
    "create": ("ENOSPC", "EROFS"),
    "write": ("ENOSPC", "EDQUOT"),
    "sync": ("EIO",),
    "mkdir": ("ENOSPC",),
    "rename": ("EIO",),
}
ALWAYS = ("create", "write", "sync", "rename", "before rename", "durable")
OLD, NEW, NEXT = 2, 3, 4  # steps
SECONDS = 120  # until a process is taken to hang


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--module", required=True)
    parser.add_argument("--formats", nargs="+", default=FORMATS, choices=FORMATS)
    parser.add_argument("--every", type=int, default=1, help="of the times")
    parser.add_argument("--seed", type=int, default=1, help="of which ones")
    args = parser.parse_args()
    torch.set_num_threads(1)
    load_module(args.module)
    gc.freeze()  # a process that is forked copies no pages for it
    in_memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    counts: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(dir=in_memory) as folder:
        for name in args.formats:
            trials = Trials(name, Path(folder) / name)
            trials.run(random.Random(args.seed), args.every)
            counts.update(trials.counts)
    print(json.dumps(dict(sorted(counts.items()))))
    return 0


def load_module(path: str) -> None:
    """Have the package take this extension module for its own."""
    spec = importlib.util.spec_from_file_location("torchtitan_cpp._C", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.modules["torchtitan_cpp._C"] = module
    for folder in ("python", "tests/python/unit"):
        sys.path.insert(0, str(ROOT / folder))
    from torchtitan_cpp.logging import logger

    logger.setLevel("ERROR")  # what is told of every fault is checked, not read


@dataclass(frozen=True, kw_only=True)
class Ended:
    """What became of a process."""

    answer: str
    """Empty: it has not come so far."""
    killed: bool
    stopped: bool


class Trials:
    """Of one format."""

    def __init__(self, name: str, folder: Path) -> None:
        from torch_peer import Peer

        self.name = name
        self.base, self.work = folder / "base", folder / "work"
        self.peers = {step: Peer(seed=1).train(step) for step in (1, OLD, NEW, NEXT)}
        self.counts: Counter[str] = Counter()

    def run(self, rng: random.Random, every: int) -> None:
        ended = start(lambda: self.save_base())
        assert ended.answer == "saved", ended
        for point in (*POINTS, *NAMED):
            last = self.kill(point, 1 + rng.randrange(every), every)
            assert last or point not in ALWAYS, f"{self.name}: {point} is never reached"
            kinds = list(ERRORS.get(point, ()))
            kinds += ["flip"] if point == "write" else []
            for kind in kinds if last else ():
                first = 1 + rng.randrange(min(every, last))
                for number in range(first, last + 1, every):
                    self.trial(point, kind, number)
            if point in ALWAYS:
                self.trial(point, "stall", 1 + rng.randrange(last))

    def kill(self, point: str, first: int, every: int) -> int:
        """Kill at the first time, or an earlier one if there are not so many.

        And at every further one; the last that there was, 0 if there is none.
        """
        while not self.trial(point, "kill", first):
            if first == 1:
                return 0
            first = (first + 1) // 2
        last = first
        while self.trial(point, "kill", last + every):
            last += every
        return last

    def trial(self, point: str, kind: str, number: int) -> bool:
        """One fault, and what must hold after it; whether it was a kill.

        A point that is not reached so often has no fault, and the same must hold.
        """
        what = f"{self.name}: {kind} at {point} {number}"
        ended = self.save(f"{point}:{kind}:{number}", while_stopped=self.loaded)
        assert not ended.killed or kind == "kill", f"{what}: {ended}"
        found = self.loaded(and_go_on=True)
        if kind == "flip":
            assert found["step"] == NEW or found["damage"] or ended.answer != "saved", (
                f"{what}: {ended}, {found}"
            )
        elif ended.answer == "saved":
            assert found["step"] == NEW, f"{what}: lost {found}"
        elif not ended.killed:
            assert str(self.work) in ended.answer, f"{what}: {ended}"
            if kind in ("ENOSPC", "EDQUOT"):
                assert "bytes free" in ended.answer, f"{what}: {ended}"
            assert found["step"] == OLD, f"{what}: {ended}, {found}"
        happened = {
            "kill": ended.killed,
            "stall": ended.stopped,
            "flip": found["damage"] or ended.answer != "saved",
        }
        if happened.get(kind, ended.answer != "saved"):
            self.counts[f"{self.name}: {kind}"] += 1
            self.counts[f"{self.name}: then step {found['step']}"] += 1
        return ended.killed

    # --- in processes of their own: the fault is read where it is first needed -------

    def save(
        self, fault: str, while_stopped: Callable[[], object] = lambda: None
    ) -> Ended:
        """Save the new checkpoint beside the old ones, with a fault."""
        shutil.rmtree(self.work, ignore_errors=True)
        shutil.copytree(self.base, self.work)

        def act() -> None:
            os.environ["TORCHTITAN_FAULT"] = fault
            self.save_step(self.work, NEW)

        return start(act, while_stopped)

    def loaded(self, *, and_go_on: bool = False) -> dict[str, Any]:
        """What a run that starts now goes on from, and whether it saves after that."""

        def act() -> str:
            found = json.dumps(self.load())
            if and_go_on:
                self.save_next()
            return found

        ended = start(act)
        try:
            found: dict[str, Any] = json.loads(ended.answer)
        except ValueError:
            raise AssertionError(f"{self.name}: does not go on: {ended}") from None
        return found

    def save_base(self) -> None:
        for step in (1, OLD):
            self.save_step(self.base, step)

    def save_next(self) -> None:
        self.save_step(self.work, NEXT)
        names = set(os.listdir(self.work / "checkpoint"))
        allowed = {f"step-{step}" for step in (OLD, NEW, NEXT)}
        assert names <= allowed, f"left behind: {sorted(names - allowed)}"

    def save_step(self, folder: Path, step: int) -> None:
        from checkpoint_ranks import Grid, results, run_ranks

        grid = Grid(rows=2)

        def save(ranks: Any) -> None:
            run = self.manager(folder, ranks)
            run.load(self.peers[1].own_state(grid, ranks.rank, zeros=True))
            state = self.peers[step].own_state(grid, ranks.rank)
            last = self.name == "huggingface" and step == NEW
            run.save(step, state, last_step=last)

        results(run_ranks(grid.world_size, save))

    def load(self) -> dict[str, Any]:
        """Step of what was loaded, and whether the new one is there but damaged."""
        from checkpoint_ranks import Grid

        from torchtitan_cpp.checkpoint import CheckpointError, SingleRank
        from torchtitan_cpp.errors import UnusablePathError

        def fill(run: Any, step: int | None = None) -> int:
            state = self.peers[OLD].own_state(Grid(), 0, zeros=True)
            loaded = run.load(state)
            step = loaded.step if step is None else step
            expected = self.peers[step].tensors()
            for entry in state.tensors:
                if entry.kind == "model" or loaded.step:
                    assert torch.equal(entry.local, expected[entry.name]), entry.name
            return int(step)

        run = self.manager(self.work, SingleRank())
        new = self.work / "checkpoint" / f"step-{NEW}"
        if self.name == "huggingface" and new.exists():
            assert fill(run) == OLD  # weights alone are not gone on from
            settings = replace(
                self.settings(),
                folder="new",
                initial_load_path=str(new),
                initial_load_in_hf=True,
            )
            try:
                step = fill(self.manager(self.work, SingleRank(), settings), NEW)
            except (CheckpointError, UnusablePathError):  # the hash, or the header
                return {"step": OLD, "damage": True}
            return {"step": step, "damage": False}
        step = fill(run)
        return {"step": step, "damage": step == OLD and new.exists()}

    def settings(self) -> Any:
        from torchtitan_cpp.config.checkpoint import Checkpoint

        return Checkpoint(
            enable=True,
            format="dcp" if self.name == "dcp" else "native",
            keep_latest_k=2,
            last_save_in_hf=self.name == "huggingface",
        )

    def manager(self, folder: Path, ranks: Any, settings: Any = None) -> Any:
        from torchtitan_cpp.checkpoint import CheckpointManager, StateDictAdapter

        class Adapter(StateDictAdapter):
            """Names begin with ``hf.``."""

            def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
                return {f"hf.{name}": tensor for name, tensor in state_dict.items()}

            def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
                return {n.removeprefix("hf."): t for n, t in hf_state_dict.items()}

        return CheckpointManager(
            settings or self.settings(),
            base_folder=str(folder),
            ranks=ranks,
            adapter=Adapter(None, str(ASSETS)),
        )


def start(
    act: Callable[[], str | None], while_stopped: Callable[[], object] = lambda: None
) -> Ended:
    """Run in a process; its answer: what was returned, "saved", or the error.

    Args:
        while_stopped: called if it stops; it goes on afterwards.
    """
    reading, writing = os.pipe()
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            signal.alarm(SECONDS)  # ends it, and so the trial
            try:
                answer = act() or "saved"
            except Exception as error:
                answer = f"{type(error).__name__}: {error}"
            os.write(writing, answer.encode())
        finally:
            os._exit(0)
    os.close(writing)
    status = wait(pid, os.WUNTRACED)
    stopped = os.WIFSTOPPED(status)
    if stopped:
        while_stopped()
        os.kill(pid, signal.SIGCONT)
        status = wait(pid, 0)
    with os.fdopen(reading, "rb") as file:
        answer = file.read().decode()
    killed = os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGKILL
    assert killed or os.WIFEXITED(status), f"ended by {status}, said {answer!r}"
    return Ended(answer=answer, killed=killed, stopped=stopped)


def wait(pid: int, options: int) -> int:
    """The status of a process of ours; the alarm in it bounds the wait."""
    deadline = time.monotonic() + 2 * SECONDS
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, options | os.WNOHANG)
        if found:
            return status
        time.sleep(0.001)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("a process hangs")


if __name__ == "__main__":
    sys.exit(main())
