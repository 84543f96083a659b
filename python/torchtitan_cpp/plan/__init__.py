"""Prints what a training would do, without starting ranks, data or computation.

``NGPU=64 python -m torchtitan_cpp.plan --job.config_file run.toml [flags]`` takes the
flags of ``torchtitan_cpp.train`` and prints, for any number of ranks, the mesh, the
program of one rank, the memory it needs, the bytes it moves and the flops it computes
in a step; given the rates of a machine (``--tflops`` and others), the time as well, and
with ``--timeline out.svg`` a picture of it. ``draw_schedule`` draws any pipeline.
"""

from torchtitan_cpp.plan.command import main
from torchtitan_cpp.plan.make import Plan, make_plan
from torchtitan_cpp.plan.rates import Rates
from torchtitan_cpp.plan.report import describe
from torchtitan_cpp.plan.timeline import draw_plan, draw_schedule, draw_timeline

__all__ = [
    "Plan",
    "Rates",
    "describe",
    "draw_plan",
    "draw_schedule",
    "draw_timeline",
    "main",
    "make_plan",
]
