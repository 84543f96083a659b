"""Saves of weights only, and what a run may start from."""

from __future__ import annotations

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
    manager,
    save_steps,
)

from torchtitan_cpp.checkpoint import (
    CheckpointError,
    LoadedState,
    StateDictAdapter,
    TensorEntry,
    TrainingState,
    saving,
)
from torchtitan_cpp.errors import needs_traceback


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
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_steps(tmp_path / "other", 30)
    settings = replace(
        ENABLED,
        initial_load_path=str(tmp_path / "other/checkpoint/step-30"),
        initial_load_model_only=False,
    )
    (tmp_path / "checkpoint").mkdir()
    assert load(tmp_path, settings)[0].step == 30
    assert not caplog.text
    save_steps(tmp_path, 10)
    assert load(tmp_path, settings)[0].step == 10
    assert "initial_load_path is for a run without checkpoints of its" in caplog.text


def no_step(folder: Path) -> str:
    return f"{folder} holds neither manifest.json nor .metadata: expected one"


BAD_PATHS: dict[str, Callable[[Path], tuple[Path, str]]] = {
    "missing": lambda f: (
        f / "other/checkpoint/step-3",
        f"/step-3 does not exist: expected one checkpoint, such as .../step-100; "
        f"{f}/other/checkpoint has no step-3 (nearest: step-30)",
    ),
    "parent missing": lambda f: (
        f / "othr/checkpoint/step-30",
        f"{f} has no othr (nearest: other)",
    ),
    "file": lambda f: (
        f / "other/checkpoint/step-30/manifest.json",
        "manifest.json is no folder: expected one checkpoint",
    ),
    "folder of checkpoints": lambda f: (
        f / "other/checkpoint",
        f"{no_step(f / 'other/checkpoint')} checkpoint, such as .../step-100; in it: "
        "step-5, step-20, step-30",
    ),
    "weights of Hugging Face": lambda f: (
        f / "weights",
        "; found weights of Hugging Face: set checkpoint.initial_load_in_hf",
    ),
    "something else": lambda f: (f / "other", "step-100; found checkpoint"),
    "empty": lambda f: (f / "empty", "step-100; found nothing"),
    "damaged": lambda f: (
        f / "other/checkpoint/step-20",
        "rank-00000.safetensors: bytes 0 to ",
    ),
    "damaged manifest": lambda f: (
        f / "other/checkpoint/step-5",
        "manifest.json: does not have the SHA-256 in manifest.sha256",
    ),
}


@pytest.mark.parametrize("kind", BAD_PATHS)
def test_an_initial_path_that_is_no_checkpoint_is_one_error_on_all_ranks(
    kind: str, tmp_path: Path
) -> None:
    save_steps(tmp_path / "other", 5, 20, 30)
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/model.safetensors").touch()
    (tmp_path / "empty").mkdir()
    flip_bit(tmp_path / "other/checkpoint/step-20/rank-00000.safetensors")
    flip_bit(tmp_path / "other/checkpoint/step-5/manifest.json")
    path, expected = BAD_PATHS[kind](tmp_path)
    settings = replace(ENABLED, initial_load_path=str(path))

    def load_it(ranks: Any) -> None:
        state = state_of(example_tensors(), Grid(rows=2), ranks.rank, zeros=True)
        manager(tmp_path, settings, ranks=ranks).load(state)

    errors = run_ranks(2, load_it)
    assert len({str(error) for error in errors}) == 1, errors
    assert expected in str(errors[0])
    # Where all ranks see the same, it is said once.
    assert str(errors[0]).count(expected) == 1
    for error in errors:
        assert isinstance(error, ValueError | CheckpointError)
        assert not needs_traceback(error)


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


class PrefixAdapter(StateDictAdapter):
    """Names begin with ``hf.``; the buffer ``lost`` has none there."""

    def to_hf(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        return {f"hf.{n}": t for n, t in state_dict.items() if n != "lost"}

    def from_hf(self, hf_state_dict: dict[str, Any]) -> dict[str, Any]:
        return {name.removeprefix("hf."): t for name, t in hf_state_dict.items()}


def test_hugging_face_files_hold_buffers_in_their_dtype_or_not_at_all(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def state_with(count: int, lost: int) -> TrainingState:
        buffers = {"count": torch.tensor(count), "lost": torch.tensor(lost)}
        entries = [
            TensorEntry(
                name=name,
                kind="model",
                local=local,
                global_shape=tuple(local.shape),
                offset=(0,) * local.dim(),
                size=tuple(local.shape),
                is_writer=True,
                is_buffer=name in buffers,
            )
            for name, local in ({"w": torch.ones(3)} | buffers).items()
        ]
        return TrainingState(tensors=entries)

    adapter = PrefixAdapter(None, None)
    large = 2**40 + 1  # no float32
    saving = replace(ENABLED, last_save_in_hf=True)
    path = manager(tmp_path, saving, adapter=adapter).save(
        20, state_with(large, 5), last_step=True
    )
    loading = replace(
        ENABLED, folder="new", initial_load_path=path, initial_load_in_hf=True
    )
    target = state_with(0, 6)
    caplog.set_level("INFO", logger="torchtitan_cpp")
    manager(tmp_path, loading, adapter=adapter).load(target)
    assert [int(entry.local) for entry in target.tensors[1:]] == [large, 6]
    assert "does not hold lost: as initialized" in caplog.text


def test_what_a_disk_has_changed_is_not_exported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shard = saving.write_shard

    def write_damaged(folder: str, *args: Any, **kwargs: Any) -> Any:
        report: Any = write_shard(folder, *args, **kwargs)
        flip_bit(Path(folder) / report["file"]["name"])
        return report

    monkeypatch.setattr(saving, "write_shard", write_damaged)
    run = manager(
        tmp_path,
        replace(ENABLED, last_save_in_hf=True),
        adapter=PrefixAdapter(None, None),
    )
    state = state_of({"w": torch.ones(300)}, ONE, 0)
    with pytest.raises(CheckpointError, match="rank-00000.*expected SHA-256"):
        run.save(20, state, last_step=True)
    assert list((tmp_path / "checkpoint").iterdir()) == []
