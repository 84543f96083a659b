"""scripts/loss_compare.py, over trainings that only pretend."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from script_modules import load_script

script = load_script("loss_compare")

# Writes losses that --bend bends from step 3 on, and what it was called with.
TRAINING = """
import json, os, sys
from pathlib import Path
flags = dict(f.partition("=")[::2] for f in sys.argv[1:])
folder = Path(flags["--job.dump_folder"])
folder.mkdir(parents=True)
given = [os.environ.get("NGPU", "-"), *sys.argv[1:]]
(folder / "flags.txt").write_text(" ".join(given))
if "--fail" in flags:
    sys.exit("it has failed")
with (folder / "metrics.jsonl").open("w") as out:
    for step in range(1, int(flags.get("--training.steps", 0)) + 1):
        bent = float(flags.get("--bend", 0)) if step >= 3 else 0
        print(json.dumps({"step": step, "loss": 8 / step * (1 + bent)}), file=out)
"""


@pytest.fixture(autouse=True)
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pretended.py").write_text(TRAINING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def compare(folder: Path, *flags: str) -> int:
    code: int = script.main(
        [".", ".", "--steps=5", "--baseline-train-file=pretended"]
        + [f"--output-folder={folder / 'out'}", *flags]
    )
    return code


def flags_of(folder: Path, side: str) -> list[str]:
    return (folder / "out" / side / "flags.txt").read_text().split()


def test_the_example_of_the_help_is_understood() -> None:
    command = script.__doc__.split("loss_compare.py")[2].split("scripts/")[0]
    own = script.parse(shlex.split(command.replace("\\\n", "")))
    assert own.test_options == "--parallelism.tensor_parallel_degree=2"
    own = script.parse([".", ".", "--baseline-options", "--a=1 --b=2", "--steps", "7"])
    assert (own.baseline_options, own.steps) == ("--a=1 --b=2", 7)


def test_equal_losses_are_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(tmp_path, "--assert-equal") == 0
    assert "losses are equal" in capsys.readouterr().out
    assert (tmp_path / "out" / "test_losses.txt").read_text().startswith("1 8.0\n2 4.0")


def test_both_sides_start_from_the_weights_of_one_rank(tmp_path: Path) -> None:
    compare(
        tmp_path,
        "--baseline-config=x.toml",
        "--baseline-options=--a=1 --b='c d'",
        "--test-options=--parallelism.tensor_parallel_degree=2",
    )
    seed = flags_of(tmp_path, "seed")
    assert "--checkpoint.create_seed_checkpoint" in seed
    assert "--parallelism.tensor_parallel_degree=1" in seed
    for side in ("baseline/outputs", "test/outputs"):
        flags = flags_of(tmp_path, side)
        path = tmp_path / "out" / "seed" / "checkpoint" / "step-0"
        assert f"--checkpoint.initial_load_path={path}" in flags
        assert flags[1:3] == ["--job.config_file", str(Path("x.toml").resolve())]
        for fixed in ("--debug.deterministic", "--debug.seed=42", "--training.steps=5"):
            assert fixed in flags
    assert "--a=1" in flags_of(tmp_path, "baseline/outputs")
    assert "--a=1" not in flags_of(tmp_path, "test/outputs")


def test_a_seed_checkpoint_may_be_left_out(tmp_path: Path) -> None:
    compare(tmp_path, "--no-seed-checkpoint", "--job-dump-folder=files")
    assert not (tmp_path / "out" / "seed").exists()
    assert not any(
        f.startswith("--checkpoint") for f in flags_of(tmp_path, "test/files")
    )


@pytest.mark.parametrize(
    ("flags", "code"),
    [
        ([], 0),
        (["--assert-equal"], 1),
        (["--tolerance=2e-3"], 0),
        (["--tolerance=5e-4"], 1),
    ],
)
def test_losses_that_differ_fail_as_asked(
    flags: list[str], code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(tmp_path, "--test-options=--bend=1e-3", *flags) == code
    text = capsys.readouterr().out
    assert "largest difference 1.000e-03 of the loss, mean 6.000e-04" in text
    assert ("losses are NOT" in text) == (code == 1)


def test_a_loss_that_is_no_number_differs(tmp_path: Path) -> None:
    assert compare(tmp_path, "--test-options=--bend=nan", "--tolerance=9") == 1


def test_exported_losses_are_compared_with_a_later_run(tmp_path: Path) -> None:
    file = tmp_path / "losses.txt"
    assert compare(tmp_path, "--assert-equal", f"--export-result={file}") == 0
    assert len(file.read_text().splitlines()) == 5
    imported = ("--assert-equal", f"--import-result={file}")
    assert compare(tmp_path / "again", *imported) == 0
    assert not (tmp_path / "again" / "out" / "test").exists()  # the same training
    bent = "--baseline-options=--bend=1e-9"
    assert compare(tmp_path / "bent", *imported, bent) == 1
    assert compare(tmp_path / "short", *imported, "--steps=4") == 2


def test_losses_that_differ_are_not_exported(tmp_path: Path) -> None:
    file = tmp_path / "losses.txt"
    flags = ("--assert-equal", "--test-options=--bend=1", f"--export-result={file}")
    assert compare(tmp_path, *flags) == 1
    assert not file.exists()


def test_a_side_that_fails_is_named_with_its_last_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare(tmp_path, "--test-options=--fail") == 2
    error = capsys.readouterr().err
    assert "test ended with exit status 1" in error
    assert "it has failed" in error
    assert compare(tmp_path, "--no-seed-checkpoint") == 2
    assert "exists already" in capsys.readouterr().err


def test_another_commit_is_trained_by_its_own_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    repository = tmp_path / "repository"
    (repository / "scripts").mkdir(parents=True)
    train = repository / "scripts" / "train.sh"

    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=x", "-c", "user.email=x@example.com"]
        subprocess.run(["git", *identity, *arguments], cwd=repository, check=True)

    git("init", "-q", "-b", "main")
    for bend in ("0", "1e-6"):
        command = f'"{sys.executable}" "{tmp_path}/pretended.py" "$@" --bend={bend}'
        train.write_text(f"#!/bin/sh\nexec {command}\n")
        train.chmod(0o755)
        git("add", ".")
        git("commit", "-q", "-m", bend)
    monkeypatch.setattr(script, "HERE", repository)
    flags = ["--steps=5", "--no-seed-checkpoint", f"--output-folder={tmp_path / 'out'}"]
    flags += ["--assert-equal", "--test-ngpus=3"]
    assert script.main(["main", "main", *flags[:-1]]) == 0
    assert script.main(["main~1", "main", *flags[:2], "--assert-equal"]) == 1
    assert script.main(["nothing", "main", *flags[:2]]) == 2
    assert "git worktree add" in capsys.readouterr().err
    listed = subprocess.run(
        ["git", "worktree", "list"], cwd=repository, capture_output=True, text=True
    )
    assert len(listed.stdout.splitlines()) == 1
    assert flags_of(tmp_path, "test/outputs")[0] == "1"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--assert-equal", "--tolerance=1"], "exclude each other"),
        (["--tolerance=-1"], "--tolerance: expected 0 or more, found -1"),
        (["--export-result=x"], "need --assert-equal or --tolerance"),
        (["--test-ngpus=0"], "--test-ngpus: expected 1 or more, found 0"),
    ],
)
def test_flags_that_contradict_are_one_clear_error(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        script.main([".", ".", *flags])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
