"""Batches of a loader of one's own that a layout cannot take are told, not trained."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from training_runs import run

FLAGS = (
    "--experimental.custom-import=odd_batches",
    "--model.name=odd_batches",
    "--model.flavor=plain",
    "--training.dtype=float64",
    "--training.local-batch-size=4",
    "--training.global-batch-size=8",
    "--training.steps=2",
)
PIPELINE = ("--parallelism.pipeline-parallel-degree=2",)
BY_TWO = (*PIPELINE, "--parallelism.pipeline-parallel-microbatch-size=2")
CONTEXT = ("--parallelism.context-parallel-degree=2",)
TENSOR = ("--parallelism.tensor-parallel-degree=2",)

ROWS = "expected training.local_batch_size = 4 rows in a pipeline"
ONE_LENGTH = "[1, 8] and [1, 16] in one step"
POSITIONS = "20 tokens; expected at most training.seq_len = 16"


@pytest.mark.parametrize(
    ("shapes", "flags", "said"),
    [
        pytest.param([[6, 16]], PIPELINE, ROWS, id="more rows"),
        pytest.param([[3, 16]], BY_TWO, ROWS, id="fewer rows"),
        pytest.param([[4, 16], [4, 8]], PIPELINE, ONE_LENGTH, id="two lengths"),
        pytest.param([[4, 20]], CONTEXT, POSITIONS, id="too long to share"),
        pytest.param([[4, 20]], PIPELINE, POSITIONS, id="too long for stages"),
        pytest.param([[4, 15]], TENSOR, "such as 14", id="odd length"),
    ],
)
def test_batches_that_a_layout_cannot_take(
    shapes: list[list[int]], flags: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    batches = json.dumps(shapes)
    failed = run(tmp_path, *FLAGS, *flags, threads=2, fails=True, BATCHES=batches)
    assert failed.exit_codes == [1]
    assert said in failed.output
    assert "Traceback" not in failed.output


@pytest.mark.parametrize("flags", [PIPELINE, CONTEXT, TENSOR], ids=["pp", "cp", "tp"])
def test_lengths_of_each_step_train_as_on_one_rank(
    flags: tuple[str, ...], tmp_path: Path
) -> None:
    """Two batches of one length are a step."""
    batches = json.dumps([[4, 16], [4, 16], [4, 8], [4, 8]])
    one = run(tmp_path / "one", *FLAGS, BATCHES=batches)
    ranks = run(tmp_path / "ranks", *FLAGS, *flags, threads=2, BATCHES=batches)
    for line, expected in zip(ranks.metrics(), one.metrics(), strict=True):
        assert line == pytest.approx(expected, rel=1e-9)


def test_stages_whose_results_differ_in_shape_are_named(tmp_path: Path) -> None:
    """Their receiver would wait for bytes that never come."""
    flags = ("--model.name=odd_layers", "--activation-checkpoint.mode=none")
    failed = run(tmp_path, *FLAGS, *flags, *PIPELINE, threads=2, fails=True)
    assert failed.exit_codes == [1]
    assert (
        "'h' has shape [1, 15, 12] (Double), but that of the first microbatch had "
        "[1, 16, 12] (Double); what passes "
    ) in failed.output
