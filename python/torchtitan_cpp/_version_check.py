"""The extension works only with the torch it was compiled against."""

from __future__ import annotations

import torch


def check_torch_version() -> None:
    """Raise one clear ImportError if torch changed since the build.

    Raises:
        ImportError: with both versions and the command that mends it.
    """
    remedy = "rebuild it in its clone: pip install --force-reinstall --no-deps ."
    running = torch.__version__.split("+")[0]
    try:
        from torchtitan_cpp import _C
    except ImportError as error:
        raise ImportError(
            f"torchtitan_cpp's extension does not load with torch {running} "
            f"({error}); {remedy}"
        ) from error
    built = _C.core.compiled_torch_version()
    if built != running:
        raise ImportError(
            f"torchtitan_cpp was built against torch {built}, but torch {running} is "
            f"installed; {remedy}"
        )
