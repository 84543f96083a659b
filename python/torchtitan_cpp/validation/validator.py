"""The validation loop: every valid token of every rank weighs the same."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any, Protocol, TypeAlias

import torch

from torchtitan_cpp.logging import logger

IGNORE_INDEX = -100

Batch: TypeAlias = "tuple[dict[str, torch.Tensor], torch.Tensor]"
"""Named inputs, ``input`` int64 [B, S] among them, and labels int64 [B, S]."""

Evaluate: TypeAlias = Callable[
    [dict[str, torch.Tensor], torch.Tensor], tuple[float, float]
]
"""Forward of one batch: sum of the loss over this rank's valid tokens, and their
number. It runs the collectives of a forward, so all ranks must call it together."""

Reduce: TypeAlias = Callable[[list[float]], list[float]]
"""Element-wise sum over the ranks that share the loss, in float64. All of them call
it together and get the same result."""


class ValidationSection(Protocol):
    """The section ``validation``."""

    @property
    def freq(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def local_batch_size(self) -> int: ...
    @property
    def seq_len(self) -> int: ...


class ValidationJobConfig(Protocol):
    """A job configuration as far as validation goes."""

    @property
    def validation(self) -> ValidationSection: ...


class ReportsValidation(Protocol):
    """What a validator needs of the metrics processor."""

    ntokens_since_last_log: int

    def validating(self) -> AbstractContextManager[None]: ...

    def log_validation(
        self, loss: float, step: int, extra_metrics: Mapping[str, Any] | None = None
    ) -> None: ...


class BaseValidator:
    """Says when to validate; a user's validator derives from it."""

    def __init__(self, job_config: ValidationJobConfig) -> None:
        self.job_config = job_config

    def validate(self, model_parts: Sequence[Any], step: int) -> float:
        """Validate after training step ``step`` and report the loss."""
        raise NotImplementedError(f"{type(self).__name__} must define validate")

    def should_validate(self, step: int) -> bool:
        """After the first step and every ``validation.freq``-th."""
        return step == 1 or step % self.job_config.validation.freq == 0


class Validator(BaseValidator):
    """Mean loss over the valid tokens of all batches and ranks.

    Each validation reads the same batches: ``validation.steps`` of them, or all with
    -1. When shards are uneven, a rank that has run out takes part with a batch whose
    labels are all ignored, until every rank has run out. So no rank waits for
    another and every sample counts once.

    Built with torchtitan's arguments; the trainer then hands over how to evaluate
    with :meth:`bind`.
    """

    def __init__(
        self,
        job_config: ValidationJobConfig,
        dp_world_size: int,
        dp_rank: int,
        metrics_processor: ReportsValidation,
    ) -> None:
        super().__init__(job_config)
        steps = job_config.validation.steps
        if steps == 0 or steps < -1:
            raise ValueError(
                "validation.steps: expected a positive number, or -1 for all data, "
                f"but found {steps}"
            )
        self.dp_world_size = dp_world_size
        self.dp_rank = dp_rank
        self.metrics_processor = metrics_processor
        self._evaluate: Evaluate | None = None
        self._reduce: Reduce | None = None
        self._stops: Callable[[], bool] = lambda: False
        self._dataloader: Any = None
        self._beginning: dict[str, Any] | None = None

    def bind(
        self,
        *,
        evaluate: Evaluate,
        reduce: Reduce,
        dataloader: Iterable[Batch],
        should_stop: Callable[[], bool] | None = None,
    ) -> None:
        """Hand over how this run evaluates; called once by the trainer.

        Args:
            dataloader: this rank's share of the validation data. One that has
                ``state_dict`` and ``load_state_dict`` is wound back to where it is
                now before each validation; any other must start anew by ``iter()``.
            should_stop: asked before each batch, with the same answer on all ranks:
                whether to give the validation up.
        """
        self._evaluate, self._reduce = evaluate, reduce
        self._stops = should_stop or self._stops
        self._dataloader = dataloader
        if hasattr(dataloader, "state_dict") and hasattr(dataloader, "load_state_dict"):
            self._beginning = copy.deepcopy(dataloader.state_dict())

    def validate(self, model_parts: Sequence[Any], step: int) -> float:
        """Evaluate, log and return the loss; the same on all ranks.

        One that is given up logs nothing and returns NaN.

        Args:
            model_parts: put into evaluation mode meanwhile, where they have one.
            step: the training step that has just ended.
        Raises:
            RuntimeError: if :meth:`bind` was not called.
            ValueError: if there is no valid token on any rank.
        """
        if self._evaluate is None or self._reduce is None:
            raise RuntimeError("Validator.validate: expected a call of bind before")
        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(self.metrics_processor.validating())
            stack.enter_context(_evaluation_mode(model_parts))
            totals = self._run(self._evaluate, self._reduce)
            if totals is None:
                logger.warning("The validation of step %d is given up", step)
                return math.nan
            loss_sum, num_valid = totals
            if num_valid == 0:
                raise ValueError(
                    "validation: no rank found a valid token in validation.dataset; "
                    "expected at least one batch with labels other than "
                    f"{IGNORE_INDEX}"
                )
            loss = loss_sum / num_valid
            self.metrics_processor.log_validation(loss=loss, step=step)
        return loss

    def _run(self, evaluate: Evaluate, reduce: Reduce) -> tuple[float, float] | None:
        """Sum of losses and number of valid tokens over all batches and ranks."""
        steps = self.job_config.validation.steps
        batches = self._batches()
        filler: Batch | None = None
        loss_sum, num_valid, num_batches = 0.0, 0.0, 0
        while steps == -1 or num_batches < steps:
            if self._stops():
                return None
            batch = next(batches, None)
            (ranks_with_batch,) = reduce([0.0 if batch is None else 1.0])
            if ranks_with_batch == 0:
                break
            if batch is not None:
                filler = batch
                self.metrics_processor.ntokens_since_last_log += batch[1].numel()
            inputs, labels = batch or self._ignored(filler)
            batch_loss, batch_valid = evaluate(inputs, labels)
            loss_sum += float(batch_loss)
            num_valid += float(batch_valid)
            num_batches += 1
        if 0 < num_batches < steps:
            logger.warning(
                "Validation data ended after %d of %d steps", num_batches, steps
            )
        totals = reduce([loss_sum, num_valid])
        return totals[0], totals[1]

    def _batches(self) -> Iterator[Batch]:
        if self._beginning is not None:
            self._dataloader.load_state_dict(copy.deepcopy(self._beginning))
        return iter(self._dataloader)

    def _ignored(self, like: Batch | None) -> Batch:
        """A batch that adds nothing, for a rank without data of its own."""
        if like is None:
            section = self.job_config.validation
            shape = (section.local_batch_size, section.seq_len)
            like = (
                {"input": torch.zeros(shape, dtype=torch.int64)},
                torch.zeros(shape, dtype=torch.int64),
            )
        return like[0], torch.full_like(like[1], IGNORE_INDEX)


def build_validator(
    job_config: ValidationJobConfig,
    dp_world_size: int,
    dp_rank: int,
    tokenizer: Any,
    parallel_dims: Any,
    loss_fn: Any,
    validation_context: Any,
    maybe_enable_amp: Any,
    metrics_processor: ReportsValidation | None = None,
    pp_schedule: Any = None,
    pp_has_first_stage: bool | None = None,
    pp_has_last_stage: bool | None = None,
) -> Validator:
    """The default of ``TrainSpec.build_validator_fn``, with torchtitan's arguments.

    ``tokenizer``, ``loss_fn``, the contexts and the pipeline arguments are for
    validators that run a model themselves; this one evaluates through what the
    trainer binds, where tokenization, loss, dtype and stages are settled already.

    Raises:
        ValueError: without a metrics processor, or for ``validation.steps`` of 0.
    """
    if metrics_processor is None:
        raise ValueError("build_validator: expected a metrics_processor, found None")
    return Validator(job_config, dp_world_size, dp_rank, metrics_processor)


@contextmanager
def _evaluation_mode(model_parts: Sequence[Any]) -> Iterator[None]:
    modules = [part for part in model_parts if hasattr(part, "training")]
    were_training = [module.training for module in modules]
    for module in modules:
        module.train(False)
    try:
        yield
    finally:
        for module, was_training in zip(modules, were_training, strict=True):
            module.train(was_training)
