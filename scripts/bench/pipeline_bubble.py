#!/usr/bin/env python3
"""Measures the bubble of every pipeline schedule with stages that sleep.

Each rank is a process that runs the trainer's own step; messages go over Gloo. Forward,
backward of inputs and backward of weights sleep ``--milliseconds`` each; whatever else
a step takes is bubble:

    1 - time slept by all ranks / (ranks * time from the first sleep to the last)

What a step does before and behind its schedule (tokens, the norm) is not in it.

There are three sides, in pipeline_sides.py: ours with stages in C++, ours with stages
in Python, and the peer, which knows no others. The code that a Python stage runs
between two sleeps is a part of its bubble: it finds the caches cold. Measured is the
least of ``--steps``, alternating, since what else the machine does is no bubble. Beside
them stand the published bubble and the one that ``_C.plan.simulate_pipeline`` predicts
for messages that take no time.

    python scripts/bench/pipeline_bubble.py --ranks 2,4,8
    python scripts/bench/pipeline_bubble.py --schedules DualPipeV --timelines .

Writes one JSON object to standard output; with ``--timelines`` also a picture of the
last measured step of ours for each schedule and number of ranks.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from torchtitan_cpp import _C, parallel

sys.path.insert(0, str(Path(__file__).parent))
from pipeline_sides import (
    Clock,
    Diary,
    OurRank,
    cpp_part,
    python_model,
    torch_step,
)

TOLERANCE = 0.03
"""How much more than simulated our bubble may be, as a share of the step."""

OUR_SIDES = ("ours", "ours_python")


def make_schedule(name: str, num_ranks: int, microbatches_per_rank: int) -> Any:
    facts = _C.plan.find_schedule(name)
    return _C.plan.make_schedule(
        name,
        num_ranks=num_ranks,
        stages_per_rank=2 if facts.multi_stage else 1,
        num_microbatches=microbatches_per_rank * num_ranks,
    )


def timed(step: Callable[[], None], diary: Diary) -> tuple[float, float, float]:
    """When the first sleep of a step began here, the last ended, and their sum."""
    dist.barrier()
    diary.reset()
    step()
    return diary.begin, diary.end, diary.busy


def check_work(name: str, side: str, schedule: Any, rank: int, diary: Diary) -> None:
    """All sides must do the same: three works for each stage and microbatch."""
    expected = 3 * schedule.rank_of_stage.count(rank) * schedule.num_microbatches
    if diary.num_works != expected:
        raise RuntimeError(
            f"{name}, {side}: expected {expected} works on rank {rank}, found "
            f"{diary.num_works}"
        )


def run_rank(rank: int, num_ranks: int, store: str, args: Any, results: Any) -> None:
    """Measures all schedules; rank 0 puts the reports into ``results``."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks
    )
    clock = Clock(args.milliseconds / 1e3)
    watch = parallel.Watch(timeout_seconds=600.0)
    own_group: Any = dist.new_group(list(range(num_ranks)))  # beside the peer's
    group = parallel.c10d_group(own_group, name="pp", watch=watch)
    for name in args.schedules:
        schedule = make_schedule(name, num_ranks, args.microbatches_per_rank)
        part, diary = cpp_part(schedule, rank, args.milliseconds)
        ours = OurRank(schedule, rank, group, part=part)
        model = python_model(schedule, rank, clock)
        sides: dict[str, tuple[Callable[[], None], Diary]] = {
            "ours": (ours.step, diary),
            "ours_python": (OurRank(schedule, rank, group, model=model).step, clock),
            "torch": (torch_step(name, schedule, rank, clock), clock),
        }
        bubbles: dict[str, list[float]] = {side: [] for side in sides}
        for index in range(1 + args.steps):  # the first one connects and infers shapes
            for side, (step, diary) in sides.items():
                gathered: list[Any] = [None] * num_ranks
                dist.all_gather_object(gathered, timed(step, diary))
                begins, ends, busy = zip(*gathered, strict=True)
                seconds = max(ends) - min(begins)
                if index > 0:
                    check_work(name, side, schedule, rank, diary)
                    bubbles[side].append(1 - sum(busy) / (num_ranks * seconds))
        actions: list[Any] = [None] * num_ranks
        dist.all_gather_object(actions, ours.actions())
        if rank == 0:
            best = {side: min(shares) for side, shares in bubbles.items()}
            results.append(report(name, schedule, best))
            if args.timelines:
                draw(name, actions, args.timelines)
    watch.close()
    dist.destroy_process_group()


def report(name: str, schedule: Any, measured: dict[str, float]) -> dict[str, Any]:
    size = {
        "num_ranks": schedule.num_ranks,
        "stages_per_rank": schedule.num_stages // schedule.num_ranks,
        "num_microbatches": schedule.num_microbatches,
    }
    cost = _C.plan.StageCost(
        forward_seconds=1.0,
        backward_seconds=2.0,
        backward_input_seconds=1.0,
        backward_weight_seconds=1.0,
    )
    programs = _C.plan.add_transfers(schedule)
    simulated = _C.plan.simulate_pipeline(programs, [cost] * schedule.num_stages).bubble
    return {
        "schedule": name,
        **size,
        "published": _C.plan.find_schedule(name).bubble(**size),
        "simulated": simulated,
        **measured,
        "within_tolerance": {
            side: measured[side] <= simulated + TOLERANCE for side in OUR_SIDES
        },
        "not_worse_than_torch": {
            side: measured[side] <= measured["torch"] for side in OUR_SIDES
        },
    }


def draw(name: str, ranks: list[Any], folder: Path) -> None:
    start = min(begin for actions in ranks for _, begin, _ in actions)
    svg = _C.plan.draw_timeline(
        [[_C.plan.Action(text) for text, _, _ in actions] for actions in ranks],
        [[(begin - start, end - start) for _, begin, end in each] for each in ranks],
        title=f"{name} on {len(ranks)} ranks, measured",
    )
    (folder / f"{name}-{len(ranks)}.svg").write_text(svg)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    known = [facts.name for facts in _C.plan.all_schedules()]
    parser.add_argument("--ranks", default="2,4,8", help="numbers of ranks, by commas")
    parser.add_argument("--schedules", default=",".join(known), help="by commas")
    parser.add_argument("--microbatches-per-rank", type=int, default=2)
    parser.add_argument("--milliseconds", type=float, default=20.0)
    parser.add_argument("--steps", type=int, default=5, help="measured, of each side")
    parser.add_argument("--timelines", type=Path, help="folder for pictures")
    args = parser.parse_args()
    args.schedules = args.schedules.split(",")
    with multiprocessing.Manager() as manager, tempfile.TemporaryDirectory() as folder:
        results = manager.list()
        for num_ranks in (int(ranks) for ranks in args.ranks.split(",")):
            store = f"{folder}/{num_ranks}"
            start: Any = start_processes  # untyped
            start(run_rank, (num_ranks, store, args, results), nprocs=num_ranks)
        print(json.dumps({"milliseconds": args.milliseconds, "runs": list(results)}))


if __name__ == "__main__":
    main()
