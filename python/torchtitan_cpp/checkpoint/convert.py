"""``python -m torchtitan_cpp.checkpoint.convert``: the same checkpoint, another format.

One tensor is in memory at a time. What is written is committed as any save is.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from torchtitan_cpp.checkpoint.saving import SaveRequest, save_checkpoint
from torchtitan_cpp.checkpoint.selection import Candidate, inspect_on_all, verify
from torchtitan_cpp.checkpoint.shards import BoxReader, dtype_of
from torchtitan_cpp.checkpoint.state import (
    SingleRank,
    TensorEntry,
    TorchSettings,
    TrainingState,
)
from torchtitan_cpp.config import ConfigError, JobConfig, load_config
from torchtitan_cpp.lr_schedule import lr_factor, resolve_lr_schedule
from torchtitan_cpp.torch_settings import param_group

EXIT_BAD_INPUT = 2
_ALONE = SingleRank()


def main(argv: Sequence[str] | None = None) -> int:
    """Parse, convert, tell; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m torchtitan_cpp.checkpoint.convert", allow_abbrev=False
    )
    parser.add_argument("format", choices=("to-dcp", "to-native"))
    parser.add_argument(
        "source", help="folder of one checkpoint, of either format: .../step-100"
    )
    parser.add_argument(
        "folder", help="folder of checkpoints; the result is its step-N"
    )
    parser.add_argument(
        "--weights-only", action="store_true", help="leave out all but the weights"
    )
    parser.add_argument(
        "--data-ranks",
        type=int,
        default=1,
        help="to-dcp: data parallel degree of the torchtitan run that is to go on from "
        "the result (it reads no other; or exclude its dataloader from loading)",
    )
    parser.epilog = (
        "to-dcp takes all flags of torchtitan_cpp.train besides: the optimizer and "
        "schedule of the run, which torchtitan reads from its checkpoints"
    )
    own, flags = parser.parse_known_args(argv)
    try:
        if flags and (own.weights_only or own.format == "to-native"):
            raise ValueError(f"{flags[0]} has no effect here")
        config = load_config(flags).config
        print(_convert(own, config))
    except (ConfigError, ValueError, OSError, RuntimeError) as error:
        print(error, file=sys.stderr)
        return EXIT_BAD_INPUT
    return 0


def _convert(own: argparse.Namespace, config: JobConfig) -> str:
    candidate = inspect_on_all(own.source, _ALONE)
    manifest = candidate.manifest
    if manifest.content == "huggingface":
        raise ValueError(f"{own.source} is a Hugging Face folder")
    verify(candidate, _ALONE)
    is_full = manifest.content == "training" and not own.weights_only
    tensors = {
        name: stored
        for name, stored in manifest.tensors.items()
        if is_full or stored.kind == "model"
    }
    entries = _entries(candidate, list(tensors))
    settings = None
    if is_full and own.format == "to-dcp":
        moments = [name for name, each in tensors.items() if each.kind == "optimizer"]
        settings = _settings(config, manifest.scalars, moments, own.data_ranks)
    request = SaveRequest(
        folder=own.folder,
        step=manifest.step,
        content="training" if is_full else "model",
        format="dcp" if own.format == "to-dcp" else "native",
        export_dtype=None,
        parent="",
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
    told = f"{own.folder}/step-{manifest.step}"
    if is_full and own.format == "to-native" and candidate.is_foreign:
        told += (
            ": has no position in the data; continue from it with "
            "--checkpoint.exclude_from_loading=dataloader,rng"
        )
    return told


@dataclass(frozen=True, kw_only=True)
class _StoredEntry(TensorEntry):
    """A whole tensor that is read when it is written."""

    read: Callable[[], torch.Tensor]

    def numbers(self) -> torch.Tensor:
        return self.read()


def _entries(candidate: Candidate, names: Sequence[str]) -> list[TensorEntry]:
    reader = candidate.open()
    progress = _Progress(candidate, names)
    return [_entry(candidate, name, reader, progress) for name in names]


def _entry(
    candidate: Candidate, name: str, reader: BoxReader, progress: _Progress
) -> TensorEntry:
    stored = candidate.manifest.tensors[name]
    zeros = (0,) * len(stored.shape)
    dtype = dtype_of(stored.dtype)
    shared: dict[str, Any] = {
        "name": name,
        "kind": stored.kind,
        "global_shape": stored.shape,
        "offset": zeros,
        "size": stored.shape,
        "is_writer": True,
    }

    def read() -> torch.Tensor:
        whole = TensorEntry(local=torch.empty(stored.shape, dtype=dtype), **shared)
        reader.fill(whole, stored)
        progress.add(whole.local.nbytes)
        return whole.local

    return _StoredEntry(
        local=torch.empty(stored.shape, dtype=dtype, device="meta"), read=read, **shared
    )


class _Progress:
    """A line for every tenth of the bytes."""

    def __init__(self, candidate: Candidate, names: Sequence[str]) -> None:
        tensors = [candidate.manifest.tensors[name] for name in names]
        self._total = sum(
            dtype_of(stored.dtype).itemsize * torch.Size(stored.shape).numel()
            for stored in tensors
        )
        self._done = 0

    def add(self, num_bytes: int) -> None:
        before = 10 * self._done // max(self._total, 1)
        self._done += num_bytes
        if 10 * self._done // max(self._total, 1) > before:
            mib = self._done / 2**20, self._total / 2**20
            print(f"{mib[0]:.1f} of {mib[1]:.1f} MiB", file=sys.stderr)


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


if __name__ == "__main__":
    sys.exit(main())
