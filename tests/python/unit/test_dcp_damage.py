"""Folders of DCP that are damaged or meant to do harm are never loaded."""

from __future__ import annotations

import builtins
import importlib
import os
import pickle
import random
import re
import resource
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from checkpoint_ranks import Grid, is_box_of
from checkpoint_runs import ENABLED, ONE, manager
from test_dcp import DCP, load_ours, save_ours, save_theirs
from torch.distributed.checkpoint.metadata import (
    _MEM_FORMAT_ENCODING,
    TensorProperties,
)
from torch_peer import Peer

from torchtitan_cpp.checkpoint import CheckpointError
from torchtitan_cpp.checkpoint.dcp.unpickling import MemoryFormat, read_metadata

REFUSED = (RuntimeError, ValueError)


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def is_refused_or_harmless(folder: Path, peer: Peer) -> bool:
    """True: refused. False: loaded, and everything is as it was saved."""
    state = peer.own_state(ONE, 0, zeros=True)
    try:
        loaded = manager(folder).load(state)
    except REFUSED:
        return True
    assert loaded.step == peer.step
    assert {part: loaded.scalars[part] for part in peer.scalars()} == peer.scalars()
    assert all(is_box_of(e, peer.tensors()[e.name]) for e in state.tensors)
    return False


def places(folder: Path, count: int, seed: int) -> list[tuple[str, int]]:
    """Random bits of all files, every file as often."""
    random_bits = random.Random(seed)
    names = sorted(os.listdir(folder))
    chosen = [names[i % len(names)] for i in range(count)]
    return [
        (name, random_bits.randrange(8 * os.path.getsize(folder / name)))
        for name in chosen
    ]


def test_every_flipped_bit_of_a_folder_of_ours_is_found(tmp_path: Path) -> None:
    peer = Peer(seed=1).train(3)
    path = save_ours(tmp_path, peer, Grid(rows=2))
    for name, bit in places(path, 120, seed=5):
        flip(path / name, bit)
        assert is_refused_or_harmless(tmp_path, peer), (name, bit)
        flip(path / name, bit)
    assert not is_refused_or_harmless(tmp_path, peer)


def test_no_flipped_bit_of_a_foreign_folder_changes_a_value(tmp_path: Path) -> None:
    peer = Peer(seed=1).train(3)
    path = save_theirs(tmp_path, peer)
    refused = 0
    for name, bit in places(path, 150, seed=6):
        flip(path / name, bit)
        refused += is_refused_or_harmless(tmp_path, peer)
        flip(path / name, bit)
    assert refused > 45  # the rest lies in headers of ZIP that say nothing
    assert not is_refused_or_harmless(tmp_path, peer)


def test_a_flipped_number_is_named(tmp_path: Path) -> None:
    peer = Peer(seed=1).train(3)
    path = save_theirs(tmp_path, peer)
    weights = peer.model.norm.weight.detach().numpy().tobytes()
    file = path / "__0_0.distcp"
    flip(file, 8 * file.read_bytes().index(weights))
    with pytest.raises(RuntimeError, match=r"__0_0.distcp at \d+\+\d+: .*CRC-32"):
        load_ours(tmp_path, peer, ONE, replace(ENABLED, load_step=3))


@pytest.mark.parametrize("name", [".metadata", "__0_0.distcp"])
def test_cut_and_missing_files_are_refused(name: str, tmp_path: Path) -> None:
    peer = Peer(seed=1).train(3)
    path = save_theirs(tmp_path, peer) / name
    data = path.read_bytes()
    for number in range(20):
        path.write_bytes(data[: len(data) * number // 20])
        assert is_refused_or_harmless(tmp_path, peer)
    os.remove(path)
    assert is_refused_or_harmless(tmp_path, peer)


def test_a_damaged_folder_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    peer = Peer(seed=1).train(3)
    save_theirs(tmp_path, peer)
    later = Peer(seed=1).train(4)
    path = save_theirs(tmp_path, later)
    flip(path / "__0_0.distcp", 8 * 900)
    (path / "__0_0.distcp").write_bytes((path / "__0_0.distcp").read_bytes()[:-1])
    load_ours(tmp_path, peer, ONE)
    assert "going back to an older checkpoint" in caplog.text


def test_a_failed_save_leaves_nothing_and_names_the_file(tmp_path: Path) -> None:
    peer = Peer(seed=1).train(3)
    path = save_ours(tmp_path / "whole", peer)
    whole = max(file.stat().st_size for file in path.glob("*.distcp"))
    for size in (0, 1, 500, whole // 2, whole - 1):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(CheckpointError) as caught:
                manager(tmp_path, DCP).save(3, peer.own_state(ONE, 0))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        found = r"cannot write \d+ of \d+ bytes: File too large: '.*\.distcp'"
        assert re.search(found, str(caught.value))
        assert os.listdir(tmp_path / "checkpoint") == []
    save_ours(tmp_path, peer)
    load_ours(tmp_path, peer, ONE)


# --- pickles that would do something -----------------------------------------------


class Call:
    """Pickled as a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.reduced = (function, arguments)

    def __reduce__(self) -> Any:
        return self.reduced


def payloads(canary: str) -> dict[str, Any]:
    """Objects whose unpickling creates the file, or gets hold of something that can."""
    code = f"open({canary!r}, 'w').close()"
    return {
        "system": Call(os.system, f"touch {canary}"),
        "exec": Call(builtins.exec, code),
        "eval": Call(builtins.eval, f"__import__('os').system('touch {canary}')"),
        "open": Call(builtins.open, canary, "w"),
        "import": Call(importlib.import_module, "this"),
        "getattr": Call(builtins.getattr, "text", "upper"),
        "load": Call(torch.load, canary),
        "nested": [("a", Call(os.mkdir, canary))],
    }


RAW = {
    "global": "cos\nsystem\n(S'touch {}'\ntR.",
    "inst": "(S'touch {}'\nios\nsystem\n.",
    "object": "(cos\nsystem\nS'touch {}'\no.",
}
"""The same by other opcodes."""


def refuses(folder: Path, canary: Path) -> None:
    with pytest.raises(REFUSED, match="does not belong into a checkpoint"):
        manager(folder).load(Peer(seed=1).train(3).own_state(ONE, 0))
    assert not canary.exists()


@pytest.mark.parametrize("name", [*payloads(""), *RAW])
def test_nothing_in_a_table_is_called(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    path = save_theirs(tmp_path, Peer(seed=1).train(3)) / ".metadata"
    if name in RAW:
        path.write_bytes(RAW[name].format(canary).encode())
        refuses(tmp_path, canary)
        return
    payload = payloads(str(canary))[name]
    table = pickle.loads(path.read_bytes())
    for field in ("planner_data", "storage_meta", "version"):
        path.write_bytes(pickle.dumps(replace(table, **{field: payload})))
        refuses(tmp_path, canary)
    path.write_bytes(pickle.dumps(payload))
    refuses(tmp_path, canary)


def test_getattr_gives_members_of_one_enum_and_nothing_else() -> None:
    """Python 3.11.0 to 3.11.3 pickle members of enums by it."""
    member = Call(builtins.getattr, _MEM_FORMAT_ENCODING, "TORCH_CONTIGUOUS_FORMAT")
    assert isinstance(read_metadata(pickle.dumps(member)), MemoryFormat)
    for owner, name in ((TensorProperties, "create_from_tensor"), ("text", "upper")):
        with pytest.raises(ValueError, match="does not belong into a checkpoint"):
            read_metadata(pickle.dumps(Call(builtins.getattr, owner, name)))


@pytest.mark.parametrize("name", payloads(""))
def test_nothing_in_a_value_is_called(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    state = Peer(seed=1).train(3).state_dict()
    payload = payloads(str(canary))[name]
    path = tmp_path / "checkpoint" / "step-3"
    train_state = {"step": payload, "ntokens_seen": 1}
    dcp.save({**state, "train_state": train_state}, checkpoint_id=path, no_dist=True)
    refuses(tmp_path, canary)
    shutil.rmtree(path)
    # What a run here does not need is not even opened.
    schedule = {**state["lr_scheduler"], "_last_lr": payload}
    data = {"dp_rank_0": payload, "world_size": payload}
    dcp.save(
        {**state, "lr_scheduler": schedule, "dataloader": data},
        checkpoint_id=path,
        no_dist=True,
    )
    load_ours(tmp_path, Peer(seed=1).train(3), ONE)
    assert not canary.exists()


BAD_TABLES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "a path out of the folder": (
        lambda t: _with_place(t, relative_path="../step-2/__0_0.distcp"),
        "plain file name",
    ),
    "an absolute path": (
        lambda t: _with_place(t, relative_path="/etc/passwd"),
        "plain",
    ),
    "a place behind the end": (
        lambda t: _with_place(t, offset=10**9),
        "expected 10000",
    ),
    "a negative place": (lambda t: _with_place(t, offset=-8), "expected a size"),
    "a place that is none": (lambda t: _with_place(t, length="7"), "expected a size"),
    "no places": (lambda t: replace(t, storage_data={}), "nothing is stored at"),
    "no tensors": (lambda t: replace(t, state_dict_metadata=7), "expected a dict"),
    "a hole": (lambda t: _with_size(t, (5, 5)), "the boxes hold 20 of its 25 elements"),
    "a chunk outside": (lambda t: _with_size(t, (3, 5)), "lies outside"),
    "another kind of object": (lambda t: [t], "expected state_dict_metadata"),
}


def _with_place(table: Any, **fields: Any) -> Any:
    index = next(i for i in table.storage_data if i.fqn == "norm.weight")
    place = replace(table.storage_data[index], **fields)
    return replace(table, storage_data={**table.storage_data, index: place})


def _with_size(table: Any, size: tuple[int, ...]) -> Any:
    held = table.state_dict_metadata["layers.0.weight"]
    changed = {"layers.0.weight": replace(held, size=torch.Size(size))}
    return replace(table, state_dict_metadata={**table.state_dict_metadata, **changed})


@pytest.mark.parametrize("name", BAD_TABLES)
def test_a_table_that_lies_is_refused(name: str, tmp_path: Path) -> None:
    peer = Peer(seed=1).train(3)
    path = save_theirs(tmp_path, peer) / ".metadata"
    change, message = BAD_TABLES[name]
    path.write_bytes(pickle.dumps(change(pickle.loads(path.read_bytes()))))
    with pytest.raises(REFUSED, match=message):
        manager(tmp_path).load(peer.own_state(ONE, 0))
