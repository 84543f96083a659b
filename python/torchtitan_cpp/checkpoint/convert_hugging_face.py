"""Checkpoints into Hugging Face model folders, and back."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import torch

from torchtitan_cpp.checkpoint.conversion import open_source
from torchtitan_cpp.checkpoint.convert_entries import (
    entries_of_checkpoint,
    entries_of_source,
)
from torchtitan_cpp.checkpoint.manifest import Parent
from torchtitan_cpp.checkpoint.model_folder import warn_of_other_settings
from torchtitan_cpp.checkpoint.names import check_missing, check_unexpected
from torchtitan_cpp.checkpoint.saving import SaveRequest, save_checkpoint
from torchtitan_cpp.checkpoint.selection import (
    hashes_of_weights,
    inspect_on_all,
    verify,
)
from torchtitan_cpp.checkpoint.settings import EXPORT_DTYPES, check_folder
from torchtitan_cpp.checkpoint.state import SingleRank, TrainingState
from torchtitan_cpp.checkpoint.state_dict_adapter import BaseStateDictAdapter
from torchtitan_cpp.config import Loaded
from torchtitan_cpp.errors import MissingPathError
from torchtitan_cpp.nn.on_meta import on_meta
from torchtitan_cpp.train_spec import get_train_spec

_ALONE = SingleRank()


def to_hugging_face(source: str, result: str, loaded: Loaded) -> str:
    """Write the weights of a checkpoint as a model folder; what to tell.

    Args:
        source: folder of one checkpoint, ours or torch's.
        result: the new folder; its parent is made.
        loaded: which model, ``model.hf_assets_path`` and ``checkpoint.export_dtype``.
    Raises:
        ValueError: for weights that are not the model's, or a result that exists.
        CheckpointError: the source is damaged, or nothing could be written.
    """
    _check_new(result)
    check_folder(source, weights_hint="nothing is to be converted")
    candidate = inspect_on_all(source, _ALONE)
    manifest = candidate.manifest
    if manifest.content == "huggingface":
        raise ValueError(f"{source} is a Hugging Face folder already")
    model = _model_of(loaded)
    weights = {n: t for n, t in manifest.tensors.items() if t.kind == "model"}
    model.check(source, {name: stored.shape for name, stored in weights.items()})
    verify(candidate, _ALONE)
    state = TrainingState(tensors=entries_of_checkpoint(candidate, weights))
    request = SaveRequest(
        folder=_workplace(result),
        step=manifest.step,
        content="huggingface",
        format="native",
        export_dtype=EXPORT_DTYPES[loaded.config.checkpoint.export_dtype],
        parent=Parent(),
        config_hash=manifest.config_hash,
        adapter=model.adapter,
        fault_hook=None,
    )
    return _save_at(result, request, state)


def from_hugging_face(
    source: str, result: str, loaded: Loaded, *, format: Literal["native", "dcp"]
) -> str:
    """Write a model folder as a checkpoint of weights at step 0; what to tell.

    Dtypes are those of the files; float8 weights become float32.

    Args:
        source: folder of Hugging Face weights.
        result: the new folder; its parent is made.
        loaded: which model.
        format: of the result.
    Raises:
        ValueError: for weights that are not the model's, or a result that exists.
        CheckpointError: nothing could be written.
    """
    _check_new(result)
    if not os.path.isdir(source):
        raise MissingPathError(f"{source} is no folder: expected Hugging Face weights")
    model = _model_of(loaded)
    hashes = hashes_of_weights(source, _ALONE)
    weights = open_source(source, model.adapter, hashes=hashes)
    model.check(source, {name: head.shape for name, head in weights.heads.items()})
    warn_of_other_settings(source, model.adapter)
    request = SaveRequest(
        folder=_workplace(result),
        step=0,
        content="model",
        format=format,
        export_dtype=None,
        parent=Parent(),
        config_hash="",
        adapter=None,
        fault_hook=None,
    )
    state = TrainingState(tensors=entries_of_source(weights))
    return _save_at(result, request, state)


@dataclass(frozen=True, kw_only=True)
class _Model:
    """What the configuration's model holds."""

    adapter: BaseStateDictAdapter
    shapes: Mapping[str, tuple[int, ...]]
    buffers: Collection[str]

    def check(self, source: str, found: Mapping[str, tuple[int, ...]]) -> None:
        """Raise ValueError unless these are its weights; buffers may lack."""
        check_missing(source, self.shapes.keys() - self.buffers, found)
        check_unexpected(_ALONE, source, self.shapes, list(found))
        for name, shape in found.items():
            if shape != self.shapes[name]:
                raise ValueError(
                    f"{source}: {name} has the shape {shape}, the model "
                    f"{self.shapes[name]}"
                )


def _model_of(loaded: Loaded) -> _Model:
    config = loaded.config
    spec = get_train_spec(config.model.name)
    if spec.state_dict_adapter is None:
        raise ValueError(
            f"model.name: the TrainSpec of {config.model.name} has no "
            "state_dict_adapter"
        )
    args: Any = copy.deepcopy(spec.model_args[config.model.flavor])
    of_run = config.job.config_file or loaded.origin("training.seq_len").kind == "flag"
    if of_run:
        args.update_from_config(config)  # else the length is the flavor's own
    with on_meta():
        module = spec.model_cls(args)
    tensors = {
        name: torch.view_as_real(tensor) if tensor.is_complex() else tensor
        for name, tensor in module.state_dict().items()
    }
    return _Model(
        adapter=spec.state_dict_adapter(args, config.model.hf_assets_path),
        shapes={name: tuple(tensor.shape) for name, tensor in tensors.items()},
        buffers={name for name, _ in module.named_buffers()},
    )


def _workplace(result: str) -> str:
    """Beside the result, on the same file system; the same after a kill."""
    return os.path.abspath(result) + ".converting"


def _save_at(result: str, request: SaveRequest, state: TrainingState) -> str:
    """Commit the checkpoint in its workplace, then give it the name of the result."""
    parent = os.path.dirname(os.path.abspath(result))
    os.makedirs(parent, exist_ok=True)
    try:
        save_checkpoint(request, state, _ALONE)
        made = os.path.join(request.folder, f"step-{request.step}")
        os.rename(made, os.path.abspath(result))
        _sync(parent)
    finally:
        with suppress(OSError):  # there is more in it, or it was never made
            os.rmdir(request.folder)
    return result


def _check_new(result: str) -> None:
    is_empty = os.path.isdir(result) and not os.listdir(result)
    if os.path.lexists(result) and not is_empty:
        raise ValueError(f"{result} exists already")


def _sync(folder: str) -> None:
    """Make the names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
