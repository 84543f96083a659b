"""Runs that are killed and go on with other ranks read every sample once.

A trial is one seed: three attempts with layouts of 1 to 8 ranks, of which the first
two kill themselves in a step, in a save or after it. ``scripts/nightly.sh`` runs 60.
"""

from __future__ import annotations

import json
import math
import random
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from training_runs import Job, assert_same_tensors, read_checkpoint, run

STEPS = 8
ORDINARY, NIGHTLY = range(3), range(3, 60)

FLAGS = (
    "--model.flavor=tiny_heads",
    "--training.dataset=numbered",
    f"--training.steps={STEPS}",
    "--checkpoint.enable",
    "--checkpoint.interval=2",
    "--checkpoint.no-last-save-model-only",
    "--checkpoint.keep-latest-k=0",
)


@dataclass(frozen=True)
class Layout:
    """How many ranks each kind of parallelism has."""

    replicate: int
    shard: int
    context: int
    tensor: int
    pipeline: int

    @property
    def data_ranks(self) -> int:
        return self.replicate * self.shard

    @property
    def world_size(self) -> int:
        return self.data_ranks * self.context * self.tensor * self.pipeline

    def flags(self, rows: int) -> tuple[str, ...]:
        return (
            f"--parallelism.data-parallel-replicate-degree={self.replicate}",
            f"--parallelism.data-parallel-shard-degree={self.shard}",
            f"--parallelism.context-parallel-degree={self.context}",
            f"--parallelism.tensor-parallel-degree={self.tensor}",
            f"--parallelism.pipeline-parallel-degree={self.pipeline}",
            f"--training.local-batch-size={rows // self.data_ranks}",
            f"--training.global-batch-size={rows}",
        )


def draw_layout(random_source: random.Random) -> Layout:
    """Of 1 to 8 ranks, each number as likely as any other."""
    rest = random_source.randint(1, 8)
    halves = {"context": 1, "tensor": 1, "pipeline": 1}
    for axis in random_source.sample(sorted(halves), len(halves)):
        if rest % 2 == 0 and random_source.random() < 0.4:
            halves[axis], rest = 2, rest // 2
    divisors = [n for n in range(1, rest + 1) if rest % n == 0]
    replicate = random_source.choice(divisors)
    return Layout(replicate=replicate, shard=rest // replicate, **halves)


def rows_of_steps(folder: Path, attempt: int) -> dict[int, Counter[tuple[int, ...]]]:
    """By step the rows that all ranks have read."""
    steps: dict[int, Counter[tuple[int, ...]]] = {}
    for path in folder.glob(f"rows-{attempt}-*.jsonl"):
        for line in path.read_text().splitlines():
            value = json.loads(line)
            rows = Counter(tuple(row) for row in value["rows"])
            steps.setdefault(value["step"], Counter()).update(rows)
    return steps


def loaded_step(folder: Path, attempt: int) -> int:
    """The step that an attempt went on from; 0 for none."""
    copies = list(folder.glob(f"loaded-{attempt}/step-*"))
    return int(copies[0].name.removeprefix("step-")) if copies else 0


@pytest.mark.parametrize(
    "seed",
    [*ORDINARY, *(pytest.param(seed, marks=pytest.mark.nightly) for seed in NIGHTLY)],
)
def test_a_run_killed_twice_reads_each_sample_once_in_any_layouts(
    seed: int, tmp_path: Path
) -> None:
    source = random.Random(seed)
    layouts = [draw_layout(source) for _ in range(3)]
    # A pipeline of two stages has two microbatches at least.
    rows = 2 * math.lcm(*(layout.data_ranks for layout in layouts))
    formats = [source.choice(["native", "dcp"]) for _ in layouts]
    trial, whole = tmp_path / "trial", tmp_path / "whole"
    first = 1
    for attempt, (layout, kind) in enumerate(zip(layouts, formats, strict=True)):
        kill = ""
        if attempt < 2:
            step = source.randint(first, min(first + 3, STEPS - 1))
            phase = source.choice(["step", "save", "saved"])
            if phase != "step":
                step += step % 2  # every second one is saved
            kill, first = f"{phase} {step}", step + 1
        with Job(
            trial,
            *(*FLAGS, *layout.flags(rows), f"--checkpoint.format={kind}"),
            threads=layout.world_size,
            trainer="elastic",
            ATTEMPT=str(attempt),
            KILL=kill,
        ) as job:
            ended = job.finish()
        code = -signal.SIGKILL if kill else 0
        assert ended.exit_codes == [code], (layouts, kill, ended.output)
    run(
        whole,
        *(*FLAGS, *Layout(1, 1, 1, 1, 1).flags(rows)),
        trainer="elastic",
        ATTEMPT="0",
        KILL="",
    )
    check_samples(trial, rows_of_steps(whole, 0), rows)
    check_states(trial)


def check_samples(
    trial: Path, expected: dict[int, Counter[tuple[int, ...]]], rows: int
) -> None:
    """What counts of an attempt ends where the next one went on from."""
    read: dict[int, Counter[tuple[int, ...]]] = {}
    for attempt in range(3):
        start = loaded_step(trial, attempt)
        kept = {step: each for step, each in read.items() if step <= start}
        read = kept | rows_of_steps(trial, attempt)
    assert read.keys() == expected.keys() == set(range(1, STEPS + 1))
    # The rows are all different, so a row that is read twice cannot go unseen.
    assert sum(expected.values(), Counter()).most_common(1)[0][1] == 1
    for step, each in expected.items():
        assert read[step] == each and each.total() == rows, f"step {step}"


def check_states(trial: Path) -> None:
    """Weights and moments were loaded bit by bit as the attempt before saved them."""
    for attempt in range(1, 3):
        for loaded in trial.glob(f"loaded-{attempt}/step-*"):
            saved = sorted(trial.glob(f"saved-*/{loaded.name}"))[-1]
            assert_same_tensors(read_checkpoint(loaded), read_checkpoint(saved))
