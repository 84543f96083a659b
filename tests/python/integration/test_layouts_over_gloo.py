"""Text in several layouts, as processes over Gloo, trains as on one rank.

Whether every layout does, on rows made for it, is for test_equality_matrix.py.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import merged, run, torchrun

FLOAT64 = (
    "--training.dtype=float64",
    "--training.global-batch-size=36",
    "--training.max-norm=0.5",  # below the norm, so that clipping acts
)

MANY_HEADS = "--model.flavor=tiny_heads"
DOCUMENTS = "--model.flavor=tiny_heads_flex_attn"

LAYOUTS: dict[str, dict[str, Any]] = {
    "fsdp_3": {"shard": 3},
    "hsdp_2x2": {"replicate": 2, "shard": 2},
    "cp_2_tp_2_documents": {"context": 2, "tensor": 2, "documents": 1},
    "pp_2_ddp_2_tp_2": {"pipeline": 2, "replicate": 2, "tensor": 2},
}


def degrees(layout: dict[str, Any]) -> tuple[str, ...]:
    names = {
        "replicate": "data-parallel-replicate",
        "shard": "data-parallel-shard",
        "tensor": "tensor-parallel",
        "context": "context-parallel",
        "pipeline": "pipeline-parallel",
    }
    return tuple(
        f"--parallelism.{name}-degree={layout.get(key, 1)}"
        for key, name in names.items()
    )


def one_rank(folder: Path, *flags: str) -> Any:
    """The whole batch at once."""
    rows = "--training.local-batch-size=36"
    return run(folder, *FLOAT64, rows, *flags, trainer="dumping")


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return one_rank(tmp_path_factory.mktemp("one_rank"))


@pytest.fixture(scope="module")
def reference_of_heads(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return one_rank(tmp_path_factory.mktemp("one_rank_of_heads"), MANY_HEADS)


@pytest.fixture(scope="module")
def reference_of_documents(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return one_rank(tmp_path_factory.mktemp("one_rank_of_documents"), DOCUMENTS)


def test_attention_within_documents_is_another_training(
    reference_of_heads: Any, reference_of_documents: Any
) -> None:
    losses = [
        each.dumped(1)["loss"] for each in (reference_of_heads, reference_of_documents)
    ]
    assert abs(losses[0] - losses[1]) > 1e-6


def assert_close(values: Any, references: Any, tolerance: float) -> None:
    """By the 2-norm of each tensor; 1e-12 absolute where the reference is zero."""
    assert values.keys() == references.keys()
    for name, expected in references.items():
        assert expected.dtype == torch.float64
        norm, error = expected.norm(), (values[name] - expected).norm()
        assert error <= (tolerance * norm if norm > 0 else 1e-12), name


@pytest.mark.parametrize(
    ("layout", "microbatches"),
    [
        ("fsdp_3", 1),
        ("fsdp_3", 3),
        pytest.param("hsdp_2x2", 1, marks=pytest.mark.quick),
        ("hsdp_2x2", 3),
        ("cp_2_tp_2_documents", 1),
        ("cp_2_tp_2_documents", 3),
        pytest.param("pp_2_ddp_2_tp_2", 1, marks=pytest.mark.quick),
        ("pp_2_ddp_2_tp_2", 3),
    ],
)
def test_loss_gradients_and_weights_equal_those_of_one_rank(
    layout: str, microbatches: int, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    sizes = LAYOUTS[layout]
    data_ranks = sizes.get("replicate", 1) * sizes.get("shard", 1)
    rows, rest = divmod(36, data_ranks * microbatches)
    assert rest == 0
    shared = sizes.get("tensor", 1) * sizes.get("context", 1)
    name, model = "reference", ()
    if shared > 1:
        name, model = "reference_of_heads", (MANY_HEADS,)
    if "documents" in sizes:
        name, model = "reference_of_documents", (DOCUMENTS,)
    reference = request.getfixturevalue(name)
    stage_ranks = data_ranks * shared
    stages = sizes.get("pipeline", 1)
    trained = run(
        tmp_path,
        *FLOAT64,
        *model,
        *degrees(sizes),
        f"--training.local-batch-size={rows}",
        ranks=stage_ranks * stages,
        trainer="dumping",
        LOG_RANK=str(stage_ranks * (stages - 1)),  # the one that writes the metrics
    )
    first, expected = trained.dumped(1), reference.dumped(1)
    assert first["loss"] == pytest.approx(expected["loss"], rel=1e-10)
    assert first["grad_norm"] == pytest.approx(expected["grad_norm"], rel=1e-10)
    assert first["grad_norm"] > 0.5
    assert_close(first["gradients"], expected["gradients"], 1e-10)
    assert_close(trained.dumped(5)["weights"], reference.dumped(5)["weights"], 1e-9)
    assert trained.traffic()[1:] == [trained.announced_traffic()] * 4


@pytest.mark.parametrize(
    "layout",
    [{"context": 2}, {"context": 2, "pipeline": 2}],
    ids=["cp_2", "pp_2_cp_2"],
)
def test_validation_over_ranks_that_share_sequences_is_that_of_one(
    layout: dict[str, Any],
    tmp_path: Path,
) -> None:
    """Of a pipeline each row is a microbatch, whose documents deal its tokens out."""
    flags = (
        *FLOAT64,
        DOCUMENTS,
        "--training.global-batch-size=4",
        "--training.local-batch-size=4",
        "--validation.enable",
        "--validation.dataset=tiny_text",
        "--validation.local-batch-size=2",
        "--validation.seq-len=8",
        "--validation.freq=2",
        "--validation.steps=3",
    )

    def validated(folder: Path, ranks: int, *layout: str) -> list[float]:
        run(folder, *flags, *layout, ranks=ranks)
        lines = (folder / "validation.jsonl").read_text().splitlines()
        return [json.loads(line)["loss"] for line in lines]

    expected = validated(tmp_path / "one", 1)
    assert len(expected) == 3
    by_work = "--parallelism.context-parallel-load-balancer=ptrr"
    ranks = math.prod(layout.values())
    found = validated(tmp_path / "shared", ranks, *degrees(layout), by_work)
    assert found == pytest.approx(expected, rel=1e-9)


def test_torchrun_starts_the_same_job(reference: Any, tmp_path: Path) -> None:
    flags = (*FLOAT64, "--training.local-batch-size=9", f"--job.dump-folder={tmp_path}")
    finished = torchrun(2, *merged(*flags))
    assert finished.returncode == 0, finished.stderr
    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == len(reference.metrics())
    for line, expected in zip(lines, reference.metrics(), strict=True):
        assert json.loads(line)["loss"] == pytest.approx(expected["loss"], rel=1e-9)
