"""Where metrics go besides the console and the JSON file: TensorBoard and W&B."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

from torchtitan_cpp.logging import logger
from torchtitan_cpp.metrics.sections import MetricsJobConfig, ParallelDegrees

V_SHAPED_SCHEDULES = ("ZBVZeroBubble", "DualPipeV")
"""Schedules whose last stage, the one that knows the loss, lies on the first rank."""

WANDB_ENVIRONMENT: Mapping[str, str] = {
    "entity": "WANDB_TEAM",
    "project": "WANDB_PROJECT",
    "name": "WANDB_RUN_NAME",
    "id": "WANDB_RUN_ID",
    "notes": "WANDB_RUN_NOTES",
    "tags": "WANDB_RUN_TAGS",
    "group": "WANDB_RUN_GROUP",
    "job_type": "WANDB_RUN_JOB_TYPE",
    "resume_from": "WANDB_RESUME_FROM",
    "fork_from": "WANDB_FORK_FROM",
}
"""Argument of ``wandb.init`` and torchtitan's variable for it."""


class Logger(Protocol):
    """Takes named numbers of a step."""

    def log(self, metrics: Mapping[str, Any], step: int) -> None: ...

    def close(self) -> None: ...


def require_tensorboard() -> None:
    """Raise one clear error where TensorBoard's package is missing.

    Raises:
        ImportError: with the line that installs it.
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ImportError(
            "metrics.enable_tensorboard needs the package tensorboard, which is not "
            "installed. Install it: pip install tensorboard"
        )


class TensorBoardLogger:
    """Writes TensorBoard event files into ``log_dir``.

    Args:
        tag: put before every key, with a slash.
    """

    def __init__(self, log_dir: str, tag: str | None = None) -> None:
        # Costs half a second, so only where it is asked for.
        from torch.utils.tensorboard import SummaryWriter

        self._tag = tag
        self._writer = SummaryWriter(log_dir, max_queue=1000)
        logger.info("TensorBoard logging enabled. Logs will be saved at %s", log_dir)

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        for key, value in tagged(metrics, self._tag).items():
            self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        self._writer.close()


class WandBLogger:
    """Sends metrics to Weights & Biases; names come from torchtitan's variables.

    Raises:
        Exception: whatever importing wandb or logging in raises.
    """

    def __init__(self, log_dir: str, job_config: Any, tag: str | None = None) -> None:
        self._wandb: Any = importlib.import_module("wandb")
        self._tag = tag
        os.makedirs(log_dir, exist_ok=True)
        arguments: dict[str, Any] = {
            argument: os.environ.get(variable)
            for argument, variable in WANDB_ENVIRONMENT.items()
        }
        arguments["project"] = arguments["project"] or "torchtitan"
        if arguments["tags"] is not None:
            arguments["tags"] = arguments["tags"].split(",")
        self._wandb.init(**arguments, dir=log_dir, config=_as_dict(job_config))
        logger.info("WandB logging enabled")

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        self._wandb.log(tagged(metrics, self._tag), step=step)

    def close(self) -> None:
        if self._wandb.run is not None:
            self._wandb.finish()


class LoggerContainer:
    """Passes every call to all of its loggers; empty, it does nothing."""

    def __init__(self) -> None:
        self._loggers: list[Logger] = []

    def add_logger(self, logger_instance: Logger) -> None:
        self._loggers.append(logger_instance)

    @property
    def number_of_loggers(self) -> int:
        return len(self._loggers)

    def log(self, metrics: Mapping[str, Any], step: int) -> None:
        for each in self._loggers:
            each.log(metrics, step)

    def close(self) -> None:
        for each in self._loggers:
            each.close()


def get_metrics_rank(parallel_dims: ParallelDegrees, schedule: str) -> int:
    """The global rank that writes the metrics: the first one that knows the loss.

    Args:
        schedule: ``parallelism.pipeline_parallel_schedule``.
    """
    if parallel_dims.pp == 1 or schedule in V_SHAPED_SCHEDULES:
        return 0
    return parallel_dims.world_size // parallel_dims.pp * (parallel_dims.pp - 1)


def build_logger(
    job_config: MetricsJobConfig,
    *,
    rank: int,
    metrics_rank: int,
    tag: str | None = None,
    now: datetime | None = None,
) -> LoggerContainer:
    """The loggers that the section ``metrics`` asks for on this rank.

    They write to ``<dump_folder>/<save_tb_folder>/<YYYYmmdd-HHMM>``, with
    ``replica_<id>`` and ``rank_<rank>`` below it where several write. A W&B that does
    not start is reported and left out, as in torchtitan.

    Raises:
        ImportError: if TensorBoard is asked for but not installed.
    """
    section = job_config.metrics
    container = LoggerContainer()
    if section.enable_tensorboard:
        # On every rank: one that failed alone would leave the others waiting.
        require_tensorboard()
    if rank != metrics_rank and not section.save_for_all_ranks:
        return container
    folder = Path(job_config.job.dump_folder, section.save_tb_folder)
    folder /= (now or datetime.now()).strftime("%Y%m%d-%H%M")
    if job_config.fault_tolerance.enable:
        folder /= f"replica_{job_config.fault_tolerance.replica_id}"
    if section.save_for_all_ranks:
        folder /= f"rank_{rank}"
    if section.enable_wandb:
        try:
            container.add_logger(WandBLogger(str(folder), job_config, tag))
        except ModuleNotFoundError as error:
            logger.error(
                "Failed to create WandB logger: %s. Install it: pip install wandb",
                error,
            )
        except Exception as error:  # a login or network failure must not stop a run
            logger.error("Failed to create WandB logger: %s", error)
    if section.enable_tensorboard:
        container.add_logger(TensorBoardLogger(str(folder), tag))
    return container


def tagged(metrics: Mapping[str, Any], tag: str | None) -> dict[str, Any]:
    """The metrics with ``tag/`` before every key."""
    return {key if tag is None else f"{tag}/{key}": metrics[key] for key in metrics}


def _as_dict(job_config: Any) -> dict[str, Any]:
    if hasattr(job_config, "to_dict"):
        converted: dict[str, Any] = job_config.to_dict()
        return converted
    return dataclasses.asdict(job_config)
