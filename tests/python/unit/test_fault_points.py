"""Faults on purpose are in no build that anybody uses."""

from __future__ import annotations

import subprocess
from pathlib import Path

from torchtitan_cpp import _C

ROOT = Path(__file__).parents[3]


def test_the_extension_module_has_none() -> None:
    data = Path(_C.__file__).read_bytes()
    assert b"create_staging" in data
    assert b"TORCHTITAN_FAULT" not in data


def test_no_wheel_is_built_with_them(tmp_path: Path) -> None:
    command = ["cmake", "-S", ROOT, "-B", tmp_path, "-DSKBUILD_STATE=wheel"]
    done = subprocess.run(
        [*command, "-DTORCHTITAN_FAULT_POINTS=ON"], capture_output=True, text=True
    )
    assert done.returncode != 0
    assert "no wheel is built with it" in done.stderr
