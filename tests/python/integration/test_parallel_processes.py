"""Groups of processes over Gloo: every verb, and what a lost rank looks like."""

from __future__ import annotations

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from parallel_ranks import run_rank
from ports import reserved_port
from training_runs import rank_environment, server

EXIT_RANK_LOST = 75


class Rank:
    """One process of a group."""

    def __init__(self, process: Any, output: Path) -> None:
        self.process = process
        self._output = output

    def finish(self) -> str:
        """Wait until it has ended; what it has printed."""
        self.process.join(240)
        assert self.process.exitcode is not None, "it hangs"
        output = self._output.read_text()
        assert "terminate called" not in output
        return output

    def named_line(self) -> str:
        """The one line with which it ended because another rank was lost."""
        output = self.finish()
        assert self.process.exitcode == EXIT_RANK_LOST, output
        assert "Traceback" not in output
        lines = [line for line in output.splitlines() if line.startswith("LINE ")]
        assert len(lines) == 1, output
        return lines[0].removeprefix("LINE ")


@contextmanager
def ranks(
    folder: Path, scenario: str, *, started: int, size: int, init_timeout: float = 120.0
) -> Iterator[list[Rank]]:
    """Start the first `started` of `size` ranks; none of them outlives the test."""
    members = []
    with reserved_port() as port:
        try:
            for rank in range(started):
                environment = rank_environment(rank, size, str(port))
                output = folder / f"{scenario}-{rank}.txt"
                process = server().Process(
                    target=run_rank,
                    args=(scenario, init_timeout, environment, str(output)),
                )
                process.start()
                members.append(Rank(process, output))
            yield members
        finally:
            for member in members:
                member.process.kill()
                member.process.join()


@pytest.mark.quick
def test_every_verb_equals_plain_torch_on_every_axis_of_a_mesh(tmp_path):
    with ranks(tmp_path, "verbs", started=4, size=4) as members:
        for member in members:
            output = member.finish()
            assert member.process.exitcode == 0, output
            assert "all verbs agree" in output


@pytest.mark.quick
@pytest.mark.parametrize("scenario", ["killed", "killed in pairs"])
def test_a_killed_rank_is_named_by_all_others(scenario, tmp_path):
    with ranks(tmp_path, scenario, started=3, size=3) as members:
        pid = members[2].process.pid
        expected = rf"rank 2 \(\S+, pid {pid}\) has died; last seen in step 12"
        for member in members[:2]:
            assert re.match(expected, member.named_line())
        members[2].finish()
        assert members[2].process.exitcode == -signal.SIGKILL


@pytest.mark.parametrize(
    ("scenario", "expected"),
    [
        ("stopped", r"rank 1 \(\S+, pid {pid}\) has not answered for [1-9]\S* s; last"),
        (
            "stalled in pairs",
            r"rank 1 \(\S+, pid {pid}\) has stalled: in no collective for",
        ),
        ("stalled", r"rank 1 \(\S+, pid {pid}\) has stalled: in no collective for"),
    ],
)
def test_a_rank_that_stands_still_is_named_after_the_timeout(
    scenario, expected, tmp_path
):
    with ranks(tmp_path, scenario, started=2, size=2) as members:
        line = members[0].named_line()
        pid = str(members[1].process.pid)
        assert re.match(expected.replace("{pid}", pid), line), line
        assert "last seen in step 12" in line


def test_a_busy_rank_is_waited_for_in_patience_only(tmp_path):
    with ranks(tmp_path, "busy patiently", started=3, size=3) as members:
        for member in members:
            output = member.finish()
            assert member.process.exitcode == 0, output
    with ranks(tmp_path, "busy", started=2, size=2) as members:
        assert "rank 1 " in members[0].named_line()


def test_a_rank_that_stands_still_is_named_in_patience_too(tmp_path):
    with ranks(tmp_path, "stopped patiently", started=3, size=3) as members:
        pid = members[2].process.pid
        expected = rf"rank 2 \(\S+, pid {pid}\) has not answered for "
        for member in members[:2]:
            line = member.named_line()
            assert re.match(expected, line), line


@pytest.mark.quick
def test_a_rank_that_fails_tells_all_others_why(tmp_path):
    with ranks(tmp_path, "failed", started=2, size=2) as members:
        lines = {member.named_line() for member in members}
        assert len(lines) == 1
        pid = members[1].process.pid
        assert re.match(
            rf"rank 1 \(\S+, pid {pid}\) failed: ValueError: row 7 is$", lines.pop()
        )


def test_a_rank_that_never_starts_is_named_after_the_init_timeout(tmp_path):
    with ranks(tmp_path, "train", started=1, size=2, init_timeout=2.0) as members:
        line = members[0].named_line()
    assert line == (
        "1 of 2 ranks did not start within 2 s (comm.init_timeout_seconds): 1"
    )
