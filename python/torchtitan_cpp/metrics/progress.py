"""One line at the foot of a terminal: steps done, speed, time left."""

from __future__ import annotations

import logging
import shutil
import sys
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from torchtitan_cpp.logging import logger

SECONDS_BETWEEN_DRAWINGS = 0.1
STEPS_IN_SPEED = 20
BAR_WIDTH = 20


class Progress:
    """Draws the progress line, and does nothing where there is no terminal.

    Log lines erase it first, so that the two are never mixed on one terminal. Use it
    as a context manager; at the end the line is gone.

    Args:
        total_steps: the step after which training ends.
        start_step: steps that were finished before (after a resume).
        stream: where to draw; standard error by default.
        enabled: False on ranks that must not draw.
        clock: seconds from a fixed point in time.
    """

    def __init__(
        self,
        *,
        total_steps: int,
        start_step: int = 0,
        stream: TextIO | None = None,
        enabled: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._enabled = enabled and self._stream.isatty()
        self._total_steps = total_steps
        self._loss: float | None = None
        self._clock = clock
        self._drawn_at = float("-inf")
        self._is_drawn = False
        # Ends of the last steps as (step, seconds); the start of the run counts as
        # one until two steps have ended, for the first step pays for the set-up.
        self._ends = deque([(start_step, clock())], maxlen=STEPS_IN_SPEED + 1)
        self._start_step = start_step
        self._handlers: list[logging.Handler] = []

    def __enter__(self) -> Progress:
        if self._enabled:
            self._handlers = list(logger.handlers)
            for handler in self._handlers:
                handler.addFilter(self._make_room)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for handler in self._handlers:
            handler.removeFilter(self._make_room)
        self._erase()

    def update(self, step: int, loss: float | None = None) -> None:
        """Step ``step`` has finished.

        Args:
            loss: its loss if it was read; otherwise the last one read stays in view.
        """
        now = self._clock()
        self._ends.append((step, now))
        if len(self._ends) > 2 and self._ends[0][0] == self._start_step:
            self._ends.popleft()
        if loss is not None:
            self._loss = loss
        if self._enabled and now - self._drawn_at >= SECONDS_BETWEEN_DRAWINGS:
            self._drawn_at = now
            self._draw()

    def text(self) -> str:
        """The line as it stands now, without escape sequences."""
        (first, began), (step, ended) = self._ends[0], self._ends[-1]
        share = step / max(1, self._total_steps)
        filled = round(BAR_WIDTH * share)
        parts = [
            f"step {step:,}/{self._total_steps:,}",
            f"[{'=' * filled}{' ' * (BAR_WIDTH - filled)}] {share:4.0%}",
        ]
        if self._loss is not None:
            parts.append(f"loss {self._loss:.4f}")
        if step > first:
            step_seconds = (ended - began) / (step - first)
            left = step_seconds * (self._total_steps - step)
            parts.append(f"{step_seconds:.2f} s/step")
            parts.append(f"{format_duration(left)} left")
        return "  ".join(parts)

    def _draw(self) -> None:
        # The last column stays empty: some terminals wrap when it is written.
        width = shutil.get_terminal_size().columns - 1
        self._stream.write(f"\r{self.text()[:width]}\033[K")
        self._stream.flush()
        self._is_drawn = True

    def _erase(self) -> None:
        if self._is_drawn:
            self._stream.write("\r\033[K")
            self._stream.flush()
            self._is_drawn = False

    def _make_room(self, record: logging.LogRecord) -> bool:
        """A filter of log handlers that lets everything pass."""
        self._erase()
        self._drawn_at = float("-inf")
        return True


def format_duration(seconds: float) -> str:
    """A time to read at a glance: ``45s``, ``2m 05s``, ``1h 03m``, ``2d 04h``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h {whole % 3600 // 60:02}m"
    return f"{whole // 86400}d {whole % 86400 // 3600:02}h"
