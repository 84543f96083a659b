"""The package's logger and torchtitan's line prefix. Importing adds no handler."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Collection
from typing import TextIO

from torchtitan_cpp.rank_thread import current_rank

LINE_FORMAT = "[titan] %(asctime)s - %(name)s - %(levelname)s - %(message)s"

logger = logging.getLogger("torchtitan_cpp")
"""Every module of the package writes here; a program decides where it goes."""


class _RankFilter(logging.Filter):
    """Lets a quiet rank say only what somebody must act on, with its number."""

    def __init__(self, rank: int, shown_ranks: Collection[int]) -> None:
        super().__init__()
        self._rank = rank
        self._shown_ranks = shown_ranks

    def filter(self, record: logging.LogRecord) -> bool:
        local = current_rank()
        rank = local.rank if local else self._rank
        if rank in self._shown_ranks:
            return True
        if record.levelno < logging.WARNING:
            return False
        prefix = f"rank {rank}: "
        if not record.getMessage().startswith(prefix):
            record.msg, record.args = prefix + record.getMessage(), ()
        return True


def init_logger(
    rank: int = 0,
    *,
    shown_ranks: Collection[int] | None = (0,),
    stream: TextIO | None = None,
) -> logging.Handler:
    """Write the package's log to ``stream`` with torchtitan's prefix.

    Called by a program's ``main``, never at import. Calling it again replaces the
    handler of the earlier call, so lines never appear twice.

    Args:
        rank: this process's global rank; unused where ranks are its threads.
        shown_ranks: ranks that write everything; any other rank writes warnings and
            errors only, each prefixed with its number. None: all ranks write all.
        stream: where to write; standard output by default, as in torchtitan.
    Returns:
        The handler, which the caller may remove again.
    """
    handler = logging.StreamHandler(stream if stream is not None else sys.stdout)
    handler.setFormatter(logging.Formatter(LINE_FORMAT))
    if shown_ranks is not None:
        handler.addFilter(_RankFilter(rank, shown_ranks))
    logger.handlers.clear()
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    # A handler of the root logger would write every line a second time.
    logger.propagate = False
    return handler


def shown_ranks() -> tuple[int, ...]:
    """Ranks whose lines are wanted, by the environment variable ``LOG_RANK``."""
    return parse_log_rank(os.environ.get("LOG_RANK"))


def parse_log_rank(text: str | None) -> tuple[int, ...]:
    """Ranks named by ``LOG_RANK`` (``"0,3"``); rank 0 when it is empty or unset.

    Raises:
        ValueError: if an entry is not a rank.
    """
    entries = [entry.strip() for entry in (text or "").split(",") if entry.strip()]
    for entry in entries:
        if not entry.isdecimal():
            raise ValueError(
                f"LOG_RANK: expected ranks separated by commas, such as 0,3, "
                f"but found {entry!r} in {text!r}"
            )
    return tuple(int(entry) for entry in entries) or (0,)
