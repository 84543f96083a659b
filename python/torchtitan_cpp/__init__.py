"""Trains large generative models with composable parallelism, from one TOML file."""

from __future__ import annotations

from torchtitan_cpp._version_check import check_torch_version

check_torch_version()

from torchtitan_cpp.train_spec import (  # noqa: E402  (after the version check)
    TrainSpec,
    get_train_spec,
    register_train_spec,
)

__version__ = "0.1.0"
__all__ = ["TrainSpec", "__version__", "get_train_spec", "register_train_spec"]
