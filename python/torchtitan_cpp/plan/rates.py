"""The speed of a machine, as its user gives it, and the time that follows from it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torchtitan_cpp import _C

_HELP = """\
time of the step: predicted where these flags give the speed of one rank. There are no
defaults, because none would be true: give what you have measured, for --tflops what
the trainer logs on one rank without activation checkpointing (it counts no flops that
are done twice). Elementwise work counts as none of its own."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Of one rank; every link of its mesh is as fast as the others."""

    tflops: float
    """Matrix products, 1e12 floating point operations per second."""
    memory_gb_per_second: float
    """Reads and writes of the optimizer, 1e9 bytes per second."""
    network_gb_per_second: float | None = None
    """What a rank sends, 1e9 bytes per second; None: it has no peers."""
    network_latency_us: float = 0.0
    """Of each collective and message, microseconds."""

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            may_be_zero = name == "network_latency_us"
            if value is None or 0 < value < math.inf or (may_be_zero and value == 0):
                continue
            least = "a number from 0 up" if may_be_zero else "a positive number"
            raise ValueError(f"--{name}: expected {least}, found {value:g}")


def add_flags(parser: argparse.ArgumentParser) -> None:
    """One flag for each field of :class:`Rates`."""
    group = parser.add_argument_group(description=_HELP)
    for name, what in (
        ("tflops", "products of one rank, 1e12 flops per second"),
        (
            "memory_gb_per_second",
            "what the optimizer reads and writes, 1e9 bytes per s",
        ),
        (
            "network_gb_per_second",
            "what one rank sends, 1e9 bytes per s; for >= 2 ranks",
        ),
        ("network_latency_us", "of a collective, microseconds; 0 where not given"),
    ):
        spellings = {f"--{name}", f"--{name.replace('_', '-')}"}
        flags = sorted(spellings)
        group.add_argument(*flags, dest=name, type=float, metavar="N", help=what)


def rates_of(arguments: argparse.Namespace, *, num_ranks: int) -> Rates | None:
    """The rates that the flags give; None where there is no such flag.

    Raises:
        ValueError: for some of the flags without the others that are needed.
    """
    given = {
        name: getattr(arguments, name)
        for name in Rates.__annotations__
        if getattr(arguments, name) is not None
    }
    if not given:
        return None
    needed = ["tflops", "memory_gb_per_second"]
    if num_ranks > 1:
        needed.append("network_gb_per_second")
    missing = [f"--{name}" for name in needed if name not in given]
    if missing:
        raise ValueError(
            f"--{next(iter(given))}: the time of a step is predicted from all rates "
            f"together; give {' and '.join(missing)} as well"
        )
    return Rates(**given)


def predict_times(
    programs: Sequence[Sequence[_C.plan.Action]],
    shapes: Sequence[_C.plan.StepShape],
    rates: Rates,
    axes: Mapping[str, int],
) -> list[_C.plan.Simulation]:
    """Seconds of the programs of all ranks of a pipeline, or of the one without.

    Args:
        axes: ranks of each mesh axis that a collective or message may use.
    """
    link = (
        (rates.network_gb_per_second or 0.0) * 1e9,
        rates.network_latency_us * 1e-6,
    )
    return _C.plan.simulate(
        programs,
        shapes,
        flops_per_second=rates.tflops * 1e12,
        memory_bytes_per_second=rates.memory_gb_per_second * 1e9,
        links={axis: link for axis, size in axes.items() if size > 1},
    )
