"""The sources satisfy the linters, as pre-commit would ask."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def run(tool: str, *arguments: str) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name(tool), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing() -> None:
    run("ruff", "check", "--no-cache", ".")


def test_python_is_formatted() -> None:
    run("ruff", "format", "--no-cache", "--check", ".")


def test_cpp_is_formatted() -> None:
    folders = [
        ROOT / "csrc",
        *(ROOT / "tests" / n for n in ("cpp", "durability", "fuzz")),
    ]
    files = [p for f in folders for p in f.rglob("*") if p.suffix in (".h", ".cpp")]
    assert files
    run("clang-format", "--dry-run", "--Werror", *map(str, files))


@pytest.mark.slow
def test_mypy_finds_nothing() -> None:
    run("mypy")
