"""Plans of a rank of a pipeline."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from styled_models import Args, Styled

from torchtitan_cpp import get_train_spec, plan, train_spec
from torchtitan_cpp.config import JobConfig, check_run, read_config
from torchtitan_cpp.train import main as train
from torchtitan_cpp.world import build_fake_world

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


RATES = plan.Rates(tflops=1.0, memory_gb_per_second=1e12, network_gb_per_second=1e12)
"""Communication and the optimizer cost nothing."""


def seconds_of_work(config: JobConfig, rank: int) -> tuple[float, float]:
    """Of a rank's stages on one microbatch, forward and backward."""
    segments = plan.make_plan(config, build_fake_world(config, rank)).shape.segments
    again = sum(each.recompute_flops for each in segments if each.recompute)
    return (
        sum(each.forward_flops for each in segments) / 1e12,
        (again + sum(each.backward_flops for each in segments)) / 1e12,
    )


@pytest.mark.parametrize("ac", ["none", "full"])
def test_unequal_stages_take_the_time_of_the_slower_one(
    ac: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NGPU", "2")
    config = config_of(schedule("GPipe"), f"--activation_checkpoint.mode={ac}")
    planned = plan.make_plan(config, rates=RATES)
    (f0, b0), (f1, b1) = (seconds_of_work(config, rank) for rank in (0, 1))
    assert f0 != f1
    # All forwards, then all backwards; the faster rank waits for the slower one.
    seconds = f0 + 3 * max(f0, f1) + f1 + b1 + 3 * max(b0, b1) + b0
    assert planned.seconds == pytest.approx(seconds, rel=1e-6)
    work = 4 * (f0 + b0 + f1 + b1)
    assert planned.idle_share == pytest.approx(1 - work / (2 * seconds), rel=1e-6)
    assert planned.time
    assert planned.time.compute_seconds == pytest.approx(4 * (f0 + b0), rel=1e-6)


def test_what_a_slow_network_adds_is_in_the_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("NGPU", "4")
    config = config_of(schedule("InterleavedZeroBubble"), world_size=4)  # FSDP 2
    fast = plan.make_plan(config, rates=RATES)
    slow = plan.make_plan(
        config,
        rates=plan.Rates(
            tflops=1.0, memory_gb_per_second=1e12, network_gb_per_second=1.0
        ),
    )
    moved = {key: each.bytes / 1e9 for key, each in slow.traffic.items()}
    # Shards are gathered once and reduced once; one of four messages is waited for.
    least = (moved["fsdp", "all_gather"] + moved["pp", "recv"]) / 4
    assert slow.seconds > fast.seconds + least
    assert slow.idle_share > fast.idle_share


def test_the_command_predicts_the_time_and_draws_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NGPU", "4")
    rates = ("--tflops=1", "--memory-gb-per-second=10", "--network-gb-per-second=1")
    picture = tmp_path / "step.svg"
    assert plan.main([*FLAGS[1:], *rates, f"--timeline={picture}"]) == 0
    printed = capsys.readouterr().out
    assert "together" in printed and "of the pipeline's time" in printed
    drawn = picture.read_text()
    assert "a step of one pipeline of 4 ranks" in drawn
    for shown in (">rank 0: st0<", ">rank 1: st1<", "OptimizerStep", "Unshard g0"):
        assert shown in drawn, shown


def test_a_dry_run_reports_the_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NGPU", "4")
    assert train([*FLAGS, f"--job.dump_folder={tmp_path}"]) == 0
    printed = capfd.readouterr()
    report = printed.out + printed.err
    assert "pipeline 1F1B: 2 stages" in report
    lines = [line.split() for line in report.splitlines()]
    kinds = {(line[0], line[1]) for line in lines if len(line) > 2}
    assert {("pp", "send"), ("pp", "recv"), ("fsdp", "all_gather")} <= kinds


@pytest.mark.parametrize(
    ("tensor", "unknown"), [(1, "send, which"), (2, "send and exchange over tp, which")]
)
def test_a_plan_says_which_bytes_of_stages_it_does_not_know(
    tensor: int, unknown: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag = f"--parallelism.tensor_parallel_degree={tensor}"
    monkeypatch.setenv("NGPU", str(2 * tensor))
    cpp = plan.make_plan(config_of(flag, world_size=2 * tensor))
    assert "without the bytes" not in plan.describe(cpp)
    said = plan.describe(replace(cpp, knows_segments=False))
    assert f"without the bytes that stages of the Python model {unknown}" in said
    assert "a dry run counts them" not in said


def test_a_dry_run_says_what_it_does_not_know_of_a_python_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    spec = replace(
        get_train_spec("llama3"),
        model_cls=Styled,
        model_args={"plain": Args(vocab_size=2048)},
        state_dict_adapter=None,
    )
    monkeypatch.setattr(train_spec, "_registered", {"styled": spec})
    monkeypatch.setenv("NGPU", "2")
    model = ("--model.name=styled", "--model.flavor=plain")
    assert train([*FLAGS, *model, f"--job.dump_folder={tmp_path}"]) == 0
    printed = capfd.readouterr()
    assert "without the bytes that stages" in printed.out + printed.err
