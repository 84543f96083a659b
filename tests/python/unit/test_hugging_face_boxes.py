"""Hugging Face folders read and written by many ranks, each its own part."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_ranks import Grid, is_box_of, results, run_ranks, state_of
from checkpoint_runs import manager
from safetensors.torch import load_file, save_file

from torchtitan_cpp import _C
from torchtitan_cpp.checkpoint import (
    CheckpointManager,
    HfWeight,
    StateDictAdapter,
    TableStateDictAdapter,
    exporting,
)
from torchtitan_cpp.checkpoint.manifest import parse_manifest
from torchtitan_cpp.config.checkpoint import Checkpoint

GRIDS = [Grid(rows=5), Grid(columns=3), Grid(rows=2, columns=2), Grid(replicas=2)]


class OwnAdapter(TableStateDictAdapter):
    """As a model of one's own has it."""

    table = {
        "embed": "wte.weight",
        "layers.{}.q": HfWeight(name="h.{}.q.weight", rotary_heads=3),
        "layers.{}.q_bias": HfWeight(name="h.{}.q.bias", rotary_heads=3),
        "layers.{}.up": HfWeight(name="h.{}.mlp.c_fc.weight", transposed=True),
        "layers.{}.both": HfWeight(name="h.{}.both", transposed=True, rotary_heads=2),
        "layers.{}.experts.{}.w": "h.{}.e.{}.weight",
        "blocks.{}.{rest}": "b.{}.{rest}",
        "scale": "scale",
    }
    not_written = ("freqs",)
    not_loaded = ("h.{}.inv_freq",)


class Functions(StateDictAdapter):
    """The same by torchtitan's two functions."""

    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        for tensor in state_dict.values():
            tensor.numpy()  # not possible on meta
        return OwnAdapter(None, None).to_hf(state_dict)

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        return OwnAdapter(None, None).from_hf(hf_state_dict)


ADAPTERS = [OwnAdapter, Functions]


def weights() -> dict[str, torch.Tensor]:
    shapes: dict[str, tuple[int, ...]] = {"embed": (11, 6), "scale": ()}
    for i in range(3):
        shapes |= {
            f"layers.{i}.q": (18, 6),
            f"layers.{i}.q_bias": (18,),
            f"layers.{i}.up": (13, 6),
            f"layers.{i}.both": (8, 5),
            f"layers.{i}.experts.0.w": (4, 6),
            f"blocks.{i}.norm.0.bias": (5,),
            f"layers.{i}.experts.12.w": (4, 6),
        }
    generator = torch.Generator().manual_seed(0)
    return {n: torch.randn(s, generator=generator) for n, s in shapes.items()}


def save_files(folder: Path) -> Path:
    """What another program wrote: two files of all weights, and a table beside them."""
    made = OwnAdapter(None, None).to_hf(weights())
    made = {name: tensor.contiguous() for name, tensor in made.items()}
    made["h.1.inv_freq"] = torch.zeros(3)
    folder.mkdir()
    save_file(made, folder / "model.safetensors")
    return folder


def manager_of(folder: Path, adapter: Any, ranks: Any, **fields: Any) -> Any:
    return CheckpointManager(
        Checkpoint(enable=True, **fields),
        base_folder=str(folder),
        ranks=ranks,
        adapter=adapter(None, None),
    )


def load(folder: Path, source: Path, grid: Grid, adapter: Any, ranks: Any) -> Any:
    state = state_of(weights(), grid, ranks.rank, zeros=True)
    fields = {"initial_load_in_hf": True, "initial_load_path": str(source)}
    manager_of(folder, adapter, ranks, **fields).load(state)
    return state


@pytest.mark.parametrize("adapter", ADAPTERS)
@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_every_layout_gets_its_boxes(grid: Grid, adapter: Any, tmp_path: Path) -> None:
    source = save_files(tmp_path / "theirs")

    def act(ranks: Any) -> None:
        state = load(tmp_path, source, grid, adapter, ranks)
        assert all(is_box_of(e, weights()[e.name]) for e in state.tensors)

    results(run_ranks(grid.world_size, act))


@pytest.mark.parametrize("grid", GRIDS, ids=str)
def test_a_rank_reads_the_bytes_of_its_boxes_and_no_other(
    grid: Grid, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    num_read: Counter[int] = Counter()

    class Counting(_C.storage.SafetensorsReader):
        def read_box(
            self, name: str, out: torch.Tensor, *, size: Sequence[int], **where: Any
        ) -> None:
            super().read_box(name, out, size=size, **where)
            num_bytes = torch.Size(size).numel() * out.dtype.itemsize
            num_read[threading.get_ident()] += num_bytes

    source = save_files(tmp_path / "theirs")
    monkeypatch.setattr(_C.storage, "SafetensorsReader", Counting)

    def act(ranks: Any) -> tuple[int, int]:
        before = num_read[threading.get_ident()]
        state = load(tmp_path, source, grid, OwnAdapter, ranks)
        own = sum(entry.local.nbytes for entry in state.tensors)
        return num_read[threading.get_ident()] - before, own

    for read, own in results(run_ranks(grid.world_size, act)):
        assert read == own > 0


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_all_ranks_write_files_and_no_shard_is_left(
    adapter: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writers: dict[str, int] = {}
    write = exporting.ExportedFile.write

    def noted(self: exporting.ExportedFile, folder: str) -> Any:
        writers[self.name] = threading.get_ident()
        return write(self, folder)

    monkeypatch.setattr(exporting.ExportedFile, "write", noted)
    split = partial(exporting.split_by_size, min_share_bytes=0)
    monkeypatch.setattr(exporting, "split_by_size", split)
    grid = Grid(rows=2, columns=2)
    tensors = weights() | {"freqs": torch.ones(2)}

    def act(ranks: Any) -> str:
        run = manager_of(tmp_path, adapter, ranks, last_save_in_hf=True)
        state = state_of(tensors, grid, ranks.rank)
        path: str = run.save(7, state, last_step=True)
        return path

    path = Path(results(run_ranks(4, act))[0])
    assert len(set(writers.values())) == 4
    files = [*path.glob("*.safetensors")]
    assert {file.name for file in files} == writers.keys()
    held = {n: t for file in files for n, t in load_file(file).items()}
    expected = OwnAdapter(None, None).to_hf(tensors)
    assert held.keys() == expected.keys()
    assert all(torch.equal(held[n], t) for n, t in expected.items())
    loaded = run_ranks(
        3, lambda r: load(tmp_path / "n", path, Grid(rows=3), adapter, r)
    )
    for state in results(loaded):
        assert all(is_box_of(e, weights()[e.name]) for e in state.tensors)


def test_names_that_do_not_fit_are_told_before_the_training(tmp_path: Path) -> None:
    ranks: Any = run_ranks(1, lambda ranks: ranks)[0]
    run = manager_of(tmp_path, OwnAdapter, ranks, last_save_in_hf=True)
    state = state_of({"layers.1.qq": torch.zeros(18, 6)}, Grid(), 0)
    with pytest.raises(ValueError, match=r"qq \(nearest: layers.1.q\)"):
        run.load(state)


def test_all_names_that_a_table_lacks_are_listed(tmp_path: Path) -> None:
    source = save_files(tmp_path / "theirs")
    held = load_file(source / "model.safetensors")
    held["h.2.q.weights"] = held.pop("h.2.q.weight")
    held["unlike"] = torch.zeros(1)
    save_file(held, source / "model.safetensors")
    (outcome,) = run_ranks(1, lambda r: load(tmp_path, source, Grid(), OwnAdapter, r))
    assert isinstance(outcome, ValueError)
    assert "h.2.q.weights (nearest: h.2.q.weight); unknown" in str(outcome)
    assert "unlike" in str(outcome)


def test_a_table_says_what_is_wrong_with_it() -> None:
    class Uneven(OwnAdapter):
        table = {"layers.{}.q": "q"}

    class Early(OwnAdapter):
        table = {"{rest}.q": "{rest}.q"}

    class Twice(OwnAdapter):
        table = {"a": "w", "b": "w"}

    for adapter in (Uneven, Early):
        with pytest.raises(ValueError, match="equally often, or {rest} at the end"):
            adapter(None, None).weight_of("layers.1.q")
    with pytest.raises(ValueError, match="w occurs twice"):
        Twice(None, None).name_of("w")
    with pytest.raises(ValueError, match="17 rows does not split into 3 heads"):
        OwnAdapter(None, None).to_hf({"layers.0.q": torch.zeros(17, 6)})


def test_a_damaged_folder_of_ours_is_refused_and_edited_settings_are_not(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class WithConfig(OwnAdapter):
        def hf_config(self) -> dict[str, Any]:
            return {"model_type": "mine"}

    ranks: Any = run_ranks(1, lambda ranks: ranks)[0]
    run = manager_of(tmp_path, WithConfig, ranks, last_save_in_hf=True)
    path = Path(run.save(7, state_of(weights(), Grid(), 0), last_step=True))
    assert "config.json" in (path / "manifest.json").read_text()
    (path / "config.json").write_text('{"model_type": "another"}')
    load(tmp_path / "new", path, Grid(), WithConfig, ranks)
    assert "config.json has model_type 'another', the model 'mine'" in caplog.text
    file = path / "model.safetensors"
    data = bytearray(file.read_bytes())
    for place in (len(data) // 2, -5):
        data[place] ^= 16
        file.write_bytes(data)
        with pytest.raises(ValueError, match="model.safetensors.*SHA-256"):
            load(tmp_path / "new", path, Grid(), OwnAdapter, ranks)
        data[place] ^= 16
    manifest = parse_manifest((path / "manifest.json").read_text())
    whole = hashlib.sha256(data).hexdigest()
    older = tuple(
        replace(f, sha256=whole, block_sha256="") if f.name == file.name else f
        for f in manifest.files
    )
    text = replace(manifest, files=older).dump()
    (path / "manifest.json").write_text(text)
    own = hashlib.sha256(text.encode()).hexdigest()
    (path / "manifest.sha256").write_text(f"{own}  manifest.json\n")
    with pytest.raises(RuntimeError, match="model.safetensors.*SHA-256"):
        load(tmp_path / "new", path, Grid(), OwnAdapter, ranks)


def test_a_manifest_of_another_program_is_none_of_ours(tmp_path: Path) -> None:
    ranks: Any = run_ranks(1, lambda ranks: ranks)[0]
    run = manager_of(tmp_path, OwnAdapter, ranks, last_save_in_hf=True)
    path = Path(run.save(7, state_of(weights(), Grid(), 0), last_step=True))
    (path / "manifest.sha256").unlink()
    with pytest.raises(RuntimeError, match="manifest.sha256"):
        load(tmp_path / "new", path, Grid(), OwnAdapter, ranks)
    (path / "manifest.json").write_text('{"models": []}')
    load(tmp_path / "new", path, Grid(), OwnAdapter, ranks)


def test_a_folder_that_is_not_there_is_missing_on_all_ranks(tmp_path: Path) -> None:
    outcomes = run_ranks(
        2, lambda r: load(tmp_path, tmp_path / "x", Grid(rows=2), OwnAdapter, r)
    )
    assert all(isinstance(outcome, FileNotFoundError) for outcome in outcomes)
    assert "x does not exist: expected Hugging Face weights" in str(outcomes[1])


def test_nothing_but_the_model_comes_from_hugging_face(tmp_path: Path) -> None:
    settings = Checkpoint(
        enable=True, initial_load_in_hf=True, exclude_from_loading=["model"]
    )
    state = state_of(weights(), Grid(), 0)
    run = manager(
        tmp_path, settings, adapter=OwnAdapter(None, None), hf_assets_path="x"
    )
    with pytest.raises(ValueError, match="exclude_from_loading"):
        run.load(state)
