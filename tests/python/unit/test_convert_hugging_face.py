"""Checkpoints into Hugging Face folders and back, by the commands."""

from __future__ import annotations

import json
import runpy
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoint_ranks import Grid, state_of
from checkpoint_runs import ENABLED, flip_bit, manager
from live_bytes import LiveBytes
from safetensors.torch import load_file, save_file
from test_llama3_state_dict_adapter import ARGS, weights

from torchtitan_cpp.checkpoint import convert
from torchtitan_cpp.models.llama3 import llama3_args
from torchtitan_cpp.models.llama3.state_dict_adapter import Llama3StateDictAdapter

ONE = Grid()
SCRIPTS = Path(__file__).parents[3] / "scripts"


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(llama3_args, "tiny", ARGS)  # type: ignore[arg-type]


def save_native(folder: Path) -> Path:
    return Path(manager(folder).save(6, state_of(weights(ARGS), ONE, 0)))


def run_script(name: str, *arguments: str) -> int:
    """Exit code of a script, as if started by its name."""
    argv, sys.argv = sys.argv, [name, *arguments]
    try:
        runpy.run_path(str(SCRIPTS / name), run_name="__main__")
    except SystemExit as end:
        return int(end.code or 0)
    finally:
        sys.argv = argv
    raise AssertionError(f"{name} did not exit")


def test_there_and_back_by_torchtitans_scripts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, model = save_native(tmp_path), tmp_path / "deep/model"
    options = ("--model_name", "llama3", "--model_flavor", "tiny")
    arguments = (str(source), str(model), "--export_dtype", "float32", *options)
    assert run_script("convert_to_hf.py", *arguments) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{model}\n"
    total = sum(tensor.nbytes for tensor in weights(ARGS).values()) / 2**20
    assert f"{total:.1f} of {total:.1f} MiB" in shown.err
    assert "Wrote model.safetensors" in shown.err
    expected = Llama3StateDictAdapter(ARGS, None).to_hf(weights(ARGS))
    held = load_file(model / "model.safetensors")
    assert held.keys() == expected.keys()
    assert all(torch.equal(held[n], t) for n, t in expected.items())
    config = json.loads((model / "config.json").read_text())
    assert config["max_position_embeddings"] == ARGS.max_seq_len

    config["rope_theta"] = 123.0
    (model / "config.json").write_text(json.dumps(config))
    back = tmp_path / "seed/step-0"
    assert run_script("convert_from_hf.py", str(model), str(back), *options) == 0
    assert "config.json has rope_theta 123.0, the model" in capsys.readouterr().err
    target = state_of(weights(ARGS), ONE, 0, zeros=True)
    loaded = manager(tmp_path, replace(ENABLED, folder="seed"))
    assert loaded.load(target).step == 0
    for entry in target.tensors:
        assert torch.equal(entry.local, weights(ARGS)[entry.name])
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint",
        "deep",
        "seed",
    ]
    assert [path.name for path in model.parent.iterdir()] == ["model"]


def test_folders_of_torch_go_there_and_come_back(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    dcp.save(weights(ARGS), checkpoint_id=plain, no_dist=True)
    flags = ("--model.flavor=tiny",)
    model, back = str(tmp_path / "model"), str(tmp_path / "back")
    assert convert.main(["to-hf", str(plain), model, *flags]) == 0
    arguments = ["from-hf", model, back, "--format=dcp", *flags]
    assert convert.main(arguments) == 0
    held = {name: torch.zeros_like(t) for name, t in weights(ARGS).items()}
    dcp.load(held, checkpoint_id=back, no_dist=True)
    assert all(torch.equal(held[n], t) for n, t in weights(ARGS).items())


@pytest.mark.parametrize("command", ["to-hf", "from-hf"])
def test_memory_is_twice_the_largest_tensor_at_most(
    command: str, tmp_path: Path
) -> None:
    source = str(save_native(tmp_path))
    if command == "from-hf":
        there = str(tmp_path / "there")
        assert convert.main(["to-hf", source, there, "--model.flavor=tiny"]) == 0
        source = there
    result = str(tmp_path / "result")
    with LiveBytes() as live:
        assert convert.main([command, source, result, "--model.flavor=tiny"]) == 0
    sizes = [tensor.nbytes for tensor in weights(ARGS).values()]
    assert max(sizes) <= live.peak <= 2 * max(sizes) + 2**12 < sum(sizes)


def test_what_cannot_be_converted_is_told_and_nothing_is_made(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_native(tmp_path / "run")
    model, result = tmp_path / "model", tmp_path / "result"
    tiny = "--model.flavor=tiny"
    assert convert.main(["to-hf", str(source), str(model), tiny]) == 0
    lacking = tmp_path / "lacking"
    shutil.copytree(model, lacking)
    (lacking / "manifest.json").unlink()
    held = load_file(lacking / "model.safetensors")
    held["model.norms.weight"] = held.pop("model.norm.weight")
    save_file(held, lacking / "model.safetensors")
    damaged = tmp_path / "damaged"
    shutil.copytree(model, damaged)
    flip_bit(damaged / "model.safetensors")
    for arguments, message in [
        (["to-hf", str(source), str(model), tiny], "exists already"),
        (["to-hf", str(model), str(result), tiny], "is a Hugging Face folder already"),
        (["to-hf", str(source), str(result), "--model_flavor=tinny"], "'tiny'"),
        (
            ["to-hf", str(source), str(result)],
            "does not hold layers.2.attention.wk.weight",
        ),
        (["to-hf", str(tmp_path / "none"), str(result), tiny], "none"),
        (["to-hf", str(source.parent), str(result), tiny], f"in it: {source.name}"),
        (["to-dcp", str(source.parent), str(result)], f"in it: {source.name}"),
        (["to-dcp", str(lacking), str(result)], "convert them by from-hf"),
        (["to-hf", str(source), str(result), tiny, "--export_dtype=int8"], "int8"),
        (["from-hf", str(tmp_path / "none"), str(result), tiny], "is no folder"),
        (["from-hf", str(source), str(result), tiny], "holds neither model.safetens"),
        (
            ["from-hf", str(lacking), str(result), tiny],
            "unknown Hugging Face weight model.norms.weight "
            "(nearest: model.norm.weight)",
        ),
        (["from-hf", str(damaged), str(result), tiny], "SHA-256"),
    ]:
        assert convert.main(arguments) == convert.EXIT_BAD_INPUT, message
        assert message in capsys.readouterr().err
    assert not result.exists() and not (tmp_path / "result.converting").exists()


@pytest.mark.parametrize(
    "script",
    [
        "convert_from_hf.py",
        "convert_to_hf.py",
        "convert_to_dcp.py",
        "convert_from_dcp.py",
    ],
)
def test_the_scripts_explain_themselves(
    script: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_script(script, "--help") == 0
    assert "source" in capsys.readouterr().out
