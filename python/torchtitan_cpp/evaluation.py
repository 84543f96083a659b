"""Validation of a run: the TrainSpec's validator, bound to the trainer's own step."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from torchtitan_cpp.build import build_loss
from torchtitan_cpp.config import JobConfig
from torchtitan_cpp.data import build_validation_dataloader
from torchtitan_cpp.errors import SettingError
from torchtitan_cpp.train_spec import TrainSpec
from torchtitan_cpp.validation import Validator
from torchtitan_cpp.validation import build_validator as default_builder

if TYPE_CHECKING:
    from torchtitan_cpp.trainer import Trainer


NO_VALIDATOR = (
    "the model's TrainSpec has no build_validator_fn; give it one, or set false"
)
NO_TOKENIZER = (
    "the model's TrainSpec has no build_tokenizer_fn, and validation.dataset is text; "
    "give it one, or a build_validator_fn whose validator reads data of its own and "
    "is no Validator, or set false"
)


def validation_misfits(spec: TrainSpec, config: JobConfig) -> dict[str, str]:
    """What validation lacks whatever the validator is, by field."""
    if not config.validation.enable:
        return {}
    if spec.build_validator_fn is None:
        return {"validation.enable": NO_VALIDATOR}
    if spec.build_validator_fn is default_builder and spec.build_tokenizer_fn is None:
        return {"validation.enable": NO_TOKENIZER}
    return {}


def build_validator(trainer: Trainer) -> Any:
    """What ``validation.enable`` runs, or None.

    Raises:
        SettingError: if the TrainSpec has not what validation needs.
    """
    config, world = trainer.job_config, trainer.world
    if not config.validation.enable or world.is_fake:
        return None
    if trainer.spec.build_validator_fn is None:
        raise SettingError(f"validation.enable: {NO_VALIDATOR}")
    validator = trainer.spec.build_validator_fn(
        job_config=config,
        dp_world_size=world.parallel_dims.batch,
        dp_rank=world.data_rank,
        tokenizer=trainer.tokenizer,
        parallel_dims=world.parallel_dims,
        loss_fn=build_loss(trainer.spec, config, world),
        # What a validator written for torchtitan enters around its own forward.
        validation_context=lambda context=None: context or nullcontext(),
        maybe_enable_amp=nullcontext(),
        metrics_processor=trainer.metrics,
    )
    if isinstance(validator, Validator):
        if trainer.tokenizer is None:
            raise SettingError(f"validation.enable: {NO_TOKENIZER}")
        validator.bind(
            evaluate=trainer.evaluate,
            reduce=lambda values: _sum_over_ranks(trainer, values),
            dataloader=build_validation_dataloader(
                world.parallel_dims.batch,
                world.data_rank,
                trainer.tokenizer,
                config,
                infinite=config.validation.steps != -1,
            ),
            should_stop=trainer.is_asked_to_stop,
        )
    return validator


def _sum_over_ranks(trainer: Trainer, values: list[float]) -> list[float]:
    tensor = torch.tensor(values, dtype=torch.float64, device=trainer.world.device)
    trainer.world.groups["loss"].all_reduce(tensor).wait()
    return [float(value) for value in tensor]
