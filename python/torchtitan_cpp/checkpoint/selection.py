"""Which checkpoint a run goes on from, and proof that it is undamaged."""

from __future__ import annotations

import os
from collections.abc import Set
from dataclasses import dataclass

from torchtitan_cpp import _C
from torchtitan_cpp.checkpoint.agreement import (
    CheckpointError,
    all_agree,
    on_first_rank,
)
from torchtitan_cpp.checkpoint.manifest import Manifest, parse_manifest
from torchtitan_cpp.checkpoint.state import Ranks
from torchtitan_cpp.errors import MissingPathError
from torchtitan_cpp.logging import logger


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A checkpoint whose manifest is sound on all ranks."""

    path: str
    text: str
    """Of the manifest."""
    manifest: Manifest


def choose_paths(
    folder: str, load_step: int, wanted: Set[str], ranks: Ranks
) -> list[str]:
    """Checkpoints to try in this order; none if the folder has none. Collective.

    Args:
        load_step: the only one to try; -1: all, what was saved last first.
        wanted: parts to be loaded. A checkpoint of weights will do for those who want
            weights only, and one of step 0, a seed, for all.
    Raises:
        FileNotFoundError: ``load_step`` is not there.
        CheckpointError: it cannot be used, or there are checkpoints and none can.
    """
    choice = on_first_rank(ranks, folder, lambda: _choose(folder, load_step, wanted))
    if missing := choice["missing"]:
        raise MissingPathError(missing[0])
    return choice["paths"]


def inspect_on_all(path: str, ranks: Ranks) -> Candidate:
    """The checkpoint in a folder of any name. Collective.

    Raises:
        CheckpointError: on all ranks, if it is damaged or ranks see different ones.
    """
    texts: list[str] = []

    def act() -> str:
        found = _C.storage.inspect_checkpoint(path)
        if found.manifest is None:
            raise CheckpointError(found.problem)
        texts.append(found.manifest)
        return parse_manifest(found.manifest).id

    ids = all_agree(ranks, f"loading {path}", act)
    if other := [rank for rank, found_id in enumerate(ids) if found_id != ids[0]]:
        raise CheckpointError(f"loading {path}: rank {other[0]} sees another folder")
    return Candidate(path=path, text=texts[0], manifest=parse_manifest(texts[0]))


def verify(candidate: Candidate, ranks: Ranks) -> None:
    """Compare all checksums, each file on one rank. Collective.

    Raises:
        CheckpointError: on all ranks, with the file, what was expected and found.
    """

    def act() -> None:
        try:
            _C.storage.verify_files(
                candidate.path,
                manifest=candidate.text,
                part=ranks.rank,
                num_parts=ranks.world_size,
            )
        except RuntimeError as error:
            raise CheckpointError(str(error)) from None

    all_agree(ranks, f"loading {candidate.path}", act)


def _choose(folder: str, load_step: int, wanted: Set[str]) -> dict[str, list[str]]:
    """Rank 0: the paths to try, or what is missing."""
    checkpoints, ignored = _C.storage.list_checkpoints(folder)
    for name in ignored:
        logger.info(f"Ignored {os.path.join(folder, name)}: no checkpoint folder")
    if load_step >= 0:
        steps = sorted(found.step for found in checkpoints)
        checkpoints = [found for found in checkpoints if found.step == load_step]
        if not checkpoints:
            path = os.path.join(folder, f"step-{load_step}")
            known = ", ".join(map(str, steps)) or "none"
            return {
                "paths": [],
                "missing": [
                    f"{path} does not exist (checkpoint.load_step); steps: {known}"
                ],
            }
    paths: list[str] = []
    first = -1  # step of the first path
    reasons: list[tuple[int, str]] = []  # with its step
    for found in checkpoints:
        reason = found.problem
        if found.manifest is not None:
            reason = _reason_against(found.path, parse_manifest(found.manifest), wanted)
        if not reason:
            first = found.step if not paths else first
            paths.append(found.path)
        elif not paths:
            reasons.append((found.step, reason))
    if reasons and not paths:
        raise CheckpointError(
            f"no checkpoint to go on from, and training does not start over silently: "
            f"{'; '.join(reason for _, reason in reasons)}. Choose another "
            "checkpoint.folder, or start from weights by checkpoint.initial_load_path"
        )
    for step, reason in reasons:
        back = ", going back to an older checkpoint" if step > first else ""
        logger.warning(f"Skipped{back}: {reason}")
    return {"paths": paths, "missing": []}


def _reason_against(path: str, manifest: Manifest, wanted: Set[str]) -> str:
    """Why the run cannot go on from a sound checkpoint; empty if it can."""
    if manifest.content == "huggingface":
        return f"{path}: holds weights for Hugging Face only"
    if manifest.content == "model" and manifest.step > 0 and not wanted <= {"model"}:
        return f"{path}: holds the weights only"
    return ""
