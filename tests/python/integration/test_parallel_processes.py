"""Groups of processes over Gloo: every verb, and what a lost rank looks like."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from ports import reserved_port

WORKER = Path(__file__).with_name("parallel_ranks.py")
EXIT_RANK_LOST = 75


@contextmanager
def ranks(
    scenario: str, *, started: int, size: int, init_timeout: float = 120.0
) -> Iterator[list[subprocess.Popen[str]]]:
    """Start the first `started` of `size` ranks; none of them outlives the test."""
    processes = []
    stack = ExitStack()
    port = str(stack.enter_context(reserved_port()))
    try:
        for rank in range(started):
            environment = os.environ | {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": str(size),
                "LOCAL_WORLD_SIZE": str(size),
                "MASTER_ADDR": "localhost",
                "MASTER_PORT": port,
                "OMP_NUM_THREADS": "1",
            }
            environment.pop("TORCHELASTIC_USE_AGENT_STORE", None)
            processes.append(
                subprocess.Popen(
                    [sys.executable, str(WORKER), scenario, str(init_timeout)],
                    env=environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    text=True,
                )
            )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()
        stack.close()


def finish(process: subprocess.Popen[str]) -> str:
    output, _ = process.communicate(timeout=240)
    assert "terminate called" not in output
    return output


def named_line(process: subprocess.Popen[str]) -> str:
    """The one line with which a rank ended because another one was lost."""
    output = finish(process)
    assert process.returncode == EXIT_RANK_LOST, output
    assert "Traceback" not in output
    lines = [line for line in output.splitlines() if line.startswith("LINE ")]
    assert len(lines) == 1, output
    return lines[0].removeprefix("LINE ")


def test_every_verb_equals_plain_torch_on_every_axis_of_a_mesh():
    with ranks("verbs", started=4, size=4) as processes:
        for process in processes:
            output = finish(process)
            assert process.returncode == 0, output
            assert "all verbs agree" in output


def test_a_killed_rank_is_named_by_all_others():
    with ranks("killed", started=3, size=3) as processes:
        pid = processes[2].pid
        expected = rf"rank 2 \(\S+, pid {pid}\) has died; last seen in step 12"
        for process in processes[:2]:
            assert re.match(expected, named_line(process))
        assert processes[2].wait() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("scenario", "expected"),
    [
        ("stopped", r"rank 1 \(\S+, pid {pid}\) has not answered for [1-9]\S* s; last"),
        ("stalled", r"rank 1 \(\S+, pid {pid}\) has stalled: in no collective for"),
    ],
)
def test_a_rank_that_stands_still_is_named_after_the_timeout(scenario, expected):
    with ranks(scenario, started=2, size=2) as processes:
        line = named_line(processes[0])
        assert re.match(expected.replace("{pid}", str(processes[1].pid)), line), line
        assert "last seen in step 12" in line


def test_a_busy_rank_is_waited_for_in_patience_only():
    with ranks("busy patiently", started=3, size=3) as processes:
        for process in processes:
            output = finish(process)
            assert process.returncode == 0, output
    with ranks("busy", started=2, size=2) as processes:
        assert "rank 1 " in named_line(processes[0])


def test_a_rank_that_stands_still_is_named_in_patience_too():
    with ranks("stopped patiently", started=3, size=3) as processes:
        expected = rf"rank 2 \(\S+, pid {processes[2].pid}\) has not answered for "
        for process in processes[:2]:
            line = named_line(process)
            assert re.match(expected, line), line


def test_a_rank_that_fails_tells_all_others_why():
    with ranks("failed", started=2, size=2) as processes:
        lines = {named_line(process) for process in processes}
        assert len(lines) == 1
        pid = processes[1].pid
        assert re.match(
            rf"rank 1 \(\S+, pid {pid}\) failed: ValueError: row 7 is$", lines.pop()
        )


def test_a_rank_that_never_starts_is_named_after_the_init_timeout():
    with ranks("train", started=1, size=2, init_timeout=2.0) as processes:
        line = named_line(processes[0])
    assert line == (
        "1 of 2 ranks did not start within 2 s (comm.init_timeout_seconds): 1"
    )
