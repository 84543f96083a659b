"""The console line, the JSON file and the logger keys of training steps."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from torchtitan_cpp.logging import logger
from torchtitan_cpp.metrics import MetricsProcessor, build_metrics_processor
from torchtitan_cpp.metrics.console import TERMINAL_COLOR, choose_color, step_line
from torchtitan_cpp.metrics.memory import DeviceMemoryStats

GIB = 2**30


class FakeMonitor:
    """A device of 16 GiB with fixed peaks."""

    device_name = "a device of unknown peak"

    def __init__(self) -> None:
        self.num_resets = 0

    def get_peak_stats(self) -> DeviceMemoryStats:
        return DeviceMemoryStats(
            capacity_bytes=16 * GIB, max_reserved_bytes=GIB * 5 // 2
        )

    def reset_peak_stats(self) -> None:
        self.num_resets += 1


class Clock:
    """Seconds that a test sets."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def job_config(folder: Path, **metrics: Any) -> Any:
    section: dict[str, Any] = {
        "log_freq": 10,
        "enable_tensorboard": False,
        "disable_color_printing": True,
        "save_tb_folder": "tb",
        "save_for_all_ranks": False,
        "enable_wandb": False,
    }
    return SimpleNamespace(
        metrics=SimpleNamespace(**(section | metrics)),
        job=SimpleNamespace(dump_folder=str(folder)),
        parallelism=SimpleNamespace(pipeline_parallel_schedule="1F1B"),
        fault_tolerance=SimpleNamespace(enable=False, replica_id=0),
        to_dict=lambda: {"job": "a run"},
    )


def degrees(world_size: int = 1, pp: int = 1, cp: int = 1, tp: int = 1) -> Any:
    return SimpleNamespace(world_size=world_size, pp=pp, cp=cp, tp=tp)


def make(folder: Path, dims: Any = None, **options: Any) -> MetricsProcessor:
    options = {"device": torch.device("cpu"), "clock": Clock(), **options}
    processor = MetricsProcessor(job_config(folder), dims or degrees(), **options)
    processor.device_memory_monitor = FakeMonitor()
    return processor


def run_steps(processor: MetricsProcessor, steps: range, start: int) -> None:
    """Log each step after one second and 4096 tokens."""
    clock: Any = processor._clock
    processor.start(start)
    for step in steps:
        clock.now += 1.0
        processor.ntokens_since_last_log += 4096
        processor.data_loading_times.append(0.25)
        extra = {"lr": 1e-3 * step, "n_tokens_seen": 4096 * step}
        processor.log(step, 8.0 - step, 8.5 - step, 4.0597, extra)


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def lines(
    caplog: pytest.LogCaptureFixture,
) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, logger=logger.name):
        yield caplog


def test_console_line_is_torchtitans() -> None:
    line = step_line(
        choose_color(sys.stdout, disabled=True),
        step=1,
        loss=8.04721,
        grad_norm=4.0597,
        memory_gib=22.19,
        memory_percent=28.04,
        tps=4793.6,
        tflops=2.6,
        mfu=0.83,
    )
    assert line == (
        "step:  1  loss:  8.04721  grad_norm:  4.0597  memory: 22.19GiB(28.04%)  "
        "tps: 4,794  tflops: 2.60  mfu: 0.83%"
    )


def test_colors_are_for_terminals_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    assert choose_color(sys.stdout, disabled=False) is TERMINAL_COLOR
    assert choose_color(sys.stdout, disabled=True).red == ""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: False, raising=False)
    assert choose_color(sys.stdout, disabled=False).red == ""


def test_colored_line_has_torchtitans_sequence() -> None:
    line = step_line(
        TERMINAL_COLOR,
        step=20,
        loss=1.0,
        grad_norm=1.0,
        memory_gib=1.0,
        memory_percent=2.0,
        tps=3.0,
        tflops=None,
        mfu=None,
    )
    assert line == (
        "\033[31mstep: 20  \033[32mloss:  1.00000  "
        "\033[38;2;180;60;0mgrad_norm:  1.0000  "
        "\033[38;2;54;234;195mmemory:  1.00GiB(2.00%)  \033[34mtps: 3  "
        "\033[36mtflops: n/a  \033[35mmfu: n/a\033[39m"
    )


def test_a_step_is_measured_and_written_once(
    tmp_path: Path, lines: pytest.LogCaptureFixture
) -> None:
    processor = make(tmp_path)
    processor.num_flops_per_token = 10**9
    run_steps(processor, range(1, 2), start=0)
    assert lines.messages[-1] == (
        "step:  1  loss:  7.00000  grad_norm:  4.0597  memory:  2.50GiB(15.62%)  "
        "tps: 4,096  tflops: 4.10  mfu: n/a"
    )
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text) == {
        "step": 1,
        "loss": 7.0,
        "grad_norm": 4.0597,
        "lr": 0.001,
        "tokens_per_second": 4096.0,
        "tflops": pytest.approx(4.096),
        "mfu": None,
        "step_seconds": 1.0,
        "peak_memory_mib": 2560.0,
        "peak_tensor_mib": None,
        "n_tokens_seen": 4096,
    }
    assert '"mfu": null' in text
    assert processor.ntokens_since_last_log == 0
    assert processor.data_loading_times == []


def test_mfu_is_percent_of_a_known_peak(tmp_path: Path) -> None:
    processor = make(tmp_path)
    processor.num_flops_per_token = 10**9
    processor.gpu_peak_flops = 40.96e12
    run_steps(processor, range(1, 2), start=0)
    assert read(tmp_path / "metrics.jsonl")[0]["mfu"] == pytest.approx(10.0)


def test_tflops_are_null_where_the_model_does_not_count_them(tmp_path: Path) -> None:
    run_steps(make(tmp_path), range(1, 2), start=0)
    assert read(tmp_path / "metrics.jsonl")[0]["tflops"] is None


def test_ranks_that_share_tokens_share_their_rate(tmp_path: Path) -> None:
    dims = degrees(world_size=8, cp=2, tp=4)
    run_steps(make(tmp_path, dims, rank=0), range(1, 2), start=0)
    assert read(tmp_path / "metrics.jsonl")[0]["tokens_per_second"] == 512.0


def test_step_seconds_are_of_one_step(tmp_path: Path) -> None:
    processor = make(tmp_path)
    processor.start(15)
    clock: Any = processor._clock
    clock.now += 10.0
    processor.log(20, 1.0, 1.0, 1.0)
    assert read(tmp_path / "metrics.jsonl")[0]["step_seconds"] == 2.0


def test_tensor_bytes_come_from_the_counter(tmp_path: Path) -> None:
    processor = make(tmp_path)
    processor.peak_tensor_bytes = lambda: 3 * 2**20
    run_steps(processor, range(1, 2), start=0)
    assert read(tmp_path / "metrics.jsonl")[0]["peak_tensor_mib"] == 3.0


def test_extra_metrics_are_written_under_their_own_names(tmp_path: Path) -> None:
    processor = make(tmp_path)
    processor.log(1, 1.0, 1.0, 1.0, {"experts/used": 3})
    assert read(tmp_path / "metrics.jsonl")[0]["experts/used"] == 3


def test_resumed_run_appends_and_no_step_appears_twice(tmp_path: Path) -> None:
    first = make(tmp_path)
    run_steps(first, range(1, 9), start=0)
    first.close()
    resumed = make(tmp_path)
    run_steps(resumed, range(6, 11), start=5)
    resumed.close()
    found = read(tmp_path / "metrics.jsonl")
    assert [record["step"] for record in found] == list(range(1, 11))
    assert not list(tmp_path.glob("*.tmp"))


def test_repeated_steps_are_cut_before_they_are_repeated(tmp_path: Path) -> None:
    run_steps(make(tmp_path), range(1, 9), start=0)
    make(tmp_path).start(5)
    assert [each["step"] for each in read(tmp_path / "metrics.jsonl")] == [
        1,
        2,
        3,
        4,
        5,
    ]


def test_a_torn_line_is_cut_at_resume(tmp_path: Path) -> None:
    run_steps(make(tmp_path), range(1, 4), start=0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    run_steps(make(tmp_path), range(5, 6), start=4)
    assert [each["step"] for each in read(tmp_path / "metrics.jsonl")] == [1, 2, 3, 5]


def test_a_new_run_keeps_the_earlier_runs_file_aside(tmp_path: Path) -> None:
    for _ in range(3):
        run_steps(make(tmp_path), range(1, 3), start=0)
    names = sorted(path.name for path in tmp_path.glob("*.jsonl"))
    assert names == ["metrics.1.jsonl", "metrics.2.jsonl", "metrics.jsonl"]
    assert [len(read(tmp_path / name)) for name in names] == [2, 2, 2]


def test_only_the_metrics_rank_writes(tmp_path: Path) -> None:
    run_steps(make(tmp_path, degrees(world_size=2), rank=1), range(1, 2), start=0)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_not_a_number_is_null(tmp_path: Path) -> None:
    make(tmp_path).log(1, float("nan"), float("inf"), 1.0)
    assert read(tmp_path / "metrics.jsonl")[0]["loss"] is None


def test_logs_the_first_step_and_every_tenth(tmp_path: Path) -> None:
    processor = make(tmp_path)
    assert [s for s in range(1, 31) if processor.should_log(s)] == [1, 10, 20, 30]


def test_validation_stays_out_of_the_training_numbers(
    tmp_path: Path, lines: pytest.LogCaptureFixture
) -> None:
    processor = make(tmp_path)
    clock: Any = processor._clock
    processor.start(0)
    clock.now += 1.0
    processor.ntokens_since_last_log += 100
    with processor.validating():
        clock.now += 4.0
        processor.ntokens_since_last_log += 8000
        processor.log_validation(loss=3.25, step=1)
    clock.now += 1.0
    processor.ntokens_since_last_log += 100
    processor.log(2, 1.0, 1.0, 1.0)
    assert (
        "validate step:  1  loss:  3.2500  memory:  2.50GiB(15.62%)  tps: 2,000"
        in lines.messages
    )
    assert read(tmp_path / "validation.jsonl") == [
        {
            "step": 1,
            "loss": 3.25,
            "tokens_per_second": 2000.0,
            "peak_memory_mib": 2560.0,
            "peak_tensor_mib": None,
        }
    ]
    training = read(tmp_path / "metrics.jsonl")[0]
    assert training["tokens_per_second"] == 100.0
    assert training["step_seconds"] == 1.0


def test_resume_cuts_validations_that_are_repeated(tmp_path: Path) -> None:
    first = make(tmp_path)
    first.start(0)
    for step in (1, 10, 20):
        first.log_validation(loss=1.0, step=step)
    make(tmp_path).start(15)
    found = read(tmp_path / "validation.jsonl")
    assert [each["step"] for each in found] == [1, 10]


def test_reads_this_process_on_a_cpu(tmp_path: Path) -> None:
    processor = build_metrics_processor(
        job_config(tmp_path), degrees(), device=torch.device("cpu")
    )
    before = processor.device_memory_monitor.get_peak_stats()
    block = torch.ones(64 * 2**20, dtype=torch.uint8)
    after = processor.device_memory_monitor.get_peak_stats()
    grown = after.max_reserved_bytes - before.max_reserved_bytes
    assert block.numel() == 64 * 2**20
    assert after.max_reserved_bytes > 64 * 2**20
    assert 0 <= grown < GIB
    assert 0 < after.max_reserved_percent < 100


def test_refuses_a_device_it_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cpu or cuda device, but found meta"):
        MetricsProcessor(job_config(tmp_path), degrees(), device=torch.device("meta"))
