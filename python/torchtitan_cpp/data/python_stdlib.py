"""The text that every machine has: the sources of Python's own standard library."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

_SKIPPED_FOLDERS = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
)
_MADE_BY_THE_INSTALLATION = ("_sysconfigdata", "config-", "sitecustomize")


def stdlib_folder() -> Path:
    """Folder of the standard library of the running Python."""
    return Path(sysconfig.get_path("stdlib"))


def stdlib_files(folder: Path | None = None) -> list[str]:
    """Source files of the standard library, relative to ``folder``, in sorted order.

    Left out are tests, installed packages, files that the installation of Python wrote
    for its own machine, and empty files.

    Args:
        folder: where to look; by default the running Python's standard library.
    """
    root = stdlib_folder() if folder is None else folder
    found: list[str] = []
    for parent, folders, files in os.walk(root):
        folders[:] = [name for name in folders if _belongs(name)]
        for name in files:
            path = Path(parent, name)
            if name.endswith(".py") and _belongs(name) and path.stat().st_size > 0:
                found.append(path.relative_to(root).as_posix())
    return sorted(found)


def _belongs(name: str) -> bool:
    return name not in _SKIPPED_FOLDERS and not name.startswith(
        _MADE_BY_THE_INSTALLATION
    )
