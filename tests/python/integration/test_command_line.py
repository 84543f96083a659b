"""The train command: help, mistakes of the user, dry runs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from training_runs import merged, run

PACKAGE = Path(__file__).parents[3] / "python" / "torchtitan_cpp"


@pytest.mark.quick
@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--training.stepz=5"], ["training.stepz", "training.steps"]),
        (["--model.flavor=tinny"], ["model.flavor", "tiny"]),
        (["--model.name=lama3"], ["model.name", "llama3"]),
        (["--training.dataset=tiny_texts"], ["training.dataset", "tiny_text"]),
        (["--training.steps=0", "--optimizer.lr=fast"], ["2 problems", "optimizer.lr"]),
        (["--parallelism.data-parallel-shard-degree=3"], ["data_parallel", "2"]),
        (
            ["--parallelism.tensor-parallel-degree=2"],  # tiny has one kv head
            [
                "flag --parallelism.tensor-parallel-degree: "
                "parallelism.tensor_parallel_degree: expected a divisor of n_kv_heads "
                "= 1 and of hidden_dim = 60 (1), found 2"
            ],
        ),
        (
            [
                "--parallelism.tensor-parallel-degree=2",
                "--experimental.custom-import=tiny_python_model",
                "--model.name=counting",
                "--model.flavor=plain",
            ],
            [
                "flag --parallelism.tensor-parallel-degree: ",
                "a model written in Python needs TrainSpec.parallelize_fn",
            ],
        ),
        (
            [
                "--parallelism.tensor-parallel-degree=2",
                "--experimental.custom-import=styled_jobs",
                "--model.name=misspelled",
                "--model.flavor=plain",
            ],
            [
                "flag --parallelism.tensor-parallel-degree: ",
                "'layers.*.atention.wq' is no module of Styled; did you mean "
                "'layers.*.attention.wq'?",
            ],
        ),
        (
            [
                "--parallelism.context-parallel-degree=2",
                "--experimental.custom-import=tiny_python_model",
                "--model.name=counting",
                "--model.flavor=plain",
            ],
            ["--parallelism.context-parallel-degree: ", "models written in Python"],
        ),
        (
            ["--parallelism.context-parallel-degree=3"],
            ["training.seq_len: expected a multiple of 6", "found 16"],
        ),
        (
            ["--validation.enable", "--validation.seq-len=32"],
            [
                "flag --validation.seq-len: ",
                "at most training.seq_len = 16",
                "found 32",
            ],
        ),
        (["--training.global-batch-size=7"], ["global_batch_size", "7"]),
        (["--model.hf-assets-path=/no/such/folder"], ["/no/such/folder"]),
        (
            ["--training.dataset=local", "--training.dataset-path=/no/such/*.txt"],
            ["flag --training.dataset-path: ", "no such", "'/no/such/*.txt'"],
        ),
    ],
)
def test_mistakes_end_all_ranks_with_one_message_before_any_group(
    flags: list[str], expected: list[str], tmp_path: Path
) -> None:
    # A port that nobody answers: joining the other ranks would take half a minute.
    ended = run(tmp_path, *flags, ranks=2, fails=True)
    assert ended.exit_codes == [2, 2], ended.output
    for text in expected:
        assert text in ended.outputs[0]
    assert "Traceback" not in ended.output
    assert ended.outputs[1] == ""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--checkpoint.enable", "--checkpoint.load-step=5"], "step-5 does not exist"),
        (["--training.dataset-path=broken.jsonl"], "more than 100 bad records"),
        (["--training.dataset-path=notes.doc"], "no file that can be read"),
        (["--training.dataset-path=empty.jsonl"], "has no usable document"),
    ],
)
def test_what_is_found_wrong_later_is_one_line_without_a_traceback(
    flags: list[str], expected: str, tmp_path: Path
) -> None:
    (tmp_path / "broken.jsonl").write_text("no JSON\n" * 101)
    (tmp_path / "notes.doc").touch()
    (tmp_path / "empty.jsonl").touch()
    done = command(
        tmp_path,
        "torchtitan_cpp.train",
        "--training.dataset=local",
        f"--training.dataset-path={Path(__file__).parent}",
        "--training.steps=1",
        "--training.seq-len=16",
        *flags,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert expected in done.stderr.splitlines()[-1]


def command(
    folder: Path, module: str, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        cwd=folder,
        env=os.environ
        | {"PYTHONPATH": f"{PACKAGE.parent}{os.pathsep}{Path(__file__).parent}"}
        | environment,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.quick
def test_help_shows_fields_with_their_docs(tmp_path: Path) -> None:
    done = command(tmp_path, "torchtitan_cpp.train", "--help")
    assert done.returncode == 0, done.stderr
    assert "--training.local-batch-size" in done.stdout.replace("_", "-")
    assert "Gradients are scaled down to this global 2-norm" in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_every_value_is_printed_with_its_origin(tmp_path: Path) -> None:
    done = command(tmp_path, "torchtitan_cpp.config", "--training.steps=3")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    steps = next(line for line in lines if line.startswith("steps = 3"))
    assert "flag" in steps


@pytest.mark.parametrize(
    ("flavor", "ranks", "parameters"),
    [
        ("debugmodel", "4", "6,"),
        ("405B", "512", "405,"),
    ],
)
def test_a_dry_run_reports_memory_and_traffic_of_any_world(
    flavor: str, ranks: str, parameters: str, tmp_path: Path
) -> None:
    done = command(
        tmp_path,
        "torchtitan_cpp.train",
        "--comm.mode=fake_backend",
        f"--model.flavor={flavor}",
        "--training.steps=1",
        "--training.seq-len=2048",
        NGPU=ranks,
    )
    assert done.returncode == 0, done.stderr
    report = done.stdout + done.stderr
    assert f"kept by rank 0 of {ranks}" in report
    assert "fsdp           all_gather" in report
    kept = re.search(r"together +([0-9,.]+) MiB", report)
    peak = re.search(r"at the peak of a step +([0-9,.]+) MiB", report)
    assert kept and peak
    assert float(peak[1].replace(",", "")) > float(kept[1].replace(",", ""))
    assert f"{flavor}, {parameters}" in report
    assert "loss:" not in report
    assert not re.search("^  files ", report, re.MULTILINE)  # for it writes none
    assert list(tmp_path.iterdir()) == []


def test_a_run_of_its_own_folder_needs_no_configuration_file(tmp_path: Path) -> None:
    done = command(tmp_path, "torchtitan_cpp.train", *merged("--training.steps=2"))
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "outputs" / "metrics.jsonl").exists()
