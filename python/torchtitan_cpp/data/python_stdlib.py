"""The text that every machine has: the sources of Python's own standard library."""

from __future__ import annotations

import hashlib
import os
import sysconfig
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

from torchtitan_cpp.data.records import Cursor, Record, make_record
from torchtitan_cpp.data.text_files import TextFiles

PIECE_BYTES = 2048
"""Text of one document, about: 700 tokens of the packaged tokenizer."""

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


class StandardLibrary(TextFiles):
    """The files cut at line ends into documents, in an order that mixes all files.

    Files in sorted order would make each batch a piece of one file, and the loss of a
    short run would tell more about that file than about the training. The order is
    that of hashes of file name and position, so it is the same on every machine.
    """

    @cached_property
    def identity(self) -> str:
        """That of the files, and how they are cut."""
        text = f"pieces of {PIECE_BYTES} bytes, {super().identity}"
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def _pieces(self) -> list[tuple[int, int]]:
        """Number of the file and of the piece in it, in reading order."""
        keyed = []
        for number, name in enumerate(self._files):
            size = (self._root / name).stat().st_size
            for piece in range(-(-size // PIECE_BYTES)):
                key = hashlib.blake2b(f"{name}:{piece}".encode(), digest_size=8)
                keyed.append((key.digest(), number, piece))
        return [(number, piece) for _, number, piece in sorted(keyed)]

    def read(self, cursor: Cursor) -> Iterator[Record]:
        """Records from ``cursor`` (the number of the piece in reading order)."""
        for index in range(cursor[0] if cursor else 0, len(self._pieces)):
            number, piece = self._pieces[index]
            path = self._root / self._files[number]
            text = _cut(path.read_bytes(), piece).decode("utf-8", "replace")
            if text:  # a line longer than a piece leaves some without a beginning
                place = f"{path}:byte {piece * PIECE_BYTES}"
                yield make_record(text, place=place, cursor=[index + 1])


def _cut(content: bytes, piece: int) -> bytes:
    """The lines that begin in the ``piece``-th stretch of ``PIECE_BYTES`` bytes."""
    begin = _line_start(content, piece * PIECE_BYTES)
    return content[begin : _line_start(content, (piece + 1) * PIECE_BYTES)]


def _line_start(content: bytes, offset: int) -> int:
    """Where the first line begins at or behind ``offset``."""
    if offset == 0:
        return 0
    newline = content.find(b"\n", offset - 1)
    return len(content) if newline < 0 else newline + 1


def _belongs(name: str) -> bool:
    return name not in _SKIPPED_FOLDERS and not name.startswith(
        _MADE_BY_THE_INSTALLATION
    )
