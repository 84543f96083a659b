"""One save: all ranks write, rank 0 publishes."""

from __future__ import annotations

import errno
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

import torchtitan_cpp
from torchtitan_cpp import _C
from torchtitan_cpp.checkpoint.agreement import (
    CheckpointError,
    all_agree,
    on_first_rank,
    to_json,
)
from torchtitan_cpp.checkpoint.dcp import (
    report_settings,
    write_dcp_shard,
    write_metadata,
)
from torchtitan_cpp.checkpoint.exporting import ExportedFile, plan_export, write_index
from torchtitan_cpp.checkpoint.manifest import (
    Content,
    Manifest,
    Parent,
    StoredFile,
    parse_manifest,
)
from torchtitan_cpp.checkpoint.model_folder import write_model_files
from torchtitan_cpp.checkpoint.shards import (
    ShardReader,
    collect_shards,
    stored_dtype,
    write_shard,
)
from torchtitan_cpp.checkpoint.state import Json, Ranks, TensorEntry, TrainingState
from torchtitan_cpp.checkpoint.state_dict_adapter import BaseStateDictAdapter
from torchtitan_cpp.logging import logger

FaultHook = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class SaveRequest:
    """What is saved, and where."""

    folder: str
    step: int
    content: Content
    format: Literal["native", "dcp"]
    """Of weights and training states; Hugging Face folders have their own."""
    export_dtype: torch.dtype | None
    """Floating-point tensors are cast to it; None keeps their dtypes."""
    parent: Parent
    """The checkpoint that the run went on from."""
    config_hash: str
    adapter: BaseStateDictAdapter | None
    """Needed for the content ``huggingface``."""
    fault_hook: FaultHook | None
    converted: Manifest | None = None
    """Of the checkpoint that is written anew: its ranks and what they held are kept."""


@dataclass(frozen=True, kw_only=True)
class _Staging:
    """The folder that all ranks write into."""

    path: str
    id: str
    sequence: int


def save_checkpoint(request: SaveRequest, state: TrainingState, ranks: Ranks) -> Parent:
    """Write and publish a checkpoint; what the next one goes on from. Collective.

    Raises:
        CheckpointError: on all ranks, if any failed; older checkpoints are untouched.
    """
    what = f"saving {os.path.join(request.folder, f'step-{request.step}')}"
    opened = on_first_rank(ranks, what, lambda: _open(request))
    staging = _Staging(**opened)

    def write() -> dict[str, Json]:
        with _explained_if_gone(staging):
            return _write(request, state, staging, ranks)

    def publish() -> str:
        with _explained_if_gone(staging):
            return _publish(request, state, staging, reports, exported, ranks)

    try:
        reports = all_agree(ranks, what, write)
        all_agree(ranks, what, lambda: _check_written(request, state, reports))
        exported: list[Any] = []
        if request.content == "huggingface":
            exported = all_agree(
                ranks, what, lambda: _export(request, staging, reports, ranks)
            )
        on_first_rank(ranks, what, publish)
    except CheckpointError:
        if ranks.rank == 0 and os.path.isdir(staging.path):
            _discard(request, staging)
        raise
    return Parent(id=staging.id, sequence=staging.sequence)


@contextmanager
def _explained_if_gone(staging: _Staging) -> Iterator[None]:
    """Two runs in one folder take each other's saves for those of killed processes."""
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        if os.path.isdir(staging.path):
            raise
        raise CheckpointError(
            f"{error}; {staging.path} was deleted while it was written: does another "
            "run save into the same folder?"
        ) from None


def _open(request: SaveRequest) -> dict[str, Any]:
    """Rank 0: clean up after killed processes and make the folder to write into."""
    folder = request.folder
    removed, set_aside = _C.storage.clean_up(folder)
    for name in removed:
        logger.warning(f"Removed {name}, left in {folder} by a process that was killed")
    for name in set_aside:
        logger.warning(f"Kept as {os.path.join(folder, name)}: what was replaced")
    checkpoints, _ = _C.storage.list_checkpoints(folder)
    texts = [found.manifest for found in checkpoints]
    sequences = [parse_manifest(text).sequence for text in texts if text is not None]
    new_id = secrets.token_hex(8)
    path = _C.storage.create_staging(folder, step=request.step, id=new_id)
    # The parent may not be among them: its folder may have gone, or be unreadable.
    sequence = max([request.parent.sequence, *sequences]) + 1
    return {"path": path, "id": new_id, "sequence": sequence}


def _discard(request: SaveRequest, staging: _Staging) -> None:
    """Rank 0: the error to tell is that of the save, which all ranks have."""
    try:
        _C.storage.discard_staging(request.folder, step=request.step, id=staging.id)
    except OSError as error:
        logger.warning(f"Left for the next save to delete: {staging.path}: {error}")


def _write(
    request: SaveRequest, state: TrainingState, staging: _Staging, ranks: Ranks
) -> dict[str, Json]:
    """Every rank: its boxes, and its part of the manifest."""
    entries = _saved_entries(request, state)
    is_full = request.content == "training"
    write = write_dcp_shard if _is_dcp(request) else write_shard
    dtype = request.export_dtype
    try:
        report = write(staging.path, ranks.rank, entries, export_dtype=dtype)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        own = [entry for entry in entries if entry.is_writer]
        needed = sum(e.numel * stored_dtype(e, dtype).itemsize for e in own)
        raise CheckpointError(f"{error}; the tensors take {needed} bytes") from error
    if _is_dcp(request):
        settings = state.torch_settings if is_full else None
        report["settings"] = report_settings(settings)
    report["buffers"] = {
        entry.name: hashlib.sha256(_bytes_of(entry.local)).hexdigest()
        for entry in entries
        if entry.is_buffer
    }
    if is_full:
        report["gathered"] = dict(state.gathered)
        report["digests"] = {
            part: hashlib.sha256(to_json(value, where=part).encode()).hexdigest()
            for part, value in state.scalars.items()
        }
    return report


def _is_dcp(request: SaveRequest) -> bool:
    return request.format == "dcp" and request.content != "huggingface"


def _saved_entries(request: SaveRequest, state: TrainingState) -> list[TensorEntry]:
    is_full = request.content == "training"
    return [entry for entry in state.tensors if is_full or entry.kind == "model"]


def _check_written(
    request: SaveRequest, state: TrainingState, reports: Sequence[Mapping[str, Any]]
) -> None:
    """Every rank: somebody has written each tensor that this rank has a part of."""
    written = {tensor["name"] for report in reports for tensor in report["tensors"]}
    for entry in _saved_entries(request, state):
        if entry.name not in written:
            raise ValueError(f"{entry.name}: no rank is its writer")


def _plan_export(
    request: SaveRequest,
    staging: _Staging,
    reports: Sequence[Mapping[str, Any]],
) -> list[ExportedFile]:
    assert request.adapter is not None
    files, tensors = collect_shards(reports)
    reader = ShardReader(staging.path, files)
    return plan_export(tensors, reader, request.adapter, world_size=len(reports))


def _export(
    request: SaveRequest,
    staging: _Staging,
    reports: Sequence[Mapping[str, Any]],
    ranks: Ranks,
) -> list[dict[str, Json]]:
    """Every rank: its files of the Hugging Face folder, from the shards of all."""
    planned = _plan_export(request, staging, reports)
    own = planned[ranks.rank :: ranks.world_size]
    return [asdict(file.write(staging.path)) for file in own]


def _finish_export(
    request: SaveRequest,
    staging: _Staging,
    reports: Sequence[Mapping[str, Any]],
    exported: Sequence[Sequence[Mapping[str, Any]]],
) -> tuple[StoredFile, ...]:
    """Rank 0: what else belongs to the folder; all its files, without the shards."""
    assert request.adapter is not None and request.export_dtype is not None
    weights = [StoredFile(**file) for written in exported for file in written]
    index = write_index(staging.path, _plan_export(request, staging, reports))
    others = write_model_files(staging.path, request.adapter, request.export_dtype)
    for report in reports:
        if report["file"] is not None:
            os.remove(os.path.join(staging.path, report["file"]["name"]))
    return (*weights, *index, *others)


def _publish(
    request: SaveRequest,
    state: TrainingState,
    staging: _Staging,
    reports: Sequence[Mapping[str, Any]],
    exported: Sequence[Sequence[Mapping[str, Any]]],
    ranks: Ranks,
) -> str:
    """Rank 0: the manifest, and the rename."""
    files, tensors = collect_shards(reports)
    _tell_differing_buffers(reports)
    scalars: dict[str, Json] = {}
    gathered: dict[str, list[Json]] = {}
    if request.content == "training":
        _check_same_parts(reports)
        scalars = dict(state.scalars)
        gathered = {
            part: [report["gathered"][part] for report in reports]
            for part in state.gathered
        }
    if request.converted is not None:
        gathered = request.converted.gathered
    if request.content == "huggingface":
        files = _finish_export(request, staging, reports, exported)
        tensors = {}
    if _is_dcp(request):
        added = write_metadata(
            staging.path,
            files,
            tensors,
            scalars=scalars,
            settings=state.torch_settings if scalars else None,
            reports=[report["settings"] for report in reports],
        )
        files = (*files, *added)
    manifest = Manifest(
        step=request.step,
        id=staging.id,
        parent=request.parent.id,
        sequence=staging.sequence,
        content=request.content,
        world_size=(request.converted or ranks).world_size,
        config_hash=request.config_hash,
        torch_version=str(torch.__version__),
        torchtitan_cpp_version=torchtitan_cpp.__version__,
        files=files,
        tensors=tensors,
        scalars=scalars,
        gathered=gathered,
    )
    path, set_aside = _C.storage.commit(
        request.folder, manifest=manifest.dump(), fault_hook=request.fault_hook
    )
    if set_aside:
        logger.warning(f"{path} was there already; it is kept as {set_aside}")
    return path


def _check_same_parts(reports: Sequence[Mapping[str, Any]]) -> None:
    """The scalars of all ranks are equal, and all have the same gathered parts."""
    first = reports[0]
    for rank, report in enumerate(reports):
        if report["gathered"].keys() != first["gathered"].keys():
            raise ValueError(
                f"gathered parts of rank {rank} are {sorted(report['gathered'])}, "
                f"those of rank 0 {sorted(first['gathered'])}"
            )
        digests, expected = report["digests"], first["digests"]
        if differing := [
            part
            for part in sorted(digests.keys() | expected.keys())
            if digests.get(part) != expected.get(part)
        ]:
            raise ValueError(f"{', '.join(differing)} of rank {rank} is not rank 0's")


def _tell_differing_buffers(reports: Sequence[Mapping[str, Any]]) -> None:
    first = reports[0]["buffers"]
    differing = [
        name
        for name, digest in first.items()
        if any(report["buffers"].get(name) != digest for report in reports)
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        logger.warning(
            f"The ranks have different values of the buffer {', '.join(differing[:3])}"
            f"{more}; those of rank 0 are saved, and a resumed run goes on with them"
        )


def _bytes_of(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().cpu().reshape(-1)
    return flat.view(torch.uint8).numpy().tobytes()
