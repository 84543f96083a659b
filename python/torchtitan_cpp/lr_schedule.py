"""Learning rate: linear warmup, a stable phase, decay. A pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from torchtitan_cpp.logging import logger

DECAY_SHAPES: Mapping[str, Callable[[float], float]] = {
    "linear": lambda progress: 1.0 - progress,
    "sqrt": lambda progress: 1.0 - math.sqrt(progress),
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}
"""From the share of the decay phase that is over (0 to 1) to a factor (1 to 0)."""


class LRSchedulerConfig(Protocol):
    """The section ``lr_scheduler``."""

    @property
    def warmup_steps(self) -> int: ...
    @property
    def total_steps(self) -> int | None: ...
    @property
    def decay_ratio(self) -> float | None: ...
    @property
    def decay_type(self) -> str: ...
    @property
    def min_lr_factor(self) -> float: ...


class OptimizerLike(Protocol):
    """What has torch's ``param_groups``; each group's ``lr`` is read and set."""

    @property
    def param_groups(self) -> list[dict[str, Any]]: ...


@dataclass(frozen=True, kw_only=True)
class LRSchedule:
    """A resolved schedule; all lengths in optimizer steps.

    Source: warmup-stable-decay, Hu et al. 2024, arXiv 2404.06395.
    """

    warmup_steps: int
    """Steps of linear increase; the first one already has ``1 / warmup_steps``."""
    decay_steps: int
    """Steps of decrease; the last one trained still has a factor above the floor."""
    total_steps: int
    """Steps of the whole schedule."""
    decay_type: str = "linear"
    """One of ``linear``, ``sqrt``, ``cosine``."""
    min_lr_factor: float = 0.0
    """The floor that the decay approaches, as a share of the peak."""

    def __post_init__(self) -> None:
        if self.decay_type not in DECAY_SHAPES:
            raise ValueError(
                f"lr_scheduler.decay_type: expected one of {', '.join(DECAY_SHAPES)}, "
                f"but found {self.decay_type!r}"
            )

    @property
    def stable_steps(self) -> int:
        """Steps at the peak.

        One virtual step follows the last one, so that a decay to zero does not waste
        the last step on a learning rate of zero.
        """
        return self.total_steps + 1 - self.warmup_steps - self.decay_steps


def resolve_lr_schedule(config: LRSchedulerConfig, training_steps: int) -> LRSchedule:
    """The phases of ``lr_scheduler.*``, shortened with a warning where they overlap.

    Args:
        config: the section; ``total_steps`` None stands for ``training_steps``.
        training_steps: ``training.steps``.
    Raises:
        ValueError: for an unknown ``decay_type``.
    """
    total = training_steps if config.total_steps is None else config.total_steps
    warmup = int(config.warmup_steps)
    if warmup > total:
        logger.warning(
            "Warmup steps (%d) exceed total steps (%d). Adjusting warmup steps to %d.",
            warmup,
            total,
            total,
        )
        warmup = total
    decay = total - warmup
    if config.decay_ratio is not None:
        wanted = round(total * config.decay_ratio)
        if warmup + wanted > total:
            logger.warning(
                "Warmup (%d) + decay (%d) steps exceed total steps (%d). "
                "Adjusting decay steps to %d.",
                warmup,
                wanted,
                total,
                decay,
            )
        decay = min(decay, wanted)
    return LRSchedule(
        warmup_steps=warmup,
        decay_steps=decay,
        total_steps=total,
        decay_type=config.decay_type,
        min_lr_factor=config.min_lr_factor,
    )


def lr_factor(step: int, schedule: LRSchedule) -> float:
    """Factor on the peak learning rate after ``step`` finished steps.

    The first step of a run (``trainer.step == 1``) uses ``lr_factor(0)``. After the
    schedule's end the factor stays at its floor: it never turns negative and a cosine
    never rises again.

    Raises:
        ValueError: if ``step`` is negative.
    """
    if step < 0:
        raise ValueError(f"lr_factor: expected a step of at least 0, but found {step}")
    if step < schedule.warmup_steps:
        return (step + 1) / schedule.warmup_steps
    full = schedule.warmup_steps + schedule.stable_steps
    if step < full or schedule.decay_steps == 0:
        return 1.0
    progress = min(1.0, (step + 1 - full) / schedule.decay_steps)
    shape = DECAY_SHAPES[schedule.decay_type](progress)
    return schedule.min_lr_factor + (1.0 - schedule.min_lr_factor) * shape


class LambdaScheduler:
    """Sets the learning rates of one optimizer: peak times ``factor(finished steps)``.

    Has the part of ``torch.optim.lr_scheduler.LambdaLR`` that a training loop uses.
    The peaks are those the optimizer was built with, so a learning rate changed by
    the user applies to a resumed run too.
    """

    def __init__(
        self, optimizer: OptimizerLike, factor: Callable[[int], float]
    ) -> None:
        self.optimizer = optimizer
        self.base_lrs = [float(group["lr"]) for group in optimizer.param_groups]
        self.last_epoch = 0
        self._factor = factor
        self._apply()

    def get_last_lr(self) -> list[float]:
        """The learning rate of the step to come, one for each parameter group."""
        factor = self._factor(self.last_epoch)
        return [peak * factor for peak in self.base_lrs]

    def step(self) -> None:
        """Count one finished optimizer step."""
        self.last_epoch += 1
        self._apply()

    def state_dict(self) -> dict[str, Any]:
        """The number of finished steps; everything else follows from the config."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue after ``state_dict["last_epoch"]`` finished steps.

        Also reads a state of torch's ``LambdaLR``; its other entries follow from the
        config and are not needed.
        """
        self.last_epoch = int(state_dict["last_epoch"])
        self._apply()

    def _apply(self) -> None:
        groups = self.optimizer.param_groups
        for group, rate in zip(groups, self.get_last_lr(), strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate


class LRSchedulersContainer:
    """One scheduler for each optimizer, all with the same factor (torchtitan's name).

    Args:
        optimizers: at least one optimizer.
        lr_lambda: from finished steps to the factor on the peak learning rate.
    Raises:
        ValueError: if there is no optimizer.
    """

    schedulers: list[LambdaScheduler]

    def __init__(
        self,
        optimizers: Iterable[OptimizerLike],
        lr_lambda: Callable[[int], float],
    ) -> None:
        self.schedulers = [LambdaScheduler(each, lr_lambda) for each in optimizers]
        if not self.schedulers:
            raise ValueError("LRSchedulersContainer: expected at least one optimizer")

    def __iter__(self) -> Iterator[LambdaScheduler]:
        return iter(self.schedulers)

    def __len__(self) -> int:
        return len(self.schedulers)

    def step(self) -> None:
        """Count one finished optimizer step."""
        for scheduler in self.schedulers:
            scheduler.step()

    def state_dict(self) -> dict[str, Any]:
        """The state of all: they share one factor, so one step number is enough."""
        return self.schedulers[0].state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Continue all after the same number of finished steps."""
        for scheduler in self.schedulers:
            scheduler.load_state_dict(state_dict)


def build_lr_schedulers(
    optimizers: Iterable[OptimizerLike],
    lr_scheduler_config: LRSchedulerConfig,
    training_steps: int,
) -> LRSchedulersContainer:
    """The default of ``TrainSpec.build_lr_schedulers_fn``.

    Args:
        optimizers: every optimizer of this rank.
        lr_scheduler_config: the section ``lr_scheduler``.
        training_steps: ``training.steps``.
    Raises:
        ValueError: for an unknown ``decay_type`` or without an optimizer.
    """
    schedule = resolve_lr_schedule(lr_scheduler_config, training_steps)
    return LRSchedulersContainer(optimizers, lambda step: lr_factor(step, schedule))
