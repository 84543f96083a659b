"""Between the names and layouts of a model here and those of its Hugging Face files."""

from __future__ import annotations

import json
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch

from torchtitan_cpp.logging import logger

INDEX_NAME = "model.safetensors.index.json"


class BaseStateDictAdapter(ABC):
    """What ``TrainSpec.state_dict_adapter`` names; torchtitan's interface.

    ``to_hf`` and ``from_hf`` are called with whole tensors on the CPU, for one layer at
    a time (all names that hold the same layer number), and for each name without a
    number by itself; so no more than a layer is in memory. Before, to learn names,
    shapes and dtypes, they are called with tensors on meta (or zeros if that fails).
    With a ``TableStateDictAdapter`` a rank need not read whole layers.

    An adapter may also have a method ``hf_config() -> dict``, whose result is written
    to ``config.json`` beside exported weights; without it, that of ``hf_assets_path``.
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


def try_on_shapes(
    function: Callable[[dict[str, Any]], dict[str, Any]],
    heads: Mapping[str, tuple[tuple[int, ...], torch.dtype]],
) -> dict[str, Any]:
    """What ``to_hf`` or ``from_hf`` makes of tensors with these shapes and dtypes.

    Raises:
        ValueError: it refused their names or shapes.
    """

    def call(device: str) -> dict[str, Any]:
        return function(
            {
                name: torch.zeros(shape, dtype=dtype, device=device)
                for name, (shape, dtype) in heads.items()
            }
        )

    try:
        return call("meta")
    except (RuntimeError, TypeError):  # what it does is not possible without numbers
        return call("cpu")


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
