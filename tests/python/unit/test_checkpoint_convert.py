"""One format of checkpoints turned into the other, a tensor at a time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoint_ranks import Grid, is_box_of, results, run_ranks
from checkpoint_runs import ENABLED, ONE, manager
from test_dcp import load_ours, save_theirs
from torch_peer import Peer

from torchtitan_cpp.checkpoint import convert

FLAGS = (
    "--optimizer.lr=0.1",
    "--optimizer.beta1=0.8",
    "--optimizer.beta2=0.9",
    "--optimizer.weight_decay=0.2",
    "--optimizer.implementation=for-loop",
    "--lr_scheduler.warmup_steps=4",
    "--lr_scheduler.decay_ratio=0",
    "--training.steps=100",
)


def save_native(folder: Path, peer: Peer, grid: Grid = ONE) -> str:
    def save(ranks: object) -> str:
        state = peer.own_state(grid, ranks.rank)  # type: ignore[attr-defined]
        path: str = manager(folder, ranks=ranks).save(peer.step, state)
        return path

    return str(results(run_ranks(grid.world_size, save))[0])


def test_torch_continues_what_was_converted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    here = Peer(seed=1).train(3)
    source = save_native(tmp_path, here, Grid(rows=2, columns=2))
    arguments = ["to-dcp", source, str(tmp_path / "out"), "--data-ranks=3", *FLAGS]
    assert convert.main(arguments) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{tmp_path / 'out'}/step-3\n"
    assert shown.err.splitlines()[-1].endswith(" MiB")
    there = Peer(seed=2)
    state = there.state_dict()
    dcp.load(state, checkpoint_id=tmp_path / "out" / "step-3", no_dist=True)
    assert state["dataloader"]["world_size"] == 3
    there.load_state_dict(state)
    here.train(2), there.train(2)
    for name, tensor in here.tensors().items():
        assert torch.equal(there.tensors()[name], tensor), name
    (tmp_path / "out").rename(tmp_path / "checkpoint2")
    settings = replace(ENABLED, folder="checkpoint2")
    for loaded in load_ours(tmp_path, Peer(seed=1).train(3), Grid(rows=3), settings):
        # Of the four ranks that saved.
        assert len(loaded.gathered["dataloader"]) == 4


def test_a_foreign_folder_becomes_one_of_ours(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer = Peer(seed=1).train(3)
    source = str(save_theirs(tmp_path / "theirs", peer))
    out = tmp_path / "checkpoint"
    assert convert.main(["to-native", source, str(out)]) == 0
    assert "--checkpoint.exclude_from_loading=dataloader,rng" in capsys.readouterr().out
    settings = replace(ENABLED, exclude_from_loading=["dataloader", "rng"])
    (loaded,) = load_ours(tmp_path, peer, ONE, settings)
    assert loaded.step == 3 and loaded.scalars == peer.scalars()
    assert not list((out / "step-3").glob("*.distcp"))


def test_weights_alone_need_no_configuration(tmp_path: Path) -> None:
    peer = Peer(seed=1).train(3)
    source = save_native(tmp_path, peer)
    arguments = ["to-dcp", source, str(tmp_path / "out"), "--weights-only"]
    assert convert.main(arguments) == 0
    initial = replace(
        ENABLED, folder="new", initial_load_path=str(tmp_path / "out" / "step-3")
    )
    target = peer.own_state(ONE, 0, zeros=True)
    manager(tmp_path, initial).load(target)
    models = [entry for entry in target.tensors if entry.kind == "model"]
    assert all(is_box_of(entry, peer.tensors()[entry.name]) for entry in models)


def test_what_cannot_be_converted_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = save_native(tmp_path, Peer(seed=1).train(3))
    out = str(tmp_path / "out")
    for arguments, message in [
        (["to-native", source, out, "--optimizer.lr=1"], "has no effect"),
        (["to-dcp", source, out, "--optimizer.lrr=1"], "unknown"),
        (["to-dcp", str(tmp_path / "none"), out], "none"),
    ]:
        assert convert.main(arguments) == convert.EXIT_BAD_INPUT
        assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
