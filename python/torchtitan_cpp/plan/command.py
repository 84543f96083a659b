"""The command: flags in, text out."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from torchtitan_cpp.config import ConfigError, check_run, read_config
from torchtitan_cpp.custom_import import import_custom_code
from torchtitan_cpp.misfits import known_names, model_misfits
from torchtitan_cpp.plan.make import make_plan
from torchtitan_cpp.plan.rates import Rates, add_flags, rates_of
from torchtitan_cpp.plan.report import describe
from torchtitan_cpp.plan.timeline import draw_plan, draw_timeline
from torchtitan_cpp.recorded_times import describe_times, read_times
from torchtitan_cpp.refusal import EXIT_BAD_INPUT
from torchtitan_cpp.world import find_world_size


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, check, plan, print; the exit code.

    Args:
        argv: flags of ``torchtitan_cpp.train`` and those of ``rates.py``; None: those
            of this process.
    """
    parser = argparse.ArgumentParser(
        prog="python -m torchtitan_cpp.plan",
        usage="%(prog)s [rates] [--timeline OUT.svg] [flags of torchtitan_cpp.train]\n"
        "       %(prog)s --recorded FOLDER [--timeline OUT.svg]",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    add_flags(parser)
    parser.add_argument(
        "--timeline",
        metavar="OUT.svg",
        type=Path,
        help="draw the predicted step into this file, of a pipeline without rates its "
        "schedule; with --recorded the recorded step",
    )
    parser.add_argument(
        "--recorded",
        metavar="FOLDER",
        type=Path,
        help="instead of a plan, what the ranks of a run did in a step: a folder "
        "iteration_<N> that profiling.enable_timeline has left",
    )
    flags = list(sys.argv[1:] if argv is None else argv)
    if {"-h", "--help"} & set(flags):
        print(parser.format_help())
    own, others = parser.parse_known_args(flags)
    try:
        if own.timeline is not None and own.timeline.suffix != ".svg":
            raise ValueError(
                f"--timeline: expected a name that ends in .svg, found {own.timeline}"
            )
        if own.recorded is not None:
            print(_recorded(own, others))
            return 0
        loaded = read_config([*others, "--comm.mode=fake_backend"])
        import_custom_code(loaded)
        world_size = find_world_size(loaded.config)
        rates = rates_of(own, num_ranks=world_size)
        config = check_run(
            loaded,
            world_size=world_size,
            known=known_names(loaded),
            misfits=model_misfits(loaded),
        )
        plan = make_plan(config, rates=rates)
        if own.timeline is not None:
            own.timeline.write_text(draw_plan(plan), encoding="utf-8")
    except (ConfigError, ValueError, OSError) as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    print(describe(plan))
    return 0


def _recorded(own: argparse.Namespace, others: Sequence[str]) -> str:
    rates = [name for name in Rates.__annotations__ if getattr(own, name) is not None]
    if unused := [*(f"--{name}" for name in rates), *others]:
        raise ValueError(f"--recorded: {unused[0]} has no effect on a recorded step")
    recorded = read_times(own.recorded)
    if own.timeline is not None:
        svg = draw_timeline(recorded.programs, recorded.spans, title=recorded.title)
        own.timeline.write_text(svg, encoding="utf-8")
    return describe_times(recorded)
