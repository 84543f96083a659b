"""Cells of the equality matrix by the trainer, equal to one rank of no layout.

Those of the model in C++ that its quick suite runs as threads are processes over Gloo
here. Those of models in Python have no other test; where they have more than two ranks
these are threads (``comm.mode``). The errors are written to the file that the
environment names::

    TORCHTITAN_EQUALITY_TABLE=tests/equality_of_training.md \\
        python -m pytest tests/python/integration/test_equality_matrix.py
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from matrix_jobs import LENGTH, MICROBATCH, Cell, cells
from training_runs import Finished, run

STEPS = 3
FLOAT64 = ("--training.dtype=float64",)
BFLOAT16 = ("--training.mixed-precision-param=bfloat16",)
CHECKPOINTS = {
    "": ("none",),
    "full": ("full",),
    "every 2nd layer": ("selective", "2"),
    "per operation": ("selective", "op"),
    "budget 0.5": ("memory_budget",),
}
METHODS = {"": "allgather", "allgather": "allgather", "ring": "alltoall"}
BALANCES = {"": "headtail", "in order": "None"}
CELLS = [cell for cell in cells() if cell.is_python or cell.is_quick]
QUICK = CELLS[::16]
IN_BFLOAT16 = CELLS[4::8]


def shared_flags(cell: Cell) -> tuple[str, ...]:
    """Of the cell's layout and of one rank."""
    return (
        "--experimental.custom-import=matrix_jobs",
        f"--model.name={cell.model}",
        f"--model.flavor={cell.flavor}",
        f"--training.seq-len={LENGTH}",
        f"--training.global-batch-size={cell.rows}",
        f"--training.steps={STEPS}",
        "--training.max-norm=0.1",  # below the norm, so that clipping acts
    )


def layout_flags(cell: Cell) -> tuple[str, ...]:
    degrees = {
        "data-parallel-replicate": cell.replicas,
        "data-parallel-shard": cell.shards,
        "context-parallel": cell.context,
        "tensor-parallel": cell.tensor,
        "pipeline-parallel": cell.pipeline,
    }
    mode, *option = CHECKPOINTS[cell.checkpoint]
    method = METHODS.get(cell.method, cell.method)
    balance = BALANCES.get(cell.balance, cell.balance)
    flags = {
        **{f"parallelism.{name}-degree": each for name, each in degrees.items()},
        "parallelism.context-parallel-rotate-method": method,
        "parallelism.context-parallel-load-balancer": balance,
        "parallelism.fsdp-reshard-after-forward": cell.reshard or "default",
        "parallelism.disable-loss-parallel": cell.loss_parallel == "whole logits",
        "parallelism.enable-async-tensor-parallel": cell.overlap == "ring overlap",
        "activation-checkpoint.mode": mode,
        "activation-checkpoint.offload": bool(cell.offload),
        "training.local-batch-size": cell.local_rows,
    }
    if option:
        flags["activation-checkpoint.selective-ac-option"] = option[0]
    if cell.pipeline > 1:
        stages = cell.pipeline * cell.stages
        flags |= {
            "parallelism.pipeline-parallel-schedule": cell.schedule,
            "parallelism.pipeline-parallel-microbatch-size": MICROBATCH,
            "parallelism.pipeline-parallel-layers-per-stage": cell.layers // stages,
            "parallelism.pipeline-parallel-first-stage-less-layers": 0,
            "parallelism.pipeline-parallel-last-stage-less-layers": 0,
        }
    return tuple(f"--{name}={value}" for name, value in flags.items())


def on_one_rank(cell: Cell, folder: Path, *flags: str) -> Finished:
    """With the whole batch at once."""
    whole = (f"--training.local-batch-size={cell.rows}",)
    none = ("--activation-checkpoint.mode=none",)
    flags = (*shared_flags(cell), *whole, *none, *flags)
    return run(folder / "one", *flags, trainer="dumping")


def on_ranks(cell: Cell, folder: Path, *flags: str) -> Finished:
    flags = (*shared_flags(cell), *layout_flags(cell), *flags)
    if are_processes(cell):
        return run(folder / "ranks", *flags, ranks=cell.ranks, trainer="dumping")
    return run(folder / "ranks", *flags, threads=cell.ranks, trainer="dumping")


def are_processes(cell: Cell) -> bool:
    return not cell.is_python or cell.ranks <= 2


def relative(value: float, expected: float) -> float:
    return abs(value - expected) / abs(expected)


def worst(
    values: dict[str, torch.Tensor], references: dict[str, torch.Tensor]
) -> float:
    """Of all tensors, in the 2-norm of each; absolute where the reference is zero."""
    assert values.keys() == references.keys()
    return max(
        float((values[name] - expected).norm() / (expected.norm() or 1.0))
        for name, expected in references.items()
    )


@pytest.fixture(scope="module")
def table() -> Iterator[list[str]]:
    """Its rows; written where the environment says."""
    rows: list[str] = []
    yield rows
    if path := os.environ.get("TORCHTITAN_EQUALITY_TABLE"):
        command = (__doc__ or "").partition("::\n\n")[2]
        head = "# Equality of trained layouts with one rank\n\nWritten by\n\n"
        words = (
            f"{command}\nLoss, gradient norm and gradients of step {STEPS} in float64, "
            "relative to one rank: of a gradient in the 2-norm of its tensor, the "
            "worst of all. Cells are those of "
            "[equality_cells.csv](equality_cells.csv).\n\n"
            "| cell | model | ranks are | ranks | loss | norm | worst gradient |\n"
            "| --: | :-- | :-- | --: | --: | --: | --: |\n"
        )
        Path(path).write_text(head + words + "".join(sorted(rows, key=number_of)))


def number_of(row: str) -> int:
    return int(row.split("|")[1])


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(
            cell, id=cell.flavor, marks=pytest.mark.quick if cell in QUICK else ()
        )
        for cell in CELLS
    ],
)
def test_a_cell_trains_as_one_rank(
    cell: Cell, table: list[str], tmp_path: Path
) -> None:
    one = on_one_rank(cell, tmp_path, *FLOAT64).dumped(STEPS)
    ranks = on_ranks(cell, tmp_path, *FLOAT64).dumped(STEPS)
    errors = (
        relative(ranks["loss"], one["loss"]),
        relative(ranks["grad_norm"], one["grad_norm"]),
        worst(ranks["gradients"], one["gradients"]),
    )
    language = "Python" if cell.is_python else "C++"
    kind = "processes" if are_processes(cell) else "threads"
    table.append(
        f"| {cell.number} | {language} | {kind} | {cell.ranks} | "
        + " | ".join(f"{error:.1e}" for error in errors)
        + " |\n"
    )
    assert all(error <= 1e-10 for error in errors)
    assert worst(ranks["weights"], one["weights"]) <= 1e-9
    assert one["grad_norm"] > 0.1
    assert all(each.dtype == torch.float64 for each in one["gradients"].values())


@pytest.mark.parametrize("cell", IN_BFLOAT16, ids=lambda cell: cell.flavor)
def test_a_cell_in_bfloat16_trains_nearly_as_one_rank(
    cell: Cell, tmp_path: Path
) -> None:
    """As near to one rank in float32 as numbers of 8 bits are."""
    one = on_one_rank(cell, tmp_path).dumped(1)
    ranks = on_ranks(cell, tmp_path, *BFLOAT16).dumped(1)
    assert relative(ranks["loss"], one["loss"]) <= 1e-2
    distance = {n: each - ranks["gradients"][n] for n, each in one["gradients"].items()}
    assert norm(distance) <= 5e-2 * norm(one["gradients"])
    assert norm(distance) > 0


def norm(tensors: dict[str, torch.Tensor]) -> float:
    return sum(float(each.double().square().sum()) for each in tensors.values()) ** 0.5


@pytest.mark.quick
def test_at_least_twenty_cells_are_processes() -> None:
    processes = [cell for cell in CELLS if are_processes(cell)]
    assert len(processes) >= 20
    assert max(cell.ranks for cell in processes) == 8
    assert sum(cell.is_python for cell in CELLS) >= 15
