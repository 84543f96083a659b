"""Pipelines of Python models, schedules from files, and what is refused before."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import assert_same_tensors, read_checkpoint, run

from torchtitan_cpp.config.rules import CHECKPOINT_PARTS

FLAGS = (
    "--experimental.custom-import=tiny_python_model",
    "--model.name=stackable",
    "--model.flavor=plain",
    "--training.dtype=float64",
    "--training.global-batch-size=8",
    "--training.max-norm=0.5",
)

PIPELINE = (
    "--parallelism.pipeline-parallel-degree=2",
    "--parallelism.data-parallel-shard-degree=1",
)


def schedule(name: str) -> str:
    return f"--parallelism.pipeline-parallel-schedule={name}"


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Any:
    rows = "--training.local-batch-size=8"
    return run(tmp_path_factory.mktemp("one_rank"), *FLAGS, rows, trainer="dumping")


def assert_like(trained: Any, reference: Any) -> None:
    assert len(trained.metrics()) == len(reference.metrics())
    for line, expected in zip(trained.metrics(), reference.metrics(), strict=True):
        assert line == pytest.approx(expected, rel=1e-9)
    gradients = reference.dumped(1)["gradients"]
    found = trained.dumped(1)["gradients"]
    assert found.keys() == gradients.keys()
    for name, expected in gradients.items():
        error = (found[name] - expected).norm()
        assert error <= 1e-10 * max(float(expected.norm()), 1e-2), name


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("1F1B", marks=pytest.mark.quick),
        "InterleavedZeroBubble",
        pytest.param("ZBVZeroBubble", marks=pytest.mark.quick),
        "DualPipeV",
    ],
)
def test_a_python_model_trains_in_stages(
    name: str, reference: Any, tmp_path: Path
) -> None:
    flags = (*FLAGS, *PIPELINE, schedule(name), "--training.local-batch-size=4")
    full = "--activation-checkpoint.mode=full"
    trained = run(tmp_path, *flags, full, ranks=2, trainer="dumping")
    assert_like(trained, reference)
    said = "pairs of forward and backward run one after the other" in trained.output
    assert said == (name == "DualPipeV")


def test_compiled_layers_of_stages_train_alike(reference: Any, tmp_path: Path) -> None:
    """With divided backwards; each rank compiles the layers of its two stages."""
    compiled = (
        "--experimental.custom-import=counted_compiler",
        "--compile.enable",
        "--compile.components=model",
        "--compile.backend=counted",
    )
    flags = (*FLAGS, *PIPELINE, *compiled, schedule("ZBVZeroBubble"))
    rows = "--training.local-batch-size=4"
    trained = run(tmp_path, *flags, rows, ranks=2, trainer="dumping")
    assert_like(trained, reference)
    for output in trained.outputs:
        # Layers of one class and shape share a graph.
        assert output.count("counted: compiled a graph with 1 product") == 1


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        ("default", "Interleaved1F1B"),
        ("always", "Interleaved1F1B"),
        ("always", "InterleavedZeroBubble"),
    ],
)
def test_a_python_model_trains_in_sharded_stages(
    policy: str, name: str, reference: Any, tmp_path: Path
) -> None:
    flags = (
        *FLAGS,
        PIPELINE[0],
        "--parallelism.data-parallel-shard-degree=2",
        f"--parallelism.fsdp-reshard-after-forward={policy}",
        schedule(name),
        "--training.local-batch-size=4",
    )
    assert_like(run(tmp_path, *flags, ranks=4, trainer="dumping"), reference)


def test_a_checkpoint_of_stages_is_that_of_one_rank(tmp_path: Path) -> None:
    saving = ("--checkpoint.enable", "--checkpoint.no-last-save-model-only")
    flags = (*FLAGS, *saving, "--training.steps=4", "--training.local-batch-size=8")
    one = run(tmp_path / "one", *flags)
    folder = one.folder / "checkpoint"
    stages = tmp_path / "stages"
    shutil.copytree(folder, stages / "checkpoint")
    resaved = run(stages, *flags, *PIPELINE, ranks=2, trainer="resaving")
    assert "training goes on after step 4" in resaved.output
    assert_same_tensors(
        read_checkpoint(stages / "resaved" / "step-4"),
        read_checkpoint(folder / "step-4"),
    )


def test_an_optimizer_of_ones_own_goes_on_in_other_stages(tmp_path: Path) -> None:
    """Of the steps that it counts, each rank knows those of its stages only."""
    saving = ("--checkpoint.enable", "--checkpoint.no-last-save-model-only")
    flags = (*FLAGS, "--model.name=own_optimizer", *saving)
    flags += ("--lr-scheduler.total-steps=6",)
    rows = "--training.local-batch-size=8"
    whole = run(tmp_path / "whole", *flags, rows, "--training.steps=6")
    parts = tmp_path / "parts"
    run(parts, *flags, rows, *PIPELINE, "--training.steps=2", ranks=2)
    run(parts, *flags, rows, "--training.steps=4")
    run(parts, *flags, rows, *PIPELINE, "--training.steps=6", ranks=2)
    expected = read_checkpoint(whole.folder / "checkpoint" / "step-6")
    found = read_checkpoint(parts / "checkpoint" / "step-6")
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.allclose(found[name], tensor, rtol=1e-9, atol=1e-12), name
    for folder in (whole.folder, parts):
        manifest = json.loads(
            (folder / "checkpoint" / "step-6" / "manifest.json").read_text()
        )
        counts = manifest["scalars"]["optimizer_numbers"]["step"]
        assert len(counts) == 13 and set(counts.values()) == {6.0}
        kinds = {each["kind"] for each in manifest["tensors"].values()}
        parts = {*kinds, *manifest["scalars"], *manifest["gathered"]}
        assert parts == set(CHECKPOINT_PARTS)


def test_an_optimizer_of_ones_own_that_is_to_step_early(tmp_path: Path) -> None:
    flags = (*FLAGS, "--model.name=own_optimizer", "--training.local-batch-size=8")
    early = "--optimizer.early-step-in-backward"
    failed = run(tmp_path, *flags, early, fails=True)
    assert failed.exit_codes == [1]
    assert "not supported with an optimizer of one's own" in failed.output
    assert "Traceback" not in failed.output


@pytest.mark.quick
def test_a_schedule_of_a_file_and_validation(tmp_path: Path) -> None:
    path = tmp_path / "schedule.csv"
    path.write_text("0F0,0F1,,0B0,,0B1\n,1F0,1B0,1F1,1B1,\n")
    flags = (
        "--training.global-batch-size=8",
        "--validation.enable",
        "--validation.steps=2",
        "--validation.freq=2",
        "--validation.local-batch-size=2",
        "--validation.dataset=tiny_text",
        "--validation.seq-len=16",
        "--training.dtype=float64",
    )
    one = run(tmp_path / "one", *flags, "--training.local-batch-size=2")
    two = run(
        tmp_path / "two",
        *flags,
        *PIPELINE,
        f"--parallelism.pipeline-parallel-schedule-csv={path}",
        "--training.local-batch-size=2",
        ranks=2,
    )
    for line, expected in zip(two.metrics(), one.metrics(), strict=True):
        assert line == pytest.approx(expected, rel=1e-9)
    losses = [
        [
            json.loads(line)["loss"]
            for line in (each.folder / "validation.jsonl").read_text().splitlines()
        ]
        for each in (one, two)
    ]
    assert losses[0] and losses[1] == pytest.approx(losses[0], rel=1e-9)


@pytest.mark.quick
def test_what_does_not_fit_is_refused_before_ranks_meet(tmp_path: Path) -> None:
    failed = run(
        tmp_path,
        *PIPELINE,
        schedule("1F2B"),
        "--training.local-batch-size=4",
        ranks=2,
        fails=True,
    )
    assert failed.exit_codes == [2, 2]
    assert "parallelism.pipeline_parallel_schedule" in failed.output
    assert "Traceback" not in failed.output
