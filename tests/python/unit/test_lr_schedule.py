"""Learning rates against hand-computed tables and torch's LambdaLR."""

from __future__ import annotations

import logging
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from torchtitan_cpp.logging import logger
from torchtitan_cpp.lr_schedule import (
    LRSchedule,
    build_lr_schedulers,
    lr_factor,
    resolve_lr_schedule,
)


def section(**changes: Any) -> SimpleNamespace:
    values: dict[str, Any] = {
        "warmup_steps": 2,
        "total_steps": None,
        "decay_ratio": None,
        "decay_type": "linear",
        "min_lr_factor": 0.0,
    }
    return SimpleNamespace(**(values | changes))


def factors(training_steps: int, count: int, **changes: Any) -> list[float]:
    schedule = resolve_lr_schedule(section(**changes), training_steps)
    return [lr_factor(step, schedule) for step in range(count)]


def test_linear_decay_follows_the_table() -> None:
    # 2 warmup steps, 1 stable one (the virtual last step), 8 decay steps.
    expected = [1 / 2, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8, 0]
    assert factors(10, 11) == pytest.approx(expected, abs=1e-15)


def test_decay_ratio_leaves_a_stable_phase() -> None:
    expected = [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]
    assert factors(10, 10, decay_ratio=0.4) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("decay_type", "expected"),
    [
        ("linear", [0.75, 0.5, 0.25]),
        ("sqrt", [1 - math.sqrt(0.25), 1 - math.sqrt(0.5), 1 - math.sqrt(0.75)]),
        ("cosine", [0.8535533905932737, 0.5, 0.14644660940672627]),
    ],
)
def test_decay_shapes_scale_to_the_floor(
    decay_type: str, expected: list[float]
) -> None:
    found = factors(10, 10, decay_ratio=0.4, decay_type=decay_type, min_lr_factor=0.1)[
        7:
    ]
    assert found == pytest.approx([0.1 + 0.9 * each for each in expected], abs=1e-15)


def test_total_steps_takes_the_place_of_training_steps() -> None:
    assert factors(3, 10, total_steps=10) == factors(10, 10)


@pytest.mark.parametrize("decay_type", ["linear", "sqrt", "cosine"])
def test_stays_at_the_floor_after_the_end(decay_type: str) -> None:
    late = factors(40, 40, total_steps=10, decay_type=decay_type, min_lr_factor=0.2)
    assert late[10:] == pytest.approx([0.2] * 30, abs=1e-15)


def test_without_decay_the_peak_is_held() -> None:
    assert factors(4, 9, decay_ratio=0.0) == [0.5] + [1.0] * 8


def test_equals_torchs_lambda_lr_with_the_published_formula() -> None:
    warmup, total, ratio, floor = 7, 53, 0.6, 0.05
    decay = round(total * ratio)
    full = total + 1 - decay

    def published(step: int) -> float:
        if step < warmup:
            return float((step + 1) / warmup)
        if step < full:
            return 1.0
        progress = float(step + 1 - full) / decay
        return floor + (1 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))

    ours = torch.optim.SGD([torch.zeros(1)], lr=3e-4)
    theirs = torch.optim.SGD([torch.zeros(1)], lr=3e-4)
    reference = torch.optim.lr_scheduler.LambdaLR(theirs, published)
    schedulers = build_lr_schedulers(
        [ours],
        section(
            warmup_steps=warmup,
            decay_ratio=ratio,
            decay_type="cosine",
            min_lr_factor=floor,
        ),
        total,
    )
    for _ in range(total):
        assert schedulers.schedulers[0].get_last_lr() == reference.get_last_lr()
        assert ours.param_groups[0]["lr"] == theirs.param_groups[0]["lr"]
        theirs.step()
        schedulers.step()
        reference.step()


def test_resumed_schedule_has_the_rates_of_the_uninterrupted_one() -> None:
    def build() -> Any:
        optimizers = [torch.optim.SGD([torch.zeros(1)], lr=lr) for lr in (1e-3, 5e-4)]
        return build_lr_schedulers(optimizers, section(), 10)

    whole, resumed = build(), build()
    for _ in range(6):
        whole.step()
    resumed.load_state_dict(whole.state_dict())
    assert whole.state_dict() == {"last_epoch": 6}
    for ours, theirs in zip(resumed, whole, strict=True):
        assert ours.get_last_lr() == theirs.get_last_lr()
        assert ours.optimizer.param_groups[0]["lr"] == theirs.get_last_lr()[0]
    assert resumed.schedulers[0].get_last_lr() == [1e-3 * 0.5]
    assert len(resumed) == 2


def test_a_tensor_learning_rate_is_filled_in_place() -> None:
    rate = torch.tensor(1e-3)
    optimizer = torch.optim.AdamW([torch.zeros(1)], lr=rate, capturable=True)
    build_lr_schedulers([optimizer], section(), 10)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == pytest.approx(5e-4)


@pytest.fixture
def warnings_logged(
    caplog: pytest.LogCaptureFixture,
) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, logger=logger.name)
    return caplog


def test_warmup_longer_than_the_run_is_shortened(
    warnings_logged: pytest.LogCaptureFixture,
) -> None:
    assert factors(4, 4, warmup_steps=200) == [0.25, 0.5, 0.75, 1.0]
    assert warnings_logged.messages == [
        "Warmup steps (200) exceed total steps (4). Adjusting warmup steps to 4."
    ]


def test_decay_that_overlaps_warmup_is_shortened(
    warnings_logged: pytest.LogCaptureFixture,
) -> None:
    schedule = resolve_lr_schedule(section(warmup_steps=4, decay_ratio=0.8), 10)
    assert (schedule.decay_steps, schedule.stable_steps) == (6, 1)
    assert warnings_logged.messages == [
        "Warmup (4) + decay (8) steps exceed total steps (10). "
        "Adjusting decay steps to 6."
    ]


def test_refuses_an_unknown_decay_type() -> None:
    with pytest.raises(ValueError, match="linear, sqrt, cosine, but found 'step'"):
        resolve_lr_schedule(section(decay_type="step"), 10)


def test_refuses_a_negative_step() -> None:
    with pytest.raises(ValueError, match="found -1"):
        lr_factor(-1, LRSchedule(warmup_steps=1, decay_steps=1, total_steps=2))


def test_refuses_no_optimizer() -> None:
    with pytest.raises(ValueError, match="at least one optimizer"):
        build_lr_schedulers([], section(), 10)
