"""Every dense row of torchtitan's feature tests trains here as one process would.

A row's flags run as they are over Gloo, for ten steps of few short sequences, and its
losses are those of one rank with the same global batch. The rows in every suite have
all flags of the table; scripts/nightly.sh runs all rows, each by torchrun.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from feature_rows import LONGER, ROWS, Row
from tiny_jobs import sentences
from training_runs import Finished, read_checkpoint, run, torchrun

Lines = list[dict[str, Any]]
"""Of metrics.jsonl."""

LOCAL_ROWS = 8
"""Sequences of a data rank where a row says nothing else, as in torchtitan's job."""

RECOMPUTING = (
    "--activation-checkpoint.mode=selective",
    "--activation-checkpoint.selective-ac-option=2",
)
"""Of torchtitan's job; the reference keeps all activations."""


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """The job of torchtitan's feature tests, with short sequences of short texts.

    Most sequences have several documents, so that masks of documents matter.
    """
    path = tmp_path_factory.mktemp("texts") / "texts.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in sentences(2000)))
    return (
        "--model.name=llama3",
        "--model.flavor=debugmodel",
        "--training.dataset=c4_test",
        f"--training.dataset-path={path}",
        "--training.seq-len=16",
        f"--training.local-batch-size={LOCAL_ROWS}",
        "--training.steps=10",
        "--validation.freq=5",
        "--validation.steps=2",
        "--validation.seq-len=16",
        f"--validation.local-batch-size={LOCAL_ROWS}",
        f"--validation.dataset-path={path}",
        "--checkpoint.interval=10",
        "--optimizer.lr=8e-4",
        "--lr-scheduler.warmup-steps=2",
        "--lr-scheduler.decay-ratio=0.8",
        "--metrics.log-freq=1",
        "--debug.seed=7",
    )


def split(flags: str) -> list[str]:
    """One argument a flag: ``--a 2 --b`` is ``--a=2`` and ``--b``."""
    arguments: list[str] = []
    for word in shlex.split(flags):
        if word.startswith("--"):
            arguments.append(word)
        else:
            arguments[-1] += f"={word}"
    return arguments


def value(flags: list[str], name: str) -> int | None:
    """The number that a flag gives."""
    texts = [flag.partition("=")[2] for flag in flags if flag.startswith(name + "=")]
    return int(texts[-1]) if texts else None


def global_batch(flags: list[str], ranks: int) -> int:
    """Sequences of a step."""
    for kind in ("tensor", "context", "pipeline"):
        ranks //= value(flags, f"--parallelism.{kind}_parallel_degree") or 1
    rows = value(flags, "--training.local_batch_size") or LOCAL_ROWS
    return value(flags, "--training.global_batch_size") or rows * ranks


def reference_flags(row: Row) -> tuple[tuple[str, ...], ...]:
    """Of each run on one rank: what changes its numbers, and nothing else."""
    kept = ["--model.", "--training.steps", "--validation."]
    if len(row.runs) > 1:
        kept.append("--checkpoint.")
    runs = []
    for each in row.runs:
        flags = split(each.flags)
        one = [flag for flag in flags if flag.startswith(tuple(kept))]
        one.append(f"--training.local-batch-size={global_batch(flags, row.ranks)}")
        if "--optimizer.early_step_in_backward" in flags:
            one.append("--training.max-norm=inf")
        runs.append(tuple(one))
    return tuple(runs)


@pytest.fixture(scope="session")
def reference(
    base: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Row], tuple[list[Lines], Path]]:
    """The lines of each run of a row on one rank, and their folder; made once."""
    known: dict[tuple[tuple[str, ...], ...], tuple[list[Lines], Path]] = {}

    def find(row: Row) -> tuple[list[Lines], Path]:
        runs = reference_flags(row)
        if runs not in known:
            out = tmp_path_factory.mktemp("reference")
            lines = []
            for flags in runs:
                filled = [flag.format(out=out) for flag in flags]
                lines.append(run(out, *base, *filled).metrics())
            known[runs] = lines, out
        return known[runs]

    return find


def write_schedule(path: Path) -> None:
    """Two stages a rank, 8 microbatches: forwards, then both halves of backwards."""
    lines = []
    for rank in range(2):
        stages = (rank, 2 + rank)
        actions = [f"{stage}F{each}" for stage in stages for each in range(8)]
        for first in range(0, 8, 2):
            for stage in reversed(stages):
                for each in (first, first + 1):
                    actions += [f"{stage}I{each}", f"{stage}W{each}"]
        lines.append(",".join(actions))
    path.write_text("\n".join(lines) + "\n")


def start(folder: Path, ranks: int, flags: list[str], *, by_torchrun: bool) -> Finished:
    """A job that ends well."""
    if not by_torchrun:
        return run(folder, *flags, ranks=ranks)
    done = torchrun(ranks, f"--job.dump-folder={folder}", *flags)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    return Finished(folder=folder, exit_codes=[done.returncode], outputs=[output])


def assert_like(lines: Lines, expected: Lines) -> None:
    """Finite, and equal but for the rounding of float32, which grows over the steps."""
    assert [line["step"] for line in lines] == [line["step"] for line in expected]
    for line, other in zip(lines, expected, strict=True):
        assert math.isfinite(line["loss"])
        tolerance = 1e-5 if line["step"] == 1 else 1e-3
        for name in ("loss", "grad_norm", "lr", "n_tokens_seen"):
            assert line[name] == pytest.approx(other[name], rel=tolerance), (line, name)


def validated(folder: Path) -> Lines:
    text = (folder / "validation.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def check_files_of_a_run(folder: Path, reference: Path) -> None:
    traces = list((folder / "profile_traces").rglob("*trace.json"))
    assert len(traces) == 4, traces
    assert all(json.loads(path.read_text())["traceEvents"] for path in traces)
    assert list((folder / "tb").rglob("events.out.tfevents.*"))


def check_resumed(folder: Path, reference: Path) -> None:
    names = sorted(path.name for path in (folder / "checkpoint").iterdir())
    assert names == ["step-10", "step-20"]
    tensors = read_checkpoint(folder / "checkpoint" / "step-20")
    expected = read_checkpoint(reference / "checkpoint" / "step-20")
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        if not name.startswith("optimizer."):
            other = expected[name]
            assert (tensor - other).norm() <= 1e-2 * other.norm(), name


def check_hugging_face(folder: Path, reference: Path) -> None:
    from transformers import LlamaForCausalLM  # takes a second to import

    path = folder / "hf_checkpoint" / "step-10"
    model, found = LlamaForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    assert len(model.model.layers) == 6


def check_weights_in(dtype: torch.dtype) -> Callable[[Path, Path], None]:
    def check(folder: Path, reference: Path) -> None:
        tensors = read_checkpoint(folder / "checkpoint" / "step-10")
        assert "tok_embeddings.weight" in tensors
        assert not any(name.startswith("optimizer.") for name in tensors)
        assert {tensor.dtype for tensor in tensors.values()} == {dtype}

    return check


def check_validated(folder: Path, reference: Path) -> None:
    lines, expected = validated(folder), validated(reference)
    assert [line["step"] for line in lines] == [1, 5, 10]
    for line, other in zip(lines, expected, strict=True):
        assert line["loss"] == pytest.approx(other["loss"], rel=1e-3)


CHECKS: dict[str, Callable[[Path, Path], None]] = {
    "default": check_files_of_a_run,
    "full_checkpoint": check_resumed,
    "pp_dp_tp": check_resumed,
    "optional_checkpoint": check_resumed,
    "model_only_hf_checkpoint": check_hugging_face,
    "last_save_model_only_fp32": check_weights_in(torch.float32),
    "last_save_model_only_bf16": check_weights_in(torch.bfloat16),
    "validation_tp_cp_pp": check_validated,
}
"""What a row leaves behind, by its name; given its folder and the reference's."""


def flags_of(rows: list[Row]) -> set[str]:
    return {
        flag.partition("=")[0]
        for each in rows
        for run in each.runs
        for flag in split(run.flags)
    }


@pytest.mark.quick
def test_the_rows_of_every_suite_have_all_flags() -> None:
    names = [each.name for each in ROWS]
    assert len(set(names)) == len(names) and CHECKS.keys() <= set(names)
    ordinary = [each for each in ROWS if each.ordinary]
    assert flags_of(ordinary) == flags_of(list(ROWS))


@pytest.mark.quick
def test_other_runs_than_the_nightly_one_have_fewer_rows(
    request: pytest.FixtureRequest,
) -> None:
    """Also with an expression of marks, as the quick suite has one."""
    selected = request.session.items
    assert request.config.getoption("nightly") or not [
        item for item in selected if item.get_closest_marker("nightly")
    ]


@pytest.mark.parametrize(
    "row",
    [
        pytest.param(
            each, id=each.name, marks=() if each.ordinary else pytest.mark.nightly
        )
        for each in ROWS
    ],
)
def test_a_row_trains_as_one_rank_does(
    row: Row,
    base: tuple[str, ...],
    reference: Callable[[Row], tuple[list[Lines], Path]],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    expected, expected_folder = reference(row)
    schedule = tmp_path / "schedule.csv"
    write_schedule(schedule)
    for each, lines in zip(row.runs, expected, strict=True):
        finished = start(
            tmp_path,
            row.ranks,
            [
                *base,
                *RECOMPUTING,
                *split(each.flags.format(out=tmp_path, csv=schedule)),
            ],
            by_torchrun=request.config.getoption("nightly"),
        )
        for text in each.says:
            assert text in finished.output, text
        assert_like(finished.metrics(), lines)
        assert lines[-1]["step"] == (20 if LONGER in each.flags else 10)
    if row.name in CHECKS:
        CHECKS[row.name](tmp_path, expected_folder)
