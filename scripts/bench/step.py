#!/usr/bin/env python3
"""Times our training step against torchtitan 0.2.2's own, eager and compiled.

Each run is a process of its own; the sides alternate, and a side's figure is the median
over its runs of the median step. All sides start from the same weights (written by the
first run of ours) and read the same tokens; no time counts unless the losses of the
first five steps agree to 1e-4 relative (``--tolerance``). Peak RSS is that of the whole
process, with the libraries that it loads.

With ``--ranks 2`` (and ``--threads 1``) each side runs under torchrun over Gloo: ours
with its FSDP, the peer with FSDP2 as torchtitan applies it.

The peer needs an environment of its own, with the same torch:

    python -m venv peer && peer/bin/pip install torch==2.13.0 torchtitan==0.2.2 triton
    python scripts/bench/step.py --peer-python peer/bin/python --batch 8 --seq-len 2048

Writes one JSON object to standard output, or to ``--out``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CHECKED_STEPS = 5
SIDES = ("ours", "eager", "compile")


def main() -> int:
    """Run all sides, compare, report; 1 if the losses do not agree."""
    args = _parse()
    sides = args.sides.split(",")
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        for _ in range(args.runs):
            for side in sides:
                runs[side].append(_run(side, weights, args))
    disagreement = _largest_disagreement(runs)
    report: dict[str, Any] = {
        "flavor": args.flavor,
        "batch": args.batch,
        "seq_len": args.seq_len,
        "dtype": args.dtype,
        "ranks": args.ranks,
        "threads": args.threads,
        "largest_relative_loss_difference": disagreement,
        "sides": {side: _summary(results) for side, results in runs.items()},
    }
    agree = disagreement <= args.tolerance
    if agree:
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
    text = json.dumps(report, indent=2)
    if args.out:
        args.out.write_text(text + "\n")
    print(text)
    if not agree:
        print(f"losses differ by {disagreement:g}: no time counts", file=sys.stderr)
    return 0 if agree else 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--peer-python", required=True, help="python of the peer's venv"
    )
    parser.add_argument("--flavor", default="debugmodel")
    parser.add_argument("--batch", type=int, default=8, help="rows of a rank")
    parser.add_argument("--seq-len", type=int, default=2048, help="tokens of a row")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--ranks", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="of a rank")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a run")
    parser.add_argument("--runs", type=int, default=3, help="runs of each side")
    parser.add_argument("--sides", default=",".join(SIDES))
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--out", type=Path, help="also write the JSON here")
    args = parser.parse_args()
    sides = args.sides.split(",")
    if sides[0] != "ours" or not set(sides) <= set(SIDES):
        parser.error(f"--sides: expected ours first, then of {SIDES}, found {sides}")
    return args


def _run(side: str, weights: Path, args: argparse.Namespace) -> dict[str, Any]:
    ours = side == "ours"
    out = weights.with_name("results.json")
    command = [sys.executable if ours else args.peer_python]
    if args.ranks > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command.append(f"--nproc-per-node={args.ranks}")
    command += [str(HERE / ("ours.py" if ours else "peer.py")), str(weights)]
    options = {
        "mode": side,
        "flavor": args.flavor,
        "batch": args.batch,
        "seq_len": args.seq_len,
        "dtype": args.dtype,
        "ranks": args.ranks,
        "threads": args.threads,
        "steps": CHECKED_STEPS + args.steps,
        "out": str(out),
    }
    command.append(json.dumps(options))
    environment = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    subprocess.run(command, env=environment, stdout=sys.stderr, check=True)
    result: dict[str, Any] = json.loads(out.read_text())
    out.unlink()
    return result


def _summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    medians = [
        statistics.median(result["step_seconds"][CHECKED_STEPS:]) for result in results
    ]
    return {
        "step_seconds": statistics.median(medians),
        "of_each_run": medians,
        "start_to_first_step_seconds": statistics.median(
            result["first_step_seconds"] for result in results
        ),
        "peak_rss_mib": statistics.median(result["peak_rss_mib"] for result in results),
        "losses": results[0]["losses"][:CHECKED_STEPS],
    }


def _largest_disagreement(runs: dict[str, list[dict[str, Any]]]) -> float:
    reference: list[float] = runs["ours"][0]["losses"][:CHECKED_STEPS]
    losses: list[list[float]] = [
        result["losses"][:CHECKED_STEPS]
        for results in runs.values()
        for result in results
    ]
    return max(
        abs(loss - expected) / abs(expected)
        for found in losses
        for loss, expected in zip(found, reference, strict=True)
    )


if __name__ == "__main__":
    sys.exit(main())
