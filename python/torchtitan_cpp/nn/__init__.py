"""PyTorch modules over C++ models."""

from __future__ import annotations

from torchtitan_cpp.nn.groups import adopt, parameter_groups
from torchtitan_cpp.nn.module import CppModule, GenerationSizes

__all__ = ["CppModule", "GenerationSizes", "adopt", "parameter_groups"]
