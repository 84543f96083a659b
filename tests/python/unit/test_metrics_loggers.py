"""TensorBoard files read back, W&B through a stand-in, and who writes them."""

from __future__ import annotations

import importlib.util
import logging
import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_metrics_processor import degrees, job_config, make, run_steps

from torchtitan_cpp.metrics import MetricsProcessor
from torchtitan_cpp.metrics.loggers import build_logger, get_metrics_rank

NOW = datetime(2026, 3, 4, 5, 6)


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import (
        EventAccumulator,
    )

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        key: [(event.step, event.value) for event in events.Scalars(key)]
        for key in events.Tags()["scalars"]
    }


def test_tensorboard_files_hold_torchtitans_keys(tmp_path: Path) -> None:
    processor = make(tmp_path)
    processor.logger = build_logger(
        job_config(tmp_path, enable_tensorboard=True),
        rank=0,
        metrics_rank=0,
        now=NOW,
    )
    processor.num_flops_per_token = 10**9
    run_steps(processor, range(1, 3), start=0)
    processor.log_validation(loss=4.5, step=2)
    processor.close()
    found = scalars(tmp_path / "tb" / "20260304-0506")
    assert set(found) == {
        "loss_metrics/global_avg_loss",
        "loss_metrics/global_max_loss",
        "grad_norm",
        "lr",
        "n_tokens_seen",
        "throughput(tps)",
        "tflops",
        "time_metrics/end_to_end(s)",
        "time_metrics/data_loading(s)",
        "time_metrics/data_loading(%)",
        "memory/max_reserved(GiB)",
        "memory/max_reserved(%)",
        "memory/num_alloc_retries",
        "memory/num_ooms",
        "validation_metrics/loss",
        "validation_metrics/throughput(tps)",
        "validation_metrics/memory/max_reserved(GiB)",
        "validation_metrics/memory/max_reserved(%)",
    }
    assert found["loss_metrics/global_avg_loss"] == [(1, 7.0), (2, 6.0)]
    assert found["loss_metrics/global_max_loss"] == [(1, 7.5), (2, 6.5)]
    assert found["time_metrics/data_loading(%)"] == [(1, 25.0), (2, 25.0)]
    assert found["validation_metrics/loss"] == [(2, 4.5)]


def test_every_rank_has_its_folder_when_all_save(tmp_path: Path) -> None:
    config = job_config(tmp_path, enable_tensorboard=True, save_for_all_ranks=True)
    config.fault_tolerance = SimpleNamespace(enable=True, replica_id=2)
    container = build_logger(config, rank=3, metrics_rank=0, tag="eval", now=NOW)
    container.log({"grad_norm": 2.0}, 7)
    container.close()
    folder = tmp_path / "tb" / "20260304-0506" / "replica_2" / "rank_3"
    assert scalars(folder) == {"eval/grad_norm": [(7, 2.0)]}


def test_other_ranks_have_no_logger(tmp_path: Path) -> None:
    config = job_config(tmp_path, enable_tensorboard=True)
    container = build_logger(config, rank=1, metrics_rank=0)
    container.log({"grad_norm": 2.0}, 7)
    assert container.number_of_loggers == 0
    assert not (tmp_path / "tb").exists()


@pytest.mark.parametrize("rank", [0, 1])
def test_missing_tensorboard_is_one_error_on_every_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    config = job_config(tmp_path, enable_tensorboard=True)
    with pytest.raises(ImportError, match="pip install tensorboard"):
        MetricsProcessor(config, degrees(2), rank=rank, device=torch.device("cpu"))


class FakeWandb:
    """Records what the logger asks of W&B."""

    def __init__(self) -> None:
        self.run: object | None = None
        self.arguments: dict[str, Any] = {}
        self.logged: list[tuple[int, dict[str, Any]]] = []

    def init(self, **arguments: Any) -> None:
        self.arguments = arguments
        self.run = object()

    def log(self, metrics: dict[str, Any], step: int) -> None:
        self.logged.append((step, metrics))

    def finish(self) -> None:
        self.run = None


def test_wandb_gets_torchtitans_variables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb = FakeWandb()
    monkeypatch.setitem(sys.modules, "wandb", wandb)  # type: ignore[arg-type]  # stand-in
    monkeypatch.setenv("WANDB_TEAM", "a team")
    monkeypatch.setenv("WANDB_RUN_TAGS", "one,two")
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    config = job_config(tmp_path, enable_wandb=True)
    container = build_logger(config, rank=0, metrics_rank=0, now=NOW)
    container.log({"grad_norm": 2.0}, 7)
    container.close()
    assert wandb.arguments["entity"] == "a team"
    assert wandb.arguments["project"] == "torchtitan"
    assert wandb.arguments["tags"] == ["one", "two"]
    assert wandb.arguments["dir"] == str(tmp_path / "tb" / "20260304-0506")
    assert wandb.arguments["config"] == {"job": "a run"}
    assert wandb.logged == [(7, {"grad_norm": 2.0})]
    assert wandb.run is None


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (ModuleNotFoundError("No module named 'wandb'"), "pip install wandb"),
        (RuntimeError("no API key"), "Failed to create WandB logger: no API key"),
    ],
)
def test_a_wandb_that_fails_is_reported_and_left_out(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    failure: Exception,
    message: str,
) -> None:
    def fail(name: str) -> None:
        raise failure

    monkeypatch.setattr("importlib.import_module", fail)
    config = job_config(tmp_path, enable_wandb=True)
    container = build_logger(config, rank=0, metrics_rank=0)
    assert container.number_of_loggers == 0
    assert message in caplog.text
    assert {record.levelno for record in caplog.records} == {logging.ERROR}


@pytest.mark.parametrize(
    ("dims", "schedule", "expected"),
    [
        (degrees(8), "1F1B", 0),
        (degrees(8, pp=4), "1F1B", 6),
        (degrees(8, pp=2), "Interleaved1F1B", 4),
        (degrees(8, pp=4), "ZBVZeroBubble", 0),
        (degrees(8, pp=4), "DualPipeV", 0),
    ],
)
def test_metrics_rank_knows_the_loss(dims: Any, schedule: str, expected: int) -> None:
    assert get_metrics_rank(dims, schedule) == expected
