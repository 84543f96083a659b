"""What the ``checkpoint`` section and the folders that it names must be."""

from __future__ import annotations

import os

import torch

from torchtitan_cpp.checkpoint.dcp import METADATA_NAME, is_foreign
from torchtitan_cpp.checkpoint.state_dict_adapter import BaseStateDictAdapter
from torchtitan_cpp.config.checkpoint import Checkpoint

EXPORT_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
"""By ``checkpoint.export_dtype``."""


def check_folder(path: str) -> None:
    """Raise FileNotFoundError unless the folder holds one checkpoint."""
    if not os.path.isdir(path):
        raise FileNotFoundError(f"{path} is no folder")
    if not os.path.exists(os.path.join(path, "manifest.json")) and not is_foreign(path):
        raise FileNotFoundError(
            f"{path} holds neither manifest.json nor {METADATA_NAME}; expected one "
            "checkpoint, such as .../step-100"
        )


def check_settings(settings: Checkpoint, adapter: BaseStateDictAdapter | None) -> None:
    """Raise ValueError for settings that contradict each other or lack an adapter."""
    if settings.last_save_in_hf and not settings.last_save_model_only:
        raise ValueError(
            "checkpoint.last_save_in_hf needs checkpoint.last_save_model_only"
        )
    if settings.initial_load_in_hf and not settings.initial_load_model_only:
        raise ValueError(
            "checkpoint.initial_load_in_hf needs checkpoint.initial_load_model_only"
        )
    for field in ("last_save_in_hf", "initial_load_in_hf"):
        if getattr(settings, field) and adapter is None:
            raise ValueError(
                f"checkpoint.{field}: the model's TrainSpec has no state_dict_adapter"
            )
