"""What both sides of a benchmark share: tokens, timing, and the line of results."""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable
from typing import Any

import torch

LEARNING_RATE = 8e-4
SEED = 0


def tokens(options: dict[str, Any], vocab_size: int, step: int) -> torch.Tensor:
    """[batch, seq_len + 1] int64, the same on every side."""
    generator = torch.Generator().manual_seed(step)
    shape = (options["batch"], options["seq_len"] + 1)
    # Squared, so that small ids are frequent and the loss can fall.
    return (torch.rand(shape, generator=generator) ** 2 * vocab_size).long()


def measure(
    options: dict[str, Any], started: float, step: Callable[[int], float]
) -> None:
    """Time ``step(index)``, which returns the loss, and print the results as JSON.

    Args:
        options: of step.py; ``steps`` is how many to run.
        started: ``time.perf_counter()`` at the start of the process.
        step: one training step including the reading of its loss.
    """
    losses, seconds = [], []
    first = 0.0
    for index in range(options["steps"]):
        begin = time.perf_counter()
        losses.append(step(index))
        seconds.append(time.perf_counter() - begin)
        if index == 0:
            first = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        json.dumps(
            {
                "losses": losses,
                "step_seconds": seconds,
                "first_step_seconds": first,
                "peak_rss_mib": peak,
            }
        )
    )
