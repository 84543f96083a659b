"""Trains large generative models with composable parallelism, from one TOML file."""

from __future__ import annotations

from torchtitan_cpp._version_check import check_torch_version

check_torch_version()

__version__ = "0.1.0"
