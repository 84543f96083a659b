"""Plans of a rank of a pipeline."""

from __future__ import annotations

from pathlib import Path

import pytest

from torchtitan_cpp import plan
from torchtitan_cpp.config import JobConfig, check_run, read_config
from torchtitan_cpp.train import main as train

FLAGS = (
    "--comm.mode=fake_backend",
    "--parallelism.pipeline_parallel_degree=2",
    "--training.local_batch_size=4",
    "--training.seq_len=64",
)


def schedule(name: str) -> str:
    return f"--parallelism.pipeline_parallel_schedule={name}"


def config_of(*flags: str, world_size: int = 2) -> JobConfig:
    return check_run(read_config([*FLAGS, *flags]), world_size=world_size)


@pytest.mark.parametrize("name", ["1F1B", "InterleavedZeroBubble", "DualPipeV"])
def test_messages_and_flops_are_those_of_the_ranks_stages(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NGPU", "2")
    planned = plan.make_plan(config_of(schedule(name)))
    assert planned.pipeline
    ranks = planned.pipeline.rank_of_stage
    mine = [stage for stage, rank in enumerate(ranks) if rank == 0]
    borders = sum(ranks[s + 1] != 0 for s in mine if s + 1 < len(ranks)) + sum(
        ranks[s - 1] != 0 for s in mine if s > 0
    )
    hidden = 1 * 64 * 256 * 4  # rows, tokens, dim, float32
    for verb in ("send", "recv"):
        assert planned.traffic["pp", verb].calls == 4 * borders
        assert planned.traffic["pp", verb].bytes == 4 * borders * hidden
    monkeypatch.setenv("NGPU", "1")
    undivided = "--parallelism.pipeline_parallel_degree=1"
    whole = plan.make_plan(config_of(undivided, world_size=1))
    assert 0.3 * whole.flops < planned.flops < 0.7 * whole.flops
    assert planned.num_params == whole.num_params


def test_the_command_tells_the_bubble_and_draws_the_schedule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NGPU", "2")
    picture = tmp_path / "step.svg"
    assert plan.main([*FLAGS[1:], "--timeline", str(picture)]) == 0
    printed = capsys.readouterr().out
    assert "pipeline  2 stages on 2 ranks, 4 microbatches" in printed
    assert "with equal stages 20.0% idle" in printed  # 1 / (4 + 1)
    assert picture.read_text().startswith("<svg")


def test_rates_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NGPU", "2")
    rates = ("--tflops=1", "--memory-gb-per-second=10", "--network-gb-per-second=1")
    assert plan.main([*FLAGS[1:], *rates]) == 2
    assert "not predicted yet" in capsys.readouterr().err


def test_a_dry_run_reports_the_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NGPU", "4")
    assert train([*FLAGS, f"--job.dump_folder={tmp_path}"]) == 0
    printed = capfd.readouterr()
    report = printed.out + printed.err
    assert "pipeline 1F1B: " in report
    lines = [line.split() for line in report.splitlines()]
    kinds = {(line[0], line[1]) for line in lines if len(line) > 2}
    assert {("pp", "send"), ("pp", "recv"), ("fsdp", "all_gather")} <= kinds
