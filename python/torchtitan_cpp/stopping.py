"""SIGTERM as a request to stop: save once, leave with all ranks."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

from torchtitan_cpp import _C

STOP_ECHO_SECONDS = 3.0
"""A SIGTERM so soon after the first one is torchrun's, which passes on its own."""

_is_command = False


_PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def allow() -> None:
    """This process trains and does nothing else: trainers may take its SIGTERM over.

    Under torchrun it gets SIGTERM too when the launcher dies. Else it would train on,
    beside the job that is started in its place and in the same folders, and without
    the launcher's store a rank that stalls would not be noticed.
    """
    global _is_command
    _is_command = True
    if sys.platform == "linux" and "TORCHELASTIC_RUN_ID" in os.environ:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


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
