"""What both sides of a benchmark share: tokens, timing, and the line of results.

Ranks of fsdp have ``batch`` rows of their own, those of other layouts share them; rank
0 reports.
"""

from __future__ import annotations

import json
import os
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

LEARNING_RATE = 8e-4
SEED = 0
RANK = int(os.environ.get("RANK", "0"))  # set by torchrun


def tokens(options: dict[str, Any], vocab_size: int, step: int) -> torch.Tensor:
    """This rank's [batch, seq_len + 1] int64, the same on every side."""
    generator = torch.Generator().manual_seed(step)
    is_data_parallel = options["layout"] == "fsdp"
    parts = options["ranks"] if is_data_parallel else 1
    shape = (parts, options["batch"], options["seq_len"] + 1)
    # Squared, so that small ids are frequent and the loss can fall.
    ids = (torch.rand(shape, generator=generator) ** 2 * vocab_size).long()
    return ids[RANK if is_data_parallel else 0]


def measure(
    options: dict[str, Any],
    started: float,
    step: Callable[[int], float],
    count: Callable[[Callable[[], object]], dict[str, Any]],
) -> None:
    """Time ``step(index)``, which returns the loss, and write the results as JSON.

    Args:
        options: of runs.py; ``steps`` is how many to run, ``out`` where results go.
        started: ``time.perf_counter()`` at the start of the process.
        step: one training step including the reading of its loss, that of all ranks.
        count: runs what it is given and returns results about its collectives; with
            more than one rank it gets a step of its own behind the others.
    """
    losses, seconds, cpu_seconds = [], [], []
    first = 0.0
    for index in range(options["steps"]):
        begin, cpu_begin = time.perf_counter(), time.process_time()
        losses.append(step(index))
        seconds.append(time.perf_counter() - begin)
        cpu_seconds.append(time.process_time() - cpu_begin)  # of all threads
        if index == 0:
            first = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    counts = count(lambda: step(options["steps"])) if options["ranks"] > 1 else {}
    if RANK > 0:
        return
    results = {
        "losses": losses,
        "step_seconds": seconds,
        "step_cpu_seconds": cpu_seconds,
        "first_step_seconds": first,
        "peak_rss_mib": peak,
        **counts,
    }
    Path(options["out"]).write_text(json.dumps(results))
