"""Ranks that are threads of one process train as processes over Gloo do."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from training_runs import (
    Finished,
    Job,
    assert_same_tensors,
    read_checkpoint,
    run,
)

EXIT_RANK_LOST = 75
EXIT_BAD_INPUT = 2

SAVING = (
    "--checkpoint.enable",
    "--checkpoint.interval=2",
    "--checkpoint.no-last-save-model-only",
    "--training.steps=4",
)
VALIDATING = (
    "--validation.enable",
    "--validation.dataset=tiny_text",
    "--validation.local-batch-size=2",
    "--validation.seq-len=16",
    "--validation.freq=2",
    "--validation.steps=2",
)
PYTHON_MODEL = (
    "--experimental.custom-import=tiny_python_model",
    "--model.name=noisy",
    "--model.flavor=plain",
)

LAYOUTS: dict[str, tuple[int, tuple[str, ...]]] = {
    "fsdp_2_tp_2": (
        4,
        (
            *VALIDATING,
            "--model.flavor=tiny_heads",
            "--parallelism.tensor-parallel-degree=2",
            "--training.global-batch-size=8",
        ),
    ),
    "pp_2": (2, (*VALIDATING, "--parallelism.pipeline-parallel-degree=2")),
    "python_model_tp_2": (
        2,
        (
            "--experimental.custom-import=styled_jobs",
            "--model.name=styled",
            "--model.flavor=plain",
            "--parallelism.tensor-parallel-degree=2",
        ),
    ),
    # Each rank has a generator of its own, and what a layer draws twice is the same.
    "python_model_that_draws_numbers": (
        2,
        (
            *PYTHON_MODEL,
            "--training.dtype=float64",
            "--activation-checkpoint.mode=full",
        ),
    ),
}


def lines_of_steps(finished: Finished) -> list[str]:
    """What the console says of steps, without what the clock and the machine say."""
    found = re.findall(
        r"step: .*grad_norm: +\S+|validate step: .*loss: +\S+", finished.output
    )
    return [str(line) for line in found]


def validations(finished: Finished) -> list[dict[str, Any]]:
    path = finished.folder / "validation.jsonl"
    lines = path.read_text().splitlines() if path.exists() else []
    return [{key: json.loads(each)[key] for key in ("step", "loss")} for each in lines]


def only_step_2(run_before: Finished, folder: Path) -> str:
    """A copy of what was there after step 2, as a flag."""
    shutil.copytree(
        run_before.folder / "checkpoint/step-2", folder / "checkpoint/step-2"
    )
    return "--checkpoint.load-step=2"


def assert_traffic_is_as_announced(finished: Finished) -> None:
    announced = finished.announced_traffic()
    first, *others = finished.traffic()
    assert len(others) == 3
    for step in (first, *others):
        assert step.keys() == announced.keys()
        for axis, size in announced.items():
            # The first step also sends what shapes cross the border of two stages.
            shapes = 80 if axis == "pp" and step is first else 0
            assert step[axis] > 0 if size is None else step[axis] == size + shapes


@pytest.mark.parametrize("layout", LAYOUTS)
def test_threads_and_processes_train_alike_and_go_on_from_each_other(
    layout: str, tmp_path: Path
) -> None:
    size, flags = LAYOUTS[layout]
    flags = (*SAVING, *flags)
    processes = run(tmp_path / "processes", *flags, ranks=size)
    threads = run(tmp_path / "threads", *flags, threads=size)
    assert threads.metrics() == processes.metrics()
    assert len(threads.metrics()) == 4
    assert lines_of_steps(threads) == lines_of_steps(processes)
    assert len(lines_of_steps(threads)) >= 4
    assert validations(threads) == validations(processes)
    assert "the ranks are threads of one process" in threads.output
    for each in (threads, processes):
        assert_traffic_is_as_announced(each)
    assert threads.traffic() == processes.traffic()
    resumed = [
        run(
            folder := tmp_path / "threads_after_processes",
            *(*flags, only_step_2(processes, folder)),
            threads=size,
        ),
        run(
            folder := tmp_path / "processes_after_threads",
            *(*flags, only_step_2(threads, folder)),
            ranks=size,
        ),
    ]
    whole = read_checkpoint(processes.folder / "checkpoint/step-4")
    for other in (threads, *resumed):
        assert_same_tensors(read_checkpoint(other.folder / "checkpoint/step-4"), whole)
    for other in resumed:
        assert other.metrics() == processes.metrics()[2:]


@pytest.mark.quick
def test_the_ranks_that_are_asked_for_write_lines(tmp_path: Path) -> None:
    quiet = run(tmp_path / "quiet", "--training.steps=1", threads=2)
    assert quiet.output.count("step:  1") == 1
    both = run(tmp_path / "both", "--training.steps=1", threads=2, LOG_RANK="0,1")
    assert both.output.count("step:  1") == 2
    assert "rank 1: " not in both.output


def test_sigterm_saves_once_and_processes_go_on(tmp_path: Path) -> None:
    flags = (*SAVING[:1], "--checkpoint.interval=1000000", *SAVING[2:3])
    flags += ("--lr-scheduler.warmup-steps=0", "--lr-scheduler.decay-ratio=0.0")
    with Job(tmp_path, *flags, "--training.steps=1000000", threads=2) as job:
        job.wait_for("step:  5")
        job.signal(signal.SIGTERM)
        ended = job.finish()
    assert ended.exit_codes == [0], ended.output
    (saved,) = (tmp_path / "checkpoint").glob("*")
    step = int(saved.name.removeprefix("step-"))
    resumed = run(tmp_path, *flags, f"--training.steps={step + 2}", ranks=2)
    assert [line["step"] for line in resumed.metrics()][-2:] == [step + 1, step + 2]


@pytest.mark.quick
def test_a_rank_that_fails_is_named_once_and_ends_all(tmp_path: Path) -> None:
    ended = run(tmp_path, *SAVING, threads=3, trainer="failing", fails=True)
    assert ended.exit_codes == [1]
    named = "rank 1 failed: RuntimeError: the disk of rank one is full"
    assert ended.output.count(named) == 1
    assert ended.output.count("Traceback") == 1
    assert "in train_step" in ended.output
    assert "left behind" not in ended.output
    assert [each.name for each in (tmp_path / "checkpoint").glob("*")] == ["step-2"]


@pytest.mark.quick
def test_numbers_that_are_not_finite_stop_all_ranks(tmp_path: Path) -> None:
    ended = run(tmp_path, *SAVING, threads=2, trainer="poisoning", fails=True)
    assert ended.exit_codes == [1]
    assert ended.output.count("weights are unchanged: True") == 2
    assert ended.output.count("rank 1: first bad parameter layers.0.attention") == 1
    assert "Traceback" not in ended.output


def test_a_rank_that_does_not_come_is_named_and_the_process_ends(
    tmp_path: Path,
) -> None:
    timeout = "--comm.train-timeout-seconds=1"
    ended = run(tmp_path, timeout, threads=2, trainer="stuck", fails=True)
    assert ended.exit_codes == [EXIT_RANK_LOST]
    assert "rank 1 did not start" in ended.output
    assert "within 1 s" in ended.output
    assert "left behind: ranks [1]" in ended.output


@pytest.mark.quick
def test_processes_of_a_launcher_are_refused(tmp_path: Path) -> None:
    ended = run(tmp_path, "--comm.mode=local_tensor", ranks=2, fails=True)
    assert ended.exit_codes == [EXIT_BAD_INPUT] * 2
    assert ended.output.count("a launcher has started 2 processes") == 1
    assert not (tmp_path / "metrics.jsonl").exists()


def test_one_trace_has_the_operations_of_all_ranks(tmp_path: Path) -> None:
    flags = (
        "--profiling.enable-profiling",
        "--profiling.profile-freq=4",
        "--profiling.profiler-active=2",
        "--profiling.profiler-warmup=1",
    )
    ended = run(tmp_path, *flags, "--training.steps=4", threads=3)
    (path,) = tmp_path.rglob("*_trace.json")
    events = json.loads(path.read_text())["traceEvents"]
    threads = {event["tid"] for event in events if event.get("cat") == "cpu_op"}
    assert len(threads) >= 3, ended.output
