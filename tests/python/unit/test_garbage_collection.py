"""When Python's garbage is collected, and what the debug mode reports."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator

import pytest
import torch

from torchtitan_cpp.garbage_collection import GarbageCollection
from torchtitan_cpp.logging import logger


@pytest.fixture(autouse=True)
def messages(
    caplog: pytest.LogCaptureFixture,
) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, logger=logger.name):
        yield caplog
    gc.enable()


def test_collects_at_multiples_of_its_frequency(
    messages: pytest.LogCaptureFixture,
) -> None:
    collection = GarbageCollection(gc_freq=5)
    assert not gc.isenabled()
    steps = []
    for step in range(1, 13):
        before = len(messages.messages)
        collection.run(step)
        if len(messages.messages) > before:
            steps.append(step)
    assert messages.messages[0].startswith("[GC] Initial GC collection took ")
    assert messages.messages[1].startswith("[GC] Performing periodic GC collection")
    assert steps == [5, 10]


def test_every_step_is_not_the_first_one(messages: pytest.LogCaptureFixture) -> None:
    collection = GarbageCollection(gc_freq=1)
    collection.run(1)
    assert len(messages.messages) == 1
    collection.run(2)
    assert len(messages.messages) == 2


def test_closing_gives_collecting_back() -> None:
    GarbageCollection().close()
    assert gc.isenabled()
    gc.disable()
    GarbageCollection().close()
    assert not gc.isenabled()


def test_debug_mode_reports_tensors_in_cycles_and_frees_them(
    messages: pytest.LogCaptureFixture,
) -> None:
    collection = GarbageCollection(debug=True)
    collection.run(1)
    cycle: list[object] = [torch.zeros(1000)]
    cycle.append(cycle)
    del cycle
    collection.run(2)
    assert "[GC] step 2: " in messages.messages[-1]
    assert "among them 1 tensors of 4000 bytes" in messages.messages[-1]
    collection.run(3)
    assert "among them 0 tensors of 0 bytes" in messages.messages[-1]
    assert gc.garbage == []
    assert gc.get_debug() == 0


def test_refuses_a_frequency_of_zero() -> None:
    with pytest.raises(ValueError, match="training.gc_freq: .* but found 0"):
        GarbageCollection(gc_freq=0)
