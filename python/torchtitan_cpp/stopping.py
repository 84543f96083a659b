"""SIGTERM as a request to stop: save once, leave with all ranks."""

from __future__ import annotations

from torchtitan_cpp import _C

STOP_ECHO_SECONDS = 3.0
"""A SIGTERM so soon after the first one is torchrun's, which passes on its own."""

_is_command = False


def allow() -> None:
    """This process trains and does nothing else: trainers may take its SIGTERM over."""
    global _is_command
    _is_command = True


def take_over() -> None:
    """From now on SIGTERM is a request, if ``allow`` was called; may be repeated.

    Not before the ranks have met: until then nobody could be asked to stop together.
    Whoever installs a handler of its own later replaces this one.
    """
    if _is_command:
        _C.core.install_stop_signal(echo_seconds=STOP_ECHO_SECONDS)


def is_requested() -> bool:
    """Whether this process has got SIGTERM."""
    return bool(_C.core.stop_requested())
