"""Runs that are stopped, killed or meet numbers that are not finite."""

from __future__ import annotations

import re
import signal
import time
from pathlib import Path

import pytest
from training_runs import Job, assert_same_tensors, read_checkpoint, run

from torchtitan_cpp.stopping import STOP_ECHO_SECONDS

EXIT_RANK_LOST = 75

SAVING = (
    "--checkpoint.enable",
    "--checkpoint.interval=1000000",
    "--checkpoint.no-last-save-model-only",
    "--lr-scheduler.warmup-steps=0",  # the same rate for any number of steps
    "--lr-scheduler.decay-ratio=0.0",
)

ENDLESS = "--training.steps=1000000"


def checkpoints(folder: Path) -> list[Path]:
    return sorted((folder / "checkpoint").glob("*"))


@pytest.mark.parametrize("ranks", [pytest.param(1, marks=pytest.mark.quick), 2])
def test_sigterm_saves_once_and_the_next_run_goes_on_bit_by_bit(
    ranks: int, tmp_path: Path
) -> None:
    stopped = tmp_path / "stopped"
    with Job(stopped, *SAVING, ENDLESS, ranks=ranks) as job:
        job.wait_for("step:  5")
        job.signal(signal.SIGTERM)
        ended = job.finish()
    assert ended.exit_codes == [0] * ranks, ended.output
    (saved,) = checkpoints(stopped)
    step = int(saved.name.removeprefix("step-"))
    assert ended.metrics()[-1]["step"] == step
    more = f"--training.steps={step + 3}"
    resumed = run(stopped, *SAVING, more, ranks=ranks)
    whole = run(tmp_path / "whole", *SAVING, more, ranks=ranks)
    assert resumed.metrics() == whole.metrics()
    last = f"checkpoint/step-{step + 3}"
    assert_same_tensors(
        read_checkpoint(stopped / last), read_checkpoint(whole.folder / last)
    )


def test_sigterm_to_one_rank_stops_all_at_the_same_step(tmp_path: Path) -> None:
    with Job(tmp_path, *SAVING, ENDLESS, ranks=2) as job:
        job.wait_for("step:  3")
        job.signal(signal.SIGTERM, [1])
        ended = job.finish()
    assert ended.exit_codes == [0, 0]
    assert len(checkpoints(tmp_path)) == 1


def test_two_sigterms_at_once_are_one_request(tmp_path: Path) -> None:
    """Who ends a service signals torchrun and the ranks; torchrun signals them too."""
    with Job(tmp_path, *SAVING, ENDLESS, ranks=2) as job:
        job.wait_for("step:  3")
        job.signal(signal.SIGTERM)
        job.signal(signal.SIGTERM)
        ended = job.finish()
    assert ended.exit_codes == [0, 0], ended.output
    assert len(checkpoints(tmp_path)) == 1


def test_a_later_sigterm_ends_at_once_and_leaves_no_torn_checkpoint(
    tmp_path: Path,
) -> None:
    with Job(tmp_path, *SAVING, ENDLESS, trainer="slow") as job:
        job.wait_for("step 3 goes on")
        job.signal(signal.SIGTERM)
        time.sleep(STOP_ECHO_SECONDS + 0.1)
        assert job.processes[0].is_alive()
        # The rank counts from when it saw the first one, which may be later.
        while job.processes[0].is_alive():
            job.signal(signal.SIGTERM)
            time.sleep(1)
        ended = job.finish()
    assert ended.exit_codes == [-signal.SIGTERM]
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize("victim", [0, 2])
def test_a_killed_rank_is_named_by_all_others_and_nothing_is_saved(
    victim: int, tmp_path: Path
) -> None:
    timeout = "--comm.train-timeout-seconds=3600"
    with Job(tmp_path, *SAVING, ENDLESS, timeout, ranks=3) as job:
        job.wait_for("step: 99")  # by then every rank has told its step
        job.signal(signal.SIGKILL, [victim])
        ended = job.finish()  # well before the timeout of a step
    for rank, code in enumerate(ended.exit_codes):
        if rank == victim:
            assert code == -signal.SIGKILL
            continue
        assert code == EXIT_RANK_LOST
        lines = ended.outputs[rank].splitlines()
        named = [line for line in lines if re.match(rf"rank {victim} .*has died", line)]
        assert len(named) == 1, ended.outputs[rank]
        assert victim == 0 or "before the first step" not in named[0]
        assert "Traceback" not in ended.outputs[rank]
    assert checkpoints(tmp_path) == []


def test_a_long_save_of_one_rank_is_waited_for(tmp_path: Path) -> None:
    flags = (*SAVING, "--training.steps=2", "--checkpoint.interval=1")
    run(
        tmp_path, *flags, "--checkpoint.keep-latest-k=2", ranks=2, trainer="slow_saving"
    )
    assert [path.name for path in checkpoints(tmp_path)] == ["step-1", "step-2"]


LAYOUTS = {
    "one_rank": (1, ()),
    "fsdp_2": (2, ()),
    "ddp_2": (
        2,
        (
            "--parallelism.data-parallel-replicate-degree=2",
            "--parallelism.data-parallel-shard-degree=1",
        ),
    ),
}


@pytest.mark.parametrize("log_freq", [1, 10])
@pytest.mark.parametrize(
    "layout", ["one_rank", pytest.param("fsdp_2", marks=pytest.mark.quick), "ddp_2"]
)
def test_a_nan_changes_no_weight_and_stops_all_ranks_at_its_step(
    layout: str, log_freq: int, tmp_path: Path
) -> None:
    """With log_freq 10 the host learns of it one step later."""
    ranks, flags = LAYOUTS[layout]
    flags += (*SAVING, f"--metrics.log-freq={log_freq}", "--training.steps=9")
    ended = run(tmp_path, *flags, ranks=ranks, trainer="poisoning", fails=True)
    for code, output in zip(ended.exit_codes, ended.outputs, strict=True):
        assert code not in (0, -signal.SIGABRT), output
        assert "weights are unchanged: True" in output
        assert "step 3: loss nan" in output
        assert f"rank {ranks - 1}: first bad parameter layers.0.attention" in output
    assert checkpoints(tmp_path) == []
