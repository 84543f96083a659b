"""Folders that torch's own distributed checkpoints read and write."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoint_ranks import Grid, is_box_of, results, run_ranks
from checkpoint_runs import ENABLED, ONE, manager, steps_in
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch_peer import Peer

from torchtitan_cpp.checkpoint import LoadedState

DCP = replace(ENABLED, format="dcp")
LAYOUTS = [
    Grid(),
    Grid(rows=3),
    Grid(replicas=2, rows=2),
    Grid(columns=3),
    Grid(rows=2, columns=2),
    Grid(rows=8),
]


def save_ours(folder: Path, peer: Peer, grid: Grid = ONE) -> Path:
    """A checkpoint of a run here, in the format of DCP."""

    def save(ranks: Any) -> str:
        run = manager(folder, DCP, ranks=ranks)
        path: str = run.save(peer.step, peer.own_state(grid, ranks.rank))
        return path

    return Path(results(run_ranks(grid.world_size, save))[0])


def save_theirs(folder: Path, peer: Peer) -> Path:
    """A checkpoint that torch has written, where a run here finds it."""
    path = folder / "checkpoint" / f"step-{peer.step}"
    dcp.save(peer.state_dict(), checkpoint_id=path, no_dist=True)
    return path


def load_ours(folder: Path, expected: Peer, grid: Grid, settings: Any = DCP) -> Any:
    """Load on all ranks of the grid and compare every box; the states of the ranks."""

    def load(ranks: Any) -> LoadedState:
        state = expected.own_state(grid, ranks.rank, zeros=True)
        loaded = manager(folder, settings, ranks=ranks).load(state)
        tensors = expected.tensors()
        assert all(is_box_of(entry, tensors[entry.name]) for entry in state.tensors)
        return loaded  # type: ignore[no-any-return]

    return results(run_ranks(grid.world_size, load))


@pytest.mark.parametrize("grid", LAYOUTS, ids=str)
def test_torch_continues_what_any_layout_here_saved(grid: Grid, tmp_path: Path) -> None:
    here = Peer(seed=1).train(3)
    path = save_ours(tmp_path, here, grid)
    there = Peer(seed=2)
    state = there.state_dict()
    dcp.load(state, checkpoint_id=path, no_dist=True)
    there.load_state_dict(state)
    assert state["train_state"] == {"step": 3, "ntokens_seen": 192}
    # An empty state begins the data anew.
    assert pickle.loads(state["dataloader"]["dp_rank_0"]) == {}
    assert state["dataloader"]["world_size"] == 2
    schedule = there.scheduler.state_dict()
    assert {**schedule, "lr_lambdas": 0} == {
        **here.scheduler.state_dict(),
        "lr_lambdas": 0,
    }
    (group,), (expected,) = there.optimizer.param_groups, here.optimizer.param_groups
    assert {**group, "params": 0} == {**expected, "params": 0}
    here.train(2), there.train(2)
    for name, tensor in here.tensors().items():
        assert torch.equal(there.tensors()[name], tensor), name


@pytest.mark.parametrize("grid", LAYOUTS, ids=str)
def test_any_layout_here_continues_what_torch_saved(
    grid: Grid, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    there = Peer(seed=1).train(3)
    save_theirs(tmp_path, there)
    caplog.set_level("INFO", logger="torchtitan_cpp")
    for loaded in load_ours(tmp_path, there, grid, ENABLED):
        assert loaded.step == 3
        numbers = loaded.scalars.pop("optimizer_numbers", None)
        assert loaded.scalars == there.scalars() and numbers is None
        assert loaded.gathered == {}
    assert caplog.text.count("the data starts at its beginning") == 1


@pytest.mark.parametrize("source", LAYOUTS, ids=str)
@pytest.mark.parametrize("with_manifest", [True, False])
def test_every_layout_loads_the_dcp_folder_of_every_other(
    source: Grid, with_manifest: bool, tmp_path: Path
) -> None:
    peer = Peer(seed=1).train(3)
    path = save_ours(tmp_path, peer, source)
    if not with_manifest:  # as if another program had written it
        os.remove(path / "manifest.json")
        os.remove(path / "manifest.sha256")
    for target in LAYOUTS:
        for loaded in load_ours(tmp_path, peer, target, ENABLED):
            assert loaded.step == 3 and loaded.scalars == peer.scalars()
            positions = [{"position": r} for r in range(source.world_size)]
            held = loaded.gathered.get("dataloader")
            assert held == (positions if with_manifest else None)


def test_torch_turns_a_folder_into_one_file(tmp_path: Path) -> None:
    """All keys and their nesting, also of tensors whose boxes are views."""
    peer = Peer(seed=1).train(3)
    path = save_ours(tmp_path, peer, Grid(rows=2, columns=2))
    dcp_to_torch_save(path, tmp_path / "one.pt")
    found = torch.load(tmp_path / "one.pt", weights_only=False)
    expected = peer.state_dict()
    assert found.keys() == expected.keys()
    assert found["optimizer"].keys() == expected["optimizer"].keys()
    for key, value in expected["optimizer"].items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(found["optimizer"][key], value), key
        else:
            assert found["optimizer"][key] == value, key
    assert sum(os.path.getsize(path / name) for name in os.listdir(path)) < 300_000


def test_weights_alone_are_read_by_torch_and_by_a_new_run(tmp_path: Path) -> None:
    peer = Peer(seed=1).train(3)
    settings = replace(DCP, last_save_model_only=True, export_dtype="bfloat16")
    run = manager(tmp_path, settings)
    path = run.save(3, peer.own_state(ONE, 0), last_step=True)
    weights = {n: t for n, t in peer.tensors().items() if "optimizer." not in n}
    state = {name: torch.zeros_like(t).bfloat16() for name, t in weights.items()}
    dcp.load(state, checkpoint_id=path, no_dist=True)
    assert all(torch.equal(state[n], t.bfloat16()) for n, t in weights.items())
    dcp_to_torch_save(path, tmp_path / "one.pt")
    assert torch.load(tmp_path / "one.pt").keys() == weights.keys()
    for given in (path, str(tmp_path / "theirs")):
        if given != path:
            dcp.save(state, checkpoint_id=given, no_dist=True)
        initial = replace(ENABLED, folder="new", initial_load_path=given)
        target = peer.own_state(ONE, 0, zeros=True)
        assert manager(tmp_path, initial).load(target).step == 0
        for entry in target.tensors:
            held = state.get(entry.name, torch.zeros(())).float()
            assert torch.equal(entry.local, held.expand(entry.size)), entry.name
        full = replace(initial, initial_load_model_only=False)
        with pytest.raises(ValueError, match="weights only"):
            manager(tmp_path, full).load(target)


def test_only_the_weights_of_a_foreign_seed_are_taken(tmp_path: Path) -> None:
    peer = Peer(seed=1)
    state = peer.state_dict()  # torch makes the moments by a step of rate zero
    seed = tmp_path / "checkpoint" / "step-0"
    dcp.save(state, checkpoint_id=seed, no_dist=True)
    target = Peer(seed=2).train(1).own_state(ONE, 0, zeros=True)
    loaded = manager(tmp_path).load(target)
    assert loaded.step == 0 and loaded.scalars == {}
    for entry in target.tensors:
        if entry.kind == "model":
            assert is_box_of(entry, state[entry.name])
        else:
            assert not entry.local.any()


def test_folders_of_both_programs_lie_side_by_side(tmp_path: Path) -> None:
    """What was written last is gone on from; foreign folders are never deleted."""
    peer = Peer(seed=1)
    theirs = save_theirs(tmp_path, peer.train(2))
    keeping = replace(DCP, keep_latest_k=1)
    run = manager(tmp_path, keeping)
    assert run.load(peer.own_state(ONE, 0, zeros=True)).step == 2
    for _ in range(2):
        peer.train(1)
        run.save(peer.step, peer.own_state(ONE, 0))
    assert steps_in(tmp_path) == ["step-2", "step-4"]
    assert load_ours(tmp_path, peer, ONE)[0].step == 4
    os.utime(theirs / ".metadata", (2**31 - 1, 2**31 - 1))
    assert load_ours(tmp_path, Peer(seed=1).train(2), ONE)[0].step == 2


def test_names_that_differ_are_told_with_the_nearest(tmp_path: Path) -> None:
    peer = Peer(seed=1).train(3)
    save_theirs(tmp_path, peer)

    def error_of(change: Any) -> str:
        state = peer.own_state(ONE, 0, zeros=True)
        changed = [change(entry) for entry in state.tensors]
        held = replace(state, tensors=[entry for entry in changed if entry])
        with pytest.raises(ValueError) as caught:
            manager(tmp_path).load(held)
        return str(caught.value)

    def renamed(entry: Any) -> Any:
        return replace(entry, name=entry.name.replace("norm.", "norms."))

    text = error_of(renamed)
    assert "does not hold" in text and "norms.weight (nearest: norm.weight)" in text
    text = error_of(lambda e: None if e.name == "norm.weight" else e)
    assert "holds norm.weight" in text and "which the model does not have" in text


def test_settings_that_differ_from_those_of_the_configuration_are_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("WARNING", logger="torchtitan_cpp")
    peer = Peer(seed=1).train(3)
    path = save_theirs(tmp_path, peer)
    load_ours(tmp_path, peer, Grid(rows=3))
    assert caplog.text == ""
    (group,) = peer.optimizer.param_groups
    group.update(betas=(0.7, 0.9), eps=1e-6, weight_decay=0.3, lr=5.0)
    load_ours(tmp_path, peer, Grid(rows=3))  # once, not by every rank
    found = [record.getMessage() for record in caplog.records]
    assert found == [
        f"{path}: saved with {name} {there} for layers.0.weight and 2 more parameters; "
        f"the configuration has {here} and counts ({flags})"
        for name, there, here, flags in [
            ("betas", "(0.8, 0.9)", "(0.7, 0.9)", "optimizer.beta1, optimizer.beta2"),
            ("eps", "1e-08", "1e-06", "optimizer.eps"),
            ("weight_decay", "0.2", "0.3", "optimizer.weight_decay"),
        ]
    ]
    # Nothing is said of moments that are not loaded, or of checkpoints of our own.
    caplog.clear()
    without = replace(ENABLED, exclude_from_loading=["optimizer"])
    target = peer.own_state(ONE, 0, zeros=True)
    manager(tmp_path, without).load(target)
    own = tmp_path / "own"
    save_ours(own, peer)
    group.update(betas=(0.8, 0.9))
    load_ours(own, peer, ONE)
    assert caplog.text == ""


def test_an_optimizer_that_counts_differently_is_refused(tmp_path: Path) -> None:
    peer = Peer(seed=1).train(3)
    peer.optimizer.state[peer.model.norm.weight]["step"] += 1
    save_theirs(tmp_path, peer)
    with pytest.raises(RuntimeError, match="updated parameters 3 and 4 times"):
        manager(tmp_path).load(peer.own_state(ONE, 0, zeros=True))
