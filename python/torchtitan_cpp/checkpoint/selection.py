"""Which checkpoint a run goes on from, and whether it is damaged."""

from __future__ import annotations

import os
from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from torchtitan_cpp import _C
from torchtitan_cpp.checkpoint.agreement import (
    CheckpointError,
    UnreadableError,
    all_agree,
    on_first_rank,
    together,
)
from torchtitan_cpp.checkpoint.dcp import (
    METADATA_NAME,
    DcpBoxReader,
    check_blobs,
    is_foreign,
    read_foreign,
)
from torchtitan_cpp.checkpoint.manifest import FORMAT, Manifest, parse_manifest
from torchtitan_cpp.checkpoint.settings import step_of
from torchtitan_cpp.checkpoint.shards import BoxReader, ShardReader
from torchtitan_cpp.checkpoint.state import Json, Ranks
from torchtitan_cpp.errors import MissingPathError
from torchtitan_cpp.logging import logger


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A checkpoint whose manifest is sound on all ranks."""

    path: str
    text: str | None
    """Of the manifest; None: a DCP folder that another program wrote."""
    manifest: Manifest

    @property
    def is_foreign(self) -> bool:
        """Written by another program: nothing of ours but weights and moments."""
        return self.text is None

    def open(self) -> BoxReader:
        """What reads its tensors."""
        files = self.manifest.files
        is_dcp = self.is_foreign or any(f.name == METADATA_NAME for f in files)
        return (DcpBoxReader if is_dcp else ShardReader)(self.path, files)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """A folder named step-N, or one that was named by the user."""

    path: str
    step: int
    problem: str
    """Why it cannot be used; empty when nothing is wrong."""
    unreadable: bool
    """The problem is a refusal of the system: whether it is damaged nobody knows."""
    text: str | None
    manifest: Manifest | None
    """None when there is a problem."""

    @staticmethod
    def unusable(path: str, step: int, problem: str) -> _Found:
        """What nothing can be read from, whatever it holds."""
        return _Found(
            path=path,
            step=step,
            problem=problem,
            unreadable=False,
            text=None,
            manifest=None,
        )


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
        CheckpointError: it cannot be used, or there are checkpoints and none can, or
            one that cannot be read may be newer than those that can.
    """
    choice = on_first_rank(ranks, folder, lambda: _choose(folder, load_step, wanted))
    if missing := choice["missing"]:
        raise MissingPathError(missing[0])
    return choice["paths"]


def inspect_on_all(path: str, ranks: Ranks) -> Candidate:
    """The checkpoint in a folder of any name. Collective.

    Raises:
        CheckpointError: on all ranks, if all find it damaged.
        UnreadableError: on all ranks, if one cannot read it or sees another one.
    """
    what = f"loading {path}"
    candidates: list[Candidate] = []

    def act() -> dict[str, Json]:
        found = _complete(_C.storage.inspect_checkpoint(path))
        if found.manifest is not None:
            candidates.append(
                Candidate(path=path, text=found.text, manifest=found.manifest)
            )
        return {
            "id": found.manifest.id if found.manifest else None,
            "problem": found.problem or None,
            "unreadable": found.unreadable,
        }

    answers: list[Any] = all_agree(ranks, what, act)
    problems = [answer["problem"] for answer in answers]
    if any(problems):
        # What is damaged is so for all. A rank alone may look at what was there before,
        # or at a folder of its own.
        is_damaged = all(problems) and not any(a["unreadable"] for a in answers)
        kind = CheckpointError if is_damaged else UnreadableError
        raise kind(f"{what}: {together(problems)}")
    ids = [answer["id"] for answer in answers]
    if other := [rank for rank, found_id in enumerate(ids) if found_id != ids[0]]:
        raise UnreadableError(f"{what}: rank {other[0]} sees another folder")
    return candidates[0]


def verify(candidate: Candidate, ranks: Ranks) -> None:
    """Compare the checksums that reading the tensors does not compare. Collective.

    Those are the ones of other programs, of files that were written without hashes of
    their blocks, and of files without tensors; each file or blob on one rank.

    Raises:
        CheckpointError: on all ranks, with the file, what was expected and found.
    """
    manifest = candidate.manifest
    read = {box.file for each in manifest.tensors.values() for box in each.boxes}
    files = tuple(
        file
        for number, file in enumerate(manifest.files)
        if number not in read or not file.block_sha256
    )

    def act() -> None:
        parts = {"part": ranks.rank, "num_parts": ranks.world_size}
        try:
            if candidate.is_foreign:
                check_blobs(candidate.path, manifest, **parts)
            elif files:
                text = replace(manifest, files=files, tensors={}).dump()
                _C.storage.verify_files(candidate.path, manifest=text, **parts)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(str(error)) from None

    all_agree(ranks, f"loading {candidate.path}", act)


def hashes_of_weights(path: str, ranks: Ranks) -> dict[str, str]:
    """What the files of weights of a model folder are to be compared with. Collective.

    Only the manifest of this package tells it. Other files may have been edited.

    Returns:
        ``StoredFile.block_sha256`` by file, for those that can be compared while they
        are read; the others of the manifest have been compared.
    Raises:
        CheckpointError: on all ranks, with the file, what was expected and found.
    """

    def is_ours() -> bool:
        """Other programs have files of the name manifest.json too."""
        if not os.path.isfile(os.path.join(path, "manifest.json")):
            return False
        with open(os.path.join(path, "manifest.json"), "rb") as file:
            says_so = FORMAT.encode() in file.read()
        return says_so or os.path.isfile(os.path.join(path, "manifest.sha256"))

    if not on_first_rank(ranks, f"loading {path}", is_ours):
        return {}
    candidate = inspect_on_all(path, ranks)
    files = candidate.manifest.files
    weights = tuple(file for file in files if file.name.endswith(".safetensors"))
    hashes = {file.name: file.block_sha256 for file in weights if file.block_sha256}
    whole = tuple(file for file in weights if file.name not in hashes)
    # Without tensors, which name their files by number.
    manifest = replace(candidate.manifest, files=whole, tensors={})
    verify(replace(candidate, manifest=manifest), ranks)
    return hashes


def newest_model(folder: str) -> str | None:
    """The checkpoint below ``folder`` that was saved last and holds weights, if any.

    The order is that of ``choose_paths``; folders for Hugging Face will do as well.
    """
    listed, _ = _C.storage.list_checkpoints(folder)
    ordered = _in_order([_complete(found) for found in listed])
    return next((f.path for f in ordered if f.manifest is not None), None)


def _choose(folder: str, load_step: int, wanted: Set[str]) -> dict[str, list[str]]:
    """Rank 0: the paths to try, or what is missing."""
    if os.path.islink(folder) and not os.path.exists(folder):
        target = os.readlink(folder)
        raise CheckpointError(f"{folder} is a link to {target}, which is not there")
    listed, ignored = _C.storage.list_checkpoints(folder)
    checkpoints = _in_order([_complete(found) for found in listed])
    for name in ignored:
        path = os.path.join(folder, name)
        is_link = os.path.islink(path)
        step = step_of(name)
        if step is not None and (is_link or not os.path.isdir(path)):
            kind = "a link" if is_link else "a file"
            problem = f"{path}: expected a folder, found {kind}"
            checkpoints.insert(0, _Found.unusable(path, step, problem))
        else:
            logger.info(f"Ignored {path}: no checkpoint folder")
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
            reason = _reason_against(found.path, found.manifest, wanted)
        if not reason:
            first = found.step if not paths else first
            paths.append(found.path)
        elif not paths:
            reasons.append((found.step, reason))
    for found in checkpoints:
        if found.unreadable and (not paths or found.step > first):
            raise CheckpointError(
                f"{found.problem}: whether to go on from there nobody knows; move it "
                "away, or choose another one by checkpoint.load_step"
            )
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


def _complete(found: _C.storage.FoundCheckpoint) -> _Found:
    """What was found, also where another program wrote it."""
    problem, text, manifest = found.problem, found.manifest, None
    unreadable = found.unreadable
    if text is not None:
        manifest = parse_manifest(text)
    elif is_foreign(found.path):
        try:
            manifest, problem = read_foreign(found.path), ""
        except FileNotFoundError as error:
            problem = str(error)
        except OSError as error:
            problem, unreadable = str(error), True
        except ValueError as error:
            problem = str(error)
    return _Found(
        path=found.path,
        step=found.step,
        problem=problem,
        unreadable=unreadable,
        text=text,
        manifest=manifest,
    )


def _in_order(listed: list[_Found]) -> list[_Found]:
    """Those with a problem, then newest first.

    Folders of other programs lie among each other by their steps, as torchtitan itself
    chooses; between them and ours decides which was written last by the clock.
    """
    bad = [found for found in listed if found.manifest is None]
    ours = [found for found in listed if found.manifest and found.text is not None]
    foreign = [found for found in listed if found.manifest and found.text is None]
    foreign.sort(key=lambda found: -found.step)
    if not ours or not foreign:
        return bad + ours + foreign
    last = _saved_at(ours[0].path, "manifest.json")
    later = [f for f in foreign if _saved_at(f.path, METADATA_NAME) > last]
    return bad + later + ours + [found for found in foreign if found not in later]


def _saved_at(path: str, name: str) -> float:
    """By the clock; long ago for what another process has just purged."""
    with suppress(FileNotFoundError):
        return os.path.getmtime(os.path.join(path, name))
    return 0.0


def _reason_against(path: str, manifest: Manifest, wanted: Set[str]) -> str:
    """Why the run cannot go on from a sound checkpoint; empty if it can."""
    if manifest.content == "huggingface":
        return f"{path}: holds weights for Hugging Face only"
    if manifest.content == "model" and manifest.step > 0 and not wanted <= {"model"}:
        return f"{path}: holds the weights only"
    return ""
