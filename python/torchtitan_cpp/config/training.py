"""Sections training and validation, and training.dataloader."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from torchtitan_cpp.config.constraints import (
    MayBeInfinite,
    Name,
    NonNegative,
    Path,
    Positive,
    PositiveOrMinusOne,
    Within,
)


@dataclass(frozen=True, kw_only=True)
class DataLoader:
    """Workers that prepare batches ahead of the step."""

    num_workers: NonNegative = 0
    """Workers per rank; 0 prepares batches in the training process."""
    persistent_workers: bool = False
    """Needs num_workers > 0. Workers are threads and live as long as the run anyway."""
    pin_memory: bool = False
    """Put batches into pinned memory, for faster copies to a CUDA device."""
    prefetch_factor: Positive | None = None
    """Batches that each worker prepares ahead; needs num_workers > 0. None: 2."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """Data, batch, precision and length of the training."""

    dataset: Name = "c4_test"
    """Name of a registered dataset."""
    dataset_path: Path | None = None
    """Where the dataset lies, instead of its usual place."""
    local_batch_size: Positive = 8
    """Sequences of one microbatch on one data-parallel rank."""
    global_batch_size: PositiveOrMinusOne = -1
    """Sequences of one step on all ranks. -1: local_batch_size x data ranks."""
    seq_len: Positive = 2048
    """Tokens of one sequence."""
    max_norm: Annotated[float, Within(0, open_low=True), MayBeInfinite()] = 1.0
    """Gradients are scaled down to this global 2-norm. inf: never."""
    steps: Positive = 10000
    """Optimizer steps of the run."""
    enable_cpu_offload: bool = False
    """Keep parameters, gradients and optimizer state in host memory."""
    dtype: Literal["bfloat16", "float32", "float64"] = "float32"
    """Dtype in which parameters are kept and updated. float64 is not v0.2.2's."""
    mixed_precision_param: Literal["bfloat16", "float32"] = "bfloat16"
    """Dtype of gathered parameters and of the computation in every layout."""
    mixed_precision_reduce: Literal["float32"] = "float32"
    """Dtype in which gradients are summed; float64 when training in it."""
    gc_freq: Positive = 50
    """Steps between two runs of Python's garbage collector."""
    gc_debug: bool = False
    """Collect garbage at every step and report reference cycles that hold tensors."""
    dataloader: DataLoader = field(default_factory=DataLoader)
    """Workers of the training data."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """The loss on held-out data, from time to time."""

    enable: bool = False
    """Validate every freq steps."""
    dataset: Name = "c4_validation"
    """Name of a registered dataset."""
    dataset_path: Path | None = None
    """Where the dataset lies, instead of its usual place."""
    local_batch_size: Positive = 8
    """Sequences of one batch on one data-parallel rank."""
    seq_len: Positive = 2048
    """Tokens of one sequence."""
    freq: Positive = 10
    """Steps between two validations."""
    steps: PositiveOrMinusOne = -1
    """Batches of one validation. -1: the whole dataset."""
    dataloader: DataLoader = field(default_factory=DataLoader)
    """Workers of the validation data."""
