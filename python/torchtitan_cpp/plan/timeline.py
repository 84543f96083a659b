"""Pictures (SVG) of what ranks do when: predicted, or measured in a run."""

from __future__ import annotations

from collections.abc import Sequence

from torchtitan_cpp import _C
from torchtitan_cpp.pipeline import EQUAL_STAGE
from torchtitan_cpp.plan.make import Plan

draw_timeline = _C.plan.draw_timeline
"""The programs of all ranks with begin and end of each action in seconds."""


def draw_schedule(
    schedule: _C.plan.Schedule,
    *,
    title: str,
    stages: Sequence[_C.plan.StageCost] | None = None,
    link: tuple[float, float] | None = None,
) -> str:
    """The simulated step of a pipeline schedule.

    Args:
        schedule: from ``_C.plan.make_schedule`` or ``_C.plan.parse_schedule_csv``.
        title: first line of the picture.
        stages: cost of each stage of the pipeline; None: forward and each half of
            backward take 1 s.
        link: bytes per second and latency in seconds of a message; None: no time.
    Raises:
        ValueError: for fewer costs than stages.
    """
    programs = _C.plan.add_transfers(schedule)
    if stages is None:
        stages = [EQUAL_STAGE] * schedule.num_stages
    simulation = _C.plan.simulate_pipeline(programs, stages, link=link)
    return draw_timeline(programs, simulation.spans, title=title)


def draw_plan(plan: Plan) -> str:
    """The predicted step of the plan's rank; of a pipeline that of all its ranks.

    Without rates a pipeline is drawn as its schedule, with stages that are all alike:
    forward and each half of backward take 1 s.

    Raises:
        ValueError: if the plan of one rank was made without rates.
    """
    if plan.timed_ranks:
        size = f"one of {plan.num_ranks} ranks"
        if plan.pipeline is not None:
            size = f"one pipeline of {plan.num_ranks} ranks"
        return draw_timeline(
            [rank.program for rank in plan.timed_ranks],
            [rank.time.spans for rank in plan.timed_ranks],
            title=f"{plan.model}: a step of {size}",
        )
    if plan.pipeline is not None:
        return draw_schedule(plan.pipeline.schedule, title=plan.model)
    raise ValueError(
        "--timeline: the picture is of the predicted time; give --tflops and the "
        "other rates as well"
    )
