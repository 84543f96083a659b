"""The plan's memory is what ranks report when they train."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from training_runs import run, torchrun

from torchtitan_cpp import plan
from torchtitan_cpp.config import check_run, read_config
from torchtitan_cpp.custom_import import import_custom_code

TOLERANCE = 0.02
# Whether a gather under way still holds its buffers at the peak is a matter of time. In
# small jobs they are this share.
TOLERANCE_SMALL = {1: TOLERANCE, 2: 0.05}
MODES = {
    "none": ("--activation_checkpoint.mode=none",),
    "full": ("--activation_checkpoint.mode=full",),
    "selective 2": (
        "--activation_checkpoint.mode=selective",
        "--activation_checkpoint.selective_ac_option=2",
    ),
    "selective op": (
        "--activation_checkpoint.mode=selective",
        "--activation_checkpoint.selective_ac_option=op",
    ),
    "budget 0.5": (
        "--activation_checkpoint.mode=memory_budget",
        "--activation_checkpoint.memory_budget=0.5",
    ),
}
JOB = (
    "--experimental.custom_import=tiny_jobs",
    "--training.dataset=tiny_text",
    "--training.steps=1",
    "--metrics.log_freq=1",
)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """A rank of these jobs has one; kernels take working memory for each."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def planned_mib(
    flags: tuple[str, ...], ranks: int, monkeypatch: pytest.MonkeyPatch
) -> float:
    monkeypatch.setenv("NGPU", str(ranks))
    loaded = read_config([*flags, "--comm.mode=fake_backend"])
    import_custom_code(loaded)
    planned = plan.make_plan(check_run(loaded, world_size=ranks))
    return planned.memory.peak.total() / 2**20


def measured_mib(folder: Path) -> float:
    line = (folder / "metrics.jsonl").read_text().splitlines()[-1]
    return float(json.loads(line)["peak_tensor_mib"])


@pytest.mark.parametrize(
    ("ranks", "mode"),
    [
        (1, "none"),
        (2, "selective 2"),
        (1, "selective op"),
        (2, "budget 0.5"),
        (1, "full"),
        (1, "selective 2"),
        (2, "none"),
        (2, "full"),
    ],
)
def test_of_a_small_batch(
    ranks: int, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (
        *JOB,
        "--model.flavor=debugmodel",
        "--training.local-batch-size=4",
        "--training.seq-len=512",
        *MODES[mode],
    )
    run(tmp_path, *flags, ranks=ranks)
    expected = planned_mib(flags, ranks, monkeypatch)
    tolerance = TOLERANCE_SMALL[ranks]
    assert measured_mib(tmp_path) == pytest.approx(expected, rel=tolerance)


@pytest.mark.parametrize(
    ("exchanges", "mode"),
    [
        pytest.param("no-enable", "none", marks=pytest.mark.quick),
        ("enable", "none"),
        ("no-enable", "selective op"),
    ],
)
def test_of_tensor_ranks(
    exchanges: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (
        *JOB,
        "--model.flavor=debugmodel",
        "--training.local-batch-size=4",
        "--training.seq-len=512",
        "--parallelism.tensor-parallel-degree=2",
        f"--parallelism.{exchanges}-async-tensor-parallel",
        *MODES[mode],
    )
    run(tmp_path, *flags, ranks=2)
    expected = planned_mib(flags, 2, monkeypatch)
    assert measured_mib(tmp_path) == pytest.approx(expected, rel=TOLERANCE_SMALL[2])


@pytest.mark.parametrize(
    ("method", "flavor", "mode"),
    [
        ("allgather", "debugmodel", "none"),
        ("alltoall", "debugmodel_flex_attn", "none"),
        ("alltoall", "debugmodel", "full"),
        ("ulysses", "debugmodel", "none"),
    ],
)
def test_of_context_ranks(
    method: str, flavor: str, mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = (
        *JOB,
        f"--model.flavor={flavor}",
        "--training.local-batch-size=4",
        "--training.seq-len=1024",
        "--parallelism.context-parallel-degree=2",
        f"--parallelism.context-parallel-rotate-method={method}",
        *MODES[mode],
    )
    run(tmp_path, *flags, ranks=2)
    expected = planned_mib(flags, 2, monkeypatch)
    assert measured_mib(tmp_path) == pytest.approx(expected, rel=TOLERANCE_SMALL[2])


@pytest.mark.parametrize(
    ("ranks", "flavor", "rows", "mode"),
    [
        (2, "debugmodel", 8, "none"),
        (2, "medium", 2, "none"),
        pytest.param(1, "debugmodel", 8, "none", marks=pytest.mark.nightly),
        pytest.param(2, "debugmodel", 8, "full", marks=pytest.mark.nightly),
        pytest.param(2, "debugmodel", 8, "selective 2", marks=pytest.mark.nightly),
    ],
)
def test_of_a_large_batch(
    ranks: int,
    flavor: str,
    rows: int,
    mode: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = (
        *JOB,
        f"--model.flavor={flavor}",
        f"--training.local-batch-size={rows}",
        "--training.seq-len=2048",
        *MODES[mode],
    )
    done = torchrun(ranks, f"--job.dump-folder={tmp_path}", *flags)
    assert done.returncode == 0, done.stderr
    expected = planned_mib(flags, ranks, monkeypatch)
    assert measured_mib(tmp_path) == pytest.approx(expected, rel=TOLERANCE)


@pytest.mark.parametrize(
    "schedule", [pytest.param("ZBVZeroBubble", marks=pytest.mark.quick), "DualPipeV"]
)
def test_of_pipeline_ranks(
    schedule: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the rank with first and last stage, which writes the metrics."""
    flags = (
        *JOB,
        "--model.flavor=debugmodel",
        "--training.local-batch-size=4",
        "--training.seq-len=512",
        "--parallelism.pipeline-parallel-degree=2",
        f"--parallelism.pipeline-parallel-schedule={schedule}",
    )
    run(tmp_path, *flags, ranks=2)
    expected = planned_mib(flags, 2, monkeypatch)
    assert measured_mib(tmp_path) == pytest.approx(expected, rel=0.05)
