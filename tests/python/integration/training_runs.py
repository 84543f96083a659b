"""Starts jobs of one or several ranks and reads what they leave.

The processes are forked from a server that has imported torch and nothing else, so a
job of two ranks takes well below a second.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from ports import reserved_port
from training_ranks import STATE_FOLDER, run_rank

FLAGS = (
    "--experimental.custom-import=tiny_jobs",
    "--model.flavor=tiny",
    "--training.dataset=tiny_text",
    "--training.seq-len=16",
    "--training.local-batch-size=2",
    "--training.steps=5",
    "--metrics.log-freq=1",
    "--debug.seed=7",
    "--lr-scheduler.warmup-steps=2",
    "--optimizer.lr=1e-2",
)
"""Of every job here; a later flag replaces an earlier one in `merged`."""


def merged(*flags: str) -> list[str]:
    """FLAGS with ``flags`` in their place or behind them."""
    named = {flag.partition("=")[0]: flag for flag in (*FLAGS, *flags)}
    return list(named.values())


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A job that has ended."""

    folder: Path
    exit_codes: list[int]
    """By rank; minus the signal where one ended the process."""
    outputs: list[str]

    @property
    def output(self) -> str:
        """Of all ranks."""
        return "\n".join(self.outputs)

    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl without what the clock and the machine say."""
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        kept = ("step", "loss", "grad_norm", "lr", "n_tokens_seen")
        return [{key: json.loads(line)[key] for key in kept} for line in lines]

    def traffic(self) -> list[dict[str, float]]:
        """Bytes that the metrics rank exchanged in each logged step, by mesh axis.

        The times beside them are checked: they lie within the step.
        """
        steps = []
        for text in (self.folder / "metrics.jsonl").read_text().splitlines():
            line = json.loads(text)
            named = {
                tuple(key.split("/")[1:]): value
                for key, value in line.items()
                if key.startswith("communication/")
            }
            axes = {axis for axis, _ in named}
            seconds = [named[axis, "seconds"] for axis in axes]
            assert all(each > 0 for each in seconds), line
            assert sum(seconds) <= line["step_seconds"], line
            steps.append({axis: named[axis, "bytes"] for axis in axes})
        return steps

    def announced_traffic(self) -> dict[str, int | None]:
        """What the summary of the one rank that is shown says of every step."""
        (text,) = re.findall(r"  traffic +bytes of this rank a step: (.*)", self.output)
        pairs = re.findall(r"(\w+) (?:([\d,]+)|only known when it runs)(?:, |$)", text)
        return {
            axis: int(number.replace(",", "")) if number else None
            for axis, number in pairs
        }

    def dumped(self, step: int) -> dict[str, Any]:
        """Loss, norm and whole gradients and weights of a step (DumpingTrainer)."""
        return read_dumped(self.folder / STATE_FOLDER, step)


class Job:
    """Ranks under way; use it as a context manager, so that none outlives a test.

    Args:
        ranks: that are processes.
        threads: ranks that are threads of one process.
        variables: of the environment.
    """

    def __init__(
        self,
        folder: Path,
        *flags: str,
        ranks: int = 1,
        threads: int = 0,
        trainer: str = "plain",
        without: str = "none",
        **variables: str,
    ) -> None:
        self.folder = folder
        if threads:
            flags += ("--comm.mode=local_tensor",)
            variables["NGPU"] = str(threads)
        folder.mkdir(parents=True, exist_ok=True)
        arguments = merged(f"--job.dump-folder={folder}", *flags)
        arguments = [flag for flag in arguments if not flag.startswith(without)]
        self._resources = ExitStack()
        port = str(self._resources.enter_context(reserved_port()))
        self._outputs = [folder / f"output-{rank}.txt" for rank in range(ranks)]
        self.processes = []
        for rank, output in enumerate(self._outputs):
            environment = dict(variables)
            if ranks > 1:
                environment |= rank_environment(rank, ranks, port)
            process = server().Process(
                target=run_rank, args=(arguments, environment, str(output), trainer)
            )
            process.start()
            self.processes.append(process)

    def wait_for(self, text: str, *, rank: int = 0, seconds: float = 120) -> None:
        """Return once ``text`` is in the output of a rank."""
        deadline = time.monotonic() + seconds
        while text not in self.output(rank):
            assert time.monotonic() < deadline, self.output(rank)
            time.sleep(0.01)

    def output(self, rank: int) -> str:
        """What a rank has printed so far."""
        path = self._outputs[rank]
        return path.read_text() if path.exists() else ""

    def signal(self, number: int, ranks: Sequence[int] | None = None) -> None:
        """Send a signal to some ranks, by default to all."""
        for rank in range(len(self.processes)) if ranks is None else ranks:
            pid = self.processes[rank].pid
            assert pid is not None
            os.kill(pid, number)

    def finish(self, seconds: float = 240) -> Finished:
        """Wait until all ranks have ended; the limit is for those that hang."""
        deadline = time.monotonic() + seconds
        for process in self.processes:
            process.join(max(0.0, deadline - time.monotonic()))
            assert process.exitcode is not None, self.output(0)
        outputs = [self.output(rank) for rank in range(len(self.processes))]
        assert "terminate called" not in "".join(outputs)
        return Finished(
            folder=self.folder,
            exit_codes=[process.exitcode or 0 for process in self.processes],
            outputs=outputs,
        )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.join()
        self._resources.close()


def run(
    folder: Path,
    *flags: str,
    ranks: int = 1,
    threads: int = 0,
    trainer: str = "plain",
    without: str = "none",
    fails: bool = False,
    **variables: str,
) -> Finished:
    """Run a job to its end and check that all ranks end well, unless it ``fails``.

    Args:
        ranks, threads, variables: as of Job.
        trainer: name in training_ranks.TRAINERS.
        without: start of flags to take out of FLAGS.
    """
    with Job(
        *(folder, *flags),
        ranks=ranks,
        threads=threads,
        trainer=trainer,
        without=without,
        **variables,
    ) as job:
        finished = job.finish()
    if not fails:
        assert finished.exit_codes == [0] * ranks, finished.output
    return finished


def torchrun(ranks: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A job as a user starts it: torchrun and processes of their own."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += [f"--nproc-per-node={ranks}"]
    return subprocess.run(
        [*command, "-m", "torchtitan_cpp.train", *arguments],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": import_path()},
        capture_output=True,
        text=True,
        timeout=300,
    )


def read_dumped(folder: Path, step: int) -> dict[str, Any]:
    """Put together the rows of all ranks; replicas must be equal bit by bit."""
    whole: dict[str, Any] = {"gradients": {}, "weights": {}}
    covered: dict[str, torch.Tensor] = {}
    paths = sorted(folder.glob(f"step-{step}-rank-*.pt"))
    assert paths, f"nothing was dumped for step {step}"
    for path in paths:
        part = torch.load(path)
        for key in ("loss", "grad_norm"):
            assert whole.setdefault(key, part[key]) == part[key], key
        for name, shape in part["shapes"].items():
            for kind in ("gradients", "weights"):
                rows = part[kind][name]
                tensor = whole[kind].setdefault(name, rows.new_zeros(shape))
                place = tuple(
                    slice(first, first + size)
                    for first, size in zip(
                        part["offsets"][name], rows.shape, strict=True
                    )
                )
                seen = covered.setdefault(kind + name, torch.zeros(shape).bool())
                if seen[place].any():
                    assert torch.equal(tensor[place], rows), f"{name}: replicas differ"
                tensor[place] = rows
                seen[place] = True
    assert all(bool(seen.all()) for seen in covered.values())
    return whole


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Whole tensors of a checkpoint, moments included, put together from its files."""
    from torchtitan_cpp import _C

    manifest = json.loads((path / "manifest.json").read_text())
    readers = [
        _C.storage.SafetensorsReader(str(path / file["name"]))
        for file in manifest["files"]
    ]
    tensors = {}
    for name, stored in manifest["tensors"].items():
        first = stored["boxes"][0]
        dtype = readers[first["file"]].entries[first["key"]][0]
        out = torch.zeros(stored["shape"], dtype=dtype)
        for box in stored["boxes"]:
            readers[box["file"]].read_box(
                box["key"],
                out,
                offset=[0] * len(box["size"]),
                size=box["size"],
                out_offset=box["offset"],
            )
        tensors[name] = out
    return tensors


def assert_same_tensors(
    one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]
) -> None:
    """Equal bit by bit, under the same names."""
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype == other[name].dtype, name
        assert torch.equal(tensor, other[name]), name


def import_path() -> str:
    """PYTHONPATH with the modules beside this one."""
    here = str(Path(__file__).parent)
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join([here, *(path for path in paths if path not in ("", here))])


def rank_environment(rank: int, ranks: int, port: str) -> dict[str, str]:
    """What torchrun sets for one of several ranks."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "localhost",
        "MASTER_PORT": port,
    }


def server() -> Any:
    """The fork server; started by the first process that is asked of it."""
    os.environ["PYTHONPATH"] = import_path()  # for what the server imports first
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["training_ranks"])
    return context
