"""What a budget of kept activations costs: a curve as CSV and as a picture."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from torchtitan_cpp import _C
from torchtitan_cpp.config import JobConfig

_WIDTH, _HEIGHT, _MARGIN = 640, 420, 60

Cost = tuple[int, int]
"""Bytes kept and flops computed again, of one microbatch."""


def write_asked_curve(applied: _C.parallel.Applied, job_config: JobConfig) -> None:
    """Write the curve into the dump folder if the configuration asks for it."""
    section = job_config.activation_checkpoint
    is_asked = section.visualize_memory_budget_pareto and applied.memory_budget_curve
    if section.mode == "memory_budget" and is_asked:
        folder = Path(job_config.job.dump_folder) / "memory_budget_pareto"
        write_curve(applied, folder)


def write_curve(applied: _C.parallel.Applied, folder: Path) -> None:
    """Write ``curve.csv`` and ``curve.svg``, every cost that no other one beats.

    In the CSV the chosen one has a 1 in its last column. Bytes are those kept over one
    microbatch, flops those of its recomputations, on this rank.
    """
    folder.mkdir(parents=True, exist_ok=True)
    curve, chosen = applied.memory_budget_curve, applied.memory_budget_choice
    with (folder / "curve.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["kept_bytes", "recomputed_flops", "chosen"])
        for cost in curve:
            table.writerow([*cost, int(cost == chosen)])
    (folder / "curve.svg").write_text(draw(curve, chosen))


def draw(curve: Sequence[Cost], chosen: Cost) -> str:
    """An SVG picture of a curve, with a mark where the choice lies."""
    most_bytes = max(1, *(kept for kept, _ in curve))
    most_flops = max(1, *(flops for _, flops in curve))

    def place(cost: Cost) -> tuple[float, float]:
        x = _MARGIN + (_WIDTH - 2 * _MARGIN) * cost[0] / most_bytes
        y = _HEIGHT - _MARGIN - (_HEIGHT - 2 * _MARGIN) * cost[1] / most_flops
        return round(x, 2), round(y, 2)

    points = " ".join(f"{x},{y}" for x, y in map(place, curve))
    x, y = place(chosen)
    left, bottom = _MARGIN, _HEIGHT - _MARGIN
    right, top = _WIDTH - _MARGIN, _MARGIN
    share = 100 * chosen[0] / most_bytes
    text = (
        f"{chosen[0] / 2**20:,.1f} MiB ({share:.0f} %), {chosen[1] / 1e12:,.3f} Tflop"
    )
    return f"""<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" \
height="{_HEIGHT}" font-family="sans-serif" font-size="13">
<rect width="100%" height="100%" fill="white"/>
<path d="M{left},{top} V{bottom} H{right}" fill="none" stroke="black"/>
<polyline points="{points}" fill="none" stroke="steelblue" stroke-width="2"/>
<circle cx="{x}" cy="{y}" r="5" fill="firebrick"/>
<text x="{left}" y="{top - 30}">Chosen: {text}</text>
<text x="{left - 5}" y="{top - 8}">{most_flops / 1e12:,.3f} Tflop computed again</text>
<text x="{right}" y="{bottom + 35}" text-anchor="end">\
{most_bytes / 2**20:,.1f} MiB kept of a microbatch</text>
</svg>
"""
