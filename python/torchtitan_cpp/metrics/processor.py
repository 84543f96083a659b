"""Turns the numbers of a step into everything that a person or a program reads."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from torchtitan_cpp.logging import logger
from torchtitan_cpp.metrics.console import (
    Color,
    choose_color,
    step_line,
    validation_line,
)
from torchtitan_cpp.metrics.jsonl import StepLines
from torchtitan_cpp.metrics.loggers import (
    LoggerContainer,
    build_logger,
    get_metrics_rank,
)
from torchtitan_cpp.metrics.memory import (
    BYTES_PER_MIB,
    DeviceMemoryStats,
    MemoryMonitor,
    build_memory_monitor,
)
from torchtitan_cpp.metrics.peak_flops import get_peak_flops
from torchtitan_cpp.metrics.sections import MetricsJobConfig, ParallelDegrees
from torchtitan_cpp.rank_thread import current_rank


class MetricsProcessor:
    """Measures time and memory between logged steps and reports them.

    The trainer adds to ``ntokens_since_last_log`` and ``data_loading_times`` as it
    reads batches, and calls :meth:`start` once, :meth:`log` where :meth:`should_log`
    says so, and :meth:`close`. Every rank does; only the metrics rank writes
    ``<dump_folder>/metrics.jsonl``, one object for each logged step:

    ===================== =========================================================
    step                  number of the step, from 1
    loss                  mean over the valid tokens of the global batch
    grad_norm             global 2-norm before clipping
    lr                    learning rate of this step
    tokens_per_second     per device, since the last logged step
    tflops                1e12 model flops per second and device, or null
    mfu                   percent of the device's bfloat16 peak, or null
    step_seconds          mean seconds of a step since the last logged one
    peak_memory_mib       peak resident set of the process (CPU) or of the allocator
    peak_tensor_mib       peak bytes of tensors, or null where nothing counts them
    n_tokens_seen         tokens of all ranks so far
    ===================== =========================================================

    Further extra metrics follow under their own names, such as the trainer's
    ``communication/<axis>/bytes`` and ``.../seconds``, means of a step by mesh axis
    (:class:`~torchtitan_cpp.metrics.traffic.AxisTraffic`). Validations go to
    ``validation.jsonl`` in the same way.

    Args:
        job_config: sections ``metrics``, ``job``, ``parallelism``,
            ``fault_tolerance`` are read.
        parallel_dims: the mesh's degrees.
        tag: put before the keys of TensorBoard and W&B.
        rank: global rank; by default that of this thread or ``torch.distributed``.
        device: where the model lies; by default CUDA when there is one, else the CPU.
        clock: seconds from a fixed point in time.
    Raises:
        ImportError: if TensorBoard is asked for but not installed.
    """

    num_flops_per_token: int
    """Flops of forward and backward for one token; not positive: unknown."""
    ntokens_since_last_log: int
    """Tokens that this rank read since the last logged step."""
    data_loading_times: list[float]
    """Seconds that each batch since the last logged step was waited for."""
    peak_tensor_bytes: Callable[[], int] | None
    """Peak of tensor bytes on a CPU, from the allocator that counts them."""

    def __init__(
        self,
        job_config: MetricsJobConfig,
        parallel_dims: ParallelDegrees,
        tag: str | None = None,
        *,
        rank: int | None = None,
        device: torch.device | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.job_config = job_config
        self.parallel_dims = parallel_dims
        self.rank = _global_rank() if rank is None else rank
        schedule = job_config.parallelism.pipeline_parallel_schedule
        self.metrics_rank = get_metrics_rank(parallel_dims, schedule)
        self.logger: LoggerContainer = build_logger(
            job_config, rank=self.rank, metrics_rank=self.metrics_rank, tag=tag
        )
        self.device_memory_monitor: MemoryMonitor = build_memory_monitor(
            device or _default_device()
        )
        self.color: Color = choose_color(
            sys.stdout, disabled=job_config.metrics.disable_color_printing
        )
        name = self.device_memory_monitor.device_name
        self.gpu_peak_flops = get_peak_flops(name)
        if self.gpu_peak_flops is None:
            logger.info("Peak flops of %s are not known: mfu is not reported", name)
        folder = Path(job_config.job.dump_folder)
        self._training_lines = StepLines(folder / "metrics.jsonl")
        self._validation_lines = StepLines(folder / "validation.jsonl")
        self._clock = clock
        self._start_step: int | None = None
        self._last_step = 0
        self.ntokens_since_last_log = 0
        self.data_loading_times = []
        self.time_last_log = clock()
        self.num_flops_per_token = -1
        self.peak_tensor_bytes = None
        self.optimizers: Any = None
        self.lr_schedulers: Any = None
        self.model_parts: Any = None

    def start(self, step: int) -> None:
        """Training continues after ``step`` finished steps; 0 starts a new run.

        Lines of later steps, which this run repeats, are cut from the JSON files.
        Call it after a checkpoint was loaded and before the first batch is read.
        """
        self._open_files(step)
        self._restart_interval()

    def should_log(self, step: int) -> bool:
        """Whether ``step`` is logged: the first one and every ``log_freq``-th."""
        return step == 1 or step % self.job_config.metrics.log_freq == 0

    def log(
        self,
        step: int,
        global_avg_loss: float,
        global_max_loss: float,
        grad_norm: float,
        extra_metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Report one training step and start the next interval.

        Args:
            global_avg_loss: mean over the valid tokens of the global batch.
            global_max_loss: largest mean over the valid tokens of one rank.
            grad_norm: global norm before clipping.
            extra_metrics: ``lr`` and ``n_tokens_seen``, and whatever else to report.
        """
        if self._start_step is None:
            # A trainer that never called start: this is the first step measured.
            self._open_files(step - 1)
        extra = dict(extra_metrics or {})
        seconds = self._seconds()
        step_seconds = seconds / max(1, step - self._last_step)
        tps = self._tokens_per_second(seconds)
        tflops, mfu = self._utilization(tps)
        memory = self._memory()
        loading = sum(self.data_loading_times)
        metrics: dict[str, Any] = {
            "loss_metrics/global_avg_loss": global_avg_loss,
            "loss_metrics/global_max_loss": global_max_loss,
            "grad_norm": grad_norm,
            "throughput(tps)": tps,
            "tflops": tflops,
            "mfu(%)": mfu,
            "time_metrics/end_to_end(s)": step_seconds,
            "time_metrics/data_loading(s)": loading
            / max(1, len(self.data_loading_times)),
            "time_metrics/data_loading(%)": 100 * loading / seconds,
            **memory.as_metrics(),
            **extra,
        }
        self.logger.log(
            {key: value for key, value in metrics.items() if value is not None}, step
        )
        if self.rank == self.metrics_rank:
            self._training_lines.write(
                {
                    "step": step,
                    "loss": global_avg_loss,
                    "grad_norm": grad_norm,
                    "lr": extra.pop("lr", None),
                    "tokens_per_second": tps,
                    "tflops": tflops,
                    "mfu": mfu,
                    "step_seconds": step_seconds,
                    **_memory_in_mib(memory),
                    "n_tokens_seen": extra.pop("n_tokens_seen", None),
                    **extra,
                }
            )
        logger.info(
            step_line(
                self.color,
                step=step,
                loss=global_avg_loss,
                grad_norm=grad_norm,
                memory_gib=memory.max_reserved_gib,
                memory_percent=memory.max_reserved_percent,
                tps=tps,
                tflops=tflops,
                mfu=mfu,
            )
        )
        self._last_step = step
        self._restart_interval()

    @contextmanager
    def validating(self) -> Iterator[None]:
        """Keep a validation out of the training's time and tokens.

        Inside, the counters belong to the validation and :meth:`log_validation`
        reports them; afterwards those of the training go on where they were.
        """
        elapsed = self._clock() - self.time_last_log
        tokens, times = self.ntokens_since_last_log, self.data_loading_times
        self.ntokens_since_last_log, self.data_loading_times = 0, []
        self.time_last_log = self._clock()
        try:
            yield
        finally:
            self.ntokens_since_last_log, self.data_loading_times = tokens, times
            self.time_last_log = self._clock() - elapsed

    def log_validation(
        self,
        loss: float,
        step: int,
        extra_metrics: Mapping[str, Any] | None = None,
    ) -> None:
        """Report the validation after training step ``step``.

        Args:
            loss: mean over the valid tokens of all batches and ranks.
            extra_metrics: whatever else to report.
        """
        tps = self._tokens_per_second(self._seconds())
        memory = self._memory()
        metrics: dict[str, Any] = {
            "validation_metrics/loss": loss,
            "validation_metrics/throughput(tps)": tps,
        }
        for key, value in memory.as_metrics().items():
            if key.startswith("memory/max"):
                metrics[f"validation_metrics/{key}"] = value
        self.logger.log({**metrics, **(extra_metrics or {})}, step)
        if self.rank == self.metrics_rank:
            if not self._validation_lines.is_open:
                self._validation_lines.open(after_step=self._start_step or 0)
            self._validation_lines.write(
                {
                    "step": step,
                    "loss": loss,
                    "tokens_per_second": tps,
                    **_memory_in_mib(memory),
                    **(extra_metrics or {}),
                }
            )
        logger.info(
            validation_line(
                self.color,
                step=step,
                loss=loss,
                memory_gib=memory.max_reserved_gib,
                memory_percent=memory.max_reserved_percent,
                tps=tps,
            )
        )
        self._restart_interval()

    def close(self) -> None:
        """Write out what is buffered; safe to call twice."""
        self.logger.close()
        self._training_lines.close()
        self._validation_lines.close()

    def _open_files(self, step: int) -> None:
        self._start_step = self._last_step = step
        if self.rank != self.metrics_rank:
            return
        self._training_lines.open(after_step=step)
        # Made with its first line; an older one must be cut or moved at once.
        if self._validation_lines.path.exists():
            self._validation_lines.open(after_step=step)

    def _restart_interval(self) -> None:
        self.ntokens_since_last_log = 0
        self.data_loading_times = []
        self.device_memory_monitor.reset_peak_stats()
        self.time_last_log = self._clock()

    def _seconds(self) -> float:
        """Since the last logged step; never zero, because rates divide by it."""
        return max(self._clock() - self.time_last_log, 1e-9)

    def _tokens_per_second(self, seconds: float) -> float:
        """Per device: the ranks of one data-parallel coordinate share its tokens."""
        dims = self.parallel_dims
        return self.ntokens_since_last_log / (seconds * dims.cp * dims.tp * dims.pp)

    def _utilization(self, tps: float) -> tuple[float | None, float | None]:
        """Tera flops per second, and percent of the peak; None where unknown."""
        if self.num_flops_per_token <= 0:
            return None, None
        flops = self.num_flops_per_token * tps
        if self.gpu_peak_flops is None:
            return flops / 1e12, None
        return flops / 1e12, 100 * flops / self.gpu_peak_flops

    def _memory(self) -> DeviceMemoryStats:
        stats = self.device_memory_monitor.get_peak_stats()
        if self.peak_tensor_bytes is None:
            return stats
        counted = self.peak_tensor_bytes()
        active = counted if stats.max_active_bytes is None else stats.max_active_bytes
        return replace(stats, max_active_bytes=active, max_tensor_bytes=counted)


def build_metrics_processor(
    job_config: MetricsJobConfig,
    parallel_dims: ParallelDegrees,
    model_args: Any = None,
    tag: str | None = None,
    *,
    rank: int | None = None,
    device: torch.device | None = None,
) -> MetricsProcessor:
    """The default of ``TrainSpec.build_metrics_processor_fn``.

    ``model_args`` is there for builders that report what only their model knows.
    The other arguments are those of :class:`MetricsProcessor`.
    """
    return MetricsProcessor(job_config, parallel_dims, tag, rank=rank, device=device)


def _global_rank() -> int:
    if local := current_rank():
        return local.rank
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank()
    return 0


def _default_device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _memory_in_mib(memory: DeviceMemoryStats) -> dict[str, float | None]:
    tensors = memory.max_tensor_bytes
    return {
        "peak_memory_mib": memory.max_reserved_bytes / BYTES_PER_MIB,
        "peak_tensor_mib": None if tensors is None else tensors / BYTES_PER_MIB,
    }
