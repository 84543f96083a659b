"""Section checkpoint."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from torchtitan_cpp.config.constraints import (
    Name,
    NonNegative,
    NonNegativeOrMinusOne,
    Path,
    Positive,
)


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """When the state of the run is saved, and what a run starts from."""

    enable: bool = False
    """Save checkpoints, and resume from the latest one."""
    enable_ft_dataloader_checkpoints: bool = True
    """With fault_tolerance: save the data position of every replica."""
    format: Literal["native", "dcp"] = "native"
    """Of what is saved; "dcp": torch's own, as torchtitan reads it. Not v0.2.2's."""
    folder: Name = "checkpoint"
    """Folder of the checkpoints, below job.dump_folder."""
    interval: Positive = 500
    """Steps between two checkpoints; the last step is always saved."""
    initial_load_path: Path | None = None
    """Folder of a checkpoint to start from, when the run has none of its own."""
    initial_load_model_only: bool = True
    """Take only the weights from initial_load_path, not the rest of the state."""
    initial_load_in_hf: bool = False
    """Start from Hugging Face files, in initial_load_path or model.hf_assets_path."""
    initial_load_in_hf_quantized: bool = False
    """The Hugging Face files hold float8 weights with scales: dequantize them."""
    last_save_model_only: bool = True
    """Save only the weights at the last step; such a checkpoint cannot be resumed."""
    last_save_in_hf: bool = False
    """Save the last step as Hugging Face files; needs last_save_model_only."""
    export_dtype: Literal["float16", "bfloat16", "float32"] = "float32"
    """Dtype of weights saved alone at the last step."""
    async_mode: Literal["disabled", "async", "async_with_pinned_mem"] = "disabled"
    """Copy the state, then write it while training goes on; but the last save."""
    max_failed_saves: NonNegative = 0
    """Saves in a row that may fail before the run stops. Not v0.2.2's."""
    keep_latest_k: NonNegative = 10
    """Older checkpoints than the latest k are deleted. 0: none is."""
    load_step: NonNegativeOrMinusOne = -1
    """Step of the checkpoint to resume from. -1: the latest."""
    exclude_from_loading: list[str] = field(default_factory=list)
    """Parts that are not loaded, e.g. optimizer, lr_scheduler, dataloader."""
    enable_first_step_checkpoint: bool = False
    """Save after the first step too, to try the storage early."""
    create_seed_checkpoint: bool = False
    """Save the initial weights as step 0 and end; on one rank."""
    load_only: bool = False
    """Load but never save."""
