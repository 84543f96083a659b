#!/usr/bin/env python3
"""Times our training step against torchtitan 0.2.2's own, eager and compiled.

Each run is a process of its own; the sides alternate, and a side's figure is the median
over its runs of the median step. All sides start from the same weights (written by the
first run of ours) and read the same tokens; no time counts unless the losses of the
first five steps agree to 1e-4 relative (``--tolerance``). Peak RSS is that of the whole
process, with the libraries that it loads.

With ``--ranks 2`` (and ``--threads 1``) each side runs under torchrun over Gloo: ours
with its FSDP, the peer with FSDP2 as torchtitan applies it. For other layouts, and for
what they add to a step, see parallel.py.

The peer needs an environment of its own, with the same torch:

    python -m venv peer && peer/bin/pip install torch==2.13.0 torchtitan==0.2.2 triton
    python scripts/bench/step.py --peer-python peer/bin/python --batch 8 --seq-len 2048

Writes one JSON object to standard output, or to ``--out``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from runs import (
    Results,
    add_arguments,
    largest_disagreement,
    options_of,
    run_side,
    summary,
    write,
)

SIDES = ("ours", "eager", "compile")


def main() -> int:
    """Run all sides, compare, report; 1 if the losses do not agree."""
    args = _parse()
    sides = args.sides.split(",")
    runs: dict[str, Results] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        for _ in range(args.runs):
            for side in sides:
                runs[side] += _run(side, weights, args)
    disagreement = largest_disagreement(list(runs.values()))
    report: dict[str, Any] = {
        "flavor": args.flavor,
        "batch": args.batch,
        "seq_len": args.seq_len,
        "dtype": args.dtype,
        "ranks": args.ranks,
        "threads": args.threads,
        "largest_relative_loss_difference": disagreement,
        "sides": {side: summary(results) for side, results in runs.items()},
    }
    if disagreement <= args.tolerance:
        ours = report["sides"]["ours"]
        report["ours_against"] = {
            side: {
                "speedup": report["sides"][side]["step_seconds"] / ours["step_seconds"],
                "peak_rss": ours["peak_rss_mib"]
                / report["sides"][side]["peak_rss_mib"],
            }
            for side in sides
            if side != "ours"
        }
    return write(report, args)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--batch", type=int, default=8, help="rows of a rank")
    parser.add_argument("--seq-len", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="of a rank")
    parser.add_argument("--sides", default=",".join(SIDES))
    args = parser.parse_args()
    sides = args.sides.split(",")
    if sides[0] != "ours" or not set(sides) <= set(SIDES):
        parser.error(f"--sides: expected ours first, then of {SIDES}, found {sides}")
    return args


def _run(side: str, weights: Path, args: argparse.Namespace) -> Results:
    options = options_of(
        args,
        mode=side,
        dtype=args.dtype,
        ranks=args.ranks,
        layout="fsdp" if args.ranks > 1 else "alone",
    )
    if side == "ours":
        return run_side(sys.executable, "ours.py", weights, options)
    return run_side(args.peer_python, "peer.py", weights, options)


if __name__ == "__main__":
    sys.exit(main())
