"""Sections job, experimental, debug and memory_estimation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from torchtitan_cpp.config.constraints import INT64_MAX, Name, NonNegative, Path, Within


@dataclass(frozen=True, kw_only=True)
class Job:
    """The run as a whole: where it reads its configuration and writes its files."""

    config_file: Path | None = None
    """TOML file with the values of this run; only as a flag. None: the packaged one."""
    dump_folder: Name = "./outputs"
    """Folder that receives everything the run writes."""
    description: str = "default job"
    """Free text, logged at the start."""
    print_config: bool = False
    """Log the effective configuration as JSON at the start."""
    save_config_file: str | None = None
    """File below dump_folder to which rank 0 writes the effective configuration."""
    custom_config_module: str = ""
    """Importable module whose JobConfig adds fields and sections to this one."""


@dataclass(frozen=True, kw_only=True)
class Experimental:
    """Hooks for code outside the package."""

    custom_import: str = ""
    """Module imported before the model is looked up, to register TrainSpecs."""
    custom_args_module: str = ""
    """Deprecated name of job.custom_config_module."""


@dataclass(frozen=True, kw_only=True)
class Debug:
    """Repeatable runs."""

    seed: Annotated[int, Within(0, INT64_MAX)] | None = None
    """Seed of weights, data order and every random number. None: one is drawn."""
    deterministic: bool = False
    """Use only algorithms that give the same bits in every run; may be slower."""
    deterministic_warn_only: bool = False
    """Warn about operations without a deterministic algorithm instead of failing."""
    moe_force_load_balance: bool = False
    """Send tokens to experts in turn. No effect in models without experts."""
    replica_check_interval: NonNegative = 0
    """Not v0.2.2's: steps between comparisons of what ranks hold alike; 0: none."""


@dataclass(frozen=True, kw_only=True)
class MemoryEstimation:
    """Predicting memory without training."""

    enable: bool = False
    """Predict the memory of the run instead of training."""
    disable_fake_mode: bool = False
    """Predict with real tensors."""
