"""Model families of the package, by the name that ``--model.name`` takes."""

from __future__ import annotations

FAMILIES = ("llama3",)
