"""What a rank exchanges in training steps, and nothing beside them."""

from __future__ import annotations

import pytest
import torch

from torchtitan_cpp.metrics.traffic import StepTraffic
from torchtitan_cpp.parallel import Group, Recorder, make_fake_groups


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def groups(recorder: Recorder) -> dict[str, Group]:
    axes = {name: [(0, 1)] for name in ("fsdp", "tp", "world")}
    return make_fake_groups(axes, rank=0, world_size=2, recorder=recorder)


def exchange(group: Group, numel: int) -> None:
    """float32"""
    group.all_reduce(torch.zeros(numel)).wait()


def test_only_what_lies_in_steps_is_counted(
    recorder: Recorder, groups: dict[str, Group]
) -> None:
    traffic = StepTraffic(recorder)
    for _ in range(2):
        exchange(groups["world"], 1)
        exchange(groups["fsdp"], 1000)  # such as of a validation
        with traffic.measured():
            exchange(groups["fsdp"], 3)
            exchange(groups["fsdp"], 4)
            exchange(groups["tp"], 1)
    metrics = traffic.take()
    assert set(metrics) == {
        f"communication/{axis}/{what}"
        for axis in ("fsdp", "tp")
        for what in ("bytes", "seconds")
    }
    assert metrics["communication/fsdp/bytes"] == 28
    assert metrics["communication/tp/bytes"] == 4
    outside = sum(each.seconds for each in recorder.totals_by_group().values())
    inside = traffic.seconds()
    assert 0 < sum(inside.values()) < outside
    assert metrics["communication/tp/seconds"] == inside["tp"] / 2


def test_means_begin_anew_and_sums_go_on(
    recorder: Recorder, groups: dict[str, Group]
) -> None:
    traffic = StepTraffic(recorder)
    assert traffic.take() == {}
    with traffic.measured():
        exchange(groups["tp"], 5)
    first = traffic.take()
    for numel in (10, 20):
        with traffic.measured():
            exchange(groups["tp"], numel)
    second = traffic.take()
    assert first["communication/tp/bytes"] == 20
    assert second["communication/tp/bytes"] == 60
    assert traffic.take() == {}
    assert traffic.seconds()["tp"] == pytest.approx(
        first["communication/tp/seconds"] + 2 * second["communication/tp/seconds"]
    )


def test_a_step_that_fails_is_not_counted(
    recorder: Recorder, groups: dict[str, Group]
) -> None:
    traffic = StepTraffic(recorder)
    with pytest.raises(RuntimeError), traffic.measured():
        exchange(groups["tp"], 5)
        raise RuntimeError("in the step")
    assert traffic.take() == {}
    assert traffic.seconds() == {}
