"""The user's module that registers models and datasets."""

from __future__ import annotations

from importlib import import_module

from torchtitan_cpp.config import ConfigError, Loaded, unsupported
from torchtitan_cpp.config.check import contradictions
from torchtitan_cpp.config.problems import Problem
from torchtitan_cpp.errors import place_in_own_code


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
            message=f"{module!r} does not import: {error}{place_in_own_code(error)}",
        )
        problems = [*loaded.problems, problem]
        raise ConfigError(
            [*problems, *contradictions(loaded), *unsupported(loaded)]
        ) from error
