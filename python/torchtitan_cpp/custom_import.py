"""The user's module that registers models and datasets."""

from __future__ import annotations

import traceback
from importlib import import_module
from pathlib import Path

from torchtitan_cpp.config import ConfigError, Loaded, unsupported
from torchtitan_cpp.config.check import contradictions
from torchtitan_cpp.config.problems import Problem


def import_custom_code(loaded: Loaded) -> None:
    """Import what registers models and datasets, so that their names are known.

    Raises:
        ConfigError: if the module is missing, or if it or what it registers is refused
            with a ValueError; with every other problem that is known without it.
    """
    module = loaded.config.experimental.custom_import
    if not module:
        return
    try:
        import_module(module)
    except (ImportError, ValueError) as error:
        field = "experimental.custom_import"
        problem = Problem(
            field=field,
            origin=loaded.origin(field),
            message=f"{module!r} does not import: {error}{_place(error)}",
        )
        problems = [*loaded.problems, problem]
        raise ConfigError(
            [*problems, *contradictions(loaded), *unsupported(loaded)]
        ) from error


def _place(error: BaseException) -> str:
    """The line of the user's code that an error comes from; empty if none has run."""
    package = str(Path(__file__).parent)
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((package, "<frozen importlib"))
        and not frame.filename.endswith("importlib/__init__.py")
    ]
    return f" ({frames[-1].filename}:{frames[-1].lineno})" if frames else ""
