"""What is said before the ranks meet reaches the person who started them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from torchtitan_cpp import refusal

PACKAGE = Path(__file__).parents[3] / "python"

LATE = """\
import os
import time

from torchtitan_cpp import get_train_spec, register_train_spec

if os.environ["RANK"] == "0":
    time.sleep(1)
    if "only_rank_1" in os.environ:
        register_train_spec("mine", get_train_spec("llama3"))
        time.sleep(60)
"""


def launched(
    folder: Path, *flags: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    (folder / "late.py").write_text(LATE)
    return subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"),
            *("-m", "torchtitan_cpp.train", "--experimental.custom_import=late"),
            *flags,
        ],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": f"{PACKAGE}{os.pathsep}{folder}", "OMP_NUM_THREADS": "1"}
        | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_late_rank_0_still_says_what_is_wrong(tmp_path: Path) -> None:
    """torchrun ends it as soon as another rank has left."""
    done = launched(tmp_path, "--model.flavor=tinny")
    assert done.returncode == 1
    assert done.stderr.count("model.flavor: expected one of") == 1, done.stderr


def test_a_rank_alone_says_what_it_alone_has_found(tmp_path: Path) -> None:
    done = launched(tmp_path, "--model.name=mine", only_rank_1="1")
    assert "rank 1: 1 problem in the configuration:" in done.stderr, done.stderr
    assert "model.name: expected one of llama3; found 'mine'" in done.stderr


def test_only_rank_0_speaks_where_no_launcher_ends_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    codes = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        codes.append(refusal.refuse(f"from {rank}"))
    assert codes == [refusal.EXIT_BAD_INPUT] * 2
    assert capsys.readouterr().err == "from 0\n"
