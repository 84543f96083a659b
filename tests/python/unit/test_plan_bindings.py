"""Programs, their proof and their predictions from Python."""

from __future__ import annotations

from typing import Any

import pytest

from torchtitan_cpp import _C


def make_shape(*, shards: int, num_microbatches: int = 1) -> Any:
    """Two segments, each with a group of 8 float32 elements a shard."""
    groups = [
        _C.plan.GroupShape(
            name=f"group{index}",
            numel=8 * shards,
            shard_numel=8,
            shards=shards,
            replicas=1,
            master_bytes=4,
            compute_bytes=4,
            reduce_bytes=4,
            optimizer_bytes=8,
            reshard_after_forward=_C.plan.Reshard.DEFAULT,
            trainable=True,
        )
        for index in range(2)
    ]
    segments = [
        _C.plan.SegmentShape(
            name=f"segment{index}",
            groups=[index],
            forward_flops=100,
            recompute_flops=90,
            backward_flops=200,
            input_bytes=16,
            output_bytes=16,
            saved_bytes=64,
            forward_temporary_bytes=0,
            backward_temporary_bytes=0,
            recompute=False,
        )
        for index in range(2)
    ]
    return _C.plan.StepShape(
        segments=segments, groups=groups, num_microbatches=num_microbatches
    )


def build(shape: Any) -> Any:
    return _C.plan.build_step_program(
        shape,
        prefetch_depth=1,
        reduce_depth=1,
        optimizer=_C.plan.OptimizerTiming.AT_END,
    )


def test_a_built_program_is_printed_and_proved():
    shape = make_shape(shards=1)
    program = build(shape)
    assert [str(action) for action in program] == [
        "CountTokens",
        "Forward s0 mb0",
        "Forward s1 mb0",
        "Wait CountTokens",
        "Backward s1 mb0",
        "Backward s0 mb0",
        "ClipGradient",
        "OptimizerStep",
    ]
    assert (program[1].kind, program[1].segment, program[1].group) == ("Forward", 0, -1)
    _C.plan.verify(program, shape, _C.plan.ProgramKind.TRAINING)
    _C.plan.verify(
        _C.plan.build_forward_program(shape, prefetch_depth=1),
        shape,
        _C.plan.ProgramKind.FORWARD_ONLY,
    )
    _C.plan.verify_agreement([program, program])


def test_a_wrong_program_is_a_value_error_that_names_the_action():
    shape = make_shape(shards=2)
    program = build(shape)
    gather = next(i for i, a in enumerate(program) if str(a) == "Wait Unshard g0")
    del program[gather]
    with pytest.raises(ValueError, match=r"\(Forward s0 mb0\): group 'group0' is not"):
        _C.plan.verify(program, shape, _C.plan.ProgramKind.TRAINING)


def test_traffic_memory_and_time_are_predicted():
    shape = make_shape(shards=2)
    program = build(shape)
    traffic = _C.plan.traffic(program, shape, loss_ranks=2)
    gathers = traffic["fsdp", "all_gather"]
    assert (gathers.calls, gathers.bytes) == (3, 3 * 64)
    memory = _C.plan.estimate_memory(program, shape)
    assert memory.before.total() == 2 * 8 * (4 + 4 + 8)
    assert memory.after.total() == memory.before.total()
    assert max(memory.totals) == memory.peak.total()
    (simulation,) = _C.plan.simulate(
        [program],
        [shape],
        flops_per_second=100.0,
        memory_bytes_per_second=1e9,
        links={"fsdp": (1e9, 0.5), "loss": (1e9, 0.0)},
    )
    assert simulation.compute_seconds == pytest.approx(6.0, abs=1e-5)
    # Only the first gather and the last reduction have nothing to hide behind.
    assert simulation.exposed_seconds == pytest.approx(1.0, abs=1e-5)
    assert len(simulation.spans) == len(program)
