"""Checkpoints: saved whole or not at all, loadable into any layout."""

from __future__ import annotations

from torchtitan_cpp.checkpoint.adapter_table import HfWeight, TableStateDictAdapter
from torchtitan_cpp.checkpoint.agreement import CheckpointError
from torchtitan_cpp.checkpoint.hugging_face import HuggingFaceFolder
from torchtitan_cpp.checkpoint.manager import CheckpointManager
from torchtitan_cpp.checkpoint.state import (
    LoadedState,
    Ranks,
    SingleRank,
    TensorEntry,
    TorchSettings,
    TrainingState,
)
from torchtitan_cpp.checkpoint.state_dict_adapter import (
    BaseStateDictAdapter,
    StateDictAdapter,
)

__all__ = [
    "BaseStateDictAdapter",
    "CheckpointError",
    "CheckpointManager",
    "HfWeight",
    "HuggingFaceFolder",
    "LoadedState",
    "Ranks",
    "SingleRank",
    "StateDictAdapter",
    "TableStateDictAdapter",
    "TensorEntry",
    "TorchSettings",
    "TrainingState",
]
