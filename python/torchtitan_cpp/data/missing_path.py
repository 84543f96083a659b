"""One text for every path that does not exist: what to give instead."""

from __future__ import annotations

from pathlib import Path

from torchtitan_cpp.errors import MissingPathError

PACKAGED_TOKENIZER = Path(__file__).parents[1] / "assets" / "tokenizer"
"""Folder of the tokenizer that travels in the package (2,048 entries)."""


def missing_path(flag: str, path: str | Path) -> MissingPathError:
    """The error for a missing dataset or tokenizer, with the flags that need no file.

    Args:
        flag: the configuration field that named the path.
        path: what was looked for.
    """
    return MissingPathError(
        f"{flag}: '{path}' does not exist (looked in {Path.cwd()}). The dataset and "
        "tokenizer that need no download are "
        f"--training.dataset python_stdlib and "
        f"--model.hf_assets_path {PACKAGED_TOKENIZER}"
    )
