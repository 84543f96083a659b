"""When checkpoints are saved, which one is loaded, and which are deleted."""

from __future__ import annotations

import os
from collections.abc import Callable, Set
from functools import partial

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.checkpoint.agreement import (
    CheckpointError,
    all_valid,
    on_first_rank,
)
from torchtitan_cpp.checkpoint.background import BackgroundSaves
from torchtitan_cpp.checkpoint.exporting import check_exportable
from torchtitan_cpp.checkpoint.loading import read_checkpoint, read_hugging_face
from torchtitan_cpp.checkpoint.manifest import Content, Parent
from torchtitan_cpp.checkpoint.nearest import nearest
from torchtitan_cpp.checkpoint.saving import FaultHook, SaveRequest, save_checkpoint
from torchtitan_cpp.checkpoint.selection import choose_paths, inspect_on_all, verify
from torchtitan_cpp.checkpoint.settings import (
    EXPORT_DTYPES,
    check_folder,
    check_settings,
    missing_folder,
    tell_not_read,
)
from torchtitan_cpp.checkpoint.state import (
    LoadedState,
    Ranks,
    SingleRank,
    TrainingState,
)
from torchtitan_cpp.checkpoint.state_dict_adapter import BaseStateDictAdapter
from torchtitan_cpp.config.checkpoint import Checkpoint
from torchtitan_cpp.errors import SettingError, UnusablePathError
from torchtitan_cpp.logging import logger


class CheckpointManager:
    """Saves and loads the state of a run below ``base_folder/settings.folder``.

    Every rank of the run has one; ``save`` and ``load`` are collective. A save happens
    whole on all ranks or raises the same CheckpointError on all, and then every older
    checkpoint is as it was. See csrc/storage/commit.h for what is on disk.

    With ``async_mode`` a save copies the state and a thread writes the copy, one save
    at a time; ``has_failed`` and ``finish`` tell how it ended. Whoever saves calls
    ``finish`` or ``wait_for_save`` before the ranks part.

    Args:
        settings: the ``checkpoint`` section.
        base_folder: ``job.dump_folder``.
        ranks: all ranks of the run.
        background_ranks: the same ranks with connections of their own, for the thread
            of ``async_mode``; needed there if there are several.
        adapter: of the model family; needed for ``initial_load_in_hf`` and
            ``last_save_in_hf``.
        hf_assets_path: ``model.hf_assets_path``, where ``initial_load_in_hf`` reads
            when no ``initial_load_path`` is given.
        config_hash: noted in the manifest.
        fault_hook: called at the points named in csrc/storage/commit.cpp; for tests.
    Raises:
        ValueError: for settings that contradict each other.
    """

    def __init__(
        self,
        settings: Checkpoint,
        *,
        base_folder: str,
        ranks: Ranks,
        background_ranks: Ranks | None = None,
        adapter: BaseStateDictAdapter | None = None,
        hf_assets_path: str | None = None,
        config_hash: str = "",
        fault_hook: FaultHook | None = None,
    ) -> None:
        check_settings(settings, adapter)
        self.folder = os.path.join(base_folder, settings.folder)
        self._settings = settings
        self._ranks = ranks
        self._adapter = adapter
        self._hf_assets_path = hf_assets_path
        self._config_hash = config_hash
        self._fault_hook = fault_hook
        self._parent = Parent()  # what this run goes on from
        self._saved_step: int | None = None
        self._forbidden = ""
        self._is_async = settings.enable and settings.async_mode != "disabled"
        if self._is_async and background_ranks is None and ranks.world_size > 1:
            raise ValueError(
                "checkpoint.async_mode needs the CheckpointManager's background_ranks"
            )
        self._saves = BackgroundSaves(
            background_ranks or SingleRank(),
            pinned=settings.async_mode == "async_with_pinned_mem",
        )

    @property
    def is_saving(self) -> bool:
        """Whether ``finish`` has a save in the background to wait for, on all ranks."""
        return self._saves.is_started

    @property
    def has_failed(self) -> bool:
        """Whether a save in the background has failed and nobody was told.

        Ranks see it at different times. Once one does, all call ``finish``.
        """
        return self._saves.has_failed

    def finish(self) -> None:
        """Wait until the save in the background, if any, is durable. Collective.

        Raises:
            CheckpointError: on all ranks: the error of that save.
        """
        try:
            self._saves.finish()
        except BaseException:
            self._saved_step = None
            raise

    def wait_for_save(self, *, seconds: float = float("inf")) -> None:
        """Let the save in the background end, but wait at most this long for it.

        For a run that ends with another error: nothing is raised, a save that does not
        come to its end is told.
        """
        self._saves.wait(seconds)

    def forbid_saving(self, reason: str) -> None:
        """No save is tried any more: a rank has died, or its numbers are bad."""
        self._forbidden = self._forbidden or reason

    def should_save(self, step: int, *, last_step: bool = False) -> bool:
        """Whether ``save`` is due after this step."""
        settings = self._settings
        if not settings.enable or settings.load_only or self._forbidden:
            return False
        if step == self._saved_step:
            return False
        is_first = step == 1 and settings.enable_first_step_checkpoint
        return last_step or is_first or step % settings.interval == 0

    def prepare(self, collect: Callable[[], TrainingState], steps: range) -> None:
        """Let a thread make the memory of async saves, if one is due in ``steps``."""
        if self._is_async and any(self.should_save(step) for step in steps):
            self._saves.prepare(collect())

    def save(
        self,
        step: int,
        state: TrainingState,
        *,
        last_step: bool = False,
        stopping: bool = False,
    ) -> str:
        """Save now, whether due or not; returns the checkpoint's folder, durable.

        With ``async_mode`` the folder becomes durable later: the state has been copied
        when this returns. A save that is still under way is waited for first. A step
        that this run has just saved or loaded is not saved again.

        Args:
            last_step: the training is complete: with ``last_save_model_only`` only the
                weights are saved, cast to ``export_dtype``, and as a Hugging Face
                folder with ``last_save_in_hf``.
            stopping: training does not go on for another reason. Like the last step,
                this one is durable on return: there is nothing to write it beside.
        Raises:
            CheckpointError: on all ranks, if any rank failed or saving is forbidden;
                also if the save before failed in the background.
        """
        waits = last_step or stopping
        if last_step and self._settings.last_save_model_only:
            dtype = EXPORT_DTYPES[self._settings.export_dtype]
            content: Content = (
                "huggingface" if self._settings.last_save_in_hf else "model"
            )
            return self._save(step, state, content, dtype, waits=waits)
        return self._save(step, state, "training", None, waits=waits)

    def save_seed(self, state: TrainingState) -> str:
        """Save the initial weights as step 0 (``checkpoint.create_seed_checkpoint``).

        Raises:
            ValueError: if checkpoints are not enabled or the run has several ranks.
        """
        if not self._settings.enable:
            raise SettingError("create_seed_checkpoint needs checkpoint.enable = true")
        if self._ranks.world_size != 1:
            raise SettingError(
                "create_seed_checkpoint expects one rank, found "
                f"{self._ranks.world_size}"
            )
        return self._save(0, state, "model", None, waits=True)

    def load(self, state: TrainingState) -> LoadedState | None:
        """Fill the tensors of ``state`` from the checkpoint that the settings choose.

        The run's own folder comes first: ``load_step``, or else what was saved last and
        is not damaged. If it has none, ``initial_load_path``, or the Hugging Face
        folder. None means that there is nothing to start from.

        Raises:
            CheckpointError: on all ranks: the chosen checkpoint is damaged, or all are.
            UnreadableError: on all ranks: reading it failed. What the tensors hold is
                undefined after both.
            FileNotFoundError: there is no checkpoint of ``load_step``.
            ValueError: names, shapes or dtypes differ from those of the run, or
                ``exclude_from_loading`` names a part that does not exist.
        """
        if not self._settings.enable:
            return None
        wanted = self._wanted(state)
        self._check_last_save(state)
        load_step = self._settings.load_step
        paths = choose_paths(self.folder, load_step, wanted, self._ranks)
        for path in paths:
            try:
                candidate = inspect_on_all(path, self._ranks)
                verify(candidate, self._ranks)
                loaded = read_checkpoint(
                    candidate, state, self._ranks, wanted=wanted, weights_only=False
                )
            except CheckpointError as error:
                if load_step >= 0:
                    raise
                if self._ranks.rank == 0:
                    logger.warning(
                        f"Damaged, going back to an older checkpoint: {error}"
                    )
                # Some tensors may be filled. Those of weights will be again, moments
                # may not: a seed has none, and a run starts with zeros.
                for entry in state.tensors:
                    if entry.kind == "optimizer":
                        entry.local.zero_()
                continue
            if loaded.step == candidate.manifest.step:
                self._parent = Parent.of(candidate.manifest)
                self._saved_step = loaded.step
                self._tell(f"Loaded {path}; training goes on after step {loaded.step}")
            else:  # a new run, whose saves are no successors of this one
                self._tell(f"Loaded {path}; training starts at step 1")
            if self._ranks.rank == 0:
                tell_not_read(self._settings, self.folder)
            return loaded
        if paths:
            raise CheckpointError(
                f"{self.folder}: every checkpoint is damaged, and training does not "
                "start over silently; choose another checkpoint.folder"
            )
        return self._load_initial(state, wanted)

    def _save(
        self,
        step: int,
        state: TrainingState,
        content: Content,
        export_dtype: torch.dtype | None,
        *,
        waits: bool,
    ) -> str:
        path = os.path.join(self.folder, f"step-{step}")
        if self._forbidden:
            raise CheckpointError(f"{path} is not saved: {self._forbidden}")
        if self._settings.load_only:
            raise CheckpointError(f"{path} is not saved: checkpoint.load_only is set")
        self.finish()
        if step == self._saved_step:
            return path
        request = SaveRequest(
            folder=self.folder,
            step=step,
            content=content,
            format=self._settings.format,
            export_dtype=export_dtype,
            parent=self._parent,
            config_hash=self._config_hash,
            adapter=self._adapter,
            fault_hook=self._fault_hook,
        )
        if self._is_async and not waits:
            self._saves.start(
                path, state, lambda copied, ranks: self._write(request, copied, ranks)
            )
        else:
            self._saves.release()
            self._write(request, state, self._ranks)
        self._saved_step = step
        return path

    def _write(self, request: SaveRequest, state: TrainingState, ranks: Ranks) -> None:
        """Write, publish and purge. Runs in the thread of ``async_mode``, too."""
        self._parent = save_checkpoint(request, state, ranks)
        self._tell(f"Saved {os.path.join(self.folder, f'step-{request.step}')}")
        if self._settings.keep_latest_k > 0:
            # All wait: deleting may take longer than a step is waited for.
            on_first_rank(ranks, f"purging {self.folder}", self._purge)

    def _purge(self) -> None:
        """Rank 0; a failure is only told, for the save has succeeded."""
        try:
            steps, kept = _C.storage.purge(
                self.folder,
                keep_latest=self._settings.keep_latest_k,
                head=self._parent.id,
                fault_hook=self._fault_hook,
            )
        except OSError as error:
            logger.warning(f"Old checkpoints in {self.folder} stay: {error}")
            return
        for step in steps:
            self._tell(f"Deleted {os.path.join(self.folder, f'step-{step}')}")
        for path in kept:
            logger.warning(f"Not deleted, for it holds more than a checkpoint: {path}")

    def _load_initial(
        self, state: TrainingState, wanted: Set[str]
    ) -> LoadedState | None:
        settings = self._settings
        path = settings.initial_load_path
        if settings.initial_load_in_hf:
            if "model" not in wanted:
                raise SettingError(
                    "checkpoint.exclude_from_loading: initial_load_in_hf loads nothing "
                    "but the model"
                )
            path = path or self._hf_assets_path
            if not path:
                raise SettingError(
                    "checkpoint.initial_load_in_hf needs checkpoint.initial_load_path "
                    "or model.hf_assets_path"
                )
            assert self._adapter is not None  # checked with the settings
            folder = path
            if not on_first_rank(self._ranks, path, lambda: os.path.isdir(folder)):
                raise missing_folder(path, "Hugging Face weights")
            loaded = read_hugging_face(
                path,
                self._adapter,
                state,
                self._ranks,
                quantized=settings.initial_load_in_hf_quantized,
            )
            self._tell(f"Loaded the weights in {path}")
            return loaded
        if path is None:
            return None
        hint = "set checkpoint.initial_load_in_hf"
        check = partial(check_folder, path, weights_hint=hint)
        all_valid(self._ranks, "checkpoint.initial_load_path", check)
        candidate = inspect_on_all(path, self._ranks)
        if candidate.manifest.content == "huggingface":
            raise UnusablePathError(f"{path} is a Hugging Face folder; {hint}")
        weights_only = settings.initial_load_model_only
        if not weights_only and candidate.manifest.content == "model":
            raise UnusablePathError(
                f"{path} holds the weights only; set checkpoint.initial_load_model_only"
            )
        verify(candidate, self._ranks)
        loaded = read_checkpoint(
            candidate, state, self._ranks, wanted=wanted, weights_only=weights_only
        )
        self._tell(f"Loaded {'the weights in ' if weights_only else ''}{path}")
        return loaded

    def _wanted(self, state: TrainingState) -> Set[str]:
        """The parts that are not excluded."""
        excluded = self._settings.exclude_from_loading
        for name in excluded:
            if name not in state.parts:
                raise SettingError(
                    f"checkpoint.exclude_from_loading: no part {name!r}"
                    f"{nearest(name, state.parts)}; the parts are "
                    f"{', '.join(state.parts)}"
                )
        return frozenset(state.parts) - frozenset(excluded)

    def _check_last_save(self, state: TrainingState) -> None:
        """Names that the adapter does not know are told before the training."""
        adapter = self._adapter
        if self._settings.last_save_in_hf and adapter is not None:
            all_valid(
                self._ranks,
                "checkpoint.last_save_in_hf",
                lambda: check_exportable(state.tensors, adapter),
            )

    def _tell(self, text: str) -> None:
        if self._ranks.rank == 0:
            logger.info(text)
