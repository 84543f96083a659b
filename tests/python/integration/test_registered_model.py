"""The README's model trains with the same commands as the models in the package."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
FLAGS = (
    "--experimental.custom_import=my_model",
    "--model.name=my_model",
    "--model.flavor=small",
    "--training.local_batch_size=2",
    "--training.seq_len=64",
    "--metrics.log_freq=1",
    "--debug.seed=1",
    "--lr_scheduler.warmup_steps=2",
)


def example() -> str:
    """The first Python block of the README's section."""
    section = (ROOT / "README.md").read_text().partition("## Register a model")[2]
    found = re.search(r"```python\n(.*?)```", section, re.DOTALL)
    assert found is not None
    return found.group(1)


def train(folder: Path, *flags: str, ranks: int = 1, fails: bool = False) -> str:
    """Run the trainer where ``my_model.py`` lies; its output."""
    python = [sys.executable, "-m"]
    if ranks > 1:
        python += ["torch.distributed.run", "--standalone"]
        python += [f"--nproc_per_node={ranks}", "-m"]
    paths = [str(ROOT / "python"), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [*python, "torchtitan_cpp.train", *FLAGS, *flags],
        cwd=folder,
        env=os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    output = done.stdout + done.stderr
    assert (done.returncode != 0) == fails, output
    return output


def losses(folder: Path) -> list[float]:
    lines: list[Any] = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    return [line["loss"] for line in lines]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_model.py").write_text(example())
    return tmp_path


def test_the_example_is_short() -> None:
    assert len(example().splitlines()) < 40


@pytest.mark.slow
def test_it_trains_alike_on_one_rank_and_on_two(folder: Path) -> None:
    shared = ("--training.steps=25", "--optimizer.lr=3e-3")
    train(folder, *shared, "--job.dump_folder=one", "--training.global_batch_size=4")
    full = "--activation_checkpoint.mode=full"
    train(folder, *shared, "--job.dump_folder=two", full, ranks=2)
    one, two = losses(folder / "one"), losses(folder / "two")
    assert len(one) == len(two) == 25
    assert sum(one[-5:]) / 5 < one[0] - 0.5
    assert two == pytest.approx(one, rel=1e-3)


@pytest.mark.slow
def test_a_resumed_run_equals_an_uninterrupted_one(folder: Path) -> None:
    saving = (
        "--checkpoint.enable",
        "--checkpoint.interval=3",
        "--checkpoint.no-last_save_model_only",
        "--lr_scheduler.decay_ratio=0",
    )
    train(folder, *saving, "--training.steps=6", "--job.dump_folder=whole")
    train(folder, *saving, "--training.steps=3", "--job.dump_folder=cut")
    train(folder, *saving, "--training.steps=6", "--job.dump_folder=cut")
    assert losses(folder / "cut") == losses(folder / "whole")


@pytest.mark.parametrize(
    "backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)]
)
def test_compiled_layers_train_alike(folder: Path, backend: str) -> None:
    shared = ("--training.steps=3", "--activation_checkpoint.mode=full")
    train(folder, *shared, "--job.dump_folder=plain")
    output = train(
        folder,
        *shared,
        "--compile.enable",
        f"--compile.backend={backend}",
        "--job.dump_folder=compiled",
    )
    assert f"{backend} compiles each layer and the loss at the first call" in output
    expected = losses(folder / "plain")
    assert losses(folder / "compiled") == pytest.approx(expected, rel=1e-4)


def test_what_needs_a_compiler_says_so(folder: Path) -> None:
    budget = ("--training.steps=1", "--activation_checkpoint.mode=memory_budget")
    output = train(folder, *budget, fails=True)
    assert (
        "memory_budget needs compile.enable, with model in compile.components" in output
    )
    backend = "--compile.backend=aot_eager"
    output = train(folder, *budget, "--compile.enable", backend)
    assert "memory budget 0.5, by the compiler" in output


def test_a_function_that_applies_parallelism_is_refused(folder: Path) -> None:
    source = example().replace("state_dict_adapter=None", "parallelize_fn=print")
    (folder / "my_model.py").write_text(source)
    output = train(folder, "--training.steps=1", fails=True)
    assert "parallelize_fn: expected None or tensor_parallel_plan(" in output
    assert "found print; a function that applies" in output
    assert "data_parallel_shard_degree" in output
