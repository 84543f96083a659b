"""JobConfig: all sections of a run. The dataclasses are the only home of defaults."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from torchtitan_cpp.config.checkpoint import Checkpoint
from torchtitan_cpp.config.job import Debug, Experimental, Job, MemoryEstimation
from torchtitan_cpp.config.model import ActivationCheckpoint, Compile, Model
from torchtitan_cpp.config.monitoring import Metrics, Profiling
from torchtitan_cpp.config.optimizer import LRScheduler, Optimizer
from torchtitan_cpp.config.parallelism import Comm, FaultTolerance, Parallelism
from torchtitan_cpp.config.quantize import (
    Float8GroupedMM,
    Float8Linear,
    MXGroupedMM,
    MXLinear,
    Quantize,
    QuantizedGroupedMM,
    QuantizedLinear,
)
from torchtitan_cpp.config.training import DataLoader, Training, Validation

__all__ = [
    "ActivationCheckpoint",
    "Checkpoint",
    "Comm",
    "Compile",
    "DataLoader",
    "Debug",
    "Experimental",
    "FaultTolerance",
    "Float8GroupedMM",
    "Float8Linear",
    "Job",
    "JobConfig",
    "LRScheduler",
    "MXGroupedMM",
    "MXLinear",
    "MemoryEstimation",
    "Metrics",
    "Model",
    "Optimizer",
    "Parallelism",
    "Profiling",
    "Quantize",
    "QuantizedGroupedMM",
    "QuantizedLinear",
    "Training",
    "Validation",
]


@dataclass(frozen=True, kw_only=True)
class JobConfig:
    """Everything that a user may say about a run, section by section."""

    job: Job = field(default_factory=Job)
    """The run as a whole."""
    profiling: Profiling = field(default_factory=Profiling)
    """Traces and memory snapshots."""
    metrics: Metrics = field(default_factory=Metrics)
    """What is logged."""
    model: Model = field(default_factory=Model)
    """Which model."""
    optimizer: Optimizer = field(default_factory=Optimizer)
    """How weights are updated."""
    lr_scheduler: LRScheduler = field(default_factory=LRScheduler)
    """How the learning rate changes."""
    training: Training = field(default_factory=Training)
    """Data, batch, precision, length."""
    parallelism: Parallelism = field(default_factory=Parallelism)
    """How ranks share the work."""
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    """Saving and resuming."""
    activation_checkpoint: ActivationCheckpoint = field(
        default_factory=ActivationCheckpoint
    )
    """What is recomputed in the backward."""
    compile: Compile = field(default_factory=Compile)
    """Compilation of Python models."""
    quantize: Quantize = field(default_factory=Quantize)
    """Quantized products."""
    comm: Comm = field(default_factory=Comm)
    """Communication between ranks."""
    memory_estimation: MemoryEstimation = field(default_factory=MemoryEstimation)
    """Predicting memory."""
    fault_tolerance: FaultTolerance = field(default_factory=FaultTolerance)
    """Replicas that may leave."""
    experimental: Experimental = field(default_factory=Experimental)
    """Code outside the package."""
    validation: Validation = field(default_factory=Validation)
    """Loss on held-out data."""
    debug: Debug = field(default_factory=Debug)
    """Repeatable runs."""

    def to_dict(self) -> dict[str, Any]:
        """The sections as nested dicts of plain values, ready for JSON."""
        return asdict(self)
