"""Model folders: read, written, split, refused."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from torchtitan_cpp.checkpoint import HuggingFaceFolder
from torchtitan_cpp.checkpoint.exporting import (
    ExportedFile,
    ExportedTensor,
    split_by_size,
    write_index,
)
from torchtitan_cpp.checkpoint.hugging_face import by_layer
from torchtitan_cpp.errors import UnusablePathError


def tensors() -> dict[str, torch.Tensor]:
    return {f"model.layers.{i}.w": torch.full((10,), float(i)) for i in range(5)}


def write(folder: Path, **sizes: int) -> list[str]:
    folder.mkdir()
    exported = [
        ExportedTensor(
            name=name, dtype=t.dtype, shape=tuple(t.shape), read=partial(t.clone)
        )
        for name, t in tensors().items()
    ]
    files = split_by_size(exported, **{"world_size": 1, "min_share_bytes": 0} | sizes)
    records = [file.write(str(folder)) for file in files]
    return [each.name for each in records + write_index(str(folder), files)]


def read_all(folder: Path) -> dict[str, torch.Tensor]:
    opened = HuggingFaceFolder(str(folder))
    return {name: opened.read(name) for name in opened}


def test_a_small_model_is_one_file(tmp_path: Path) -> None:
    assert write(tmp_path / "m") == ["model.safetensors"]
    loaded = load_file(tmp_path / "m/model.safetensors")
    assert all(torch.equal(loaded[n], t) for n, t in tensors().items())
    assert read_all(tmp_path / "m").keys() == tensors().keys()


@pytest.mark.parametrize(
    ("sizes", "num_files"),
    [
        ({"max_file_bytes": 80}, 3),
        ({"max_file_bytes": 10}, 5),
        ({"world_size": 2}, 3),  # shares of 100 bytes, tensors of 40
        ({"world_size": 4, "min_share_bytes": 160}, 2),
    ],
)
def test_a_large_model_is_split_and_indexed(
    sizes: dict[str, int], num_files: int, tmp_path: Path
) -> None:
    names = write(tmp_path / "m", **sizes)
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


def test_few_files_of_many_are_kept_open(tmp_path: Path) -> None:
    names = [f"model-{i:05}-of-00040.safetensors" for i in range(1, 41)]
    for name in names:
        save_file({name: torch.full((3,), float(name[6:11]))}, tmp_path / name)
    weight_map = json.dumps({"weight_map": {name: name for name in names}})
    (tmp_path / "model.safetensors.index.json").write_text(weight_map)
    folder = HuggingFaceFolder(str(tmp_path))
    for name in [*names, *names]:
        assert folder.read(name).tolist() == [float(name[6:11])] * 3
    opened = [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]
    assert 0 < sum(each.startswith(str(tmp_path)) for each in opened) <= 16


def test_damage_that_is_found_late_is_explained(tmp_path: Path) -> None:
    block = 4 << 20  # of what has a hash of its own
    tensor = torch.zeros(3 * block, dtype=torch.uint8)
    head = ExportedTensor(
        name="w", dtype=tensor.dtype, shape=tuple(tensor.shape), read=lambda: tensor
    )
    file = ExportedFile(name="model.safetensors", tensors=[head]).write(str(tmp_path))
    path = tmp_path / file.name
    data = bytearray(path.read_bytes())
    data[-1] = 1
    path.write_bytes(data)
    folder = HuggingFaceFolder(str(tmp_path), hashes={file.name: file.block_sha256})
    folder.read_box("w", offset=[0], size=[block])
    with pytest.raises(UnusablePathError, match="model.safetensors: .*SHA-256"):
        folder.read("w")


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
