"""Starting the sides of a benchmark, and what is made of their results.

Each run is a process of its own (under torchrun with more than one rank). The sides of
step.py and parallel.py are ours.py and peer.py; the options that they read are those of
``options_of``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CHECKED_STEPS = 5
Results = list[dict[str, Any]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of every comparison with the peer."""
    parser.add_argument(
        "--peer-python", required=True, help="python of the peer's venv"
    )
    parser.add_argument("--flavor", default="debugmodel")
    parser.add_argument("--steps", type=int, default=8, help="timed steps of a run")
    parser.add_argument("--runs", type=int, default=3, help="runs of each side")
    parser.add_argument("--tolerance", type=float, default=1e-4)
    parser.add_argument("--out", type=Path, help="also write the JSON here")


def options_of(args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """What a side is told, of the arguments and with defaults for what is not given.

    Args:
        more: ``layout`` is alone, fsdp, tp, cp or pp; ``schedule`` that of pp;
            ``microbatches`` what the rows of a step are divided into.
    """
    return {
        "mode": "eager",
        "flavor": args.flavor,
        "batch": args.batch,
        "seq_len": args.seq_len,
        "dtype": "float32",
        "ranks": 1,
        "threads": args.threads,
        "steps": CHECKED_STEPS + args.steps,
        "layout": "alone",
        "schedule": "",
        "microbatches": 1,
        **more,
    }


def run_side(
    python: str, script: str, weights: Path, options: dict[str, Any], *, copies: int = 1
) -> Results:
    """Run one side once.

    Args:
        copies: how many run at the same time, not knowing of each other.
    Returns:
        What measure.py wrote, of each copy.
    """
    command = [python]
    if options["ranks"] > 1:
        command += ["-m", "torch.distributed.run", "--standalone"]
        command.append(f"--nproc-per-node={options['ranks']}")
    command += [str(HERE / script), str(weights)]
    environment = {**os.environ, "OMP_NUM_THREADS": str(options["threads"])}
    outs = [weights.with_name(f"results{index}.json") for index in range(copies)]
    processes = [
        subprocess.Popen(
            [*command, json.dumps({**options, "out": str(out)})],
            env=environment,
            stdout=sys.stderr,
        )
        for out in outs
    ]
    codes = [process.wait() for process in processes]
    if any(codes):
        raise SystemExit(f"{script}: a run ended with exit code {max(codes, key=abs)}")
    results: Results = [json.loads(out.read_text()) for out in outs]
    for out in outs:
        out.unlink()
    return results


def step_medians(results: Results, of: str = "step_seconds") -> list[float]:
    """Of each run; the first steps do not count."""
    return [statistics.median(result[of][CHECKED_STEPS:]) for result in results]


def summary(results: Results) -> dict[str, Any]:
    """Of all runs of a side."""
    medians = step_medians(results)
    return {
        "step_seconds": statistics.median(medians),
        "of_each_run": medians,
        "step_cpu_seconds": statistics.median(
            step_medians(results, "step_cpu_seconds")
        ),
        "start_to_first_step_seconds": statistics.median(
            result["first_step_seconds"] for result in results
        ),
        "peak_rss_mib": statistics.median(result["peak_rss_mib"] for result in results),
        "losses": results[0]["losses"][:CHECKED_STEPS],
    }


def largest_disagreement(runs: list[Results]) -> float:
    """Of any loss of the first steps from that of the very first run, relative."""
    reference: list[float] = runs[0][0]["losses"][:CHECKED_STEPS]
    losses: list[list[float]] = [
        result["losses"][:CHECKED_STEPS] for results in runs for result in results
    ]
    return max(
        abs(loss - expected) / abs(expected)
        for found in losses
        for loss, expected in zip(found, reference, strict=True)
    )


def write(report: dict[str, Any], args: argparse.Namespace) -> int:
    """Print the report; 1 if the losses do not agree."""
    text = json.dumps(report, indent=2)
    if args.out:
        args.out.write_text(text + "\n")
    print(text)
    disagreement = report["largest_relative_loss_difference"]
    if disagreement <= args.tolerance:
        return 0
    print(f"losses differ by {disagreement:g}: no time counts", file=sys.stderr)
    return 1
