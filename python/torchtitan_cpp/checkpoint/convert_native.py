"""Checkpoints of this package into those of torch, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from torchtitan_cpp.checkpoint.convert_entries import entries_of_checkpoint
from torchtitan_cpp.checkpoint.manifest import Parent
from torchtitan_cpp.checkpoint.saving import SaveRequest, save_checkpoint
from torchtitan_cpp.checkpoint.selection import inspect_on_all, verify
from torchtitan_cpp.checkpoint.settings import check_folder
from torchtitan_cpp.checkpoint.state import SingleRank, TorchSettings, TrainingState
from torchtitan_cpp.config import JobConfig
from torchtitan_cpp.lr_schedule import lr_factor, resolve_lr_schedule
from torchtitan_cpp.torch_settings import param_group

_ALONE = SingleRank()


def convert_checkpoint(
    source: str,
    folder: str,
    config: JobConfig,
    *,
    to_dcp: bool,
    weights_only: bool,
    data_ranks: int,
) -> str:
    """Write the checkpoint ``source`` into ``folder`` as its step-N; what to tell.

    Args:
        config: of the run; for ``to_dcp``, whose settings torchtitan reads.
        to_dcp: into torch's format, else into our own.
        weights_only: leave out all but the weights.
        data_ranks: as ``TorchSettings`` has it.
    Raises:
        ValueError: for a source of another kind, or an optimizer of one's own.
        CheckpointError: it is damaged, or nothing could be written.
    """
    check_folder(source, weights_hint="convert them by from-hf")
    candidate = inspect_on_all(source, _ALONE)
    manifest = candidate.manifest
    if manifest.content == "huggingface":
        raise ValueError(f"{source} is a Hugging Face folder")
    verify(candidate, _ALONE)
    is_full = manifest.content == "training" and not weights_only
    tensors = {
        name: stored
        for name, stored in manifest.tensors.items()
        if is_full or stored.kind == "model"
    }
    entries = entries_of_checkpoint(candidate, tensors)
    settings = None
    if is_full and to_dcp:
        moments = [name for name, each in tensors.items() if each.kind == "optimizer"]
        settings = _settings(config, manifest.scalars, moments, data_ranks)
    request = SaveRequest(
        folder=folder,
        step=manifest.step,
        content="training" if is_full else "model",
        format="dcp" if to_dcp else "native",
        export_dtype=None,
        parent=Parent(),
        config_hash=manifest.config_hash,
        adapter=None,
        fault_hook=None,
        converted=manifest if is_full else replace(manifest, gathered={}),
    )
    state = TrainingState(
        tensors=entries,
        scalars=manifest.scalars if is_full else {},
        torch_settings=settings,
    )
    save_checkpoint(request, state, _ALONE)
    told = f"{folder}/step-{manifest.step}"
    if is_full and not to_dcp and candidate.is_foreign:
        told += (
            ": has no position in the data; continue from it with "
            "--checkpoint.exclude_from_loading=dataloader,rng"
        )
    return told


def _settings(
    config: JobConfig,
    scalars: Mapping[str, Any],
    moments: Sequence[str],
    data_ranks: int,
) -> TorchSettings:
    """What the run that this configuration describes would have saved."""
    kept = {moment.split(".")[1] for moment in moments}
    kept |= set(scalars.get("optimizer_numbers", {}))
    if other := sorted(kept - {"exp_avg", "exp_avg_sq", "step"}):
        raise ValueError(
            f"to-dcp: {other[0]} is of an optimizer of one's own, whose settings are "
            "not known; save with checkpoint.format = dcp, or convert --weights-only"
        )
    schedule = resolve_lr_schedule(config.lr_scheduler, config.training.steps)
    peak = config.optimizer.lr
    rate = peak * lr_factor(int(scalars["lr_scheduler"]["last_epoch"]), schedule)
    group = {**param_group(config.optimizer), "lr": rate, "initial_lr": peak}
    names = [moment.removeprefix("optimizer.").partition(".")[2] for moment in moments]
    return TorchSettings(
        param_groups=dict.fromkeys(names, group),
        initial_rates=[peak],
        rates=[rate],
        data_ranks=data_ranks,
    )
