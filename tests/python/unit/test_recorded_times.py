"""Files of recorded times that do not belong together, and clocks of two machines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from torchtitan_cpp import plan
from torchtitan_cpp.recorded_times import describe_times, read_times


def write(folder: Path, rank: int, /, **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / f"rank{rank}_timeline.json"
    start = 100.0 + rank
    values: dict[str, Any] = {
        "step": 10,
        "rank": rank,
        "num_ranks": 2,
        "model": "llama3 8B",
        "device": "cpu",
        "machine": "one",
        "unix_minus_monotonic": 0.0,
        "segments": ["layers.0"],
        "groups": [],
        "actions": [
            [f"Forward st{rank} s0 mb0", start, start + 1],
            [f"Wait ReceiveGradient st{rank} mb0", start + 1, start + 1.5],
            [f"Backward st{rank} s0 mb0", start + 1.5, start + 3],
        ],
    }
    path.write_text(json.dumps(values | changes))
    return path


def test_times_count_from_the_first_begin(tmp_path: Path) -> None:
    write(tmp_path, 0)
    write(tmp_path, 1)
    recorded = read_times(tmp_path)
    assert recorded.spans[0] == [(0, 1), (1, 1.5), (1.5, 3)]
    assert recorded.spans[1] == [(1, 2), (2, 2.5), (2.5, 4)]
    assert recorded.seconds == 4
    assert recorded.idle_share == pytest.approx(1 - 5 / 8)
    assert describe_times(recorded).splitlines() == [
        "llama3 8B: step 10 on 2 ranks, measured",
        "  4 s, 37.5% of all ranks' idle",
        "  rank 0: 3 actions, computing 2.5 s, waiting 0.5 s",
        "  rank 1: 3 actions, computing 2.5 s, waiting 0.5 s",
    ]


def test_clocks_of_two_machines_are_converted_and_the_title_says_so(
    tmp_path: Path,
) -> None:
    write(tmp_path, 0, unix_minus_monotonic=1000.0)
    write(tmp_path, 1, unix_minus_monotonic=999.5, machine="two", device="cuda")
    recorded = read_times(tmp_path)
    assert recorded.spans[1][0] == (0.5, 1.5)
    assert recorded.title.endswith("measured, clocks of 2 machines")
    write(tmp_path, 0, device="cuda")
    write(tmp_path, 1, device="cuda")
    assert read_times(tmp_path).title.endswith("measured by the host")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": 2}, "missing rank 1"),
        ({"step": 20}, "different runs: step is 10 and 20"),
        ({"num_ranks": 4}, "different runs: num_ranks is 2 and 4"),
        ({"actions": [["Forwards s0", 0, 1]]}, "'Forwards s0' is no action"),
    ],
)
def test_files_that_do_not_fit_are_refused(
    changes: dict[str, Any], message: str, tmp_path: Path
) -> None:
    write(tmp_path, 0)
    write(tmp_path, 1, **changes)
    with pytest.raises(ValueError, match=message):
        read_times(tmp_path)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--training.steps=3"], "--training.steps=3 has no effect"),
        (["--tflops=1"], "--tflops has no effect"),
        ([], "no file rank*_timeline.json"),
    ],
)
def test_the_command_refuses_what_it_does_not_read(
    flags: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert plan.main([f"--recorded={tmp_path}", *flags]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_is_no_json_is_named(tmp_path: Path) -> None:
    path = write(tmp_path, 0)
    path.write_text("{")
    with pytest.raises(ValueError, match="rank0_timeline.json"):
        read_times(tmp_path)
