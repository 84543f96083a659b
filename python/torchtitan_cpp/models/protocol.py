"""What a model and its arguments must offer to be trained (torchtitan's names)."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass
class BaseModelArgs:
    """Arguments of a model; every field of a subclass has a default."""

    @abstractmethod
    def update_from_config(self, job_config: Any, **kwargs: Any) -> None:
        """Take over what the run's configuration decides, such as the length."""

    @abstractmethod
    def get_nparams_and_flops(self, model: nn.Module, seq_len: int) -> tuple[int, int]:
        """Parameters, and training flops for one token of sequences of ``seq_len``."""

    def find_misfits(self, job_config: Any) -> dict[str, str]:
        """Values that the model cannot take, such as degrees of parallelism.

        Called before any process group exists. Data, pipeline and (by the plan in
        TrainSpec.parallelize_fn) tensor parallelism are checked elsewhere.

        Returns:
            What was expected and found, by the configuration's field.
        """
        degree = job_config.parallelism.context_parallel_degree
        if degree == 1:
            return {}
        return {
            "parallelism.context_parallel_degree": (
                f"not supported yet for models written in Python (found {degree}); "
                "set 1"
            )
        }


class ModelProtocol(nn.Module):
    """Base of models that are registered by a TrainSpec."""

    def __init__(self, model_args: BaseModelArgs) -> None:
        super().__init__()

    def init_weights(self, buffer_device: torch.device | None = None) -> None:
        """Fill parameters and buffers with their initial values, in place.

        Args:
            buffer_device: where buffers are made; None: beside the parameters.
        """
        raise NotImplementedError(f"{type(self).__name__} has no init_weights")

    def get_attention_masks(
        self,
        input_batch: torch.Tensor,
        tokenizer: Any,
        extra_inputs: dict[str, torch.Tensor] | None = None,
    ) -> Any:
        """Masks for attention that needs more than a causal one."""
        raise NotImplementedError(
            f"{type(self).__name__} does not support attention masks"
        )
