"""The name that was probably meant."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(name: str, known: Iterable[str]) -> str:
    """`` (nearest: x)``, or an empty text when nothing is similar."""
    matches = difflib.get_close_matches(name, list(known), n=1)
    return f" (nearest: {matches[0]})" if matches else ""
