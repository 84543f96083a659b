"""The weighting of a validation and its agreement between ranks."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from torchtitan_cpp.validation import BaseValidator, Validator, build_validator

IGNORED = -100


def config(steps: int = -1, freq: int = 10) -> Any:
    section = SimpleNamespace(freq=freq, steps=steps, local_batch_size=2, seq_len=3)
    return SimpleNamespace(validation=section)


class FakeMetrics:
    """Keeps what a validator reports."""

    def __init__(self) -> None:
        self.ntokens_since_last_log = 0
        self.reported: list[tuple[float, int]] = []
        self.is_validating = False

    @contextmanager
    def validating(self) -> Iterator[None]:
        self.is_validating = True
        yield
        self.is_validating = False

    def log_validation(self, loss: float, step: int, extra_metrics: Any = None) -> None:
        assert self.is_validating
        self.reported.append((loss, step))


def batch(*labels: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """One sequence; its loss sum in these tests is the sum of its valid labels."""
    row = torch.tensor([labels])
    return {"input": torch.zeros_like(row)}, row


def evaluate(
    inputs: dict[str, torch.Tensor], labels: torch.Tensor
) -> tuple[float, float]:
    assert inputs["input"].shape == labels.shape
    assert not torch.is_grad_enabled()
    valid = labels != IGNORED
    return float(labels[valid].sum()), float(valid.sum())


def alone(numbers: list[float]) -> list[float]:
    return numbers


class ThreadGroup:
    """Sums over ranks that are threads; ends a test that would wait for ever."""

    def __init__(self, size: int) -> None:
        self._barrier = threading.Barrier(size, timeout=10)
        self._parts: list[list[float]] = [[] for _ in range(size)]

    def reduce(self, rank: int, numbers: list[float]) -> list[float]:
        self._parts[rank] = numbers
        self._barrier.wait()
        total = [sum(column) for column in zip(*self._parts, strict=True)]
        self._barrier.wait()
        return total


def validate_on_ranks(
    shards: list[list[Any]], steps: int = -1
) -> tuple[list[float], list[int], list[FakeMetrics]]:
    """Losses, numbers of evaluated batches, and reports of every rank."""
    group = ThreadGroup(len(shards))
    reports = [FakeMetrics() for _ in shards]
    losses = [float("nan")] * len(shards)
    counts = [0] * len(shards)

    def run(rank: int) -> None:
        def count_and_evaluate(inputs: Any, labels: Any) -> tuple[float, float]:
            counts[rank] += 1
            # A forward under sharding is a collective too: all ranks must be here.
            group.reduce(rank, [0.0])
            return evaluate(inputs, labels)

        validator = build(config(steps), len(shards), rank, reports[rank])
        validator.bind(
            evaluate=count_and_evaluate,
            reduce=lambda numbers: group.reduce(rank, numbers),
            dataloader=shards[rank],
        )
        losses[rank] = validator.validate([], step=7)

    threads = [
        threading.Thread(target=run, args=(rank,), daemon=True)
        for rank in range(len(shards))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return losses, counts, reports


def build(job: Any, world: int, rank: int, metrics: FakeMetrics) -> Validator:
    return build_validator(
        job_config=job,
        dp_world_size=world,
        dp_rank=rank,
        tokenizer=None,
        parallel_dims=None,
        loss_fn=None,
        validation_context=None,
        maybe_enable_amp=None,
        metrics_processor=metrics,
    )


def test_every_valid_token_weighs_the_same() -> None:
    metrics = FakeMetrics()
    validator = build(config(), 1, 0, metrics)
    shard = [batch(1, 2, 3, 4), batch(10, IGNORED, IGNORED, IGNORED)]
    validator.bind(evaluate=evaluate, reduce=alone, dataloader=shard)
    # The mean of batch means would be (2.5 + 10) / 2.
    assert validator.validate([], step=3) == 20 / 5
    assert metrics.reported == [(4.0, 3)]
    assert metrics.ntokens_since_last_log == 8


def test_uneven_shards_end_together_and_use_all_data() -> None:
    shards = [
        [batch(1, 2)],
        [batch(3, 4), batch(5, 6), batch(7, IGNORED)],
        [],
    ]
    losses, counts, reports = validate_on_ranks(shards)
    assert losses == [28 / 7] * 3
    assert counts == [3, 3, 3]
    assert [each.reported for each in reports] == [[(4.0, 7)]] * 3
    assert [each.ntokens_since_last_log for each in reports] == [2, 6, 0]


def test_stops_after_its_steps() -> None:
    shards = [[batch(rank + 1, step) for step in range(5)] for rank in range(2)]
    losses, counts, _ = validate_on_ranks(shards, steps=2)
    assert counts == [2, 2]
    assert losses == [(1 + 0 + 1 + 1 + 2 + 0 + 2 + 1) / 8] * 2


def test_data_that_ends_early_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    validator = build(config(steps=4), 1, 0, FakeMetrics())
    validator.bind(evaluate=evaluate, reduce=alone, dataloader=[batch(6)])
    with caplog.at_level("WARNING", logger="torchtitan_cpp"):
        assert validator.validate([], step=1) == 6.0
    assert caplog.messages == ["Validation data ended after 1 of 4 steps"]


class CountingLoader:
    """Goes on where it stopped, as a stateful loader does."""

    def __init__(self) -> None:
        self.position = 5

    def __iter__(self) -> Iterator[Any]:
        while True:
            self.position += 1
            yield batch(self.position)

    def state_dict(self) -> dict[str, int]:
        return {"position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.position = state["position"]


def test_every_validation_reads_the_same_batches() -> None:
    validator = build(config(steps=3), 1, 0, FakeMetrics())
    validator.bind(evaluate=evaluate, reduce=alone, dataloader=CountingLoader())
    assert validator.validate([], step=1) == 7.0
    assert validator.validate([], step=2) == 7.0


def test_modules_are_in_evaluation_mode_meanwhile() -> None:
    parts = [torch.nn.Dropout(), torch.nn.Dropout().eval(), object()]
    seen: list[bool] = []

    def watch(inputs: Any, labels: Any) -> tuple[float, float]:
        seen.extend(part.training for part in parts[:2])
        return 1.0, 1.0

    validator = build(config(), 1, 0, FakeMetrics())
    validator.bind(evaluate=watch, reduce=alone, dataloader=[batch(1)])
    validator.validate(parts, step=1)
    assert seen == [False, False]
    assert [part.training for part in parts[:2]] == [True, False]


def test_validates_after_the_first_step_and_by_frequency() -> None:
    validator = BaseValidator(config(freq=5))
    assert [s for s in range(1, 12) if validator.should_validate(s)] == [1, 5, 10]


def test_refuses_data_without_a_valid_token() -> None:
    validator = build(config(), 1, 0, FakeMetrics())
    validator.bind(evaluate=evaluate, reduce=alone, dataloader=[batch(IGNORED)])
    with pytest.raises(ValueError, match="no rank found a valid token"):
        validator.validate([], step=1)


def test_refuses_to_run_unbound() -> None:
    with pytest.raises(RuntimeError, match="expected a call of bind before"):
        build(config(), 1, 0, FakeMetrics()).validate([], step=1)


@pytest.mark.parametrize("steps", [0, -2])
def test_refuses_a_number_of_steps_without_meaning(steps: int) -> None:
    with pytest.raises(ValueError, match=f"-1 for all data, but found {steps}"):
        build(config(steps=steps), 1, 0, FakeMetrics())
