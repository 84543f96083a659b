"""The user's module that registers models and datasets."""

from __future__ import annotations

from importlib import import_module

from torchtitan_cpp.config import Loaded


def import_custom_code(loaded: Loaded) -> None:
    """Import what registers models and datasets, so that their names are known."""
    module = loaded.config.experimental.custom_import
    if not module:
        return
    try:
        import_module(module)
    except ImportError as error:
        origin = loaded.origin("experimental.custom_import")
        raise ValueError(
            f"{origin}: experimental.custom_import: {module!r} does not import: {error}"
        ) from error
