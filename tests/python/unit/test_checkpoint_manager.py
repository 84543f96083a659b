"""What is saved, loaded and deleted, with threads as ranks."""

from __future__ import annotations

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
from torchtitan_cpp.checkpoint import (
    CheckpointError,
    CheckpointManager,
    LoadedState,
    SingleRank,
    TensorEntry,
    TrainingState,
)
from torchtitan_cpp.config.checkpoint import Checkpoint

ENABLED = Checkpoint(enable=True, interval=10, keep_latest_k=0)
ONE = Grid()
SCALARS = {"train_state": {"step": 10, "loss": 0.1 + 0.2}, "lr_scheduler": [1, -0.0]}


def manager(folder: Path, settings: Checkpoint = ENABLED, **kwargs: Any) -> Any:
    arguments = {"ranks": SingleRank(), "base_folder": str(folder)} | kwargs
    return CheckpointManager(settings, **arguments)


def save_steps(folder: Path, *steps: int, settings: Checkpoint = ENABLED) -> None:
    """One run that saves these steps; the tensors are example_tensors(step)."""
    run = manager(folder, settings)
    for step in steps:
        run.save(step, state_of(example_tensors(step), ONE, 0, scalars=SCALARS))


def load(folder: Path, settings: Checkpoint = ENABLED) -> tuple[LoadedState, int]:
    """The loaded state, and the seed of the tensors that were filled in."""
    state = state_of(example_tensors(), ONE, 0, zeros=True, scalars=SCALARS)
    loaded = manager(folder, settings).load(state)
    assert loaded is not None
    step = next(entry for entry in state.tensors if entry.name == "optimizer.step")
    seed = int(step.local.item()) - 3
    for entry in state.tensors:
        assert is_box_of(entry, example_tensors(seed)[entry.name])
    return loaded, seed


def steps_in(folder: Path) -> list[str]:
    return sorted(os.listdir(folder / "checkpoint"))


LAYOUTS = [
    Grid(),
    Grid(rows=2),
    Grid(rows=4),
    Grid(replicas=3),
    Grid(replicas=2, rows=2),
    Grid(columns=3),
    Grid(rows=2, columns=2),
    Grid(rows=8),
]


@pytest.mark.parametrize("source", LAYOUTS, ids=str)
def test_a_checkpoint_of_any_layout_loads_into_any_other(
    source: Grid, tmp_path: Path
) -> None:
    tensors = example_tensors(10)

    def save(ranks: Any) -> str:
        state = state_of(
            tensors,
            source,
            ranks.rank,
            scalars=SCALARS,
            gathered={"dataloader": {"position": ranks.rank}},
        )
        path: str = manager(tmp_path, ranks=ranks).save(10, state)
        return path

    paths = results(run_ranks(source.world_size, save))
    assert set(paths) == {str(tmp_path / "checkpoint/step-10")}

    for target in LAYOUTS:

        def load_into(ranks: Any, target: Grid = target) -> LoadedState:
            state = state_of(
                tensors,
                target,
                ranks.rank,
                zeros=True,
                scalars=SCALARS,
                gathered={"dataloader": None},
            )
            loaded = manager(tmp_path, ranks=ranks).load(state)
            assert loaded is not None
            assert all(is_box_of(e, tensors[e.name]) for e in state.tensors)
            return loaded

        for loaded in results(run_ranks(target.world_size, load_into)):
            assert loaded.step == 10
            assert loaded.scalars == SCALARS
            positions = [{"position": r} for r in range(source.world_size)]
            assert loaded.gathered == {"dataloader": positions}


def test_floats_and_nested_values_come_back_bit_for_bit(tmp_path: Path) -> None:
    value = {"a": [0.1, 1e-310, -0.0, 2**63 - 1, None, True, "\u00e9\U0001f600"]}
    state = state_of(example_tensors(), ONE, 0, scalars={"rng": value})
    manager(tmp_path).save(1, state)
    loaded = manager(tmp_path).load(state)
    assert repr(loaded.scalars["rng"]) == repr(value)


def test_saving_is_due_at_the_interval_the_last_and_on_request_the_first_step(
    tmp_path: Path,
) -> None:
    run = manager(tmp_path)
    due = [step for step in range(1, 31) if run.should_save(step, last_step=step == 25)]
    assert due == [10, 20, 25, 30]
    first = replace(ENABLED, enable_first_step_checkpoint=True)
    assert manager(tmp_path, first).should_save(1)
    for off in (replace(ENABLED, enable=False), replace(ENABLED, load_only=True)):
        assert not manager(tmp_path, off).should_save(10, last_step=True)
    run.save(10, state_of(example_tensors(), ONE, 0))
    assert not run.should_save(10, last_step=True)


def test_a_step_that_was_just_saved_is_not_saved_again(tmp_path: Path) -> None:
    run = manager(tmp_path)
    state = state_of(example_tensors(), ONE, 0)
    path = run.save(10, state)
    before = os.stat(path).st_ino
    assert run.save(10, state) == path
    assert os.stat(path).st_ino == before


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


def test_after_going_back_the_new_checkpoint_is_the_latest_and_is_not_purged(
    tmp_path: Path,
) -> None:
    save_steps(tmp_path, 100, 200, 300)
    settings = replace(ENABLED, load_step=100, keep_latest_k=2)
    run = manager(tmp_path, settings)
    state = state_of(example_tensors(100), ONE, 0, scalars=SCALARS)
    assert run.load(state).step == 100
    run.save(110, state_of(example_tensors(110), ONE, 0, scalars=SCALARS))
    assert load(tmp_path)[0].step == 110
    assert steps_in(tmp_path) == ["step-100", "step-110", "step-200", "step-300"]


def test_only_the_latest_k_checkpoints_are_kept(tmp_path: Path) -> None:
    for k, kept in [(1, ["step-50"]), (2, ["step-40", "step-50"]), (0, 5)]:
        folder = tmp_path / str(k)
        save_steps(
            folder, 10, 20, 30, 40, 50, settings=replace(ENABLED, keep_latest_k=k)
        )
        assert steps_in(folder) == kept if k else len(steps_in(folder)) == kept


def test_keeping_goes_on_across_a_resumed_run(tmp_path: Path) -> None:
    settings = replace(ENABLED, keep_latest_k=2)
    save_steps(tmp_path, 10, 20, settings=settings)
    run = manager(tmp_path, settings)
    run.load(state_of(example_tensors(), ONE, 0, scalars=SCALARS))
    run.save(30, state_of(example_tensors(30), ONE, 0, scalars=SCALARS))
    assert steps_in(tmp_path) == ["step-20", "step-30"]


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], None]] = {
    "flipped bit": lambda step: flip_bit(step / "rank-00000.safetensors"),
    "truncated": lambda step: os.truncate(step / "rank-00000.safetensors", 100),
    "missing file": lambda step: os.remove(step / "rank-00000.safetensors"),
    "flipped bit in the manifest": lambda step: flip_bit(step / "manifest.json"),
    "no manifest": lambda step: os.remove(step / "manifest.json"),
    "no checksum": lambda step: os.remove(step / "manifest.sha256"),
}


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
    # The damaged one is replaced when training comes there again.
    run = manager(tmp_path)
    run.load(state_of(example_tensors(), ONE, 0, scalars=SCALARS))
    state = state_of(example_tensors(21), ONE, 0, scalars=SCALARS)
    if damage == "no manifest":
        with pytest.raises(CheckpointError, match="move it away"):
            run.save(20, state)
    else:
        run.save(20, state)
        assert load(tmp_path) == (load(tmp_path)[0], 21)


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
    if name not in ("link", "file"):
        # With nothing else there, the folder counts as empty.
        shutil.rmtree(folder / "step-10")
        state = state_of(example_tensors(), ONE, 0)
        assert manager(tmp_path).load(state) is None


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


def load_plain(folder: Path) -> int:
    """Step of the newest checkpoint, all tensors compared, without scalars."""
    state = state_of(example_tensors(), ONE, 0, zeros=True)
    loaded = manager(folder).load(state)
    for entry in state.tensors:
        assert is_box_of(entry, example_tensors(loaded.step)[entry.name])
    return loaded.step  # type: ignore[no-any-return]


def entry(offset: int, size: int, *, is_writer: bool = True) -> TensorEntry:
    return TensorEntry(
        name="w",
        kind="model",
        local=torch.ones(size),
        global_shape=(10,),
        offset=(offset,),
        size=(size,),
        is_writer=is_writer,
    )


@pytest.mark.parametrize(
    ("entries", "text"),
    [
        ([entry(0, 5), entry(4, 6)], r"boxes \[0:5\] and \[4:10\] overlap"),
        ([entry(0, 10), entry(0, 10)], "overlap"),
        ([entry(0, 5), entry(6, 4)], "the boxes hold 9 of its 10 elements"),
        ([entry(0, 10, is_writer=False)], "w: no rank is its writer"),
        ([entry(0, 10, is_writer=False), entry(0, 0)], "hold 0 of its 10 elements"),
    ],
    ids=["overlap", "two writers", "hole", "no writer", "box without writer"],
)
def test_a_save_that_would_not_cover_every_element_once_fails(
    entries: list[TensorEntry], text: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=text):
        manager(tmp_path).save(10, TrainingState(tensors=entries))
    assert steps_in(tmp_path) == []


def test_an_entry_must_fit_its_box() -> None:
    for fields, text in [
        ({"offset": (6,), "size": (5,)}, "lies outside"),
        ({"offset": (0, 0)}, "do not fit"),
        ({"local": torch.ones(4)}, "expected a contiguous tensor of shape"),
        ({"local": torch.ones(10)[::2]}, "contiguous"),
    ]:
        with pytest.raises(ValueError, match=text):
            replace(entry(0, 5), **fields)  # type: ignore[arg-type]


def test_a_failure_on_one_rank_fails_the_save_on_all_and_keeps_the_old_one(
    tmp_path: Path,
) -> None:
    grid = Grid(rows=3)

    def save(ranks: Any) -> None:
        run = manager(tmp_path, ranks=ranks)
        run.save(10, state_of(example_tensors(10), grid, ranks.rank))
        state = state_of(example_tensors(20), grid, ranks.rank)
        if ranks.rank == 1:
            bad = torch.zeros((), dtype=torch.complex128)
            extra = replace(state.tensors[-1], name="bad", local=bad, is_writer=True)
            state = replace(state, tensors=[*state.tensors, extra])
        run.save(20, state)

    outcomes = run_ranks(3, save)
    assert all(isinstance(outcome, CheckpointError) for outcome in outcomes)
    assert len({str(outcome) for outcome in outcomes}) == 1
    assert "rank 1: safetensors has no dtype for ComplexDouble" in str(outcomes[0])
    assert steps_in(tmp_path) == ["step-10"]
    assert load_plain(tmp_path) == 10


def test_state_that_differs_between_ranks_is_not_saved(tmp_path: Path) -> None:
    def save(ranks: Any) -> None:
        scalars = {"rng": 1, "train_state": ranks.rank}
        state = state_of(example_tensors(), Grid(rows=2), ranks.rank, scalars=scalars)
        manager(tmp_path, ranks=ranks).save(10, state)

    outcomes = run_ranks(2, save)
    assert all("train_state of rank 1 is not rank 0's" in str(o) for o in outcomes)


@pytest.mark.parametrize("value", [float("nan"), 2**64, {1, 2}, b"x", "\ud800"])
def test_state_that_json_cannot_hold_is_not_saved(value: Any, tmp_path: Path) -> None:
    state = state_of(example_tensors(), ONE, 0, scalars={"rng": value})
    with pytest.raises(CheckpointError):
        manager(tmp_path).save(10, state)
    assert steps_in(tmp_path) == []


@pytest.mark.parametrize(
    "point", ["before manifest", "manifest written", "before rename"]
)
def test_a_fault_while_publishing_keeps_the_old_checkpoint(
    point: str, tmp_path: Path
) -> None:
    def fail(reached: str) -> None:
        if reached == point:
            raise OSError(28, "No space left on device")

    save_steps(tmp_path, 10)
    run = manager(tmp_path, fault_hook=fail)
    with pytest.raises(CheckpointError, match="No space left"):
        run.save(20, state_of(example_tensors(20), ONE, 0))
    assert steps_in(tmp_path) == ["step-10"]
    assert load(tmp_path)[0].step == 10


def test_no_save_is_tried_once_a_rank_has_died(tmp_path: Path) -> None:
    run = manager(tmp_path)
    run.forbid_saving("rank 3 has died")
    assert not run.should_save(10, last_step=True)
    with pytest.raises(CheckpointError, match="step-10 is not saved: rank 3 has died"):
        run.save(10, state_of(example_tensors(), ONE, 0))
    assert not (tmp_path / "checkpoint").exists()


def test_load_only_never_saves(tmp_path: Path) -> None:
    save_steps(tmp_path, 10)
    run = manager(tmp_path, replace(ENABLED, load_only=True))
    with pytest.raises(CheckpointError, match="load_only"):
        run.save(20, state_of(example_tensors(), ONE, 0))
    assert load(tmp_path, replace(ENABLED, load_only=True))[0].step == 10


def test_the_last_save_holds_the_weights_only_and_is_not_resumed_from(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = manager(tmp_path, replace(ENABLED, export_dtype="bfloat16"))
    state = state_of(example_tensors(20), ONE, 0, scalars=SCALARS)
    run.save(20, state, last_step=True)
    with pytest.raises(CheckpointError, match="step-20: holds the weights only"):
        load(tmp_path)
    save_steps(tmp_path, 10)
    run = manager(tmp_path)
    assert run.load(state_of(example_tensors(), ONE, 0, scalars=SCALARS)).step == 10
    run.save(20, state, last_step=True)
    caplog.set_level("INFO", logger="torchtitan_cpp")
    assert load(tmp_path)[0].step == 10
    assert "step-20: holds the weights only" in caplog.text

    initial = replace(
        ENABLED,
        folder="new",
        initial_load_path=str(tmp_path / "checkpoint/step-20"),
    )
    target = state_of(example_tensors(), ONE, 0, zeros=True, scalars=SCALARS)
    loaded = manager(tmp_path, initial).load(target)
    assert (loaded.step, loaded.scalars) == (0, {})
    for held in target.tensors:
        if held.kind == "model":
            assert is_box_of(held, example_tensors(20)[held.name])
        else:
            assert not held.local.any()


def test_the_last_save_is_cast_to_the_export_dtype(tmp_path: Path) -> None:
    run = manager(tmp_path, replace(ENABLED, export_dtype="bfloat16"))
    path = run.save(20, state_of(example_tensors(20), ONE, 0), last_step=True)
    initial = replace(ENABLED, folder="new", initial_load_path=path)
    target = state_of(example_tensors(), ONE, 0, zeros=True)
    manager(tmp_path, initial).load(target)
    for held in target.tensors:
        if held.kind == "model":
            expected = example_tensors(20)[held.name]
            assert is_box_of(held, expected.bfloat16().to(expected.dtype))


def test_a_full_last_save_can_be_resumed_from(tmp_path: Path) -> None:
    run = manager(tmp_path, replace(ENABLED, last_save_model_only=False))
    state = state_of(example_tensors(20), ONE, 0, scalars=SCALARS)
    run.save(20, state, last_step=True)
    assert load(tmp_path)[0].step == 20


def test_the_initial_path_is_used_only_while_the_run_has_no_checkpoint(
    tmp_path: Path,
) -> None:
    save_steps(tmp_path / "other", 30)
    settings = replace(
        ENABLED,
        initial_load_path=str(tmp_path / "other/checkpoint/step-30"),
        initial_load_model_only=False,
    )
    (tmp_path / "checkpoint").mkdir()
    assert load(tmp_path, settings)[0].step == 30
    save_steps(tmp_path, 10)
    assert load(tmp_path, settings)[0].step == 10


def test_an_initial_path_that_is_no_checkpoint_is_refused(tmp_path: Path) -> None:
    save_steps(tmp_path / "other", 30)
    for path, text in [
        (tmp_path / "nothing", "is no folder"),
        (tmp_path / "other/checkpoint", "such as .../step-100"),
    ]:
        settings = replace(ENABLED, initial_load_path=str(path))
        with pytest.raises(ValueError, match=text):
            load(tmp_path, settings)
    flip_bit(tmp_path / "other/checkpoint/step-30/rank-00000.safetensors")
    path = tmp_path / "other/checkpoint/step-30"
    with pytest.raises(CheckpointError, match="SHA-256"):
        load(tmp_path, replace(ENABLED, initial_load_path=str(path)))


def test_a_seed_checkpoint_gives_every_layout_the_same_weights(tmp_path: Path) -> None:
    tensors = example_tensors(0)
    manager(tmp_path).save_seed(state_of(tensors, ONE, 0, scalars=SCALARS))
    grid = Grid(rows=2)

    def load_it(ranks: Any) -> LoadedState:
        state = state_of(tensors, grid, ranks.rank, zeros=True, scalars=SCALARS)
        loaded = manager(tmp_path, ranks=ranks).load(state)
        for held in state.tensors:
            if held.kind == "model":
                assert is_box_of(held, tensors[held.name])
        return loaded  # type: ignore[no-any-return]

    for loaded in results(run_ranks(2, load_it)):
        assert (loaded.step, loaded.scalars) == (0, {})

    def seed(ranks: Any) -> None:
        state = state_of(tensors, grid, ranks.rank)
        manager(tmp_path, ranks=ranks).save_seed(state)

    assert all("expects one rank" in str(o) for o in run_ranks(2, seed))
    with pytest.raises(ValueError, match="needs checkpoint.enable"):
        disabled = replace(ENABLED, enable=False)
        manager(tmp_path, disabled).save_seed(state_of(tensors, ONE, 0))


def test_contradicting_settings_are_refused(tmp_path: Path) -> None:
    for settings, text in [
        (
            replace(ENABLED, last_save_in_hf=True, last_save_model_only=False),
            "needs checkpoint.last_save_model_only",
        ),
        (
            replace(ENABLED, initial_load_in_hf=True, initial_load_model_only=False),
            "needs checkpoint.initial_load_model_only",
        ),
        (replace(ENABLED, last_save_in_hf=True), "no state_dict_adapter"),
        (replace(ENABLED, initial_load_in_hf=True), "no state_dict_adapter"),
    ]:
        with pytest.raises(ValueError, match=text):
            manager(tmp_path, settings)


def test_what_killed_processes_left_is_cleaned_up_by_the_next_save(
    tmp_path: Path,
) -> None:
    save_steps(tmp_path, 10)
    for name in (f"step-20.tmp-{'a' * 16}", f".trash-step-5-{'b' * 16}"):
        shutil.copytree(tmp_path / "checkpoint/step-10", tmp_path / "checkpoint" / name)
    assert load(tmp_path)[0].step == 10
    save_steps(tmp_path, 20)
    assert steps_in(tmp_path) == ["step-10", "step-20"]
