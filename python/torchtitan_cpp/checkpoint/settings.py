"""What the ``checkpoint`` section and the folders that it names must be."""

from __future__ import annotations

import os
import re

import torch

from torchtitan_cpp.checkpoint.dcp import METADATA_NAME, is_foreign
from torchtitan_cpp.checkpoint.nearest import nearest
from torchtitan_cpp.checkpoint.state_dict_adapter import (
    INDEX_NAME,
    BaseStateDictAdapter,
)
from torchtitan_cpp.config.checkpoint import Checkpoint
from torchtitan_cpp.errors import MissingPathError, SettingError
from torchtitan_cpp.logging import logger

EXPORT_DTYPES = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float32": torch.float32,
}
"""By ``checkpoint.export_dtype``."""


def step_of(name: str) -> int | None:
    """The step of a checkpoint's folder name; None for other names."""
    match = re.fullmatch(r"step-(0|[1-9]\d*)", name)
    return int(match.group(1)) if match else None


def check_folder(path: str, *, weights_hint: str) -> None:
    """Raise MissingPathError unless the folder holds one checkpoint.

    Args:
        weights_hint: what to do with weights of Hugging Face that lie there.
    """
    if not os.path.isdir(path):
        raise missing_folder(path, "one checkpoint, such as .../step-100")
    if os.path.exists(os.path.join(path, "manifest.json")) or is_foreign(path):
        return
    names = sorted(os.listdir(path))
    steps = sorted(step for step in map(step_of, names) if step is not None)
    if steps:
        shown = ", ".join(f"step-{step}" for step in steps[-3:])
        hint = f"; in it: {'.., ' if steps[3:] else ''}{shown}"
    elif INDEX_NAME in names or any(name.endswith(".safetensors") for name in names):
        hint = f"; found weights of Hugging Face: {weights_hint}"
    else:
        found = ", ".join([*names[:3], ".."] if names[3:] else names)
        hint = f"; found {found or 'nothing'}"
    raise MissingPathError(
        f"{path} holds neither manifest.json nor {METADATA_NAME}: expected one "
        f"checkpoint, such as .../step-100{hint}"
    )


def missing_folder(path: str, expected: str) -> MissingPathError:
    """The error for a folder that the configuration names and that is not there."""
    if os.path.exists(path):
        return MissingPathError(f"{path} is no folder: expected {expected}")
    parent, name = os.path.split(os.path.abspath(path))
    while not os.path.isdir(parent):  # ends at the root
        parent, name = os.path.split(parent)
    held = [each for each in os.listdir(parent) if os.path.isdir(f"{parent}/{each}")]
    where = f"{parent} has no {name}{nearest(name, held)}"
    return MissingPathError(f"{path} does not exist: expected {expected}; {where}")


def check_settings(settings: Checkpoint, adapter: BaseStateDictAdapter | None) -> None:
    """Raise SettingError for settings that contradict each other or lack an adapter."""
    if settings.last_save_in_hf and not settings.last_save_model_only:
        raise SettingError(
            "checkpoint.last_save_in_hf needs checkpoint.last_save_model_only"
        )
    if settings.initial_load_in_hf and not settings.initial_load_model_only:
        raise SettingError(
            "checkpoint.initial_load_in_hf needs checkpoint.initial_load_model_only"
        )
    for field in ("last_save_in_hf", "initial_load_in_hf"):
        if getattr(settings, field) and adapter is None:
            raise SettingError(
                f"checkpoint.{field}: the model's TrainSpec has no state_dict_adapter"
            )


def tell_not_read(settings: Checkpoint, folder: str) -> None:
    """Say which settings mean nothing to a run that goes on from its own folder."""
    for name in ("initial_load_path", "initial_load_in_hf"):
        if getattr(settings, name):
            logger.warning(
                f"checkpoint.{name} is for a run without checkpoints of its own: not "
                f"used, as there are some in {folder}"
            )
