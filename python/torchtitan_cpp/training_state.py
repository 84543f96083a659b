"""A run's state as checkpoints hold it."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from torchtitan_cpp import _C
from torchtitan_cpp.checkpoint import (
    CheckpointManager,
    LoadedState,
    TensorEntry,
    TrainingState,
)
from torchtitan_cpp.config import config_json
from torchtitan_cpp.data import DataLoader, merge_data_states
from torchtitan_cpp.group_ranks import BackgroundRanks, GroupRanks
from torchtitan_cpp.own_optimizers import OwnOptimizers
from torchtitan_cpp.rank_thread import turn
from torchtitan_cpp.torch_settings import torch_settings
from torchtitan_cpp.world import World

if TYPE_CHECKING:
    from torchtitan_cpp.trainer import Trainer


def build_checkpointer(trainer: Trainer) -> CheckpointManager:
    """What saves and loads the state of the run."""
    config, adapter = trainer.job_config, trainer.spec.state_dict_adapter
    distributed = trainer.world.distributed
    is_async = config.checkpoint.enable and config.checkpoint.async_mode != "disabled"
    return CheckpointManager(
        config.checkpoint,
        base_folder=config.job.dump_folder,
        ranks=GroupRanks(trainer.world),
        background_ranks=BackgroundRanks(distributed)
        if distributed and is_async
        else None,
        adapter=adapter(trainer.model.args, config.model.hf_assets_path)
        if adapter
        else None,
        hf_assets_path=config.model.hf_assets_path,
        config_hash=hashlib.sha256(config_json(config).encode()).hexdigest(),
    )


def collect(trainer: Trainer, *, loading: bool = False) -> TrainingState:
    """The state behind the step that has just ended, by reference: no copies.

    Args:
        loading: it is to be filled.
    """
    with turn():
        gathered: dict[str, Any] = {"rng": _rng_state()}
    if hasattr(trainer.dataloader, "state_dict"):
        gathered["dataloader"] = trainer.dataloader.state_dict()
    scalars: dict[str, Any] = {
        "train_state": {
            "step": trainer.step,
            "num_tokens_seen": trainer.num_tokens_seen,
        },
        "lr_scheduler": trainer.lr_schedulers.state_dict(),
        "optimizer_step": trainer.optimizer_step,
    }
    if isinstance(trainer.optimizers, OwnOptimizers):
        scalars["optimizer_numbers"] = _of_all_stages(
            trainer.optimizers.numbers(), trainer.world
        )
    is_dcp = trainer.job_config.checkpoint.format == "dcp"
    return TrainingState(
        tensors=tensor_entries(trainer),
        scalars=scalars,
        gathered=gathered,
        torch_settings=torch_settings(trainer) if is_dcp or loading else None,
    )


def _of_all_stages(
    numbers: dict[str, dict[str, float]], world: World
) -> dict[str, dict[str, float]]:
    """By key, by parameter of the whole model: each rank of a pipeline has its own.

    Collective.
    """
    if world.parallel_dims.pp == 1:
        return numbers
    merged: dict[str, dict[str, float]] = {}
    for part in GroupRanks(world).all_gather_bytes(json.dumps(numbers).encode()):
        for key, by_name in json.loads(part).items():
            merged.setdefault(key, {}).update(by_name)
    return merged


def load(trainer: Trainer) -> None:
    """Continue from the checkpoint that the configuration chooses, if there is one."""
    own = trainer.optimizers
    if isinstance(own, OwnOptimizers):
        own.make_state()
    with trainer.world.patiently():
        loaded = trainer.checkpointer.load(collect(trainer, loading=True))
    if loaded is not None:
        restore(trainer, loaded)
    if isinstance(own, OwnOptimizers):
        numbers: Any = loaded.scalars.get("optimizer_numbers") if loaded else None
        excluded = trainer.job_config.checkpoint.exclude_from_loading
        own.finish_load(None if "optimizer" in excluded else numbers)


def restore(trainer: Trainer, loaded: LoadedState) -> None:
    """Continue behind the loaded step; the tensors have been filled already."""
    state: Any = loaded.scalars.get("train_state", {})
    trainer.step = int(state.get("step", 0))  # 0 without it: a new run of old weights
    trainer.num_tokens_seen = int(state.get("num_tokens_seen", 0))
    updates: Any = loaded.scalars.get("optimizer_step", 0)
    fresh = "optimizer" in trainer.job_config.checkpoint.exclude_from_loading
    trainer.optimizer_step = 0 if fresh else int(updates)
    schedule: Any = loaded.scalars.get("lr_scheduler")
    if schedule is not None:
        trainer.lr_schedulers.load_state_dict(schedule)
    data: Any = loaded.gathered.get("dataloader")
    if data:
        trainer.dataloader.load_state_dict(_data_state(trainer, data))
    rng: Any = loaded.gathered.get("rng")
    # Another number of ranks has no use for the generators of these.
    if rng and len(rng) == trainer.world.parallel_dims.world_size:
        with turn():
            _set_rng_state(rng[trainer.world.rank])


def _data_state(trainer: Trainer, states: list[Any]) -> Any:
    """What this rank's loader continues from.

    The package's loaders go on in any layout; another one gets back what it saved.

    Raises:
        ValueError: for another loader if the number of ranks is another one.
    """
    if isinstance(trainer.dataloader, DataLoader):
        return merge_data_states(states)
    world_size = trainer.world.parallel_dims.world_size
    if len(states) != world_size:
        raise ValueError(
            "the loader of TrainSpec.build_dataloader_fn saved its position on "
            f"{len(states)} ranks, this run has {world_size}; start the data anew by "
            "--checkpoint.exclude_from_loading=dataloader"
        )
    return states[trainer.world.rank]


def tensor_entries(trainer: Trainer) -> list[TensorEntry]:
    """Parameters, persistent buffers and optimizer moments of this rank."""
    return model_entries(trainer) + moment_entries(trainer)


def model_entries(trainer: Trainer) -> list[TensorEntry]:
    """Parameters and persistent buffers of this rank."""
    shards = _shards(trainer).values()
    entries = [_entry(shard, shard.name, "model", shard.value) for shard in shards]
    return entries + _buffer_entries(trainer.model.module, trainer.world)


def moment_entries(trainer: Trainer) -> list[TensorEntry]:
    """Optimizer moments of this rank.

    Raises:
        ValueError: for an optimizer of the user's own whose state has no pieces.
    """
    shards = _shards(trainer)
    return [
        _entry(shards[name], f"optimizer.{moment}.{name}", "optimizer", tensor)
        for moment, by_name in trainer.optimizers.state().items()
        for name, tensor in by_name.items()
    ]


def _shards(trainer: Trainer) -> dict[str, _C.nn.ParameterShard]:
    """By name."""
    groups = trainer.model.applied.groups
    return {shard.name: shard for group in groups for shard in group.shards}


def _entry(
    shard: _C.nn.ParameterShard, name: str, kind: Any, tensor: torch.Tensor
) -> TensorEntry:
    return TensorEntry(
        name=name,
        kind=kind,
        local=tensor,
        global_shape=tuple(shard.global_shape),
        offset=tuple(shard.offset),
        size=tuple(tensor.shape),
        is_writer=shard.is_writer,
    )


def _buffer_entries(module: nn.Module, world: World) -> list[TensorEntry]:
    """As in ``state_dict``: those registered as persistent, complex ones as real pairs.

    One that two modules share has its first name. In a pipeline each rank has those of
    its own modules, and of the model itself, which the first rank writes.
    """
    found: dict[int, TensorEntry] = {}
    axes = ("dp_replicate", "fsdp", "tp")
    is_first = all(world.groups[axis].rank == 0 for axis in axes)
    writes_own = is_first and world.groups["pp"].rank == 0
    for prefix, owner in module.named_modules():
        for key, buffer in owner._buffers.items():
            is_saved = key not in owner._non_persistent_buffers_set
            if buffer is None or not is_saved or id(buffer) in found:
                continue
            real = torch.view_as_real(buffer) if buffer.is_complex() else buffer
            found[id(buffer)] = TensorEntry(
                name=f"{prefix}.{key}" if prefix else key,
                kind="model",
                local=real.contiguous(),
                global_shape=tuple(real.shape),
                offset=(0,) * real.dim(),
                size=tuple(real.shape),
                is_writer=is_first if prefix else writes_own,
                is_buffer=True,
            )
    return list(found.values())


def _rng_state() -> dict[str, str]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return {
        name: base64.b64encode(state.numpy().tobytes()).decode()
        for name, state in states.items()
    }


def _set_rng_state(states: dict[str, str]) -> None:
    setters = {"cpu": torch.set_rng_state, "cuda": torch.cuda.set_rng_state}
    for name, text in states.items():
        if name == "cpu" or torch.cuda.is_available():
            data = bytearray(base64.b64decode(text))
            setters[name](torch.frombuffer(data, dtype=torch.uint8))
