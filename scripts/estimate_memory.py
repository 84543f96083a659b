#!/usr/bin/env python3
"""Predicts the memory that a rank of a training needs, without starting ranks.

    NGPU=64 scripts/estimate_memory.py --model.flavor 8B --capacity_gib 80
    CONFIG_FILE=run.toml NGPU=8 NNODES=4 scripts/estimate_memory.py

The step is laid out on meta tensors and its program is run on paper: what tensors take
between steps and at the peak, by their use and in each segment. Any product of
parallelisms will do; a pipeline is predicted for each of its ranks.

Variables, as in torchtitan's run_memory_estimation.sh:
  NGPU         ranks of a machine (default 8)
  NNODES       machines (default 1)
  CONFIG_FILE  TOML file of the job; default: the debug job in the package
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence

import torch

from torchtitan_cpp.config import ConfigError, JobConfig, check_run, read_config
from torchtitan_cpp.custom_import import import_custom_code
from torchtitan_cpp.metrics.summary import describe_mesh
from torchtitan_cpp.misfits import known_names, model_misfits
from torchtitan_cpp.plan import Plan, make_plan
from torchtitan_cpp.plan.report import memory_lines
from torchtitan_cpp.world import build_fake_world, ranks_of_pipeline

MIB, GIB = 2**20, 2**30
ENABLE = ("--memory_estimation.enable", "--memory-estimation.enable")


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, check, predict, print; the exit code."""
    flags = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="estimate_memory.py",
        usage="%(prog)s [--capacity_gib N] [flags of torchtitan_cpp.train]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--capacity_gib",
        "--capacity-gib",
        type=float,
        help="memory of a device; default: of this machine's CUDA device, if any",
    )
    own, others = parser.parse_known_args(flags)
    others = [flag for flag in others if flag not in ENABLE]  # that is what this does
    if file := os.environ.get("CONFIG_FILE"):
        others = ["--job.config_file", file, *others]
    try:
        ranks = number("NGPU", 8) * number("NNODES", 1)
        os.environ["NGPU"] = str(ranks)  # as dry runs count
        config = read(others, ranks)
        for line in estimate(config, capacity_bytes(own.capacity_gib)):
            print(line)
    except (ConfigError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


def number(variable: str, default: int) -> int:
    """Of the environment."""
    text = os.environ.get(variable, str(default))
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"{variable}: expected a number, 1 or more, found {text!r}")
    return int(text)


def read(flags: Sequence[str], ranks: int) -> JobConfig:
    """The configuration as a dry run of so many ranks takes it."""
    loaded = read_config([*flags, "--comm.mode=fake_backend"])
    import_custom_code(loaded)
    if loaded.config.memory_estimation.disable_fake_mode:
        raise ValueError(
            "memory_estimation.disable_fake_mode: not supported: nothing is run with "
            "real tensors here; leave it out, or train one step"
        )
    return check_run(
        loaded,
        world_size=ranks,
        known=known_names(loaded),
        misfits=model_misfits(loaded),
    )


def capacity_bytes(gib: float | None) -> int | None:
    """Of a device; None where nobody knows."""
    if gib is not None:
        if not 0 < gib < float("inf"):
            raise ValueError(f"--capacity_gib: expected more than 0, found {gib:g}")
        return int(gib * GIB)
    if torch.cuda.is_available():
        return int(torch.cuda.get_device_properties(0).total_memory)
    return None


def estimate(config: JobConfig, capacity: int | None) -> Iterator[str]:
    """The lines of the report: of each rank with stages of its own."""
    ranks = ranks_of_pipeline(config, 0)
    for index, rank in enumerate(ranks):
        plan = make_plan(config, build_fake_world(config, rank))
        if index == 0:
            yield f"mesh      {describe_mesh(plan.mesh)}"
            yield f"model     {plan.model}: {plan.num_params:,} parameters"
            yield f"step      {plan.shape.num_microbatches} x {plan.rows} rows of " + (
                f"{plan.seq_len:,} tokens a rank"
            )
        yield ""
        which = f"rank {rank}" if len(ranks) > 1 else "a rank"
        yield f"memory of {which} (tensors, MiB)"
        yield from memory_lines(plan)
        yield from segment_lines(plan)
        yield from fit_lines(plan, capacity)


def segment_lines(plan: Plan) -> Iterator[str]:
    """The most that is alive while each segment is at work."""
    peaks: dict[str, dict[str, int]] = {}
    for action, total in zip(plan.program, plan.memory.totals, strict=True):
        if action.segment < 0:
            continue
        name = plan.shape.segments[action.segment].name
        way = "forward" if action.kind in ("Forward", "Recompute") else "backward"
        of = peaks.setdefault(name, {})
        of[way] = max(of.get(way, 0), total)
    yield f"  {'the most alive in':<18} {'forward':>16} {'backward':>16}"
    for name, of in peaks.items():
        forward, backward = (of.get(way, 0) / MIB for way in ("forward", "backward"))
        yield f"  {name:<18} {forward:>16,.1f} {backward:>16,.1f}"


def fit_lines(plan: Plan, capacity: int | None) -> Iterator[str]:
    """Whether it fits."""
    if capacity is None:
        return
    peak = plan.memory.peak.total()
    verdict = "fits" if peak <= capacity else "does NOT fit"
    yield (
        f"  {peak / GIB:,.2f} GiB at the peak, {peak / capacity:.1%} of the device's "
        f"{capacity / GIB:,.2f} GiB: {verdict}, without what the allocator and the "
        "libraries need"
    )


if __name__ == "__main__":
    sys.exit(main())
