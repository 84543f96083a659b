#!/usr/bin/env python3
"""Measures what ``import torchtitan_cpp`` takes beyond ``import torch``.

    python scripts/bench/import_time.py [--runs 5]

Prints one JSON object; times are seconds, each from a process of its own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys

PROGRAM = """
import json, time
start = time.perf_counter()
import torch
middle = time.perf_counter()
import torchtitan_cpp
print(json.dumps([middle - start, time.perf_counter() - middle]))
"""


def measure() -> tuple[float, float]:
    """Seconds of ``import torch`` and, after it, of ``import torchtitan_cpp``."""
    output = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True
    ).stdout
    torch_seconds, package_seconds = json.loads(output.splitlines()[-1])
    return torch_seconds, package_seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--runs", type=int, default=5, help="processes to start")
    runs: int = parser.parse_args().runs
    torch_seconds, package_seconds = zip(*(measure() for _ in range(runs)), strict=True)
    report = {
        "import_torch_seconds": statistics.median(torch_seconds),
        "import_torchtitan_cpp_seconds": statistics.median(package_seconds),
        "worst_import_torchtitan_cpp_seconds": max(package_seconds),
        "runs": runs,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
