"""Nanoseconds that the flight recorder adds to a collective, printed as JSON.

``python scripts/bench/flight_recorder.py``: starts and waits for all_reduces of a group
whose other ranks do not exist, with and without the recorder, in turns.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from torchtitan_cpp import _C

collectives = _C.collectives


def nanoseconds(group: Any, count: int) -> float:
    """Of one all_reduce and its wait()."""
    tensor = torch.zeros(8)
    started = time.perf_counter_ns()
    for _ in range(count):
        group.all_reduce(tensor).wait()
    return (time.perf_counter_ns() - started) / count


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100_000, help="of one round")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        recorder = collectives.FlightRecorder(
            rank=0, size=2, capacity=20000, run="", path=str(Path(folder) / "0.json")
        )
        plain = collectives.fake_group("dp", rank=0, size=2)
        traced = collectives.traced(plain, recorder, ranks=[0, 1])
        rounds = [
            (nanoseconds(plain, options.count), nanoseconds(traced, options.count))
            for _ in range(options.rounds)
        ]
        started = time.perf_counter()
        recorder.write("")
        seconds = time.perf_counter() - started
    print(
        json.dumps(
            {
                "ns_without": round(statistics.median(one for one, _ in rounds)),
                "ns_with": round(statistics.median(two for _, two in rounds)),
                "ns_added": round(statistics.median(b - a for a, b in rounds)),
                "seconds_to_write_20000_entries": round(seconds, 4),
            }
        )
    )


if __name__ == "__main__":
    main()
