"""Configuration of a run: typed sections, TOML files, flags, and their checks."""

from __future__ import annotations

from torchtitan_cpp.config.job_config import JobConfig

__all__ = ["JobConfig"]
