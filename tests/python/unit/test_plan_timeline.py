"""Pictures of schedules and of planned steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from torchtitan_cpp import _C, plan

SMALL = ("--training.local_batch_size=2", "--training.seq_len=128")
RATES = ("--tflops=1", "--memory_gb_per_second=10")
SVG = "{http://www.w3.org/2000/svg}"


def words_of(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def hints_of(svg: str) -> list[str]:
    return [text.text or "" for text in ElementTree.fromstring(svg).iter(f"{SVG}title")]


def one_f_one_b(microbatches: int) -> Any:
    return _C.plan.make_schedule(
        "1F1B", num_ranks=4, stages_per_rank=1, num_microbatches=microbatches
    )


def test_a_schedule_is_drawn_with_its_bubble_and_peak():
    svg = plan.draw_schedule(one_f_one_b(9), title="1F1B <4>")
    words = words_of(svg)
    assert words[:2] == [
        "1F1B <4>",
        "bubble 25.0 %, at most 4 live activations on a rank, 36 s",
    ]
    assert [word for word in words if word.startswith("rank")] == [
        f"rank {rank}: st{rank}" for rank in range(4)
    ]
    assert len(hints_of(svg)) == 4 * 9 * 2  # free messages take no place
    assert hints_of(svg)[0] == "Forward st0 mb0: 0 to 1 s"


def test_costs_and_messages_may_be_given():
    cost = _C.plan.StageCost(
        forward_seconds=2.0,
        backward_seconds=2.0,
        backward_input_seconds=1.0,
        backward_weight_seconds=1.0,
        output_bytes=4.0,
    )
    svg = plan.draw_schedule(
        one_f_one_b(1), title="", stages=[cost] * 4, link=(8.0, 0.5)
    )
    assert "22 s" in words_of(svg)[1]  # 8 works of 2 s, 6 messages of 1 s
    assert len(hints_of(svg)) == 8 + 2 * 6  # a message is drawn at both ends
    with pytest.raises(ValueError, match="none of the 3 stages"):
        plan.draw_schedule(one_f_one_b(1), title="", stages=[cost] * 3)


def test_measured_times_are_drawn_by_the_same_function():
    programs = _C.plan.add_transfers(one_f_one_b(1))
    spans = [[(float(i), i + 0.5) for i in range(len(p))] for p in programs]
    hints = hints_of(plan.draw_timeline(programs, spans, title="measured"))
    assert "SendGradient st3 mb0: 4 to 4.5 s" in hints


def test_the_command_draws_the_predicted_step(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    path = tmp_path / "step.svg"
    assert plan.main([*SMALL, *RATES, f"--timeline={path}"]) == 0
    words = words_of(path.read_text())
    assert words[0] == "llama3 debugmodel: a step of one of 1 ranks"
    assert {"forward", "backward", "optimizer"} <= set(words)
    assert "program of a rank" in capsys.readouterr().out


def test_a_picture_without_rates_or_place_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert plan.main([*SMALL, f"--timeline={tmp_path / 'step.svg'}"]) == 2
    assert "--timeline: the picture is of the predicted time" in capsys.readouterr().err
    assert plan.main([*SMALL, *RATES, f"--timeline={tmp_path / 'step.png'}"]) == 2
    assert "expected a name that ends in .svg" in capsys.readouterr().err
    assert not (tmp_path / "step.png").exists()
    nowhere = tmp_path / "nowhere" / "step.svg"
    assert plan.main([*SMALL, *RATES, f"--timeline={nowhere}"]) == 2
    assert str(nowhere) in capsys.readouterr().err
