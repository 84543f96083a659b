"""Losses: summed over valid tokens; the step divides by their number in all ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

IGNORE_INDEX = -100
"""Label of a token that does not count."""

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy_loss(pred: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum of the cross-entropy of ``pred [B, S, V]`` against ``labels [B, S]``.

    Computed in float32, or float64 for float64 predictions. The trainer runs a C++
    model's fused form of this one function instead of calling it.
    """
    dtype = torch.promote_types(pred.dtype, torch.float32)
    return F.cross_entropy(
        pred.flatten(0, 1).to(dtype),
        labels.flatten(0, 1),
        reduction="sum",
        ignore_index=IGNORE_INDEX,
    )


def build_cross_entropy_loss(job_config: Any, **kwargs: Any) -> LossFunction:
    """The loss of next-token prediction."""
    return cross_entropy_loss
