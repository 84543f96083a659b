"""Errors whose message tells a person all there is to know."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch

_NOT_OWN = (
    str(Path(__file__).parent),
    str(Path(torch.__file__).parent),
    "<frozen importlib",
)


class Explained(Exception):
    """Mixed into such errors: the command line prints them without a traceback."""


class MissingPathError(Explained, FileNotFoundError):
    """A file or folder that the configuration names is not there."""


class UnusablePathError(Explained, ValueError):
    """A path that the configuration names holds nothing that can be used."""


class SettingError(Explained, ValueError):
    """A value of the configuration that does not fit the run that was built of it."""


def needs_traceback(error: BaseException) -> bool:
    """Whether the place in the code may help: not if the message tells all.

    An explained error may come from one that is not, such as a bug in a part of the
    user's own; then it may.
    """
    if not isinstance(error, Explained):
        return True
    cause = error.__cause__
    return not (cause is None or isinstance(cause, OSError)) and needs_traceback(cause)


def place_in_own_code(error: BaseException) -> str:
    """The line of the user's code that an error comes from; empty if none has run."""
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith(_NOT_OWN)
        and not frame.filename.endswith("importlib/__init__.py")
    ]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
