"""Sections optimizer and lr_scheduler."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from torchtitan_cpp.config.constraints import (
    Name,
    NonNegative,
    NonNegativeFloat,
    Positive,
    Ratio,
    Within,
)

Beta = Annotated[float, Within(0, 1, open_high=True)]


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """The optimizer; one parameter group with weight decay on every parameter."""

    name: Name = "AdamW"
    """AdamW or Adam; a TrainSpec with a builder of its own may know more."""
    lr: NonNegativeFloat = 8e-4
    """Largest learning rate; lr_scheduler scales it."""
    beta1: Beta = 0.9
    """Decay of the average of gradients."""
    beta2: Beta = 0.95
    """Decay of the average of squared gradients."""
    eps: NonNegativeFloat = 1e-8
    """Added to the denominator of the update."""
    weight_decay: NonNegativeFloat = 0.1
    """Decay of the weights in each step, times the learning rate."""
    implementation: Literal["for-loop", "foreach", "fused"] = "fused"
    """One tensor at a time, lists of tensors, or one fused pass (the fastest)."""
    early_step_in_backward: bool = False
    """Step each parameter group at its last reduction; no clipping then."""
    state_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the moments; float32 means float64 when training in it. Not v0.2.2's."""


@dataclass(frozen=True, kw_only=True)
class LRScheduler:
    """Linear warmup, a constant phase, then decay (WSD, Hu et al. 2024)."""

    warmup_steps: NonNegative = 200
    """Steps until the full learning rate is reached."""
    total_steps: Positive | None = None
    """Length of the schedule in steps. None: training.steps."""
    decay_ratio: Ratio | None = None
    """Fraction of the steps that decays at the end. None: all after the warmup."""
    decay_type: Literal["linear", "sqrt", "cosine"] = "linear"
    """Shape of the decay; sqrt is one minus the square root of the progress."""
    min_lr_factor: Ratio = 0.0
    """The decay ends at this fraction of optimizer.lr."""
