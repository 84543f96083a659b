"""Documents of local files: json, jsonl, parquet and plain text, also with .gz."""

from __future__ import annotations

import glob
import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

from torchtitan_cpp.data.file_formats import (
    ReadFile,
    read_json,
    read_parquet,
    read_plain_text,
)
from torchtitan_cpp.data.missing_path import missing_path
from torchtitan_cpp.data.records import Cursor, Record
from torchtitan_cpp.errors import UnusablePathError

logger = logging.getLogger(__name__)

_READERS: dict[str, ReadFile] = {
    ".json": read_json,
    ".jsonl": read_json,
    ".parquet": read_parquet,
    ".txt": read_plain_text,
    ".text": read_plain_text,
    ".md": read_plain_text,
    ".py": read_plain_text,
}
_HASHED_FILES = 256
_HASHED_BYTES = 4096


class TextFiles:
    """A :class:`DocumentSource` over files, in the given order.

    Args:
        files: paths below ``root``, as they shall appear in messages.
        root: folder of the files.
        text_key: the key or column of the text in json, jsonl and parquet records.
    """

    def __init__(
        self, files: Sequence[str], *, root: Path, text_key: str = "text"
    ) -> None:
        self._files = list(files)
        self._root = root
        self._text_key = text_key

    def __repr__(self) -> str:
        return f"{len(self._files)} files in {self._root}"

    @cached_property
    def identity(self) -> str:
        """Names, sizes, and beginnings and ends of (up to 256) files."""
        digest = hashlib.sha256(f"text files, key {self._text_key!r}\n".encode())
        step = max(1, len(self._files) // _HASHED_FILES)
        for number, name in enumerate(self._files):
            path = self._root / name
            size = path.stat().st_size
            digest.update(f"{name}\0{size}\n".encode("utf-8", "surrogateescape"))
            if number % step == 0:
                with path.open("rb") as file:
                    digest.update(file.read(_HASHED_BYTES))
                    file.seek(max(0, size - _HASHED_BYTES))
                    digest.update(file.read(_HASHED_BYTES))
        return digest.hexdigest()

    @cached_property
    def cache_key(self) -> str:
        """``identity`` and the times when the files were changed."""
        digest = hashlib.sha256(self.identity.encode())
        for name in self._files:
            digest.update(f"{(self._root / name).stat().st_mtime_ns}\n".encode())
        return digest.hexdigest()

    def read(self, cursor: Cursor) -> Iterator[Record]:
        """Records from ``cursor`` (number of the file, place inside it)."""
        first, inside = (cursor[0], cursor[1:]) if cursor else (0, [])
        for number in range(first, len(self._files)):
            path = self._root / self._files[number]
            yield from _reader_of(path)(path, number, inside, self._text_key)
            inside = []


def open_text_files(path: str | Path, *, text_key: str = "text") -> TextFiles:
    """The files of a path: one file, a folder with all below it, or a glob.

    Sorted by name. Files with unknown suffixes in a folder or glob are left out, with a
    line in the log.

    Raises:
        FileNotFoundError: nothing is there.
        ValueError: no file has a known suffix.
    """
    root, found = _find_files(str(path))
    if not found:
        raise missing_path("training.dataset_path", path)
    known = [name for name in found if _suffix(name) in _READERS]
    if not known:
        raise UnusablePathError(
            f"training.dataset_path: '{path}' has no file that can be read: expected "
            f"{', '.join(_READERS)} (also with .gz), found {found[0]}"
        )
    if len(known) < len(found):
        logger.warning(
            "%s: left out %d files with other suffixes, e.g. %s",
            path,
            len(found) - len(known),
            next(name for name in found if _suffix(name) not in _READERS),
        )
    return TextFiles(known, root=root, text_key=text_key)


def _find_files(path: str) -> tuple[Path, list[str]]:
    path = os.path.expanduser(path)
    if os.path.isfile(path):
        return Path(path).parent, [os.path.basename(path)]
    if os.path.isdir(path):
        names: list[str] = []
        for parent, folders, files in os.walk(path):
            folders[:] = [name for name in folders if not name.startswith(".")]
            below = os.path.relpath(parent, path)
            names += [
                os.path.normpath(os.path.join(below, name))
                for name in files
                if not name.startswith(".")
            ]
        return Path(path), sorted(names)
    matches = glob.glob(path, recursive=True)
    root = os.path.dirname(glob.escape(path).split("[", 1)[0]) or "."
    return Path(root), sorted(
        os.path.relpath(name, root) for name in matches if os.path.isfile(name)
    )


def _suffix(name: str) -> str:
    return Path(name.lower().removesuffix(".gz")).suffix


def _reader_of(path: Path) -> Callable[..., Iterator[Record]]:
    return _READERS[_suffix(path.name)]
