"""A run that hangs leaves records that tell who hung, and where."""

from __future__ import annotations

import signal
import time
from pathlib import Path

import pytest
from training_runs import Job

from torchtitan_cpp.flight_recorder.__main__ import main

EXIT_RANK_LOST = 75


@pytest.mark.quick
def test_the_records_of_a_hang_name_the_rank_and_the_collective(
    tmp_path: Path, capsys
) -> None:
    flags = (
        "--comm.train-timeout-seconds=1",
        "--comm.save-traces-folder=records",
        "--comm.trace-buf-size=50",
    )
    with Job(tmp_path, *flags, ranks=3, trainer="stuck") as job:
        for rank in (0, 2):
            job.processes[rank].join(120)
            assert job.processes[rank].exitcode == EXIT_RANK_LOST, job.output(rank)
            assert "rank 1 (" in job.output(rank) and "stalled" in job.output(rank)
        # The rank that hangs has written as well: its heartbeat has heard of the end.
        written = sorted(path.name for path in (tmp_path / "records").iterdir())
        assert written == ["rank_0.json", "rank_1.json", "rank_2.json"]
        job.signal(signal.SIGKILL, [1])
        job.finish()
    assert main([str(tmp_path / "records")]) == 0
    told = capsys.readouterr().out.splitlines()
    assert told[0] == "3 of 3 ranks have written a record; step 3"
    assert told[1].startswith("cause: rank 1 (") and len(told) == 4
    assert told[2].startswith("rank 1 (") and "has not started" in told[2]
    assert "ranks 0, 2 wait for it there" in told[2]


def test_ranks_that_are_threads_leave_records_too(tmp_path: Path, capsys) -> None:
    with Job(
        tmp_path, "--comm.train-timeout-seconds=1", threads=2, trainer="stuck"
    ) as job:
        job.finish()
    assert main([str(tmp_path / "comm_traces")]) == 0
    assert "\nrank 1 (" in capsys.readouterr().out


IDLE = (
    "--checkpoint.enable",
    "--checkpoint.interval=2",
    "--comm.train-timeout-seconds=1",
)
IN_A_SAVE = "has stalled outside of a step (saving, loading): it has neither computed"


def test_who_stands_still_in_a_save_is_named(tmp_path: Path) -> None:
    with Job(tmp_path, *IDLE, ranks=2, trainer="idle") as job:
        job.wait_for(IN_A_SAVE, rank=1)
        (line,) = (s for s in job.output(1).splitlines() if IN_A_SAVE in s)
        assert line.startswith("rank 0 (")
        assert line.endswith("last seen in step 2; the others wait for it")
        assert all(process.is_alive() for process in job.processes)


def test_who_stands_still_in_a_save_for_too_long_ends_the_run(tmp_path: Path) -> None:
    patience = "--comm.init-timeout-seconds=15"
    with Job(tmp_path, *IDLE, patience, ranks=2, trainer="idle") as job:
        job.processes[1].join(120)
        assert job.processes[1].exitcode == EXIT_RANK_LOST, job.output(1)
        last = job.output(1).splitlines()[-1]
        assert last.startswith("rank 0 (") and IN_A_SAVE in last
        # Its heartbeat hears of it a little later.
        deadline = time.monotonic() + 60
        while not (tmp_path / "comm_traces/rank_0.json").exists():
            assert time.monotonic() < deadline
            time.sleep(0.05)
