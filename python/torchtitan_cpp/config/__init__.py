"""Configuration of a run: typed sections, TOML files, flags, and their checks.

loaded = load_config(["--training.steps", "20"])
loaded.config.training.steps, loaded.origin("training.steps")
check_run(loaded, world_size=1)
"""

from __future__ import annotations

from torchtitan_cpp.config.check import check_run, run_problems, unsupported
from torchtitan_cpp.config.effective import config_json, save_config
from torchtitan_cpp.config.job_config import (
    ActivationCheckpoint,
    Checkpoint,
    Comm,
    Compile,
    DataLoader,
    Debug,
    Experimental,
    FaultTolerance,
    Job,
    JobConfig,
    LRScheduler,
    MemoryEstimation,
    Metrics,
    Model,
    Optimizer,
    Parallelism,
    Profiling,
    Quantize,
    Training,
    Validation,
)
from torchtitan_cpp.config.load import (
    ConfigManager,
    Loaded,
    config_from_dict,
    load_config,
    read_config,
)
from torchtitan_cpp.config.precision import (
    TORCH_DTYPE_MAP,
    compute_dtype,
    reduce_dtype,
    state_dtype,
)
from torchtitan_cpp.config.problems import ConfigError, Origin, Problem
from torchtitan_cpp.config.rules import data_parallel_degree

__all__ = [
    "ActivationCheckpoint",
    "Checkpoint",
    "Comm",
    "Compile",
    "ConfigError",
    "ConfigManager",
    "DataLoader",
    "Debug",
    "Experimental",
    "FaultTolerance",
    "Job",
    "JobConfig",
    "LRScheduler",
    "Loaded",
    "MemoryEstimation",
    "Metrics",
    "Model",
    "Optimizer",
    "Origin",
    "Parallelism",
    "Problem",
    "Profiling",
    "Quantize",
    "TORCH_DTYPE_MAP",
    "Training",
    "Validation",
    "check_run",
    "compute_dtype",
    "config_from_dict",
    "config_json",
    "data_parallel_degree",
    "load_config",
    "read_config",
    "reduce_dtype",
    "run_problems",
    "save_config",
    "state_dtype",
    "unsupported",
]
