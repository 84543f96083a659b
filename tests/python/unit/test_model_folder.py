"""Folders that transformers loads by their path alone, as this package writes them."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from checkpoint_ranks import Grid, state_of
from checkpoint_runs import manager

from torchtitan_cpp import generate
from torchtitan_cpp.checkpoint import StateDictAdapter
from torchtitan_cpp.checkpoint.model_folder import warn_of_other_settings
from torchtitan_cpp.config.checkpoint import Checkpoint
from torchtitan_cpp.data.tokenizer import HuggingFaceTokenizer
from torchtitan_cpp.models.llama3 import (
    RoPEScalingArgs,
    Transformer,
    TransformerModelArgs,
)
from torchtitan_cpp.models.llama3.state_dict_adapter import Llama3StateDictAdapter

TOKENIZER = Path(__file__).parents[3] / "python/torchtitan_cpp/assets/tokenizer"
ARGS = TransformerModelArgs(
    dim=32,
    n_layers=2,
    n_heads=4,
    n_kv_heads=2,
    vocab_size=2048,
    multiple_of=16,
    max_seq_len=64,
)
SETTINGS = Checkpoint(enable=True, last_save_in_hf=True)


def make_model(args: TransformerModelArgs) -> Transformer:
    torch.manual_seed(1)
    model = Transformer(args)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3 if parameter.dim() > 1 else 1)
    return model


def export(folder: Path, model: Transformer, assets: Path | None) -> str:
    adapter = Llama3StateDictAdapter(
        model.model_args, None if assets is None else str(assets)
    )
    weights = {name: value.detach() for name, value in model.state_dict().items()}
    run = manager(folder, SETTINGS, adapter=adapter)
    path: str = run.save(9, state_of(weights, Grid(), 0), last_step=True)
    return path


@pytest.mark.parametrize("tied", [False, True])
def test_auto_classes_give_the_same_logits_and_tokens(
    tied: bool, tmp_path: Path
) -> None:
    model = make_model(replace(ARGS, enable_weight_tying=tied))
    path = export(tmp_path, model, TOKENIZER)
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(path).eval()
    assert theirs.dtype == torch.float32
    tokens = torch.randint(0, 2048, (3, 50), generator=torch.manual_seed(0))
    with torch.no_grad():
        ours, their_logits = model(tokens), theirs(tokens).logits
    assert (ours - their_logits).abs().max() <= 1e-5 * max(1, ours.abs().max())

    own = HuggingFaceTokenizer(str(TOKENIZER))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(path)
    text = "def main(argv):\n\treturn 'ü' * 3  # <|end_of_text|>"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert ids == own.encode(text, add_bos=False, add_eos=False)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (own.bos_id, own.eos_id)
    assert theirs.generation_config.eos_token_id == own.eos_id

    prompt = own.encode("import os\n", add_bos=True, add_eos=False)
    made = generate(model, prompt, tokenizer=own, max_new_tokens=20, temperature=0)
    continued = theirs.generate(
        torch.tensor([prompt]), max_new_tokens=20, do_sample=False
    )[0, len(prompt) :]
    assert continued.tolist() == made.tokens[0]


@pytest.mark.parametrize("scaling", [None, RoPEScalingArgs()])
def test_settings_of_another_model_are_told(
    scaling: RoPEScalingArgs | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    args = replace(ARGS, rope_scaling_args=scaling)
    ours = export(tmp_path, make_model(args), TOKENIZER)
    theirs = str(tmp_path / "theirs")
    transformers.AutoModelForCausalLM.from_pretrained(ours).save_pretrained(theirs)
    other = replace(args, rope_theta=5e5, rope_scaling_args=RoPEScalingArgs(4.0))
    for folder in (ours, theirs):
        caplog.clear()
        warn_of_other_settings(folder, Llama3StateDictAdapter(args, None))
        assert not caplog.records
        warn_of_other_settings(folder, Llama3StateDictAdapter(other, None))
        (told,) = caplog.messages
        assert told.startswith(f"{folder}/config.json has ")
        assert "rope_theta 10000.0, the model 500000.0" in told
        assert "the model {'rope_type': 'llama3', 'factor': 4.0" in told
    warn_of_other_settings(str(tmp_path), Llama3StateDictAdapter(other, None))
    assert len(caplog.records) == 1


def test_settings_of_the_original_are_carried_over(tmp_path: Path) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    for name, text in {
        "tokenizer.json": (TOKENIZER / "tokenizer.json").read_text(),
        "config.json": '{"bos_token_id": 5, "pad_token_id": 6, "hidden_size": 1}',
        "generation_config.json": '{"eos_token_id": [7, 8], "temperature": 0.6}',
        "chat_template.jinja": "{{ messages }}",
        "notes.txt": "not copied",
    }.items():
        (assets / name).write_text(text)
    path = Path(export(tmp_path, make_model(ARGS), assets))
    config = json.loads((path / "config.json").read_text())
    assert config["hidden_size"] == 32 and config["eos_token_id"] == [7, 8]
    assert (config["bos_token_id"], config["pad_token_id"]) == (5, 6)
    for name in ("generation_config.json", "chat_template.jinja", "tokenizer.json"):
        assert (path / name).read_bytes() == (assets / name).read_bytes()
    assert not (path / "notes.txt").exists()
    own = HuggingFaceTokenizer(str(TOKENIZER))
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(str(path))
    for text in ("def f(x):\n    return x", "  é 1234"):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert ids == own.encode(text, add_bos=False, add_eos=False)
    listed = json.loads((path / "manifest.json").read_text())["files"]
    held = {file.name for file in path.iterdir()} - {"manifest.json", "manifest.sha256"}
    assert {file["name"] for file in listed} == held


def test_without_assets_no_token_ends_a_text(tmp_path: Path) -> None:
    path = export(tmp_path, make_model(ARGS), None)
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(path)
    assert theirs.generation_config.eos_token_id is None
    assert theirs.config.bos_token_id is None


class Plain(StateDictAdapter):
    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return state_dict

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        return hf_state_dict


def test_an_adapter_without_sizes_keeps_the_configuration_of_the_original(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    original = {"model_type": "x", "dtype": "bfloat16", "quantization_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(original))
    (tmp_path / "generation_config.json").write_text("{")
    state = state_of({"w": torch.ones(3)}, Grid(), 0)
    adapter = Plain(None, str(tmp_path))
    path = manager(tmp_path, SETTINGS, adapter=adapter).save(9, state, last_step=True)
    config = json.loads((Path(path) / "config.json").read_text())
    assert config["model_type"] == "x" and config["torch_dtype"] == "float32"
    assert config.keys().isdisjoint({"quantization_config", "dtype"})
    assert "generation_config.json is left out" in caplog.text

    caplog.set_level(logging.WARNING, logger="torchtitan_cpp")
    bare = manager(tmp_path / "bare", SETTINGS, adapter=Plain(None, None))
    bare.save(9, state, last_step=True)
    assert "No config.json is written" in caplog.text


def test_an_index_of_another_model_does_not_end_the_last_save(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = {"weight_map": {"other": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    path = Path(export(tmp_path, make_model(ARGS), tmp_path))
    assert (path / "model.safetensors").is_file()
    assert "is of another model" in caplog.text
