"""Options of the trainer that change how, not what, is computed; and their files."""

from __future__ import annotations

import csv
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import Finished, assert_same_tensors, run

FLOAT64 = "--training.dtype=float64"


def weights(finished: Finished, step: int = 5) -> Any:
    return finished.dumped(step)["weights"]


def assert_close(values: Any, references: Any, tolerance: float) -> None:
    for name, expected in references.items():
        assert (values[name] - expected).norm() <= tolerance * expected.norm(), name


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.quick)])
def test_activation_checkpointing_changes_no_bit_of_a_gradient(
    ranks: int, tmp_path: Path
) -> None:
    flags = ("--training.global-batch-size=8", "--training.steps=2")
    none = run(tmp_path / "none", *flags, ranks=ranks, trainer="dumping")
    modes = {
        "full": (),
        "selective": ("--activation-checkpoint.selective-ac-option=2",),
        "selective op": ("--activation-checkpoint.selective-ac-option=op",),
        "memory_budget": ("--activation-checkpoint.memory-budget=0.4",),
    }
    for mode, option in modes.items():
        other = run(
            tmp_path / mode,
            *flags,
            f"--activation-checkpoint.mode={mode.split()[0]}",
            *option,
            ranks=ranks,
            trainer="dumping",
        )
        for step in (1, 2):
            assert_same_tensors(
                other.dumped(step)["gradients"], none.dumped(step)["gradients"]
            )


@pytest.mark.quick
def test_compilation_changes_nothing_of_a_cpp_model(tmp_path: Path) -> None:
    output = run(tmp_path, "--compile.enable", "--training.steps=1").output
    assert "compile.enable changes nothing: C++ models are fused as they are" in output


@pytest.mark.quick
def test_offload_to_host_memory_changes_nothing_on_a_cpu(tmp_path: Path) -> None:
    output = run(
        tmp_path, "--activation_checkpoint.offload", "--training.steps=1"
    ).output
    assert "activation_checkpoint.offload changes nothing on a CPU run" in output


@pytest.mark.quick
def test_the_curve_of_memory_budgets_is_written_where_it_is_asked_for(
    tmp_path: Path,
) -> None:
    flags = (
        "--activation-checkpoint.mode=memory_budget",
        "--activation-checkpoint.memory-budget=0.5",
        "--activation-checkpoint.visualize-memory-budget-pareto",
        "--training.steps=1",
    )
    finished = run(tmp_path, *flags)
    assert "memory budget 0.5: a microbatch keeps" in finished.output
    with (tmp_path / "memory_budget_pareto" / "curve.csv").open() as file:
        rows = [
            {key: int(value) for key, value in row.items()}
            for row in csv.DictReader(file)
        ]
    kept = [row["kept_bytes"] for row in rows]
    flops = [row["recomputed_flops"] for row in rows]
    assert kept == sorted(set(kept))
    assert flops == sorted(set(flops), reverse=True)
    assert (kept[0], flops[-1]) == (0, 0)
    chosen = next(row for row in rows if row["chosen"])
    after = rows[rows.index(chosen) + 1]
    assert chosen["kept_bytes"] <= kept[-1] / 2 < after["kept_bytes"]
    svg = (tmp_path / "memory_budget_pareto" / "curve.svg").read_text()
    assert len(re.findall(r"[\d.]+,[\d.]+", svg.split("points=")[1])) == len(rows)
    run(tmp_path / "without", *flags[:2], flags[3])
    assert not (tmp_path / "without" / "memory_budget_pareto").exists()


@pytest.mark.parametrize("ranks", [1, pytest.param(2, marks=pytest.mark.quick)])
def test_early_steps_equal_steps_at_the_end_where_nothing_is_clipped(
    ranks: int, tmp_path: Path
) -> None:
    flags = (FLOAT64, "--training.max-norm=inf", "--training.global-batch-size=8")
    late = run(tmp_path / "late", *flags, ranks=ranks, trainer="dumping")
    early = run(
        tmp_path / "early",
        *flags,
        "--optimizer.early-step-in-backward",
        ranks=ranks,
        trainer="dumping",
    )
    assert_close(weights(early), weights(late), 1e-9)
    for line, expected in zip(early.metrics(), late.metrics(), strict=True):
        assert line == pytest.approx(expected, rel=1e-9)


def test_early_steps_say_that_clipping_is_not_done(tmp_path: Path) -> None:
    early = run(tmp_path, "--optimizer.early-step-in-backward")
    assert "max_norm" in early.output


def test_early_steps_check_each_group_and_stop_the_run(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        "--optimizer.early-step-in-backward",
        "--training.steps=9",
        ranks=2,
        trainer="poisoning",
        fails=True,
    )
    assert all(code > 0 for code in ended.exit_codes)
    assert "weights are unchanged: True" in ended.outputs[0]
    assert "step 3: loss nan" in ended.outputs[0]
    assert "no weight was changed" in ended.outputs[0]


@pytest.mark.parametrize("early", [False, True])
def test_the_message_of_a_bad_gradient_says_which_weights_have_changed(
    early: bool, tmp_path: Path
) -> None:
    """Only the gradient of the embedding is bad, which comes last in the backward."""
    ended = run(
        tmp_path,
        "--experimental.custom-import=tiny_python_model",
        "--model.name=counting",
        "--model.flavor=spoiled",
        *(["--optimizer.early-step-in-backward"] if early else []),
        "--training.steps=9",
        ranks=2,
        trainer="comparing",
        fails=True,
    )
    groups = "2 of 3 parameter groups had been changed before"
    for output in ended.outputs:
        assert "step 3: loss" in output and "bad gradient embedding.weight" in output
        assert (groups in output) == early
        assert ("no weight was changed" in output) == (not early)
        assert f"changed groups: {2 if early else 0}" in output


@pytest.mark.quick
def test_optimizer_implementations_agree(tmp_path: Path) -> None:
    runs = {
        name: run(
            tmp_path / name,
            FLOAT64,
            f"--optimizer.implementation={name}",
            trainer="dumping",
        )
        for name in ("fused", "foreach", "for-loop")
    }
    for name in ("foreach", "for-loop"):
        assert_close(weights(runs[name]), weights(runs["fused"]), 1e-12)


def test_moments_in_bfloat16_train_as_well(tmp_path: Path) -> None:
    narrow = run(tmp_path / "a", "--optimizer.state-dtype=bfloat16").metrics()
    wide = run(tmp_path / "b").metrics()
    assert narrow[0] == wide[0]
    assert narrow[-1]["loss"] != wide[-1]["loss"]
    assert narrow[-1]["loss"] == pytest.approx(wide[-1]["loss"], rel=0.02)


@pytest.mark.quick
def test_bfloat16_computes_near_float32(tmp_path: Path) -> None:
    bf16 = run(tmp_path / "a", "--training.mixed-precision-param=bfloat16", ranks=2)
    fp32 = run(tmp_path / "b", ranks=2)
    losses = [[line["loss"] for line in each.metrics()] for each in (bf16, fp32)]
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)


def closing(finished: Finished) -> dict[str, str]:
    """The files that rank 0 lists at the end, by their label."""
    lines = finished.outputs[0].partition("\nFiles:\n")[2].splitlines()
    rows = itertools.takewhile(lambda line: line.startswith("  "), lines)
    pairs = (row.split(maxsplit=1) for row in rows)
    return {label: path for label, path in pairs}


@pytest.mark.quick
def test_the_files_of_other_runs_are_not_listed_at_the_end(tmp_path: Path) -> None:
    (tmp_path / "validation.jsonl").touch()
    (tmp_path / "tb").mkdir()
    finished = run(tmp_path, "--training.steps=1")
    assert closing(finished) == {"metrics": str(tmp_path / "metrics.jsonl")}


def test_validation_traces_and_tensorboard_leave_their_files(tmp_path: Path) -> None:
    flags = (
        "--validation.enable",
        "--validation.dataset=tiny_text",
        "--validation.local-batch-size=2",
        "--validation.seq-len=16",
        "--validation.freq=2",
        "--validation.steps=3",
        "--metrics.enable-tensorboard",
        "--profiling.enable-profiling",
        "--profiling.profile-freq=4",
        "--profiling.profiler-warmup=1",
        "--profiling.profiler-active=1",
        "--job.save-config-file=settings.json",
    )
    finished = run(tmp_path, *flags, ranks=2)
    lines = (tmp_path / "validation.jsonl").read_text().splitlines()
    values = [json.loads(line) for line in lines]
    assert [value["step"] for value in values] == [1, 2, 4]
    assert all(6 < value["loss"] < 9 for value in values)
    assert list((tmp_path / "tb").rglob("events.out.tfevents.*"))
    traces = list((tmp_path / "profile_traces").rglob("*trace.json"))
    assert len(traces) == 2, traces
    assert json.loads(traces[0].read_text())["traceEvents"]
    listed = {
        "settings": "settings.json",
        "metrics": "metrics.jsonl",
        "validation": "validation.jsonl",
        "tensorboard": "tb",
        "traces": "profile_traces",
    }
    assert closing(finished) == {k: str(tmp_path / v) for k, v in listed.items()}


def test_validation_changes_nothing_in_the_training(tmp_path: Path) -> None:
    flags = (
        "--validation.enable",
        "--validation.dataset=tiny_text",
        "--validation.local-batch-size=3",
        "--validation.seq-len=8",
        "--validation.freq=1",
        "--validation.steps=-1",
    )
    plain = run(tmp_path / "plain", ranks=2)
    validated = run(tmp_path / "validated", *flags, ranks=2)
    assert validated.metrics() == plain.metrics()


@pytest.mark.quick
def test_weights_are_finite_and_move(tmp_path: Path) -> None:
    trained = run(tmp_path, trainer="dumping")
    first, last = weights(trained, 1), weights(trained, 5)
    for name, tensor in last.items():
        assert bool(tensor.isfinite().all())
        assert not torch.equal(tensor, first[name]), name
