"""Trains large generative models with composable parallelism, from one TOML file."""

from __future__ import annotations

from torchtitan_cpp._version_check import check_torch_version

check_torch_version()

from torchtitan_cpp.generation import (  # noqa: E402  (after the version check)
    Generation,
    generate,
)
from torchtitan_cpp.train_spec import (  # noqa: E402
    TrainSpec,
    get_train_spec,
    register_train_spec,
)

__version__ = "0.1.0"
__all__ = [
    "Generation",
    "TrainSpec",
    "__version__",
    "generate",
    "get_train_spec",
    "register_train_spec",
]
