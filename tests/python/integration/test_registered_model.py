"""The README's model trains with the same commands as the models in the package."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from training_runs import run

ROOT = Path(__file__).parents[3]
FLAGS = (
    "--experimental.custom_import=my_model",
    "--model.name=my_model",
    "--model.flavor=small",
    "--training.dataset=python_stdlib",
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


def train(
    folder: Path, name: str, *flags: str, ranks: int = 1, fails: bool = False
) -> str:
    """Train what ``my_model.py`` registers, with files in ``folder / name``.

    Returns:
        the output of all ranks.
    """
    flags = (*FLAGS, *flags)
    done = run(folder / name, *flags, ranks=ranks, fails=fails, PYTHONPATH=str(folder))
    assert any(done.exit_codes) == fails, done.output
    return done.output


def losses(folder: Path) -> list[float]:
    lines: list[Any] = [
        json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    return [line["loss"] for line in lines]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "my_model.py").write_text(example())
    return tmp_path


@pytest.mark.quick
def test_the_example_is_short() -> None:
    assert len(example().splitlines()) < 40


def test_it_trains_alike_on_one_rank_and_on_two(folder: Path) -> None:
    shared = ("--training.steps=25", "--optimizer.lr=3e-3")
    train(folder, "one", *shared, "--training.global_batch_size=4")
    full = "--activation_checkpoint.mode=full"
    train(folder, "two", *shared, full, ranks=2)
    one, two = losses(folder / "one"), losses(folder / "two")
    assert len(one) == len(two) == 25
    assert sum(one[-5:]) / 5 < one[0] - 0.5
    assert two == pytest.approx(one, rel=1e-3)


def test_a_resumed_run_equals_an_uninterrupted_one(folder: Path) -> None:
    saving = (
        "--checkpoint.enable",
        "--checkpoint.interval=3",
        "--checkpoint.no-last_save_model_only",
        "--lr_scheduler.decay_ratio=0",
    )
    train(folder, "whole", *saving, "--training.steps=6")
    train(folder, "cut", *saving, "--training.steps=3")
    train(folder, "cut", *saving, "--training.steps=6")
    assert losses(folder / "cut") == losses(folder / "whole")


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_layers_train_alike(folder: Path, backend: str) -> None:
    shared = ("--training.steps=3", "--activation_checkpoint.mode=full")
    train(folder, "plain", *shared)
    compiling = ("--compile.enable", f"--compile.backend={backend}")
    output = train(folder, "compiled", *shared, *compiling)
    assert f"{backend} compiles each layer and the loss at the first call" in output
    expected = losses(folder / "plain")
    assert losses(folder / "compiled") == pytest.approx(expected, rel=1e-4)


def test_what_needs_a_compiler_says_so(folder: Path) -> None:
    budget = ("--training.steps=1", "--activation_checkpoint.mode=memory_budget")
    output = train(folder, "refused", *budget, fails=True)
    assert (
        "memory_budget needs compile.enable, with model in compile.components" in output
    )
    backend = "--compile.backend=aot_eager"
    output = train(folder, "compiled", *budget, "--compile.enable", backend)
    assert "memory budget 0.5, by the compiler" in output


@pytest.mark.quick
def test_a_function_that_applies_parallelism_is_refused(folder: Path) -> None:
    source = example().replace("state_dict_adapter=None", "parallelize_fn=print")
    (folder / "my_model.py").write_text(source)
    output = train(folder, "refused", "--training.steps=1", fails=True)
    assert "parallelize_fn: expected None or tensor_parallel_plan(" in output
    assert "found print; a function that applies" in output
    assert "data_parallel_shard_degree" in output


VALIDATOR = """
import torch
from torchtitan_cpp.validation import BaseValidator

class MyValidator(BaseValidator):
    def __init__(self, job_config, dp_world_size, dp_rank, tokenizer, parallel_dims,
                 loss_fn, validation_context, maybe_enable_amp, metrics_processor):
        super().__init__(job_config)
        self.loss_fn, self.metrics_processor = loss_fn, metrics_processor
        self.validation_context = validation_context
        self.maybe_enable_amp = maybe_enable_amp

    def validate(self, model_parts, step):
        tokens = torch.arange(64)[None]
        with torch.no_grad(), self.validation_context(None), self.maybe_enable_amp:
            loss = self.loss_fn(model_parts[0](tokens), tokens) / 64
        self.metrics_processor.log_validation(loss=loss.item(), step=step)
"""


def test_a_validator_written_for_torchtitan_has_what_it_calls(folder: Path) -> None:
    source = example().replace(
        "state_dict_adapter=None",
        "state_dict_adapter=None, build_validator_fn=MyValidator",
    )
    (folder / "my_model.py").write_text(VALIDATOR + source)
    steps = ("--training.steps=4", "--validation.enable", "--validation.freq=2")
    train(folder, "validated", *steps)
    lines = (folder / "validated" / "validation.jsonl").read_text().splitlines()
    values = [json.loads(line) for line in lines]
    assert [value["step"] for value in values] == [1, 2, 4]
    assert all(6 < value["loss"] < 9 for value in values)
