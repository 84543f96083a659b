"""A file with one JSON object a line and no step twice, also across resumes."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

from torchtitan_cpp.logging import logger


class StepLines:
    """Appends one object for each step to a file such as ``metrics.jsonl``.

    A run that continues after step ``n`` repeats the steps after ``n``: their lines,
    and a line that a crash tore, are cut from the file when it is opened, so that a
    reader never meets a step twice. A run that starts at step 0 moves an existing
    file to the first free name (``metrics.1.jsonl``): the file holds one run and no
    measurement is lost. Only one process may write a file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: FileIO | None = None
        self._is_failing = False

    def open(self, *, after_step: int) -> None:
        """Open the file for the steps after ``after_step`` (0: a new run)."""
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            if after_step == 0:
                self._move_aside()
            else:
                self._cut(after_step)
        self._file = self.path.open("ab", buffering=0)

    @property
    def is_open(self) -> bool:
        return self._file is not None

    def write(self, record: Mapping[str, Any]) -> None:
        """Append ``record``; numbers that JSON cannot write become null.

        The line is in the operating system's hands on return. Where the system refuses
        it, on a full disk say, it is left out and that is told: no run ends for it.
        """
        assert self._file is not None, "StepLines.write before open"
        plain = {key: _jsonable(value) for key, value in record.items()}
        line = (json.dumps(plain, allow_nan=False) + "\n").encode()
        end = os.fstat(self._file.fileno()).st_size
        try:
            while line:
                line = line[self._file.write(line) :]
        except OSError as error:
            with suppress(OSError):
                self._file.truncate(end)  # of a line that was written in part
            if not self._is_failing:
                logger.error(
                    "%s: %s; steps are left out of it until it can be written",
                    self.path,
                    error.strerror,
                )
            self._is_failing = True
        else:
            self._is_failing = False

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _move_aside(self) -> None:
        if self.path.stat().st_size == 0:
            return
        number = 1
        while (kept := self.path.with_suffix(f".{number}.jsonl")).exists():
            number += 1
        self.path.rename(kept)
        logger.info("Metrics of an earlier run moved to %s", kept)

    def _cut(self, after_step: int) -> None:
        lines = self.path.read_text(encoding="utf-8", errors="replace").splitlines()
        kept = [line for line in lines if _step_of(line) in range(1, after_step + 1)]
        if len(kept) == len(lines):
            return
        logger.info(
            "%s: cut %d lines that do not lie before step %d",
            self.path,
            len(lines) - len(kept),
            after_step + 1,
        )
        # Written whole and renamed: a crash here must not cost the lines to keep.
        staged = self.path.with_suffix(".jsonl.tmp")
        with staged.open("w", encoding="utf-8") as file:
            file.writelines(line + "\n" for line in kept)
            file.flush()
            os.fsync(file.fileno())
        staged.replace(self.path)


def _step_of(line: str) -> int:
    """The step of a line; -1 for a torn line."""
    try:
        record = json.loads(line)
        return int(record["step"])
    except (ValueError, KeyError, TypeError):
        return -1


def _jsonable(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
