"""Models from checkpoints: ours, torch's and Hugging Face's, on ranks and on one."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoint_ranks import Grid, state_of
from checkpoint_runs import flip_bit, manager
from torch import nn

import torchtitan_cpp
from torchtitan_cpp import TrainSpec, generate, get_train_spec, train_spec
from torchtitan_cpp.checkpoint import CheckpointError
from torchtitan_cpp.config import JobConfig
from torchtitan_cpp.config.checkpoint import Checkpoint
from torchtitan_cpp.errors import MissingPathError
from torchtitan_cpp.generation import LoadedModel, loading
from torchtitan_cpp.generation.command import main
from torchtitan_cpp.generation.loading import (
    divided_by_tensor_axis,
    load_model,
    load_on_rank,
    read_model_config,
)
from torchtitan_cpp.local_ranks import LocalWorld, run_local
from torchtitan_cpp.models.llama3 import (
    Transformer,
    TransformerModelArgs,
    llama3_args,
)
from torchtitan_cpp.models.llama3.state_dict_adapter import Llama3StateDictAdapter
from torchtitan_cpp.rank_thread import RankThread
from torchtitan_cpp.world import build_world

OURS = Path(torchtitan_cpp.__file__).parent / "assets" / "tokenizer"
FLAGS = ("--model.flavor=small", "--training.seq_len=32")
ONE = Grid()
PROMPTS = ["def main(", "import os\n", "x"]
OPTIONS = {"max_new_tokens": 12, "seed": 5, "temperature": 0.9}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> TransformerModelArgs:
    args = TransformerModelArgs(
        dim=32,
        n_layers=2,
        n_heads=8,
        n_kv_heads=4,
        vocab_size=2048,
        multiple_of=12,
        rope_theta=10000,
        max_seq_len=32,
    )
    monkeypatch.setitem(llama3_args, "small", args)  # type: ignore[arg-type]
    return args


def make_model(args: TransformerModelArgs, seed: int = 1) -> Transformer:
    torch.manual_seed(seed)
    model = Transformer(args)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    return model


def save(folder: Path, model: nn.Module, step: int = 3, *, in_hf: bool = False) -> Path:
    """A checkpoint below ``folder``."""
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    args = getattr(model, "model_args", None)
    run = manager(
        folder,
        Checkpoint(enable=True, last_save_model_only=in_hf, last_save_in_hf=in_hf),
        adapter=Llama3StateDictAdapter(args, None) if in_hf else None,
    )
    return Path(run.save(step, state_of(weights, ONE, 0), last_step=True))


def test_a_loaded_model_says_what_the_saved_one_says(
    small: TransformerModelArgs, tmp_path: Path
) -> None:
    model = make_model(small)
    path = save(tmp_path, model)
    loaded = load_model(str(path), flags=FLAGS)
    made = generate(loaded, PROMPTS, **OPTIONS)
    assert loaded.path == str(path)
    again = generate(model, made.prompts, stop_ids={1}, **OPTIONS)
    assert again.tokens == made.tokens
    assert made.prompt_texts == PROMPTS
    assert made.texts is not None and all(made.texts)
    assert isinstance(loaded.module, Transformer)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], value), name


def test_the_last_checkpoint_of_a_run_is_found_by_its_flags(
    small: TransformerModelArgs, tmp_path: Path
) -> None:
    save(tmp_path, make_model(small, seed=1), step=30)
    last = save(tmp_path, make_model(small, seed=2), step=4)
    flags = (*FLAGS, f"--job.dump_folder={tmp_path}")
    assert load_model(flags=flags).path == str(last)
    assert load_model(str(tmp_path / "checkpoint"), flags=FLAGS).path == str(last)


def test_among_folders_of_torch_the_last_step_is_taken_and_what_is_saved_later(
    small: TransformerModelArgs, tmp_path: Path
) -> None:
    model, run = make_model(small), tmp_path / "checkpoint"
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    for step in (30, 4):
        dcp.save(weights, checkpoint_id=run / f"step-{step}", no_dist=True)
        assert load_model(str(run), flags=FLAGS).path == str(run / "step-30")
    later = save(tmp_path, model, step=2, in_hf=True)
    assert load_model(str(run), flags=FLAGS).path == str(later)


def test_what_a_training_purges_while_it_is_loaded_gives_way_to_what_is_newer(
    small: TransformerModelArgs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = save(tmp_path, make_model(small, seed=1), step=10)
    inspect = loading.inspect_on_all

    def inspect_late(path: str, ranks: Any) -> Any:
        if first.exists():
            save(tmp_path, make_model(small, seed=2), step=20)
            shutil.rmtree(first)
        return inspect(path, ranks)

    monkeypatch.setattr(loading, "inspect_on_all", inspect_late)
    folder = first.parent
    assert load_model(str(folder), flags=FLAGS).path == str(folder / "step-20")
    with pytest.raises(MissingPathError, match="step-10 is no folder"):
        load_model(str(first), flags=FLAGS)


def test_hugging_face_folders_load_with_their_stop_tokens(
    small: TransformerModelArgs, tmp_path: Path
) -> None:
    model = make_model(small)
    path = save(tmp_path, model, in_hf=True)
    plain = tmp_path / "plain"
    plain.mkdir()
    shutil.copy(path / "model.safetensors", plain)
    (plain / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 9]}))
    for folder, stop_ids in ((path, {1}), (plain, {7, 9})):
        loaded = load_model(str(folder), flags=FLAGS)
        assert loaded.stop_ids == stop_ids
        made = generate(loaded, PROMPTS, **OPTIONS)
        expected = generate(model, made.prompts, stop_ids=stop_ids, **OPTIONS)
        assert made.tokens == expected.tokens


def test_hugging_face_folders_read_with_their_tokenizer(
    small: TransformerModelArgs, tmp_path: Path
) -> None:
    path = save(tmp_path, make_model(small), in_hf=True)
    vocabulary = {"import": 5, "os": 9, "[UNK]": 2}
    (path / "vocab.json").write_text(json.dumps(vocabulary))
    for folder in (path, path.parent):
        made = generate(load_model(str(folder), flags=FLAGS), "import", **OPTIONS)
        assert made.prompts == [[5]]
    named = shutil.copytree(OURS, tmp_path / "named")
    for assets, folder in ((named, path), (OURS, save(tmp_path, make_model(small)))):
        flags = (*FLAGS, f"--model.hf_assets_path={assets}")
        loaded = load_model(str(folder), flags=flags)
        assert loaded.tokenizer.tokenizer_path == str(assets)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_folders_of_torch_load(small: TransformerModelArgs, tmp_path: Path) -> None:
    model = make_model(small)
    path = tmp_path / "checkpoint" / "step-3"
    dcp.save(dict(model.state_dict()), checkpoint_id=path)
    for folder in (path, path.parent):
        loaded = load_model(str(folder), flags=FLAGS)
        assert loaded.path == str(path)
        made = generate(loaded, PROMPTS, **OPTIONS)
        assert (
            made.tokens == generate(model, made.prompts, stop_ids={1}, **OPTIONS).tokens
        )


def config_of_threads(ranks: int) -> JobConfig:
    config = read_model_config(FLAGS)
    comm = replace(config.comm, mode="local_tensor")
    return divided_by_tensor_axis(replace(config, comm=comm), ranks=ranks)


@pytest.mark.parametrize("ranks", [2, 4])
def test_ranks_that_divide_the_model_say_what_one_rank_says(
    ranks: int,
    small: TransformerModelArgs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = save(tmp_path, make_model(small))
    expected = generate(load_model(str(path), flags=FLAGS), PROMPTS, **OPTIONS)
    monkeypatch.setenv("NGPU", str(ranks))
    world = LocalWorld(ranks, timeout_seconds=60)
    config = config_of_threads(ranks)

    def act(rank: int) -> tuple[LoadedModel, list[list[int]]]:
        with RankThread(world, rank, train_timeout_seconds=60).here():
            model = load_on_rank(
                config, build_world(config), str(path), dtype=torch.float32
            )
            # Each rank by itself would draw another seed.
            return model, generate(model, PROMPTS, **OPTIONS).tokens

    for model, tokens in run_local(world, act):
        assert tokens == expected.tokens
        assert model.parameters is not None
        assert model.parameters[1][1].shape == (4 // ranks * 4, 32)  # heads of wk


def test_a_rank_that_chooses_otherwise_follows_the_first(
    small: TransformerModelArgs,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = save(tmp_path, make_model(small))
    monkeypatch.setenv("NGPU", "2")
    world = LocalWorld(2, timeout_seconds=60)
    config = config_of_threads(2)

    def act(rank: int) -> list[list[int]]:
        with RankThread(world, rank, train_timeout_seconds=60).here():
            model = load_on_rank(
                config, build_world(config), str(path), dtype=torch.float32
            )
            return generate(model, PROMPTS, **OPTIONS | {"seed": rank}).tokens

    tokens = run_local(world, act)
    assert tokens[0] == tokens[1]


class Bigrams(nn.Module):
    """A model in Python, with a buffer of its own."""

    def __init__(self, args: TransformerModelArgs) -> None:
        super().__init__()
        self.table = nn.Embedding(args.vocab_size, args.vocab_size)
        self.register_buffer("shift", torch.arange(3.0))
        self.register_buffer("scale", torch.full((1,), 2.0), persistent=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.table(tokens) * self.scale + self.shift.sum()


def test_models_in_python_load_with_their_buffers_on_one_rank(
    small: TransformerModelArgs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = get_train_spec("llama3")
    spec = TrainSpec(**{**vars(spec), "model_cls": Bigrams, "state_dict_adapter": None})
    monkeypatch.setitem(train_spec._registered, "bigrams", spec)
    model = Bigrams(small)
    model.shift += 1
    path = save(tmp_path, model)
    flags = (*FLAGS, "--model.name=bigrams")
    loaded = load_model(str(path), flags=flags)
    made = generate(loaded, PROMPTS, **OPTIONS)
    assert made.tokens == generate(model, made.prompts, stop_ids={1}, **OPTIONS).tokens
    assert torch.equal(loaded.module.get_buffer("shift"), model.shift)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "model.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="TrainSpec has no state_dict_adapter"):
        load_model(str(tmp_path / "hf"), flags=flags)


def test_what_is_no_checkpoint_is_one_clear_error(
    small: TransformerModelArgs, tmp_path: Path
) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere is no folder"):
        load_model(str(tmp_path / "nowhere"), flags=FLAGS)
    with pytest.raises(FileNotFoundError, match="holds no checkpoint: expected a step"):
        load_model(str(tmp_path), flags=FLAGS)
    path = save(tmp_path, make_model(small))
    with pytest.raises(ValueError, match="does not hold layers.2."):
        llama3_args["small"].n_layers = 3
        load_model(str(path), flags=FLAGS)
    llama3_args["small"].n_layers = 2
    flip_bit(path / "rank-00000.safetensors")
    with pytest.raises(CheckpointError, match="rank-00000.safetensors"):
        load_model(str(path), flags=FLAGS)


def test_a_configuration_without_such_a_model_is_one_clear_error() -> None:
    with pytest.raises(ValueError, match="found 'smal'; did you mean 'small'"):
        load_model(flags=["--model.flavor=smal"])


def test_the_command_prints_texts_and_speed(
    small: TransformerModelArgs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path, make_model(small))
    (tmp_path / "prompt.txt").write_text("def main(")
    flags = [f"--checkpoint={path}", "--seed=5", "--max_new_tokens=12", *FLAGS]
    assert main([*flags, "--prompt", str(tmp_path / "prompt.txt")]) == 0
    text = capsys.readouterr().out
    made = generate(
        load_model(str(path), flags=FLAGS), "def main(", seed=5, max_new_tokens=12
    )
    assert made.texts is not None
    assert text.startswith(f"def main({made.texts[0]}\n")
    assert "seed 5: " in text and "tokens per second" in text


def test_the_command_reports_as_torchtitan_does(
    small: TransformerModelArgs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path, make_model(small))
    flags = [f"--checkpoint={path}", "--out", "--ignore_eos", "--batch-size=2", *FLAGS]
    flags += ["--prompt=x", "--prompt=y z", "--seed=1", "--max_new_tokens=4"]
    assert main([*flags, "--top_k=9", "--deterministic", "--dtype=float64"]) == 0
    torch.use_deterministic_algorithms(False)
    report = json.loads(capsys.readouterr().out)
    assert [r["input_text"] for r in report["responses"]] == ["x", "x", "y z", "y z"]
    texts = [r["output_text"] for r in report["responses"]]
    assert len(set(texts)) == 4
    metadata = report["metadata"]
    assert metadata["generated_n_tokens"] == 4
    assert metadata["batch_size"] == 4
    assert metadata["seed"] == 1
    assert metadata["new_tokens_per_sec"] == 16 / metadata["generation_time_sec"]
    assert metadata["memory/max_reserved(GiB)"] > 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--checkpoint=nowhere"], "nowhere is no folder"),
        (["--max_new_token=4"], "max_new_token"),
        (["--max_new_tokens=40"], "more than the 32 tokens"),
    ],
)
def test_the_command_refuses_bad_input_in_one_line(
    flags: list[str],
    message: str,
    small: TransformerModelArgs,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = save(tmp_path, make_model(small))
    assert main([f"--checkpoint={path}", *FLAGS, *flags, "--prompt=x"]) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert "Traceback" not in captured.err
    assert captured.out == ""


def test_bad_options_are_told_together_before_anything_is_loaded(
    capsys: pytest.CaptureFixture[str],
) -> None:
    flags = ["--batch_size=0", "--top_k=0", "--temperature=nan", f"--seed={2**64}"]
    assert main(["--checkpoint=nowhere", *flags]) == 2
    assert capsys.readouterr().err == (
        "--batch_size: expected at least 1, found 0\n"
        "--top_k: expected at least 1, found 0\n"
        "--temperature: expected a number of at least 0, found nan\n"
        "--seed: expected a number of 64 bits, found 18446744073709551616\n"
    )
    assert main(["--checkpoint=nowhere", "--max_new_tokens=0", "--temperature=-1"]) == 2
    assert "--max_new_tokens: expected at least 1" in capsys.readouterr().err
