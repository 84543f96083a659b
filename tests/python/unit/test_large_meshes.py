"""Dry runs of one rank of a mesh that nobody has at hand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from torchtitan_cpp.train import main as train

DEGREES = {
    "pp": "pipeline_parallel",
    "dp_replicate": "data_parallel_replicate",
    "dp_shard": "data_parallel_shard",
    "cp": "context_parallel",
    "tp": "tensor_parallel",
}
Traffic = dict[tuple[str, str], tuple[int, float]]


@pytest.fixture(autouse=True)
def variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)


def dry_run(
    folder: Path,
    capfd: pytest.CaptureFixture[str],
    degrees: dict[str, int],
    *flags: str,
) -> str:
    """What it prints."""
    parallel = (
        f"--parallelism.{DEGREES[axis]}_degree={n}" for axis, n in degrees.items()
    )
    fake = ("--comm.mode=fake_backend", f"--job.dump_folder={folder}")
    assert train([*fake, *parallel, *flags]) == 0
    printed = capfd.readouterr()
    return printed.out + printed.err


def traffic_of(report: str) -> Traffic:
    """Calls and MiB by axis and verb."""
    lines = re.findall(r"^ +(\w+) +(\w+) +([\d,]+) calls +([\d,.]+) MiB$", report, re.M)
    return {
        (axis, verb): (int(calls.replace(",", "")), float(mib.replace(",", "")))
        for axis, verb, calls, mib in lines
    }


def mib_of(report: str, label: str) -> float:
    found = re.search(rf"^ +{label} +([\d,.]+) MiB$", report, re.M)
    assert found, label
    return float(found.group(1).replace(",", ""))


def test_a_rank_of_a_hundred_thousand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NGPU", "100000")
    degrees = {"pp": 2, "dp_replicate": 5, "dp_shard": 2500, "cp": 2, "tp": 2}
    rows = ("--training.local_batch_size=2", "--training.seq_len=64")
    report = dry_run(tmp_path, capfd, degrees, *rows)
    mesh = " x ".join(f"{axis} {n}" for axis, n in degrees.items())
    assert f"100,000 ranks: {mesh}" in report
    assert "pipeline 1F1B: 2 stages, 2 microbatches" in report
    assert "kept by rank 0 of 100,000" in report
    assert mib_of(report, "at the peak of a step") > mib_of(report, "together") > 0
    traffic = traffic_of(report)
    assert {axis for axis, _ in traffic} == {
        "pp",
        "dp_replicate",
        "fsdp",
        "loss",
        "cp",
        "tp",
    }
    # A group of shards and of replicas each; one border, two microbatches.
    assert (
        traffic["dp_replicate", "all_reduce"][0]
        == (traffic["fsdp", "reduce_scatter"][0])
    )
    assert traffic["pp", "send"][0] == traffic["pp", "recv"][0] == 2


@pytest.mark.slow
def test_llama_405b_on_32768_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NGPU", "32768")
    degrees = {"pp": 16, "dp_shard": 128, "cp": 2, "tp": 8}
    report = dry_run(
        tmp_path,
        capfd,
        degrees,
        "--model.flavor=405B",
        "--activation_checkpoint.mode=full",
        "--parallelism.pipeline_parallel_schedule=Interleaved1F1B",
        "--training.mixed_precision_param=bfloat16",
        "--training.local_batch_size=16",
        "--training.seq_len=8192",
    )
    assert "32,768 ranks: pp 16 x dp_shard 128 x cp 2 x tp 8" in report
    assert "pipeline Interleaved1F1B: 32 stages, 16 microbatches" in report

    dim, hidden, layers, rows = 16384, 53248, 7, 16  # rank 0: stages 0 and 16
    divided = {dim: 1, 1024: 2, hidden: 2}  # rows of wq; wk, wv; w1, w3
    shard = sum(n * -(-height // 8 // 256) * dim for height, n in divided.items())
    shard += dim // 256 * (dim + hidden) // 8  # wo, w2
    shard += 2 * dim // 256  # norms, whole on every tensor rank
    weights = layers * shard + -(-128256 // 8 // 256) * dim
    mib = 2**20
    parameters = mib_of(report, "parameters")
    assert parameters == pytest.approx(weights * 4 / mib, abs=0.06)
    assert mib_of(report, "optimizer state") == pytest.approx(2 * parameters, abs=0.2)
    assert mib_of(report, "together") == pytest.approx(4 * parameters, abs=0.3)
    assert mib_of(report, "at the peak of a step") > mib_of(report, "together")

    traffic = traffic_of(report)
    hidden_mib = 8192 // 2 // 8 * dim * 2 / mib  # of a row on one rank
    for verb in ("send", "recv"):  # stage 0 has one border, stage 16 two
        assert traffic["pp", verb] == (3 * rows, 3 * rows * hidden_mib)
    # Keys and values of one head each, in forward, again and in backward.
    calls, keys_mib = 3 * rows * layers, 2 * 8192 * 128 * 2 / mib
    assert traffic["cp", "all_gather"] == (calls, calls * keys_mib)
    assert traffic["fsdp", "all_gather"] == (
        layers + 1,
        pytest.approx(256 * weights * 2 / mib, abs=0.06),
    )
    assert traffic["tp", "all_gather"][1] > 0 < traffic["tp", "reduce_scatter"][1]
