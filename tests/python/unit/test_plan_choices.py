"""Choices of a run that show in its plan: what is recomputed, how ranks exchange."""

from __future__ import annotations

import pytest
from plan_configs import SMALL, config_of

from torchtitan_cpp import plan
from torchtitan_cpp.models.llama3 import llama3_args


def test_more_recomputation_needs_less_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NGPU", "1")

    def planned(mode: str, *flags: str) -> plan.Plan:
        return plan.make_plan(
            config_of(
                f"--activation_checkpoint.mode={mode}",
                *(f"--activation_checkpoint.{flag}" for flag in flags),
                "--training.seq_len=2048",
            )
        )

    every = [
        planned("none"),
        planned("selective", "selective_ac_option=op"),
        planned("full"),
    ]
    budgets = [planned("memory_budget", f"memory_budget={b}") for b in (1, 0.6, 0.2, 0)]
    for plans in (every, budgets):
        peaks = [each.memory.peak.total() for each in plans]
        flops = [each.recomputed_flops for each in plans]
        assert peaks == sorted(set(peaks), reverse=True)
        assert flops == sorted(set(flops))
        assert flops[0] == 0
    for budget, mode in ((0, 0), (-1, -1)):
        same = budgets[budget].memory.peak.total()
        assert same == every[mode].memory.peak.total()


def test_the_curve_of_budgets_is_printed_where_it_is_asked_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NGPU", "1")
    flags = [*SMALL, "--activation_checkpoint.mode=memory_budget"]
    title = "by memory budget\n"
    assert plan.main(flags) == 0
    assert title not in capsys.readouterr().out
    shown = "--activation_checkpoint.visualize_memory_budget_pareto"
    assert plan.main([*flags, shown]) == 0
    table = capsys.readouterr().out.split(title)[1].splitlines()[:11]
    rows = [
        [float(cell) for cell in line.split() if cell[0].isdigit()] for line in table
    ]
    budgets, kept, again = zip(*rows, strict=True)
    assert budgets == tuple(tenth / 10 for tenth in range(11))
    assert list(kept) == sorted(kept)
    assert list(again) == sorted(again, reverse=True)
    assert (kept[0], again[-1]) == (0, 0)
    assert kept[5] <= kept[-1] / 2 + 0.1


def tp_traffic(*flags: str) -> dict[str, tuple[int, int]]:
    planned = plan.make_plan(
        config_of("--parallelism.tensor_parallel_degree=2", *flags, world_size=2)
    )
    return {
        verb: (traffic.calls, traffic.bytes)
        for (axis, verb), traffic in planned.traffic.items()
        if axis == "tp"
    }


def test_tensor_ranks_send_along_a_ring_only_where_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NGPU", "2")
    plain = tp_traffic()
    ring = tp_traffic("--parallelism.enable_async_tensor_parallel")
    assert "send" not in plain
    assert ring["send"][0] > 0
    assert ring["send"] == ring["recv"]
    assert ring["all_gather"][0] < plain["all_gather"][0]


def test_whole_logits_are_gathered_where_the_loss_is_not_parallel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NGPU", "2")
    parallel = tp_traffic()["all_gather"][1]
    whole = tp_traffic("--parallelism.disable_loss_parallel")["all_gather"][1]
    rows, seq_len = 2, 128
    vocabulary = llama3_args["debugmodel"].vocab_size
    assert whole > parallel
    assert whole - parallel > rows * seq_len * (vocabulary - 100) * 4
