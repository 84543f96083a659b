"""Python models with styles over Gloo: training, checkpoints, compiled layers."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from training_runs import assert_same_tensors, read_checkpoint, run

FLAGS = (
    "--experimental.custom-import=styled_jobs",
    "--model.name=styled",
    "--model.flavor=plain",
    "--training.dtype=float64",
    "--training.global-batch-size=8",
    "--training.max-norm=0.1",
    "--training.steps=3",
)
SHARDED = (
    "--parallelism.tensor-parallel-degree=2",
    "--parallelism.data-parallel-shard-degree=2",
    "--training.local-batch-size=4",
)
STAGES = (
    "--parallelism.tensor-parallel-degree=2",
    "--parallelism.data-parallel-shard-degree=1",
    "--parallelism.pipeline-parallel-degree=2",
    "--training.local-batch-size=8",
)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    rows = "--training.local-batch-size=8"
    return run(tmp_path_factory.mktemp("one_rank"), *FLAGS, rows, trainer="dumping")


@pytest.mark.parametrize(
    "layout",
    [
        pytest.param(SHARDED, id="fsdp", marks=pytest.mark.quick),
        pytest.param(STAGES, id="pp"),
    ],
)
def test_training_is_that_of_one_rank(
    layout: tuple[str, ...], reference: Any, tmp_path: Path
) -> None:
    trained = run(tmp_path, *FLAGS, *layout, ranks=4, trainer="dumping")
    assert len(trained.metrics()) == 3
    for line, expected in zip(trained.metrics(), reference.metrics(), strict=True):
        assert line == pytest.approx(expected, rel=1e-9)
    gradients = reference.dumped(1)["gradients"]
    found = trained.dumped(1)["gradients"]
    assert found.keys() == gradients.keys()
    for name, expected in gradients.items():
        assert (found[name] - expected).norm() <= 1e-10 * expected.norm(), name


def test_checkpoints_move_between_divided_models_and_one_rank(tmp_path: Path) -> None:
    flags = (
        *FLAGS,
        "--checkpoint.enable",
        "--checkpoint.no-last-save-model-only",
        "--training.steps=2",
    )
    one_rank = ("--training.local-batch-size=8",)
    kept = None
    for name, layout, ranks in (
        ("first", SHARDED, 4),
        ("second", one_rank, 1),
        ("third", STAGES, 4),
    ):
        folder = tmp_path / name
        if kept is not None:
            shutil.copytree(kept, folder / "checkpoint" / "step-2")
        trainer = "plain" if kept is None else "resaving"
        run(folder, *flags, *layout, ranks=ranks, trainer=trainer)
        saved = folder / ("checkpoint" if kept is None else "resaved") / "step-2"
        if kept is not None:
            assert_same_tensors(read_checkpoint(saved), read_checkpoint(kept))
        kept = saved


def test_compiled_layers_train_alike(tmp_path: Path) -> None:
    flags = (*FLAGS, *SHARDED[:1], "--training.local-batch-size=4")
    plain = run(tmp_path / "plain", *flags, ranks=2)
    compiled = run(
        tmp_path / "compiled",
        *flags,
        "--compile.enable",
        "--compile.backend=aot_eager",
        "--activation-checkpoint.mode=full",
        ranks=2,
    )
    for line, expected in zip(compiled.metrics(), plain.metrics(), strict=True):
        assert line == pytest.approx(expected, rel=1e-9)
