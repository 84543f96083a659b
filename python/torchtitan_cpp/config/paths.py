"""Files and folders of a configuration that the run could not use."""

from __future__ import annotations

import glob
import os
from pathlib import Path

from torchtitan_cpp.config.load import Loaded
from torchtitan_cpp.config.problems import Problem

OUR_TOKENIZER = "package:torchtitan_cpp/assets/tokenizer"
OUR_DATASET = "python_stdlib"
C4_TEST = "tests/assets/c4_test"
"""Where the dataset c4_test lies in a checkout of torchtitan."""

_TORCHTITAN_TOKENIZER = "tests/assets/tokenizer"
_OURS = (
    f"this package has its own: --training.dataset {OUR_DATASET} "
    f"--model.hf_assets_path {OUR_TOKENIZER}"
)
_DOWNLOAD = "scripts/download_hf_assets.py fetches tokenizers and weights"


def unusable_paths(loaded: Loaded) -> list[Problem]:
    """A problem for each input that is not there, and for a place not to write to."""
    # A file that cannot be read or parsed: what it would have said is not known.
    if any(problem.field in ("job.config_file", "") for problem in loaded.problems):
        return []
    missing: list[Problem] = []

    def refuse(field: str, message: str, hint: str) -> None:
        origin = loaded.origin(field)
        missing.append(Problem(field=field, origin=origin, message=message, hint=hint))

    assets = loaded.config.model.hf_assets_path
    if assets.endswith("tokenizer.model"):
        message = f"expected a folder with tokenizer.json, found {assets!r}"
        refuse("model.hf_assets_path", message, _DOWNLOAD)
    elif not Path(assets).exists():
        hint = _OURS if assets.endswith(_TORCHTITAN_TOKENIZER) else _DOWNLOAD
        refuse("model.hf_assets_path", f"no such folder: {assets!r}", hint)
    training = loaded.config.training
    validation = loaded.config.validation
    local = {}
    if training.dataset == "local":
        local["training.dataset_path"] = training.dataset_path
    if validation.enable and validation.dataset == "local":
        local["validation.dataset_path"] = validation.dataset_path
    for field, pattern in local.items():
        if not pattern:
            refuse(field, "expected a file, folder or glob for dataset 'local'", "")
        elif not _any_file(pattern):
            refuse(field, f"no such file, folder or files: {pattern!r}", "")
    path = training.dataset_path or C4_TEST
    if training.dataset == "c4_test" and not Path(path).exists():
        field = "training.dataset_path" if training.dataset_path else "training.dataset"
        refuse(field, f"no such folder: {path!r} (of dataset 'c4_test')", _OURS)
    dump_folder = loaded.config.job.dump_folder
    saving = loaded.config.checkpoint
    # By a link or an absolute path it may lie somewhere else.
    checkpoints = os.path.join(dump_folder, saving.folder)
    saves = saving.enable and not saving.load_only
    if reason := _reason_not_to_write(dump_folder):
        refuse("job.dump_folder", reason, "")
    elif saves and (reason := _reason_not_to_write(checkpoints)):
        refuse("checkpoint.folder", reason, "")
    return missing


def _reason_not_to_write(folder: str) -> str:
    """Why the run could not make files there; empty if it can."""
    path = os.path.abspath(folder)
    while not os.path.lexists(path):
        path = os.path.dirname(path)
    if os.path.islink(path) and not os.path.exists(path):
        return f"{path} is a link to {os.readlink(path)}, which is not there"
    if not os.path.isdir(path):
        return f"{path} is not a folder"
    if not os.access(path, os.W_OK | os.X_OK):
        return f"expected a folder that can be written, found {path}"
    return ""


def _any_file(pattern: str) -> bool:
    path = os.path.expanduser(pattern)
    return os.path.exists(path) or bool(glob.glob(path, recursive=True))
