"""Text from a trained model: token after token, each by its place among the likely.

``generate`` takes any model; ``torchtitan_cpp.generation.loading.load_model`` makes one
from a checkpoint; ``python -m torchtitan_cpp.generation`` is the command.
"""

from __future__ import annotations

from torchtitan_cpp.generation.generate import Generation, LoadedModel, generate

__all__ = ["Generation", "LoadedModel", "generate"]
