"""The orders of our pipeline schedules are those of torch.distributed.pipelining."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from torch.distributed.pipelining.schedules import get_schedule_class

from torchtitan_cpp import _C

NAMES = [facts.name for facts in _C.plan.all_schedules()]


def torch_csv(name: str, *, ranks: int, stages: int, microbatches: int) -> str:
    """The order that torch's schedule of the name prints, without its idle cells."""
    parts: list[Any] = [
        SimpleNamespace(
            stage_index=rank,
            num_stages=ranks * stages,
            group_size=ranks,
            group_rank=0,
            is_last=False,
            submod=None,
        )
        for rank in range(stages)
    ]
    schedule_class: Any = get_schedule_class(name)
    schedule = schedule_class(parts if stages > 1 else parts[0], microbatches)
    rows = [
        [str(cell) for cell in schedule.pipeline_order[rank] if cell is not None]
        for rank in range(ranks)
    ]
    if name == "1F1B":
        # Torch runs this order but draws the last rank's forwards from 1 to m.
        rows[-1] = [
            f"{ranks - 1}{work}{m}" for m in range(microbatches) for work in "FB"
        ]
    return "".join(
        ",".join(cell for cell in row if "REDUCE" not in cell) + "\n" for row in rows
    )


def sizes(name: str) -> list[tuple[int, int, int]]:
    """Ranks, stages per rank, microbatches that torch takes and that it pipelines."""
    facts = _C.plan.find_schedule(name)
    stages = [facts.stages_per_rank] if facts.stages_per_rank else [2, 3]
    least = {"1F1B": 1, "DualPipeV": 2}.get(name, 0)  # microbatches for each rank
    return [
        (p, v, m)
        for p in (2, 3, 4, 8)
        for v in stages
        for m in (1, p - 1, p, p + 1, 2 * p - 1, 2 * p, 3 * p, 4 * p + 2, 32)
        if m >= max(1, least * p)
    ]


@pytest.mark.parametrize("name", NAMES)
def test_orders_are_those_of_torch(name: str):
    compared = 0
    for ranks, stages, microbatches in sizes(name):
        try:
            expected = torch_csv(
                name, ranks=ranks, stages=stages, microbatches=microbatches
            )
        except ValueError:  # microbatches that it cannot divide into rounds
            assert microbatches % max(1, microbatches // ranks) != 0
            continue
        ours = _C.plan.make_schedule(
            name,
            num_ranks=ranks,
            stages_per_rank=stages,
            num_microbatches=microbatches,
        )
        assert ours.to_csv() == expected, (ranks, stages, microbatches)
        assert _C.plan.parse_schedule_csv(expected) == ours
        compared += 1
    assert compared > 10


def schedule(name: str, *, ranks: int, stages: int, microbatches: int) -> Any:
    return _C.plan.make_schedule(
        name, num_ranks=ranks, stages_per_rank=stages, num_microbatches=microbatches
    )


def test_facts_are_told_by_name():
    facts = _C.plan.find_schedule("dualpipev")
    assert facts.name == "DualPipeV"
    assert facts.multi_stage and facts.v_shaped and facts.overlaps
    assert facts.stages_per_rank == 2
    assert (
        facts.live_bound(num_ranks=4, stages_per_rank=2, num_microbatches=16, rank=0)
        == 9
    )
    assert _C.plan.find_schedule("gpipe").bubble(
        num_ranks=4, stages_per_rank=1, num_microbatches=9
    ) == pytest.approx(3 / 12)


def test_sizes_that_a_schedule_does_not_take_are_value_errors():
    with pytest.raises(ValueError, match="takes exactly 2 stages per rank"):
        schedule("ZBVZeroBubble", ranks=4, stages=3, microbatches=8)
    with pytest.raises(ValueError, match="expected one of 1F1B, GPipe"):
        _C.plan.find_schedule("2F2B")
    with pytest.raises(ValueError, match="row 1, column 2: .* found '0SEND_F0'"):
        _C.plan.parse_schedule_csv("0F0,0SEND_F0,0B0")


def test_transfers_join_the_stages_of_a_schedule():
    programs = _C.plan.add_transfers(
        schedule("1F1B", ranks=2, stages=1, microbatches=1)
    )
    assert [str(action) for action in programs[1]] == [
        "ReceiveActivation st1 mb0",
        "Wait ReceiveActivation st1 mb0",
        "Forward st1 mb0",
        "Backward st1 mb0",
        "SendGradient st1 mb0",
        "Wait SendGradient st1 mb0",
    ]
    wait = programs[1][1]
    assert (wait.kind, wait.waits_for, wait.stage) == ("Wait", "ReceiveActivation", 1)
    assert programs[1][2].waits_for is None


def test_pairs_that_run_together_are_marked():
    programs = _C.plan.add_transfers(
        schedule("DualPipeV", ranks=2, stages=2, microbatches=4)
    )
    for program in programs:
        pairs = [i for i, action in enumerate(program) if action.overlaps_next]
        assert pairs
        assert all(program[i].kind == "Forward" for i in pairs)
        assert all(program[i + 1].kind == "Backward" for i in pairs)


def test_validation_runs_the_forwards_alone():
    training = schedule("Interleaved1F1B", ranks=2, stages=2, microbatches=2)
    assert training.num_ranks == 2
    assert training.num_stages == 4
    assert training.rank_of_stage == [0, 1, 0, 1]
    assert training.forward_only().to_csv() == "0F0,0F1,2F0,2F1\n1F0,1F1,3F0,3F1\n"


def programs_of(name: str, *, ranks: int, stages: int, microbatches: int) -> Any:
    return _C.plan.add_transfers(
        schedule(name, ranks=ranks, stages=stages, microbatches=microbatches)
    )


def test_programs_are_proved_and_a_wrong_action_is_named():
    programs = programs_of("1F1B", ranks=2, stages=1, microbatches=2)
    shape: dict[str, Any] = {
        "rank_of_stage": [0, 1],
        "num_microbatches": 2,
        "kind": _C.plan.ProgramKind.TRAINING,
    }
    _C.plan.verify_pipeline(programs, **shape, live_bounds=[2, 1])
    with pytest.raises(
        ValueError, match=r"rank 0, action \d+ \(Forward st0 mb1\): has 2"
    ):
        _C.plan.verify_pipeline(programs, **shape, live_bounds=[1, 1])
    with pytest.raises(
        ValueError, match=r"rank 1, action 1 \(Forward st1 mb0\): needs"
    ):
        _C.plan.verify_pipeline(
            [programs[0], programs[1][:1] + programs[1][2:]], **shape
        )


def test_times_are_predicted():
    programs = programs_of("1F1B", ranks=4, stages=1, microbatches=8)
    cost = _C.plan.StageCost(
        forward_seconds=1.0,
        backward_seconds=2.0,
        backward_input_seconds=1.0,
        backward_weight_seconds=1.0,
        output_bytes=8.0,
    )
    free = _C.plan.simulate_pipeline(programs, [cost] * 4)
    assert free.seconds == 33.0
    assert free.bubble == pytest.approx(3 / 11)
    assert [rank.peak_live for rank in free.ranks] == [4, 3, 2, 1]
    assert free.ranks[3].first_begin == 3.0
    assert free.ranks[3].last_end == 27.0
    assert free.ranks[3].idle_share == 0.0
    assert [len(spans) for spans in free.spans] == [len(p) for p in programs]
    slow = _C.plan.simulate_pipeline(programs, [cost] * 4, link=(8.0, 0.0))
    assert slow.seconds > 33.0
