"""Filling the tensors of a run from a checkpoint."""

from __future__ import annotations

from collections.abc import Set

from torchtitan_cpp import _C
from torchtitan_cpp.checkpoint.agreement import (
    CheckpointError,
    all_read,
    all_valid,
    together,
)
from torchtitan_cpp.checkpoint.conversion import (
    WeightSource,
    check_shapes,
    fill_entries,
    open_source,
)
from torchtitan_cpp.checkpoint.dcp.settings import tell_other_settings
from torchtitan_cpp.checkpoint.manifest import Manifest
from torchtitan_cpp.checkpoint.model_folder import warn_of_other_settings
from torchtitan_cpp.checkpoint.names import check_missing, check_unexpected
from torchtitan_cpp.checkpoint.selection import Candidate, hashes_of_weights
from torchtitan_cpp.checkpoint.state import (
    LoadedState,
    Ranks,
    TensorEntry,
    TrainingState,
)
from torchtitan_cpp.checkpoint.state_dict_adapter import BaseStateDictAdapter
from torchtitan_cpp.errors import UnusablePathError
from torchtitan_cpp.logging import logger

_OURS_ALONE = frozenset({"dataloader", "rng"})
"""Parts that mean nothing in a checkpoint of another program."""


def read_checkpoint(
    candidate: Candidate,
    state: TrainingState,
    ranks: Ranks,
    *,
    wanted: Set[str],
    weights_only: bool,
) -> LoadedState:
    """Fill the tensors of the wanted parts from a ``verify``-ed checkpoint. Collective.

    Names and shapes must agree. So must dtypes, unless only weights are taken: those
    are cast.

    Args:
        wanted: of ``state.parts``, those to load.
        weights_only: take the weights only, whatever the checkpoint holds.
    Returns:
        What was read; its step is 0 where ``train_state`` is not wanted.
    Raises:
        ValueError: on all ranks: what differs, with the nearest name.
        UnreadableError: on all ranks: reading failed, which tells nothing of what was
            written.
        CheckpointError: on all ranks: what was read is not what was written. What the
            tensors hold is undefined after both.
    """
    manifest, path = candidate.manifest, candidate.path
    is_full = manifest.content == "training" and not weights_only
    parts = wanted if is_full else wanted & {"model"}
    entries = [entry for entry in state.tensors if entry.kind in parts]
    stored = {n: t for n, t in manifest.tensors.items() if t.kind in parts}
    names = {entry.name for entry in entries}
    afresh = parts & _OURS_ALONE if candidate.is_foreign else frozenset()

    def check() -> None:
        check_missing(path, names, stored)
        held = manifest.scalars.keys() | manifest.gathered.keys() | afresh
        check_missing(path, parts - {"model", "optimizer"}, held)
        for entry in entries:
            _check_fits(path, entry, manifest, must_keep_dtype=is_full)

    def fill() -> str | None:
        try:
            reader = candidate.open()
            for entry in entries:
                reader.fill(entry, stored[entry.name])
        except ValueError as error:  # its bytes are not what was written
            return str(error) or type(error).__name__
        return None

    all_valid(ranks, f"loading {path}", check)
    check_unexpected(ranks, path, names, list(stored))
    damages = all_read(ranks, f"loading {path}", fill)
    if any(damages):
        raise CheckpointError(f"loading {path}: {together(damages)}")
    if afresh and ranks.rank == 0:
        logger.info(
            f"{path} was written by another program: the data starts at its beginning, "
            "random numbers at debug.seed"
        )
    settings = state.torch_settings if candidate.is_foreign else None
    if settings and "optimizer" in parts and ranks.rank == 0:
        tell_other_settings(path, settings)
    starts_over = "train_state" in state.parts and "train_state" not in wanted
    return LoadedState(
        step=manifest.step if is_full and not starts_over else 0,
        path=path,
        scalars={part: v for part, v in manifest.scalars.items() if part in parts},
        gathered={part: v for part, v in manifest.gathered.items() if part in parts},
    )


def read_hugging_face(
    path: str,
    adapter: BaseStateDictAdapter,
    state: TrainingState,
    ranks: Ranks,
    *,
    quantized: bool | None = None,
) -> LoadedState:
    """Fill the weights from a Hugging Face folder, cast where needed. Collective.

    Buffers that it does not hold keep their initial values. What this package wrote is
    compared with its checksums.

    Args:
        quantized: as ``HuggingFaceFolder`` has it.
    Raises:
        ValueError: on all ranks: the folder is bad, names or shapes differ, or a file
            of weights is not what was written; what the tensors hold is undefined then.
        CheckpointError: on all ranks: the manifest, or a file that it names, is bad.
    """
    entries = [entry for entry in state.tensors if entry.kind == "model"]
    names = {entry.name for entry in entries}
    buffers = {entry.name for entry in entries if entry.is_buffer}
    sources: list[WeightSource] = []
    hashes = hashes_of_weights(path, ranks)

    def look() -> None:
        source = open_source(path, adapter, quantized=quantized, hashes=hashes)
        check_missing(path, names - buffers, source.heads)
        check_shapes(path, source, entries)
        sources.append(source)

    all_valid(ranks, f"loading {path}", look)
    if ranks.rank == 0:
        warn_of_other_settings(path, adapter)
    found = list(sources[0].heads)
    check_unexpected(ranks, path, names, found)
    all_valid(ranks, f"loading {path}", lambda: fill_entries(sources[0], entries))
    if ranks.rank == 0 and (kept := sorted(buffers - set(found))):
        logger.info(f"{path} does not hold {', '.join(kept)}: as initialized")
    return LoadedState(step=0, path=path, scalars={}, gathered={})


def _check_fits(
    path: str, entry: TensorEntry, manifest: Manifest, *, must_keep_dtype: bool
) -> None:
    stored = manifest.tensors[entry.name]
    if stored.shape != entry.global_shape:
        raise UnusablePathError(
            f"{path}: {entry.name} has the shape {stored.shape}, the run "
            f"{entry.global_shape}"
        )
    dtype = _C.storage.dtype_name(entry.local.dtype)
    if must_keep_dtype and stored.dtype != dtype:
        raise UnusablePathError(
            f"{path}: {entry.name} is stored as {stored.dtype}, the run has {dtype}; a "
            "run goes on in the dtypes it was saved in (weights alone may be cast: "
            "checkpoint.initial_load_path)"
        )
