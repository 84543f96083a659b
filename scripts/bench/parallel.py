#!/usr/bin/env python3
"""Times a parallelism on two ranks of one thread over Gloo, against torch's own.

The peer is torchtitan 0.2.2's Transformer with what torchtitan applies: DTensor tensor
and sequence parallelism with loss parallel, ``torch.distributed.pipelining``, FSDP2.
Ranks of tp, cp and pp share ``--batch`` rows, those of fsdp have as many each; pp
divides them into microbatches of one row. How the sides alternate, and when a time
counts, is as in step.py, which also says how to make the peer's environment.

    python scripts/bench/parallel.py --case tp --peer-python peer/bin/python

Three things are compared:

* the seconds of a step;
* the calls of collectives and messages in a step, of rank 0, on our side as the
  recording groups count them, on the peer's as torch dispatches them;
* the seconds that the parallelism adds: the step less what the ranks compute. The
  latter is half of a step of one rank with all the work (for fsdp, with its own rows:
  all of it), timed with one such process on every core.

torch 2.13 has no context parallelism for a CPU (its attention there has no sharding
strategy). In its place ``cp`` has half of the peer's step on one rank: less than any
context parallelism of it could take.

Writes one JSON object to standard output, or to ``--out``.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runs import (
    Results,
    add_arguments,
    largest_disagreement,
    options_of,
    run_side,
    step_medians,
    summary,
    write,
)

RANKS = 2
TARGET = 0.85
"""Our step by the peer's, at most."""


@dataclass(frozen=True, kw_only=True)
class Case:
    layout: str
    schedule: str = ""
    peer_has_it: bool = True

    @property
    def work_of_rank(self) -> float:
        """What a rank computes, by what one rank computes alone."""
        return 1.0 if self.layout == "fsdp" else 1 / RANKS


CASES = {
    "fsdp": Case(layout="fsdp"),
    "tp": Case(layout="tp"),
    "cp": Case(layout="cp", peer_has_it=False),
    "pp_1f1b": Case(layout="pp", schedule="1F1B"),
    "pp_interleaved": Case(layout="pp", schedule="Interleaved1F1B"),
}


def main() -> int:
    """Run all sides, compare, report; 1 if the losses do not agree."""
    args = _parse()
    case = CASES[args.case]
    runs: dict[tuple[str, str], Results] = {
        (side, layout): []
        for side in ("ours", "eager")
        for layout in ("alone", case.layout)
        if layout == "alone" or side == "ours" or case.peer_has_it
    }
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / "weights.safetensors"
        # Two of the runs that follow would write at once.
        run_side(sys.executable, "ours.py", weights, options_of(args, steps=0))
        for _ in range(args.runs):
            for side, layout in runs:
                runs[side, layout] += _run(side, layout, case, weights, args)
    return write(_report(case, runs, args), args)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--case", required=True, choices=CASES)
    parser.add_argument("--batch", type=int, default=4, help="rows")
    parser.add_argument("--seq-len", type=int, default=1024, help="tokens of a row")
    parser.add_argument("--threads", type=int, default=1, help="of a rank")
    return parser.parse_args()


def _run(
    side: str, layout: str, case: Case, weights: Path, args: argparse.Namespace
) -> Results:
    alone = layout == "alone"
    options = options_of(
        args,
        ranks=1 if alone else RANKS,
        layout=layout,
        schedule=case.schedule,
        microbatches=args.batch if case.layout == "pp" else 1,
    )
    ours = side == "ours"
    return run_side(
        sys.executable if ours else args.peer_python,
        "ours.py" if ours else "peer.py",
        weights,
        options,
        copies=RANKS if alone else 1,
    )


def _report(
    case: Case, runs: dict[tuple[str, str], Results], args: argparse.Namespace
) -> dict[str, Any]:
    # Ranks of fsdp have more rows together than one of them alone.
    alike = [
        [
            results
            for (_, layout), results in runs.items()
            if (layout == "alone") == alone
        ]
        for alone in (True, False)
    ]
    if case.layout != "fsdp":
        alike = [alike[0] + alike[1]]
    disagreement = max(map(largest_disagreement, alike))
    report: dict[str, Any] = {
        "case": args.case,
        "flavor": args.flavor,
        "batch": args.batch,
        "seq_len": args.seq_len,
        "ranks": RANKS,
        "threads": args.threads,
        "largest_relative_loss_difference": disagreement,
        "sides": {
            side: _side(case, runs[side, "alone"], runs.get((side, case.layout)))
            for side in ("ours", "eager")
        },
    }
    if disagreement <= args.tolerance:
        report["comparison"] = _comparison(case, **report["sides"])
    return report


def _side(case: Case, alone: Results, parallel: Results | None) -> dict[str, Any]:
    compute = statistics.median(step_medians(alone)) * case.work_of_rank
    side: dict[str, Any] = {
        "compute_seconds": compute,
        "one_rank_of_each_run": step_medians(alone),
        "one_rank_cpu_seconds": statistics.median(
            step_medians(alone, "step_cpu_seconds")
        ),
    }
    if parallel is not None:
        side |= summary(parallel)
        side["added_seconds"] = side["step_seconds"] - compute
        side["calls"] = parallel[0]["calls"]
        side["total_calls"] = sum(side["calls"].values())
        side["seconds_in_calls"] = parallel[0].get("seconds_in_calls")
    return side


def _comparison(
    case: Case, *, ours: dict[str, Any], eager: dict[str, Any]
) -> dict[str, Any]:
    if not case.peer_has_it:
        ratio = ours["step_seconds"] / eager["compute_seconds"]
        return {
            "step_ratio_to_half_of_one_rank": ratio,
            "step_is_fast_enough": ratio <= TARGET,
        }
    ratio = ours["step_seconds"] / eager["step_seconds"]
    return {
        "step_ratio": ratio,
        "step_is_fast_enough": ratio <= TARGET,
        "not_more_calls": ours["total_calls"] <= eager["total_calls"],
        "not_more_added": ours["added_seconds"] <= eager["added_seconds"],
    }


if __name__ == "__main__":
    sys.exit(main())
