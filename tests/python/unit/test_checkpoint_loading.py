"""Which checkpoint is loaded, and what must agree."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoint_ranks import (
    Grid,
    example_tensors,
    is_box_of,
    results,
    run_ranks,
    state_of,
)
from checkpoint_runs import (
    ENABLED,
    ONE,
    SCALARS,
    flip_bit,
    load,
    load_plain,
    manager,
    save_steps,
)

from torchtitan_cpp.checkpoint import (
    CheckpointError,
    TensorEntry,
    TrainingState,
)
from torchtitan_cpp.checkpoint.agreement import UnreadableError
from torchtitan_cpp.checkpoint.shards import BoxReader, kept_open

DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped bit": lambda step: flip_bit(step / "rank-00000.safetensors"),
    "truncated": lambda step: os.truncate(step / "rank-00000.safetensors", 100),
    "missing file": lambda step: os.remove(step / "rank-00000.safetensors"),
    "flipped bit in the manifest": lambda step: flip_bit(step / "manifest.json"),
    "no manifest": lambda step: os.remove(step / "manifest.json"),
    "no checksum": lambda step: os.remove(step / "manifest.sha256"),
}


def test_nothing_is_loaded_when_disabled_or_when_there_is_nothing(
    tmp_path: Path,
) -> None:
    state = state_of(example_tensors(), ONE, 0)
    assert manager(tmp_path).load(state) is None
    (tmp_path / "checkpoint").mkdir()
    assert manager(tmp_path).load(state) is None
    save_steps(tmp_path, 10)
    assert manager(tmp_path, replace(ENABLED, enable=False)).load(state) is None


def test_the_last_saved_or_the_named_step_is_loaded(tmp_path: Path) -> None:
    save_steps(tmp_path, 10, 20, 30)
    assert load(tmp_path)[1] == 30
    assert load(tmp_path, replace(ENABLED, load_step=20))[0].step == 20
    with pytest.raises(FileNotFoundError, match=r"step-25 .*steps: 10, 20, 30"):
        load(tmp_path, replace(ENABLED, load_step=25))


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_with_a_word_or_refused_by_name(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_steps(tmp_path, 10, 20)
    DAMAGES[damage](tmp_path / "checkpoint/step-20")
    caplog.set_level("INFO", logger="torchtitan_cpp")
    assert load(tmp_path)[0].step == 10
    assert "going back to an older checkpoint" in caplog.text
    assert "step-20" in caplog.text
    with pytest.raises(CheckpointError, match="step-20"):
        load(tmp_path, replace(ENABLED, load_step=20))
    # The damaged one gets out of the way when training comes there again.
    run = manager(tmp_path)
    run.load(state_of(example_tensors(), ONE, 0, scalars=SCALARS))
    run.save(20, state_of(example_tensors(21), ONE, 0, scalars=SCALARS))
    assert load(tmp_path)[1] == 21
    assert "step-20 was there already; it is kept as" in caplog.text
    (kept,) = (tmp_path / "checkpoint").glob("step-20.replaced-by-*")
    assert any(kept.iterdir())


def without_blocks(step: Path) -> None:
    """Make of a checkpoint what it was before blocks had hashes."""
    manifest = json.loads((step / "manifest.json").read_text())
    for file in manifest["files"]:
        del file["block_sha256"]
        data = (step / file["name"]).read_bytes()
        file["sha256"] = hashlib.sha256(data).hexdigest()
    text = json.dumps(manifest)
    (step / "manifest.json").write_text(text)
    line = f"{hashlib.sha256(text.encode()).hexdigest()}  manifest.json\n"
    (step / "manifest.sha256").write_text(line)


def test_one_hash_of_a_whole_file_will_do(tmp_path: Path) -> None:
    save_steps(tmp_path, 10, 20)
    step = tmp_path / "checkpoint/step-20"
    without_blocks(step)
    assert load(tmp_path)[1] == 20
    flip_bit(step / "rank-00000.safetensors")
    assert load(tmp_path)[1] == 10


def test_a_rank_compares_the_blocks_it_reads_and_no_others(tmp_path: Path) -> None:
    numbers = torch.arange(1 << 22, dtype=torch.float32).view(4, -1)  # 4 blocks

    def state(rows: range) -> TrainingState:
        local = torch.zeros(len(rows), numbers.shape[1])
        entry = TensorEntry(
            name="w",
            kind="model",
            local=local,
            global_shape=tuple(numbers.shape),
            offset=(rows.start, 0),
            size=tuple(local.shape),
            is_writer=True,
        )
        return TrainingState(tensors=[entry])

    whole = state(range(4))
    whole.tensors[0].local.copy_(numbers)
    manager(tmp_path).save(1, whole)
    flip_bit(tmp_path / "checkpoint/step-1/rank-00000.safetensors")  # of block 2
    part = state(range(1))
    assert manager(tmp_path).load(part).step == 1
    assert torch.equal(part.tensors[0].local, numbers[:1])
    for rows in (range(4), range(2, 3)):
        with pytest.raises(CheckpointError, match="bytes 8388608 to 12582912"):
            manager(tmp_path, replace(ENABLED, load_step=1)).load(state(rows))


def state_with_moments(weight: float, moment: float) -> TrainingState:
    """A weight, and moments that take several blocks of a file."""
    tensors = [
        TensorEntry(
            name=name,
            kind=kind,
            local=torch.full((size,), value),
            global_shape=(size,),
            offset=(0,),
            size=(size,),
            is_writer=True,
        )
        for name, kind, size, value in (
            ("w", "model", 4, weight),
            ("optimizer.exp_avg.w", "optimizer", 1 << 22, moment),
        )
    ]
    return TrainingState(tensors=tensors)


def test_moments_of_a_damaged_checkpoint_are_gone_where_a_seed_starts_the_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = manager(tmp_path)
    run.save_seed(state_with_moments(1.0, 2.0))
    run.save(10, state_with_moments(3.0, 4.0))
    shard = tmp_path / "checkpoint/step-10/rank-00000.safetensors"
    with shard.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    state = state_with_moments(0.0, 0.0)
    assert manager(tmp_path).load(state).step == 0
    assert "going back to an older checkpoint" in caplog.text
    weight, moment = (entry.local for entry in state.tensors)
    assert torch.equal(weight, torch.ones(4))
    assert torch.equal(moment, torch.zeros(1 << 22))


def test_a_checkpoint_that_cannot_be_read_is_not_one_that_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_steps(tmp_path, 10, 20)

    def fail(*_: object) -> None:
        raise OSError("too many open files")

    monkeypatch.setattr(BoxReader, "fill", fail)
    with pytest.raises(UnreadableError, match=r"step-20: too many open files"):
        load(tmp_path)


def test_only_the_readers_used_last_are_kept() -> None:
    made: list[int] = []
    readers: dict[int, str] = {}

    def read(file: int) -> str:
        def make() -> str:
            made.append(file)
            return f"reader {file}"

        return kept_open(readers, file, make)

    for file in (*range(16), 0, 16, 0, 1):
        assert read(file) == f"reader {file}"
    assert made == [*range(17), 1]
    assert len(readers) == 16


def test_a_damaged_old_checkpoint_is_told_without_going_back(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_steps(tmp_path, 10, 20)
    os.remove(tmp_path / "checkpoint/step-10/manifest.json")
    assert load(tmp_path)[0].step == 20
    assert "Skipped: " in caplog.text and "step-10" in caplog.text


def test_training_never_starts_over_when_every_checkpoint_is_damaged(
    tmp_path: Path,
) -> None:
    save_steps(tmp_path, 10, 20)
    for step in (10, 20):
        flip_bit(tmp_path / f"checkpoint/step-{step}/rank-00000.safetensors")
    with pytest.raises(CheckpointError, match="does not start over silently"):
        load(tmp_path)
    for step in (10, 20):
        os.remove(tmp_path / f"checkpoint/step-{step}/manifest.json")
    with pytest.raises(CheckpointError, match="does not start over silently"):
        load(tmp_path)


def test_damage_seen_by_one_rank_is_agreed_on_by_all(tmp_path: Path) -> None:
    grid = Grid(rows=2)

    def run(step: int) -> list[Any]:
        def save(ranks: Any) -> str:
            state = state_of(example_tensors(step), grid, ranks.rank)
            path: str = manager(tmp_path, ranks=ranks).save(step, state)
            return path

        return results(run_ranks(2, save))

    run(10), run(20)
    flip_bit(tmp_path / "checkpoint/step-20/rank-00001.safetensors")

    def load_it(ranks: Any) -> int:
        state = state_of(example_tensors(), grid, ranks.rank, zeros=True)
        loaded = manager(tmp_path, ranks=ranks).load(state)
        assert all(is_box_of(e, example_tensors(10)[e.name]) for e in state.tensors)
        return loaded.step  # type: ignore[no-any-return]

    assert results(run_ranks(2, load_it)) == [10, 10]


@pytest.mark.parametrize(
    "name", ["step-99.bak", "old-step-99", "step-099", "link", "file", "step-99.tmp-x"]
)
def test_names_that_are_not_exactly_a_step_are_not_checkpoints(
    name: str, tmp_path: Path
) -> None:
    save_steps(tmp_path, 10, 99)
    folder = tmp_path / "checkpoint"
    if name == "link":
        shutil.move(folder / "step-99", tmp_path / "elsewhere")
        os.symlink(tmp_path / "elsewhere", folder / "step-99")
    elif name == "file":
        shutil.rmtree(folder / "step-99")
        (folder / "step-99").write_text("x")
    else:
        shutil.move(folder / "step-99", folder / name)
    assert load(tmp_path)[0].step == 10
    shutil.rmtree(folder / "step-10")
    state = state_of(example_tensors(), ONE, 0)
    if name in ("link", "file"):
        with pytest.raises(CheckpointError, match=f"expected a folder, found a {name}"):
            manager(tmp_path).load(state)
    else:  # with nothing else there, the folder counts as empty
        assert manager(tmp_path).load(state) is None


def test_a_folder_whose_disk_is_not_there_is_no_empty_one(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").symlink_to(tmp_path / "unmounted/checkpoint")
    with pytest.raises(CheckpointError, match=r"link to .*unmounted/.*is not there"):
        manager(tmp_path).load(state_of(example_tensors(), ONE, 0))


def test_excluded_parts_are_left_alone(tmp_path: Path) -> None:
    save_steps(tmp_path, 10)
    settings = replace(ENABLED, exclude_from_loading=["optimizer", "lr_scheduler"])
    state = state_of(example_tensors(), ONE, 0, zeros=True, scalars=SCALARS)
    loaded = manager(tmp_path, settings).load(state)
    assert loaded.scalars == {"train_state": SCALARS["train_state"]}
    for entry in state.tensors:
        expected = entry.kind == "model"
        assert is_box_of(entry, example_tensors(10)[entry.name]) == expected
    with pytest.raises(ValueError, match="no part 'optimiser' .nearest: optimizer"):
        load(tmp_path, replace(ENABLED, exclude_from_loading=["optimiser"]))


def test_without_train_state_a_new_run_starts_and_saves_every_step_of_its_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A step of the former run is neither taken for saved, nor purged, nor lost."""
    save_steps(tmp_path, 10, 20)
    settings = replace(ENABLED, exclude_from_loading=["train_state"], keep_latest_k=1)
    run = manager(tmp_path, settings)
    caplog.set_level("INFO", logger="torchtitan_cpp")
    loaded = run.load(state_of(example_tensors(), ONE, 0, scalars=SCALARS))
    assert loaded.step == 0 and "train_state" not in loaded.scalars
    assert "training starts at step 1" in caplog.text
    for step, seed in ((10, 11), (20, 21)):
        assert run.should_save(step)
        run.save(step, state_of(example_tensors(seed), ONE, 0, scalars=SCALARS))
    assert load(tmp_path)[1] == 21
    kept = sorted((tmp_path / "checkpoint").glob("*.replaced-by-*"))
    assert [path.name.partition(".")[0] for path in kept] == ["step-10", "step-20"]
    assert all(path.name in caplog.text for path in kept)
    for path, seed in zip(kept, (10, 20), strict=True):
        initial = replace(ENABLED, folder="new", initial_load_path=str(path))
        target = state_of(example_tensors(), ONE, 0, zeros=True)
        manager(tmp_path, initial).load(target)
        models = [entry for entry in target.tensors if entry.kind == "model"]
        assert all(is_box_of(e, example_tensors(seed)[e.name]) for e in models)


def test_names_shapes_and_dtypes_must_agree(tmp_path: Path) -> None:
    save_steps(tmp_path, 10)
    good = example_tensors()

    def error_of(tensors: dict[str, torch.Tensor]) -> str:
        with pytest.raises(ValueError) as caught:
            manager(tmp_path).load(state_of(tensors, ONE, 0, zeros=True))
        return str(caught.value)

    renamed = {n.replace("norm.weight", "norms.weight"): t for n, t in good.items()}
    assert "does not hold norms.weight (nearest: norm.weight)" in error_of(renamed)
    fewer = {n: t for n, t in good.items() if n != "half"}
    assert "holds half, which the model does not have" in error_of(fewer)
    other = good | {"norm.weight": torch.zeros(14)}
    assert "norm.weight has the shape (13,), the run (14,)" in error_of(other)
    wider = good | {"norm.weight": torch.zeros(13, dtype=torch.float64)}
    assert "norm.weight is stored as F32, the run has F64" in error_of(wider)
    state = state_of(good, ONE, 0, scalars={"train_state": 1, "lr_schedule": 2})
    with pytest.raises(ValueError, match=r"lr_schedule .nearest: lr_scheduler"):
        manager(tmp_path).load(state)


def test_ranks_may_hold_different_tensors_but_none_may_be_left_out(
    tmp_path: Path,
) -> None:
    tensors = example_tensors(10)

    def stage(rank: int, names: list[str]) -> TrainingState:
        held = {name: tensors[name] for name in names[rank::2]}
        return state_of(held, ONE, 0)

    def save(ranks: Any) -> None:
        manager(tmp_path, ranks=ranks).save(10, stage(ranks.rank, list(tensors)))

    results(run_ranks(2, save))
    assert load_plain(tmp_path) == 10

    def load_fewer(ranks: Any) -> None:
        state = stage(ranks.rank, [n for n in tensors if n != "half"])
        manager(tmp_path, ranks=ranks).load(state)

    outcomes = run_ranks(2, load_fewer)
    assert all("holds half, which" in str(outcome) for outcome in outcomes)
