"""Files that a run reads and that torchtitan's test configurations name but we lack."""

from __future__ import annotations

from pathlib import Path

from torchtitan_cpp.config.job_config import JobConfig

OUR_TOKENIZER = "package:torchtitan_cpp/assets/tokenizer"
OUR_DATASET = "python_stdlib"
C4_TEST = "tests/assets/c4_test"
"""Where the dataset c4_test lies in a checkout of torchtitan."""

_REMEDY = (
    f"this package has its own: --training.dataset {OUR_DATASET} "
    f"--model.hf_assets_path {OUR_TOKENIZER}"
)


def missing_inputs(config: JobConfig) -> list[tuple[str, str, str]]:
    """Field, message and hint for each input that is not there."""
    missing: list[tuple[str, str, str]] = []
    assets = config.model.hf_assets_path
    if assets.endswith("tokenizer.model"):
        hint = "scripts/download_hf_assets.py fetches one"
        message = f"expected a folder with tokenizer.json, found {assets!r}"
        missing.append(("model.hf_assets_path", message, hint))
    elif not Path(assets).exists():
        message = f"no such folder: {assets!r}"
        missing.append(("model.hf_assets_path", message, _REMEDY))
    training = config.training
    if training.dataset == "c4_test":
        path = training.dataset_path or C4_TEST
        if not Path(path).exists():
            field = (
                "training.dataset_path" if training.dataset_path else "training.dataset"
            )
            message = f"no such folder: {path!r} (of dataset 'c4_test')"
            missing.append((field, message, _REMEDY))
    return missing
