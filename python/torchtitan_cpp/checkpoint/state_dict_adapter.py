"""Between the names and layouts of a model here and those of its Hugging Face files."""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from torchtitan_cpp.logging import logger

INDEX_NAME = "model.safetensors.index.json"


class BaseStateDictAdapter(ABC):
    """What ``TrainSpec.state_dict_adapter`` names; torchtitan's interface.

    ``to_hf`` and ``from_hf`` are called with whole tensors on the CPU, for one layer at
    a time (all names that hold the same layer number), and for each name without a
    number by itself; so no more than a layer and a file are in memory.

    An adapter may also have a method ``hf_config() -> dict``, whose result is written
    to ``config.json`` beside exported weights.
    """

    fqn_to_index_mapping: dict[str, int] | None
    """Hugging Face name to the number of its file (1, 2, ..); None: split by size."""
    hf_assets_path: str | None

    @abstractmethod
    def __init__(self, model_args: Any, hf_assets_path: str | None) -> None: ...

    @abstractmethod
    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Names and tensors as the Hugging Face model has them."""

    @abstractmethod
    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        """Names and tensors as the model here has them."""


class StateDictAdapter(BaseStateDictAdapter):
    """Takes the split into files from the index in ``hf_assets_path``, if any."""

    def __init__(self, model_args: Any, hf_assets_path: str | None) -> None:
        self.model_args = model_args
        self.hf_assets_path = hf_assets_path
        self.fqn_to_index_mapping = None
        path = os.path.join(hf_assets_path or "", INDEX_NAME)
        if hf_assets_path and os.path.isfile(path):
            self.fqn_to_index_mapping = _file_numbers(path)
        elif hf_assets_path:
            logger.debug(f"{path} does not exist: exported weights are split by size")


def _file_numbers(path: str) -> dict[str, int]:
    with open(path, encoding="utf-8") as file:
        weight_map: Mapping[str, str] = json.load(file)["weight_map"]
    numbers: dict[str, int] = {}
    for name, file_name in weight_map.items():
        match = re.search(r"\d+", file_name)
        if match is None:
            raise ValueError(f"{path}: file name {file_name!r} holds no number")
        numbers[name] = int(match.group())
    return numbers
