"""The configuration that a run really has, printed and saved as JSON."""

from __future__ import annotations

import json
from pathlib import Path

from torchtitan_cpp.config.job_config import JobConfig


def config_json(config: JobConfig) -> str:
    """All values as JSON; ``config_from_dict(json.loads(...))`` gives an equal one."""
    return json.dumps(config.to_dict(), indent=2, ensure_ascii=False)


def save_config(config: JobConfig) -> Path | None:
    """Write the JSON to ``job.save_config_file`` below ``job.dump_folder``.

    To be called by rank 0 only.

    Returns:
        The file written, or None if none was asked for.
    Raises:
        OSError: if it cannot be written.
    """
    if config.job.save_config_file is None:
        return None
    path = Path(config.job.dump_folder) / config.job.save_config_file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(config_json(config) + "\n", encoding="utf-8")
    return path
