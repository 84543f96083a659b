"""The dtypes that follow from training.dtype: "float32" means float32 or wider."""

from __future__ import annotations

from typing import Literal

import torch

from torchtitan_cpp.config.training import Training

Dtype = Literal["bfloat16", "float32", "float64"]
Narrow = Literal["float32", "bfloat16"]

TORCH_DTYPE_MAP = {
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
}
"""torch's dtypes by the names that the configuration uses."""


def compute_dtype(training: Training) -> Dtype:
    """Dtype of gathered parameters, activations and products."""
    return _widened(training.mixed_precision_param, training.dtype)


def reduce_dtype(training: Training) -> Dtype:
    """Dtype in which gradients of all ranks and microbatches are summed."""
    return _widened(training.mixed_precision_reduce, training.dtype)


def state_dtype(asked: Narrow, parameters: Dtype) -> Dtype:
    """Dtype of the optimizer's moments.

    Args:
        asked: ``optimizer.state_dtype``.
        parameters: their dtype, which is ``training.dtype``.
    """
    return _widened(asked, parameters)


def _widened(asked: Narrow, training_dtype: Dtype) -> Dtype:
    wide = training_dtype == "float64" and asked == "float32"
    return "float64" if wide else asked
