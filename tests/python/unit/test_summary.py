"""The texts before the first step and after the last."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from torchtitan_cpp.metrics.summary import (
    RunSummary,
    abbreviate,
    describe_mesh,
    format_closing,
    format_summary,
)

RUN = RunSummary(
    model="llama3 debugmodel",
    num_params=6_163_712,
    flops_per_token=71_585_280,
    mesh={"pp": 1, "dp_replicate": 2, "dp_shard": 4, "cp": 1, "tp": 1},
    device="cpu (AMD EPYC), 2 threads",
    local_batch_size=8,
    num_data_ranks=8,
    accumulation=3,
    seq_len=2048,
    start_step=0,
    steps=300,
    dataset="python_stdlib",
    tokenizer="packaged, 2,048 entries",
    param_dtype="float32",
    compute_dtype="bfloat16",
    reduce_dtype="float32",
    activation_checkpointing="selective, every 2nd layer",
    optimizer="AdamW, lr 8.0e-04, weight decay 0.1, fused",
    clipping="global norm 1.0",
    schedule="2 warmup steps, then linear to 0.0",
    checkpoint="off",
    dump_folder="outputs",
    seed=42,
    notes=("CPU offload is the identity on a CPU run.",),
)


def test_summary_is_aligned_and_complete() -> None:
    assert format_summary(RUN) == "\n".join(
        [
            "  model        llama3 debugmodel, 6,163,712 parameters, "
            "71.6M flops a token",
            "  devices      cpu (AMD EPYC), 2 threads; "
            "8 ranks: dp_replicate 2 x dp_shard 4",
            "  batch        192 x 2,048 = 393,216 tokens a step "
            "(8 sequences x 8 ranks x 3 microbatches)",
            "  steps        1 to 300, 118M tokens",
            "  data         python_stdlib",
            "  tokenizer    packaged, 2,048 entries",
            "  numbers      parameters float32, computed in bfloat16, "
            "gradients summed in float32",
            "  recompute    selective, every 2nd layer",
            "  optimizer    AdamW, lr 8.0e-04, weight decay 0.1, fused; "
            "clipping: global norm 1.0",
            "  schedule     2 warmup steps, then linear to 0.0",
            "  checkpoints  off",
            "  files        outputs",
            "  seed         42",
            "  note         CPU offload is the identity on a CPU run.",
        ]
    )


def test_unknown_values_leave_their_line_out() -> None:
    text = format_summary(
        replace(
            RUN,
            flops_per_token=None,
            tokenizer=None,
            dump_folder=None,
            seed=None,
            notes=(),
        )
    )
    for word in ("flops", "tokenizer", "files", "seed", "note"):
        assert word not in text


def test_traffic_is_shown_by_axis() -> None:
    assert "traffic" not in format_summary(RUN)
    moved = {"fsdp": 24_641_544, "loss": 16, "tp": None}
    text = format_summary(replace(RUN, bytes_by_axis=moved))
    assert (
        "  traffic      bytes of this rank a step: fsdp 24,641,544, loss 16, "
        "tp only known when it runs\n" in text
    )


def test_resumed_run_says_which_steps_are_left() -> None:
    text = format_summary(replace(RUN, start_step=100, num_data_ranks=1))
    assert "101 to 300, 9.83M tokens" in text
    assert "8 sequences x 1 rank x 3 microbatches" in text


@pytest.mark.parametrize("start_step", [300, 400])
def test_a_run_beyond_its_last_step_says_so(start_step: int) -> None:
    text = format_summary(replace(RUN, start_step=start_step))
    assert f"none: step {start_step} of training.steps = 300 is done\n" in text


def test_one_rank_has_no_axes() -> None:
    assert describe_mesh({"dp_shard": 1, "tp": 1}) == "1 rank"


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1.00K"),
        (6_163_712, "6.16M"),
        (71_585_280, "71.6M"),
        (405_853_388_800, "406B"),
        (2.5e18, "2500P"),
    ],
)
def test_numbers_are_abbreviated(number: float, text: str) -> None:
    assert abbreviate(number) == text


def test_closing_shows_existing_files_and_what_to_try(tmp_path: Path) -> None:
    metrics = tmp_path / "metrics.jsonl"
    metrics.touch()
    text = format_closing(
        steps=300,
        seconds=125.0,
        losses={1: 8.0471, 10: 6.0, 300: 4.5},
        files={"metrics": metrics, "traces": tmp_path / "profile_traces"},
        suggestions=[("more ranks", "NGPU=2 ./scripts/train.sh")],
    )
    assert text == "\n".join(
        [
            "Trained 300 steps in 2m 05s; loss 8.0471 -> 4.5000.",
            "Files:",
            f"  metrics  {metrics}",
            "Next:",
            "  more ranks  NGPU=2 ./scripts/train.sh",
        ]
    )


def test_closing_without_a_logged_step_is_one_sentence(tmp_path: Path) -> None:
    text = format_closing(
        steps=0,
        seconds=1.0,
        losses={},
        files={"metrics": tmp_path / "none"},
    )
    assert text == "Trained 0 steps in 1s."


def test_closing_of_one_logged_step_does_not_look_like_an_unchanged_loss() -> None:
    text = format_closing(steps=1, seconds=1.0, losses={1: 8.0471}, files={})
    assert "collectives" not in text
    assert text == "Trained 1 step in 1s; loss 8.0471 at step 1."
    text = format_closing(steps=5, seconds=1.0, losses={1: 8.0471}, files={})
    assert text == "Trained 5 steps in 1s; loss 8.0471 at step 1."


def test_closing_tells_the_time_in_collectives() -> None:
    text = format_closing(
        steps=5, seconds=9.0, losses={}, files={}, waited={"fsdp": 1.234, "tp": 0.5}
    )
    assert text == (
        "Trained 5 steps in 9s.\n"
        "Steps of this rank spent in collectives: fsdp 1.23 s, tp 0.50 s."
    )
