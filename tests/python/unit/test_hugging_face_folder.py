"""Model folders: read, written, split, refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from torchtitan_cpp.checkpoint import HuggingFaceFolder
from torchtitan_cpp.checkpoint.hugging_face import HuggingFaceWriter, by_layer


def tensors() -> dict[str, torch.Tensor]:
    return {f"model.layers.{i}.w": torch.full((10,), float(i)) for i in range(5)}


def write(folder: Path, **kwargs: Any) -> list[str]:
    folder.mkdir()
    writer = HuggingFaceWriter(str(folder), **kwargs)
    for name, tensor in tensors().items():
        writer.add(name, tensor)
    return writer.finish()


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    opened = HuggingFaceFolder(str(folder))
    return {name: opened.read(name) for name in opened}


def test_a_small_model_is_one_file(tmp_path: Path) -> None:
    assert write(tmp_path / "m") == ["model.safetensors"]
    loaded = load_file(tmp_path / "m/model.safetensors")
    assert all(torch.equal(loaded[n], t) for n, t in tensors().items())
    assert read_all(tmp_path / "m").keys() == tensors().keys()


@pytest.mark.parametrize(
    ("split", "num_files"),
    [
        ({"max_file_bytes": 80}, 3),
        ({"max_file_bytes": 10}, 5),
        ({"file_of": {f"model.layers.{i}.w": 2 - i % 2 for i in range(6)}}, 2),
    ],
)
def test_a_large_model_is_split_and_indexed(
    split: dict[str, Any], num_files: int, tmp_path: Path
) -> None:
    names = write(tmp_path / "m", **split)
    files = [
        f"model-{i:05d}-of-{num_files:05d}.safetensors" for i in range(1, num_files + 1)
    ]
    assert sorted(names) == sorted([*files, "model.safetensors.index.json"])
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == sorted(names)
    index = json.loads((tmp_path / "m/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == 200
    assert index["weight_map"].keys() == tensors().keys()
    loaded = read_all(tmp_path / "m")
    assert all(torch.equal(loaded[n], t) for n, t in tensors().items())


def test_a_tensor_is_taken_once_and_only_if_it_was_foreseen(tmp_path: Path) -> None:
    writer = HuggingFaceWriter(str(tmp_path), file_of={"a": 1})
    writer.add("a", torch.zeros(1))
    with pytest.raises(ValueError, match="a: written twice"):
        writer.add("a", torch.zeros(1))
    with pytest.raises(ValueError, match="b: not in the index"):
        writer.add("b", torch.zeros(1))


@pytest.mark.parametrize(
    "name",
    [
        "../model.safetensors",
        "/etc/model.safetensors",
        "sub/model.safetensors",
        "..",
        "",
        "~/m.safetensors",
        ".hidden.safetensors",
        "m\0.safetensors",
        "m\n.safetensors",
        "model.bin",
        "x" * 300 + ".safetensors",
        7,
        None,
    ],
)
def test_an_index_that_leads_out_of_the_folder_is_refused(
    name: object, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    save_file({"w": torch.zeros(1)}, tmp_path / "model.safetensors")
    index = {"weight_map": {"w": name}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="w"):
        HuggingFaceFolder(str(folder))


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"weight_map": {}}', '{"weight_map": []}', "{"]
)
def test_an_index_without_a_weight_map_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(text)
    with pytest.raises(ValueError, match="index.json"):
        HuggingFaceFolder(str(tmp_path))


def test_an_index_must_fit_its_files(tmp_path: Path) -> None:
    write(tmp_path / "m", max_file_bytes=80)
    path = tmp_path / "m/model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"]["model.layers.9.w"] = "model-00001-of-00003.safetensors"
    path.write_text(json.dumps(index))
    with pytest.raises(ValueError, match="layers.9.w is not in model-00001"):
        HuggingFaceFolder(str(tmp_path / "m"))


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="neither model.safetensors.index.json"):
        HuggingFaceFolder(str(tmp_path))


def test_names_of_one_layer_stay_together() -> None:
    names = ["norm", "layers.1.a", "layers.10.a", "layers.1.b.0.c", "x.layers.1.a"]
    assert by_layer(names) == [
        ["norm"],
        ["layers.1.a", "layers.1.b.0.c"],
        ["layers.10.a"],
        ["x.layers.1.a"],
    ]
