"""The loop around the C++ step: read, step, log, validate, save, stop.

``Trainer`` can be subclassed; each method does one thing of the loop.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from importlib import import_module

import torch

from torchtitan_cpp import _C, build, dry_run, stopping
from torchtitan_cpp.config import JobConfig, config_json, save_config
from torchtitan_cpp.determinism import agree_on_seed, set_determinism
from torchtitan_cpp.evaluation import build_validator
from torchtitan_cpp.finite import NotFiniteError, describe
from torchtitan_cpp.garbage_collection import GarbageCollection
from torchtitan_cpp.input_data import (
    Batch,
    batches_of,
    build_dataloader,
    build_tokenizer,
    check_one_shape,
    divide_rows,
)
from torchtitan_cpp.logging import init_logger, logger, shown_ranks
from torchtitan_cpp.memory_budget import write_asked_curve
from torchtitan_cpp.metrics import build_metrics_processor
from torchtitan_cpp.metrics.progress import Progress
from torchtitan_cpp.metrics.summary import format_closing, format_summary
from torchtitan_cpp.metrics.traffic import StepTraffic
from torchtitan_cpp.own_optimizers import as_container
from torchtitan_cpp.replica_check import build_replica_check
from torchtitan_cpp.run_summary import files_of, summarize
from torchtitan_cpp.saves import Saves
from torchtitan_cpp.step_profilers import profile_steps
from torchtitan_cpp.train_spec import get_train_spec
from torchtitan_cpp.training_state import build_checkpointer, collect, load
from torchtitan_cpp.world import World, build_world


class Trainer:
    """Everything of one run on this rank, built from a checked configuration.

    Args:
        job_config: as ``check_run`` accepted it.
    Raises:
        ValueError: for what only shows when the parts are built.
    """

    def __init__(self, job_config: JobConfig) -> None:
        self.job_config = job_config
        if job_config.experimental.custom_import:
            import_module(job_config.experimental.custom_import)
        self.spec = get_train_spec(job_config.model.name)
        self.world: World = build_world(job_config)
        stopping.take_over()  # a load may take long
        if not self.world.is_local:  # else whoever started the threads has done it
            init_logger(self.world.rank, shown_ranks=shown_ranks())
        logger.info("Starting job: %s", job_config.job.description)
        try:
            self._build()
        except Exception as error:
            # The other ranks wait for this one: they learn why it ends.
            if self.world.distributed:
                self.world.distributed.report_failure(error)
                self.world.distributed.close(failed=True)
            raise

    # --- building ------------------------------------------------------------------

    def _build(self) -> None:
        job_config = self.job_config
        if self.world.device.type == "cpu":
            tensor_memory = self.world.count_memory()
        set_determinism(job_config.debug)
        self.gc_handler = GarbageCollection(
            job_config.training.gc_freq,
            job_config.training.gc_debug,
            leads_process=self.world.leads_process,
        )
        dims = self.world.parallel_dims
        training = job_config.training
        local_rows = training.local_batch_size * dims.batch
        global_rows = max(training.global_batch_size, local_rows)
        self.accumulation = global_rows // local_rows
        self.seed = agree_on_seed(job_config.debug, self.world)

        self.model = build.build_model(
            self.spec, job_config, self.world, accumulation=self.accumulation
        )
        if self.world.rank == 0:
            write_asked_curve(self.model.applied, job_config)
        self.model.initialize(self.seed)
        self.model_parts = [self.model.module]
        optimizers = self.spec.build_optimizers_fn(
            self.model_parts, job_config.optimizer, dims, None
        )
        self.optimizers = as_container(optimizers, self.model.module)
        self.lr_schedulers = self.spec.build_lr_schedulers_fn(
            optimizers if isinstance(optimizers, Iterable) else self.optimizers,
            job_config.lr_scheduler,
            training.steps,
        )
        self.executor = build.build_step(
            self.model, self.optimizers, job_config, self.world
        )
        self.tokenizer = build_tokenizer(self)
        self.dataloader = build_dataloader(self)
        build_metrics = self.spec.build_metrics_processor_fn or build_metrics_processor
        self.metrics = build_metrics(job_config, dims, self.model.args)
        self.metrics.num_flops_per_token = self.model.flops_per_token
        if self.world.device.type == "cpu":
            self.metrics.peak_tensor_bytes = lambda: tensor_memory.peak
        self.traffic = StepTraffic(self.world.recorder)
        self.validator = build_validator(self)
        self.step = 0
        self.optimizer_step = 0  # updates that the moments have seen
        self.num_tokens_seen = 0
        self._last_result: tuple[int, _C.train.StepResult] | None = None
        self._losses: dict[int, float] = {}
        self.checkpointer = build_checkpointer(self)
        self.saves = Saves(
            self.checkpointer, self.world, job_config.checkpoint.max_failed_saves
        )
        self.load()
        self.replica_check = build_replica_check(self)
        self._report_config()
        logger.info("%s", "\n" + format_summary(summarize(self)))

    def _report_config(self) -> None:
        config = self.job_config
        if config.job.print_config:
            logger.info("Running with configs: %s", config_json(config))
        if config.job.save_config_file is not None and self.world.rank == 0:
            save_config(config)
        if config.model.print_after_conversion:
            logger.info("Model after conversion:\n%s", self.model.module)

    # --- the loop ------------------------------------------------------------------

    def train(self) -> None:
        """Train to the last step.

        Raises:
            NotFiniteError: with rank, step and the first bad parameter.
        """
        config = self.job_config
        if self.world.is_fake:
            dry_run.run(self)
            return
        if config.checkpoint.create_seed_checkpoint:
            self.checkpointer.save_seed(collect(self))
            return
        if self.should_stop():
            return  # while it was loaded: there is nothing new to save
        self.checkpointer.prepare(
            lambda: collect(self), range(self.step + 1, config.training.steps)
        )
        started, first_step = time.monotonic(), self.step
        self.metrics.start(self.step)
        with ExitStack() as stack:
            stack.enter_context(self.saves.awaited())
            finished_step = stack.enter_context(profile_steps(self))
            progress = stack.enter_context(
                Progress(
                    total_steps=config.training.steps,
                    start_step=self.step,
                    enabled=self.world.rank == 0,
                )
            )
            batches = self.batch_generator()
            while self.step < config.training.steps:
                self.gc_handler.run(self.step + 1)
                microbatches = self.next_microbatches(batches)
                if not self.all_ranks_have(microbatches):
                    logger.warning(
                        "The data has ended after step %d of %d",
                        self.step,
                        config.training.steps,
                    )
                    if self.step > first_step:
                        self.save(stopping=True)
                    break
                self.step += 1
                self.world.begin_step(self.step)
                self.train_step(microbatches)
                self.check_replicas()
                has_to_stop, takes_long = self.should_stop(), self._saves_now()
                self.save(stopping=has_to_stop)
                if has_to_stop:
                    break
                if self.validator and self.validator.should_validate(self.step):
                    takes_long = True
                    self.check_finite()  # rather than a loss of bad weights
                    self.validator.validate(self.model_parts, self.step)
                if takes_long and self.should_stop():  # rather than one more step
                    self.save(stopping=True)
                    break
                finished_step()
                progress.update(self.step, next(reversed(self._losses.values()), None))
                if self.step == first_step + 1:
                    self.world.first_step_passed()
        self.check_finite()
        if self.world.rank == 0:
            logger.info("%s", "\n" + self._closing(started, first_step))

    def load(self) -> None:
        """Continue from the checkpoint that the configuration chooses, if any."""
        section = self.job_config.checkpoint
        if section.create_seed_checkpoint or self.world.is_fake:
            return  # a seed holds the initial weights
        if section.enable:
            load(self)

    def save(self, *, stopping: bool = False) -> None:
        """Save where it is due, or in any case when the run is asked to stop."""
        if not self.job_config.checkpoint.enable:
            return
        last_step = self._is_last_step()
        due = self._saves_now()
        if due or (stopping and not self.job_config.checkpoint.load_only):
            self.check_finite()
            self.saves.finish(final=False)
            with self.saves.counted(final=last_step or stopping):
                self.checkpointer.save(
                    self.step, collect(self), last_step=last_step, stopping=stopping
                )

    def _is_last_step(self) -> bool:
        return self.step == self.job_config.training.steps

    def _saves_now(self) -> bool:
        """Whether a save is due, asked to stop or not; the same on all ranks."""
        return self.checkpointer.should_save(self.step, last_step=self._is_last_step())

    def should_stop(self) -> bool:
        """Whether any rank got SIGTERM; the same answer on all ranks.

        Raises:
            CheckpointError: on all ranks: a save in the background has failed, and no
                more may.
        """
        asked, failed = self._largest_of_ranks(
            stopping.is_requested(), self.checkpointer.has_failed
        )
        if failed:
            self.saves.finish(final=False)
        if asked:
            logger.warning("Stopping after step %d, as SIGTERM asks", self.step)
        return bool(asked)

    def is_asked_to_stop(self) -> bool:
        """As ``should_stop``, without a word."""
        return bool(self._largest_of_ranks(float(stopping.is_requested()))[0])

    def _largest_of_ranks(self, *values: float) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.world.device)
        reduce_max = _C.collectives.ReduceOp.MAX
        self.world.groups["world"].all_reduce(tensor, op=reduce_max).wait()
        return tensor.tolist()

    def batch_generator(self) -> Iterator[Batch]:
        """Batches of this rank, with the time that each was waited for."""
        started = time.perf_counter()
        for inputs, labels in batches_of(self.dataloader):
            self.metrics.data_loading_times.append(time.perf_counter() - started)
            self.metrics.ntokens_since_last_log += labels.numel()
            yield inputs, labels
            started = time.perf_counter()

    def next_microbatches(
        self, batches: Iterator[Batch]
    ) -> list[dict[str, torch.Tensor]]:
        """The microbatches of one step; fewer, or none, where the data ends."""
        microbatches = []
        for inputs, labels in itertools.islice(batches, self.accumulation):
            # Before tokens are dealt out, which may depend on a microbatch's documents.
            for part in self.divide({**inputs, "labels": labels}):
                own_labels = part.pop("labels")
                microbatches.append(self.to_device(part, own_labels))
        if self.model.pipeline:
            check_one_shape(microbatches)
        return microbatches

    def divide(self, batch: dict[str, torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """The rows of a local batch as the microbatches of a pipeline."""
        if self.model.pipeline is None:
            return [batch]
        size = self.model.pipeline.microbatch_size
        rows = self.job_config.training.local_batch_size
        return divide_rows(batch, size=size, rows=rows)

    def all_ranks_have(self, microbatches: list[dict[str, torch.Tensor]]) -> bool:
        """Whether every rank has data for a whole step; the same answer on all."""
        pipeline = self.model.pipeline
        expected = pipeline.num_microbatches if pipeline else self.accumulation
        lacking = expected - len(microbatches)
        return not any(self._largest_of_ranks(lacking))

    def to_device(
        self, inputs: dict[str, torch.Tensor], labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """One microbatch as the segments read it: named tensors on the device."""
        return self._on_device(self.model.deal({**inputs, "labels": labels}))

    def _on_device(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: each.to(self.world.device) for name, each in batch.items()}

    def train_step(self, microbatches: list[dict[str, torch.Tensor]]) -> None:
        """One optimizer step, logged where it is due."""
        # The host learns of a bad step here, after the next one's data is there.
        self.check_finite()
        labels = sum(each["labels"].numel() for each in microbatches)
        self.num_tokens_seen += labels * self.world.groups["loss"].size
        learning_rate = self.optimizers.learning_rate
        self.optimizer_step += 1
        with self.traffic.measured():
            result = self.executor.run(
                microbatches, learning_rate=learning_rate, step=self.optimizer_step
            )
        self._last_result = (self.step, result)
        self.lr_schedulers.step()
        if self.metrics.should_log(self.step):
            self.check_finite()
            self.log(result, learning_rate)

    def log(self, result: _C.train.StepResult, learning_rate: float) -> None:
        """Report a step; all ranks take part."""
        largest = result.local_loss.double() / result.local_tokens.clamp(min=1)
        self.world.groups["world"].all_reduce(
            largest, op=_C.collectives.ReduceOp.MAX
        ).wait()
        loss = float(result.loss)
        self._losses[self.step] = loss
        self.metrics.log(
            self.step,
            loss,
            float(largest),
            float(result.grad_norm),
            {
                "lr": learning_rate,
                "n_tokens_seen": self.num_tokens_seen,
                **self.traffic.take(),
            },
        )

    def check_finite(self) -> None:
        """Raise NotFiniteError if loss or norm of the last step is not finite."""
        last, self._last_result = self._last_result, None
        if last is None or last[1].finite.is_meta or bool(last[1].finite):
            return
        self.checkpointer.forbid_saving("loss or gradients are not finite")
        early = self.job_config.optimizer.early_step_in_backward
        raise NotFiniteError(describe(*last, self.model, self.world, early_step=early))

    def check_replicas(self) -> None:
        """Raise ReplicaError, where it is due, if copies of weights differ."""
        if self.replica_check.is_due(self.step):
            self.replica_check.check(self.step)

    def evaluate(
        self, inputs: dict[str, torch.Tensor], labels: torch.Tensor
    ) -> tuple[float, float]:
        """Loss sum and valid tokens of one batch; all ranks call it together."""
        named = self.model.deal_for_evaluation({**inputs, "labels": labels})
        evaluation = self.executor.evaluate(self._on_device(named))
        return float(evaluation.loss_sum), float(evaluation.num_tokens)

    def _closing(self, started: float, first_step: int) -> str:
        return format_closing(
            steps=self.step - first_step,
            seconds=time.monotonic() - started,
            losses=self._losses,
            files=files_of(self),
            # Elsewhere the host does not wait for what the device does.
            waited=self.traffic.seconds() if self.world.device.type == "cpu" else {},
        )

    def close(self, *, failed: bool = False) -> None:
        """Leave the other ranks and stop what runs in the background."""
        self.gc_handler.close()
        self.metrics.close()
        close_data = getattr(self.dataloader, "close", None)
        if close_data:
            close_data()
        if self.world.distributed:
            self.world.distributed.close(failed=failed)
