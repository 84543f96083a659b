"""A model to use, from a checkpoint: of this package, torchtitan or Hugging Face."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from torchtitan_cpp import _C
from torchtitan_cpp.checkpoint import Ranks, TensorEntry, TrainingState
from torchtitan_cpp.checkpoint.agreement import (
    CheckpointError,
    UnreadableError,
    on_first_rank,
)
from torchtitan_cpp.checkpoint.dcp import is_foreign
from torchtitan_cpp.checkpoint.hugging_face import SINGLE_NAME
from torchtitan_cpp.checkpoint.loading import read_checkpoint, read_hugging_face
from torchtitan_cpp.checkpoint.manifest import parse_manifest
from torchtitan_cpp.checkpoint.selection import inspect_on_all, newest_model, verify
from torchtitan_cpp.checkpoint.state_dict_adapter import INDEX_NAME
from torchtitan_cpp.config import JobConfig, Parallelism
from torchtitan_cpp.config.package_path import resolve_package_path
from torchtitan_cpp.config.paths import OUR_TOKENIZER
from torchtitan_cpp.errors import MissingPathError
from torchtitan_cpp.generation.generate import LoadedModel, end_of_text
from torchtitan_cpp.group_ranks import GroupRanks
from torchtitan_cpp.logging import logger
from torchtitan_cpp.model_choice import load_config_of_model
from torchtitan_cpp.nn import CppModule
from torchtitan_cpp.nn.initial_values import default_dtype, make_whole
from torchtitan_cpp.nn.on_meta import on_meta
from torchtitan_cpp.rank_thread import turn
from torchtitan_cpp.train_spec import TrainSpec, get_train_spec
from torchtitan_cpp.world import World, build_world

_MANIFEST = "manifest.json"
_TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt")


def load_model(
    checkpoint: str | None = None,
    *,
    flags: Sequence[str] = (),
    dtype: torch.dtype = torch.float32,
) -> LoadedModel:
    """The model of a configuration with the weights of a checkpoint.

    Args:
        checkpoint: a checkpoint's folder, a folder of several, of which the last one
            saved is taken, or a Hugging Face model folder; None: the folder of the run
            that the flags name.
        flags: of ``torchtitan_cpp.train``, such as ``--job.config_file``: which model,
            tokenizer and length. What they say of parallelism, data and training has
            no meaning here. A Hugging Face folder's own tokenizer takes the place of
            the package's, never of another one.
        dtype: of the weights.
    Raises:
        ValueError: for a bad configuration, names or shapes that differ.
        FileNotFoundError: there is no checkpoint.
        CheckpointError: it is damaged.
    """
    config = divided_by_tensor_axis(read_model_config(flags), ranks=1)
    return load_on_rank(config, build_world(config), checkpoint, dtype=dtype)


def read_model_config(flags: Sequence[str]) -> JobConfig:
    """The configuration of the flags, whose model and flavor are known.

    Raises:
        ValueError: for a bad configuration.
    """
    config = load_config_of_model(flags).config
    # Ranks are processes, whatever a training's were.
    return replace(config, comm=replace(config.comm, mode="default"))


def divided_by_tensor_axis(config: JobConfig, *, ranks: int) -> JobConfig:
    """The configuration with tensor parallelism over all ranks and no other."""
    parallelism = Parallelism(
        tensor_parallel_degree=ranks, data_parallel_shard_degree=1
    )
    return replace(config, parallelism=parallelism)


def load_on_rank(
    config: JobConfig, world: World, checkpoint: str | None, *, dtype: torch.dtype
) -> LoadedModel:
    """This rank's part of the model, as ``load_model``; all ranks call it together.

    Args:
        config: divided by its tensor axis only, over which ``world`` was built.
    """
    spec = get_train_spec(config.model.name)
    args = copy.deepcopy(spec.model_args[config.model.flavor])
    args.update_from_config(config)
    folder = checkpoint or os.path.join(
        config.job.dump_folder, config.checkpoint.folder
    )
    ranks = GroupRanks(world)
    config = _with_own_tokenizer(config, folder, ranks)
    tokenizer = spec.build_tokenizer_fn(config) if spec.build_tokenizer_fn else None
    module, parameters, entries = _build(spec, args, world, dtype)
    with world.patiently():
        path = _load(folder, TrainingState(tensors=entries), ranks, spec, args)
    if ranks.rank == 0:
        logger.info(f"Loaded the weights in {path}")
    return LoadedModel(
        module=module,
        tokenizer=tokenizer,
        path=path,
        stop_ids=_stop_ids([path, config.model.hf_assets_path], tokenizer),
        device=world.device,
        tensor_axis=world.groups["tp"],
        parameters=parameters,
    )


def _with_own_tokenizer(config: JobConfig, folder: str, ranks: Ranks) -> JobConfig:
    """With a Hugging Face folder's tokenizer for that of the package. Collective.

    With the package's small tokenizer, that of the default configuration, the weights
    of another model would read numbers that mean other text.
    """
    if config.model.hf_assets_path != resolve_package_path(OUR_TOKENIZER):
        return config

    def look() -> str | None:
        found = _find(folder)
        path: str = found["path"]
        has_one = any(os.path.isfile(os.path.join(path, n)) for n in _TOKENIZER_FILES)
        return path if found["is_hugging_face"] and has_one else None

    own = on_first_rank(ranks, folder, look)
    if own is None:
        return config
    return replace(config, model=replace(config.model, hf_assets_path=own))


def _build(
    spec: TrainSpec, args: Any, world: World, dtype: torch.dtype
) -> tuple[nn.Module, list[list[torch.Tensor]] | None, list[TensorEntry]]:
    """The module, this rank's pieces if it is divided, and what is to be loaded."""
    axis = world.groups["tp"]
    with turn(), on_meta(), default_dtype(dtype):
        module = spec.model_cls(args)
    if not isinstance(module, CppModule):
        if axis.size > 1:
            raise ValueError(
                "generation on several ranks: not supported for models written in "
                "Python; start one"
            )
        with turn():  # made, not left empty: some buffers are in no checkpoint
            module = make_whole(lambda: spec.model_cls(args), seed=0, dtype=dtype)
        module.to(world.device)
        return module, None, _entries_of_python(module)
    core = module.build_core(
        head="logits", device=torch.device("meta"), dtype=dtype, tensor_axis=axis
    )
    parameters: list[list[torch.Tensor]] = []
    entries = []
    for group in core.groups:
        parameters.append([])
        for part in group.parameters:
            tensor = torch.empty(part.shape, dtype=dtype, device=world.device)
            parameters[-1].append(tensor)
            entries.append(
                TensorEntry(
                    name=part.name,
                    kind="model",
                    local=tensor,
                    global_shape=tuple(part.whole_shape),
                    offset=tuple(part.offset),
                    size=tuple(part.shape),
                    is_writer=False,
                )
            )
            if axis.size == 1:
                parent, _, leaf = part.name.rpartition(".")
                setattr(module.get_submodule(parent), leaf, nn.Parameter(tensor))
    return module, parameters if axis.size > 1 else None, entries


def _entries_of_python(module: nn.Module) -> list[TensorEntry]:
    saved = module.state_dict().keys()
    buffers = {name: b for name, b in module.named_buffers() if name in saved}
    tensors = dict(module.named_parameters()) | buffers
    entries = []
    for name, tensor in tensors.items():
        local = tensor.detach()
        local = torch.view_as_real(local) if local.is_complex() else local
        entries.append(
            TensorEntry(
                name=name,
                kind="model",
                local=local,
                global_shape=tuple(local.shape),
                offset=(0,) * local.dim(),
                size=tuple(local.shape),
                is_writer=False,
                is_buffer=name in buffers,
            )
        )
    return entries


def _load(
    folder: str, state: TrainingState, ranks: Ranks, spec: TrainSpec, args: Any
) -> str:
    """Fill the weights; the folder that they came from. Collective.

    A training that goes on may purge what is being read, and leaves a newer one.
    """
    while True:
        found: Any = on_first_rank(ranks, folder, lambda: _find(folder))
        if found["missing"]:
            raise MissingPathError(found["missing"])
        path: str = found["path"]
        try:
            return _load_found(found, state, ranks, spec, args)
        except (CheckpointError, UnreadableError):
            if path == folder or on_first_rank(
                ranks, path, partial(os.path.isdir, path)
            ):
                raise


def _load_found(
    found: Any, state: TrainingState, ranks: Ranks, spec: TrainSpec, args: Any
) -> str:
    path: str = found["path"]
    if found["is_hugging_face"]:
        if spec.state_dict_adapter is None:
            raise ValueError(
                f"{path} is a Hugging Face folder, but the model's TrainSpec has no "
                "state_dict_adapter"
            )
        read_hugging_face(path, spec.state_dict_adapter(args, None), state, ranks)
        return path
    candidate = inspect_on_all(path, ranks)
    verify(candidate, ranks)
    read_checkpoint(candidate, state, ranks, wanted={"model"}, weights_only=True)
    return path


def _find(folder: str) -> dict[str, Any]:
    """The checkpoint in a folder, or the last one saved below it."""
    kind = _kind(folder)
    if kind is None and os.path.isdir(folder):
        newest = newest_model(folder)
        while newest is not None and (kind := _kind(newest)) is None:
            newest = newest_model(folder)  # purged in between
        folder = newest or folder
    missing = ""
    if not os.path.isdir(folder):
        missing = f"{folder} is no folder: expected a checkpoint"
    elif kind is None:
        missing = (
            f"{folder} holds no checkpoint: expected a step-N with {_MANIFEST}, a "
            f"folder of them, or {SINGLE_NAME} or {INDEX_NAME}"
        )
    return {
        "path": folder,
        "missing": missing,
        "is_hugging_face": kind == "huggingface",
    }


def _kind(folder: str) -> str | None:
    """What of a checkpoint a folder holds; None where it is none."""
    if os.path.isfile(os.path.join(folder, _MANIFEST)):
        text = _C.storage.inspect_checkpoint(folder).manifest
        return "training" if text is None else parse_manifest(text).content
    if is_foreign(folder):
        return "training"
    names = (SINGLE_NAME, INDEX_NAME)
    is_model = any(os.path.isfile(os.path.join(folder, name)) for name in names)
    return "huggingface" if is_model else None


def _stop_ids(folders: Sequence[str], tokenizer: Any) -> frozenset[int]:
    """As a model folder says, else the tokenizer's end of text."""
    for folder in folders:
        path = os.path.join(folder, "generation_config.json")
        if not os.path.isfile(path):
            continue
        with open(path, encoding="utf-8") as file:
            given = json.load(file).get("eos_token_id")
        if given is not None:
            return frozenset(given if isinstance(given, list) else [given])
    return end_of_text(tokenizer)
