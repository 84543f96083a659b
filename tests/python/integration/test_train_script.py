"""scripts/train.sh: what it says about a run after its end."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import import_path

SCRIPT = Path(__file__).parents[3] / "scripts" / "train.sh"
FLAGS = (
    "--experimental.custom-import=tiny_jobs",
    "--model.flavor=tiny",
    "--training.dataset=tiny_text",
    "--training.seq-len=16",
    "--training.local-batch-size=2",
    "--training.steps=1",
    "--job.dump-folder=files",
)
CLOSING = "The files of this run are in files"


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the script whose environment is the one of this test."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    programs = {
        "scripts/setup.sh": "exit 0",
        ".venv/bin/python": f'exec "{sys.executable}" "$@"',
    }
    for name, line in programs.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)
    return tmp_path


def train(clone: Path, *flags: str, **variables: str) -> str:
    done = subprocess.run(
        ["scripts/train.sh", *FLAGS, *flags],
        cwd=clone,
        env=os.environ | {"PYTHONPATH": import_path()} | variables,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_run_ends_by_saying_where_its_files_are(clone: Path) -> None:
    assert CLOSING in train(clone)
    assert (clone / "files" / "metrics.jsonl").exists()


def test_what_it_offers_after_a_saved_run_writes_text(clone: Path) -> None:
    shutil.copy(SCRIPT.with_name("generate.py"), clone / "scripts")
    flags = ("--checkpoint.enable", "--training.seq-len=64", "--training.steps=2")
    offered = next(
        line for line in train(clone, *flags).splitlines() if "generate.py" in line
    )
    done = subprocess.run(
        ["bash", "-c", offered],
        cwd=clone,
        env=os.environ | {"PYTHONPATH": import_path()},
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("def main(")
    assert "tokens per second" in done.stdout


def test_one_process_trains_for_all_ranks(clone: Path) -> None:
    output = train(
        clone, "--training.steps=2", COMM_MODE="local_tensor", NGPU="2", LOG_RANK="1"
    )
    assert "step:  1" in output
    assert CLOSING in output
    lines = (clone / "files" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 1  # of step 1; log_freq is 10


@pytest.mark.parametrize(
    ("flags", "variables"),
    [
        ([], {"COMM_MODE": "fake_backend", "NGPU": "4"}),
        (["--comm.mode=fake_backend"], {}),
        ([], {"TRAIN_FILE": "torchtitan_cpp.plan"}),
    ],
    ids=["variable", "flag", "plan"],
)
def test_what_writes_no_files_names_none(
    flags: list[str], variables: dict[str, str], clone: Path
) -> None:
    output = train(clone, *flags, **variables)
    assert "The files of this run" not in output
    assert not (clone / "files").exists()
