"""The code blocks of the Markdown files run, and their relative links lead somewhere.

A comment in the line before a ```python or ```bash block says how it is tested:

    <!-- test: run -->                  runs, in an empty folder that links to configs/
    <!-- test: run, adding FLAGS -->    the same, each training gets FLAGS (to be short)
    <!-- test: parse -->                bash only: commands exist and flags are right
    <!-- test: save NAME -->            python only: a file for the other blocks there

A block without such a comment fails, so that nobody forgets one.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from torchtitan_cpp.config import load_config

ROOT = Path(__file__).parents[3]
IGNORED = {".venv", ".pytest_cache", "build", "outputs", ".git"}
FILES = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not IGNORED & set(path.relative_to(ROOT).parts[:-1])
)
BLOCK = re.compile(
    r"(?:^<!-- ([^\n]*) -->\n)?^```(python|bash)\n(.*?)^```$", re.M | re.S
)
LINK = re.compile(r"\[[^\]]*\]\(([^)#\s]+)(?:#[^)]*)?\)")
TRAIN = "torchtitan_cpp.train"
MANY_RANKS = re.compile(rf"torchrun --nproc_per_node ([4-8]) -m {TRAIN}")


@dataclass(frozen=True, kw_only=True)
class Block:
    """A code block and how it is tested."""

    place: str
    marker: str
    language: str
    code: str

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a ```bash block, without variables before it."""
        lines = self.code.replace("\\\n", " ").splitlines()
        found = [shlex.split(line, comments=True) for line in lines]
        return [
            words[next(i for i, word in enumerate(words) if "=" not in word) :]
            for words in found
            if words
        ]


def blocks_of(path: Path) -> list[Block]:
    text = path.read_text()
    return [
        Block(
            place=f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.end()) + 1}",
            marker=match.group(1) or "",
            language=match.group(2),
            code=match.group(3),
        )
        for match in BLOCK.finditer(text)
    ]


BLOCKS = [block for path in FILES for block in blocks_of(path)]


def with_marker(pattern: str, language: str) -> list[object]:
    return [
        pytest.param(block, id=block.place)
        for block in BLOCKS
        if block.language == language and re.match(pattern, block.marker)
    ]


def folder_for(block: Block, folder: Path) -> Path:
    """The folder, with the files that the blocks of the same text save."""
    (folder / "configs").symlink_to(ROOT / "configs")
    source = block.place.partition(":")[0]
    for other in BLOCKS:
        if other.marker.startswith("test: save") and other.place.startswith(source):
            (folder / other.marker.split()[-1]).write_text(other.code)
    return folder


@pytest.mark.quick
def test_every_block_says_how_it_is_tested() -> None:
    known = {
        "python": re.compile(r"test: (run|save \w+\.py)$"),
        "bash": re.compile(r"test: (run|run, adding --.*|parse)$"),
    }
    assert BLOCKS
    assert not [b.place for b in BLOCKS if not known[b.language].match(b.marker)]


@pytest.mark.quick
@pytest.mark.parametrize("block", with_marker("test: run$", "python"))
def test_python_block_runs(block: Block, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", block.code],
        cwd=folder_for(block, tmp_path),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", with_marker("test: run", "bash"))
def test_bash_block_runs(block: Block, tmp_path: Path) -> None:
    code = block.code
    if ", adding " in block.marker:
        flags = block.marker.partition(", adding ")[2]
        code = code.replace(f"-m {TRAIN}", f"-m {TRAIN} {flags}")
        assert flags in code
    # More than two ranks are threads here: processes would take most of the time.
    threads = rf"NGPU=\1 python -m {TRAIN} --comm.mode local_tensor"
    code = MANY_RANKS.sub(threads, code)
    tools = Path(sys.executable).parent
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder_for(block, tmp_path),
        env={**os.environ, "PATH": f"{tools}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


@pytest.mark.quick
@pytest.mark.parametrize("block", with_marker("test: parse", "bash"))
def test_commands_of_a_bash_block_exist(block: Block) -> None:
    subprocess.run(["bash", "-n", "-c", block.code], check=True)
    tools = Path(sys.executable).parent
    for program, *arguments in block.commands:
        if "/" in program:
            assert os.access(ROOT / program, os.X_OK), program
        else:
            path = f"{tools}:{os.environ['PATH']}"
            assert shutil.which(program, path=path), program
        if program == "python" and not arguments[0].startswith("-"):
            assert (ROOT / arguments[0]).is_file(), arguments[0]
        if "-m" in arguments:
            place = arguments.index("-m")
            assert importlib.util.find_spec(arguments[place + 1]), arguments
            if arguments[place + 1] == TRAIN:
                load_config(arguments[place + 2 :])


@pytest.mark.quick
@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_relative_links_lead_to_files(path: Path) -> None:
    links = [link for link in LINK.findall(path.read_text()) if ":" not in link]
    assert not [link for link in links if not (path.parent / link).exists()]
