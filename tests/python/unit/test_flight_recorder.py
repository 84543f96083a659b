"""What flight records tell about runs that hang in different ways."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from torchtitan_cpp import _C
from torchtitan_cpp.flight_recorder import FlightRecordError, analyse, read_records
from torchtitan_cpp.flight_recorder.__main__ import EXIT_BAD_INPUT, main
from torchtitan_cpp.flight_recorder.recorder import FlightSettings
from torchtitan_cpp.parallel import LocalWorld, make_local_groups

AXES = {"world": [[0, 1, 2, 3]], "dp": [[0, 2], [1, 3]], "tp": [[0, 1], [2, 3]]}


class Rank:
    """One of four ranks that are played one after the other: nobody waits."""

    def __init__(self, world: LocalWorld, rank: int, folder: Path, run: str) -> None:
        self.rank = rank
        self.path = folder / f"rank_{rank}.json"
        self.recorder = _C.collectives.FlightRecorder(
            rank=rank,
            size=4,
            capacity=6,
            run=run,
            path=str(self.path),
        )
        self.groups = make_local_groups(
            world, AXES, rank=rank, flight_recorder=self.recorder
        )

    def start(self, axis: str, numel: int = 3) -> Any:
        return self.groups[axis].all_reduce(torch.zeros(numel))

    def write(self, waits_in: Any = None) -> None:
        self.recorder.write("the cause")
        if waits_in is None:
            return
        record = json.loads(self.path.read_text())
        record["entries"][waits_in]["state"] = "waiting"
        self.path.write_text(json.dumps(record))


@pytest.fixture
def play(tmp_path: Path) -> Callable[..., list[Rank]]:
    def make(run: str = "one") -> list[Rank]:
        world = LocalWorld(4, timeout_seconds=60.0)
        ranks = [Rank(world, rank, tmp_path, run) for rank in range(4)]
        for rank in ranks:
            rank.recorder.step = 12
        # Two that all have ended.
        for handle in [rank.start("world") for rank in ranks]:
            handle.wait()
        for handle in [rank.start("dp") for rank in ranks]:
            handle.wait()
        return ranks

    return make


def told(folder: Path) -> str:
    return "\n".join(analyse(read_records(folder)))


def test_a_rank_that_does_not_come_is_named_with_what_it_did_last(play, tmp_path):
    ranks = play()
    for rank in (0, 1, 3):
        ranks[rank].start("world", 7)
        ranks[rank].write(waits_in=-1)
    ranks[2].write()
    text = told(tmp_path)
    assert "4 of 4 ranks have written a record; step 12" in text
    assert "cause: the cause" in text
    (line,) = (line for line in text.splitlines() if line.startswith("rank "))
    assert line.startswith("rank 2 (")
    assert (
        "has not started all_reduce of Float[7], #1 of group 'world' (28 bytes, step "
        "12); ranks 0, 1, 3 wait for it there, the first for " in line
    )
    assert "all_reduce of Float[3], #0 of group 'dp' in step 12, completed" in text


def test_a_rank_that_waits_itself_is_not_blamed(play, tmp_path):
    """Rank 0 misses rank 1 in tp, which waits for rank 3 in dp."""
    ranks = play()
    ranks[0].start("tp")
    ranks[0].write(waits_in=-1)
    ranks[1].start("dp")
    ranks[1].write(waits_in=-1)
    ranks[2].start("tp")
    ranks[2].write(waits_in=-1)
    ranks[3].write()
    text = told(tmp_path)
    assert "rank 3 (" in text and "has not started" in text
    assert "rank 1 (" not in text and "rank 2 (" not in text


def test_ranks_that_wait_for_each_other_are_all_told(play, tmp_path):
    ranks = play()
    ranks[0].start("tp")
    ranks[0].write(waits_in=-1)
    ranks[1].start("world")
    ranks[1].write(waits_in=-1)
    for rank in (2, 3):
        ranks[rank].start("world")
        ranks[rank].write(waits_in=-1)
    text = told(tmp_path)
    assert "every rank that is missed waits for another one" in text
    assert "rank 1 (" in text and "rank 0 (" in text


def test_different_operations_of_one_number_are_told_by_rank(play, tmp_path):
    ranks = play()
    for rank in ranks:  # each in a world of its own, which refuses a mismatch
        group = make_local_groups(
            LocalWorld(4, timeout_seconds=60.0),
            AXES,
            rank=rank.rank,
            flight_recorder=rank.recorder,
        )["world"]
        group.all_reduce(torch.zeros(8 if rank.rank == 1 else 7))
        rank.write(waits_in=-1)
    text = told(tmp_path)
    assert (
        "ranks disagree in #0 of group 'world': ranks 0, 2, 3: all_reduce of "
        "Float[7]; rank 1: all_reduce of Float[8]" in text
    )


def test_what_all_have_started_and_nobody_ended_blames_nobody(play, tmp_path):
    ranks = play()
    handles = [rank.start("world", 5) for rank in ranks]
    for rank in ranks:
        rank.write(waits_in=-1)
    del handles
    text = told(tmp_path)
    assert "all its ranks have started all_reduce of Float[5], #1 of group" in text
    assert "it has not ended on ranks 0, 1, 2, 3" in text


def test_a_rank_without_a_record_is_the_first_to_look_at(play, tmp_path):
    ranks = play()
    for rank in (0, 2, 3):
        ranks[rank].start("world")
        ranks[rank].write(waits_in=-1)
    text = told(tmp_path)
    assert "3 of 4 ranks have written a record" in text
    assert "no record of rank 1: killed, or standing still" in text
    assert "ranks 0, 2, 3 wait for rank 1 in all_reduce of Float[3], #1 of" in text


def test_a_recv_without_its_send_names_the_sender(play, tmp_path):
    ranks = play()
    ranks[2].groups["tp"].recv(torch.zeros(4), peer=1, tag=5)
    for rank in (0, 1, 3):
        ranks[rank].write()
    ranks[2].write(waits_in=-1)
    text = told(tmp_path)
    assert "rank 3 (" in text
    assert "has not started recv of Float[4], #0 of group 'tp', rank 3 to rank 2" in (
        text
    )


def test_a_run_that_is_complete_blames_nobody(play, tmp_path):
    for rank in play():
        rank.write()
    assert "every recorded collective has ended on all of its ranks" in told(tmp_path)


def test_more_collectives_than_are_kept_hide_nothing_that_is_late(play, tmp_path):
    ranks = play()
    for _ in range(9):
        for handle in [ranks[rank].start("tp") for rank in (0, 1)]:
            handle.wait()
    for rank in (0, 1, 3):
        ranks[rank].start("world")
        ranks[rank].write(waits_in=-1)
    ranks[2].write()
    text = told(tmp_path)
    assert "has not started all_reduce of Float[3], #1 of group 'world'" in text
    assert text.count("has not started") == 1


def test_records_of_an_earlier_start_are_left_out(play, tmp_path):
    for rank in play("one"):
        rank.write()
    ranks = play("two")
    for rank in (0, 1, 2):
        ranks[rank].start("world")
        ranks[rank].write(waits_in=-1)
    text = told(tmp_path)
    assert "no record of rank 3" in text
    assert "note: rank_3.json is of another start of the job: left out" in text


def test_nothing_is_recorded_where_it_is_off_or_nobody_is_there(tmp_path):
    def settings(capacity: int) -> FlightSettings:
        return FlightSettings(capacity=capacity, folder=str(tmp_path), prefix="r")

    assert settings(0).recorder(rank=0, size=2, run="") is None
    assert settings(9).recorder(rank=0, size=1, run="") is None
    recorder = settings(9).recorder(rank=1, size=2, run="")
    assert recorder is not None
    recorder.write("why")
    assert [path.name for path in tmp_path.iterdir()] == ["r1.json"]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        (None, "", "holds no flight record"),
        ("rank_0.json", "{", "is no flight record"),
        ("rank_0.json", "[]", "is no flight record"),
        ("rank_0.json", '{"rank": 0}', "is no flight record: no 'groups'"),
    ],
)
def test_folders_without_records_are_refused(name, content, problem, tmp_path, capsys):
    if name:
        (tmp_path / name).write_text(content)
    with pytest.raises(FlightRecordError, match=problem):
        read_records(tmp_path)
    assert main([str(tmp_path)]) == EXIT_BAD_INPUT
    assert problem in capsys.readouterr().err


def test_a_missing_folder_is_refused(tmp_path, capsys):
    assert main([str(tmp_path / "none")]) == EXIT_BAD_INPUT
    assert "is no folder" in capsys.readouterr().err
