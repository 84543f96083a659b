"""Checkpoints of whole runs: resuming is exact, in the same layout and in others."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from training_runs import assert_same_tensors, read_checkpoint, run

SAVING = (
    "--checkpoint.enable",
    "--checkpoint.interval=2",
    "--checkpoint.no-last-save-model-only",
    "--training.global-batch-size=12",
)

PYTHON_MODEL = (
    "--experimental.custom-import=tiny_python_model",
    "--model.name=counting",
)

LAYOUTS = {
    "one_rank": (1, 1, 1, 1, 1),
    "ddp_2": (2, 2, 1, 1, 1),
    "fsdp_2": (2, 1, 1, 1, 1),
    "fsdp_3": (3, 1, 1, 1, 1),
    "fsdp_4": (4, 1, 1, 1, 1),
    "hsdp_2x2": (4, 2, 1, 1, 1),
    "tp_2": (2, 1, 1, 2, 1),
    "fsdp_2_tp_2": (4, 1, 1, 2, 1),
    "cp_2": (2, 1, 2, 1, 1),
    "fsdp_2_cp_2": (4, 1, 2, 1, 1),
    "cp_2_tp_2": (4, 1, 2, 2, 1),
    "pp_2": (2, 1, 1, 1, 2),
    "pp_2_fsdp_2": (4, 1, 1, 1, 2),
    "pp_2_ddp_2_tp_2": (8, 2, 1, 2, 2),
    "pp_2_cp_2_tp_2": (8, 1, 2, 2, 2),
}
"""Ranks, of which replicas, context, tensor and pipeline ranks."""

MANY_HEADS = "--model.flavor=tiny_heads"


def layout_flags(layout: str, *, microbatches: int = 1) -> tuple[str, ...]:
    ranks, replicas, context, tensor, pipeline = LAYOUTS[layout]
    data_ranks = ranks // tensor // context // pipeline
    rows = 12 // data_ranks // microbatches
    return (
        f"--parallelism.data-parallel-replicate-degree={replicas}",
        f"--parallelism.data-parallel-shard-degree={data_ranks // replicas}",
        f"--parallelism.context-parallel-degree={context}",
        f"--parallelism.pipeline-parallel-degree={pipeline}",
        f"--parallelism.tensor-parallel-degree={tensor}",
        f"--training.local-batch-size={rows}",
    )


def checkpoint(folder: Path, step: int) -> Path:
    return folder / "checkpoint" / f"step-{step}"


def assert_same_checkpoint(one: Path, other: Path) -> None:
    """All tensors, and what the ranks hold of schedule, data and generators."""
    assert_same_tensors(read_checkpoint(one), read_checkpoint(other))
    states = [json.loads((path / "manifest.json").read_text()) for path in (one, other)]
    for part in ("step", "content", "scalars", "gathered"):
        assert states[0][part] == states[1][part], part


@pytest.mark.parametrize(
    ("layout", "microbatches"),
    [
        pytest.param("one_rank", 1, marks=pytest.mark.quick),
        ("one_rank", 3),
        ("fsdp_2", 3),
        ("fsdp_2_tp_2", 1),
        ("fsdp_2_cp_2", 1),
        ("pp_2_fsdp_2", 1),
    ],
)
def test_a_resumed_run_equals_one_that_was_not_stopped(
    layout: str, microbatches: int, tmp_path: Path
) -> None:
    flags = (*SAVING, MANY_HEADS, *layout_flags(layout, microbatches=microbatches))
    ranks = LAYOUTS[layout][0]
    whole = run(tmp_path / "whole", *flags, "--training.steps=8", ranks=ranks)
    parts = tmp_path / "parts"
    # The schedule must be that of the whole run, so the first part is cut at a step
    # between two saves: the resumed run repeats the step after the last one.
    run(parts, *flags, "--training.steps=8", ranks=ranks)
    for step in (6, 8):
        shutil.rmtree(checkpoint(parts, step))
    resumed = run(parts, *flags, "--training.steps=8", ranks=ranks)
    assert "training goes on after step 4" in resumed.output
    assert resumed.metrics() == whole.metrics()
    for step in (6, 8):
        assert_same_checkpoint(checkpoint(parts, step), checkpoint(whole.folder, step))


def test_n_steps_twice_equal_2n_steps_under_a_constant_schedule(tmp_path: Path) -> None:
    flags = (*SAVING, *layout_flags("one_rank"), "--lr-scheduler.warmup-steps=0")
    flags += ("--lr-scheduler.decay-ratio=0.0",)
    whole = run(tmp_path / "whole", *flags, "--training.steps=8")
    parts = tmp_path / "parts"
    run(parts, *flags, "--training.steps=4")
    resumed = run(parts, *flags, "--training.steps=8")
    assert resumed.metrics() == whole.metrics()
    assert_same_checkpoint(checkpoint(parts, 8), checkpoint(whole.folder, 8))


CHAIN = [
    *(("fsdp_2_tp_2", 3), ("pp_2", 1), ("fsdp_3", 1), ("tp_2", 3), ("cp_2", 1)),
    *(("one_rank", 3), ("ddp_2", 1), ("cp_2_tp_2", 1), ("fsdp_2", 3), ("pp_2", 3)),
    *(("hsdp_2x2", 3), ("fsdp_2_cp_2", 1), ("pp_2_fsdp_2", 3), ("tp_2", 1)),
    *(("fsdp_4", 1), ("pp_2_ddp_2_tp_2", 1), ("cp_2", 3), ("fsdp_2_tp_2", 1)),
    *(("pp_2_cp_2_tp_2", 1), ("one_rank", 1), ("fsdp_2_tp_2", 1)),
]
"""Layout and microbatches of jobs of which each goes on where the one before ended."""


def test_any_layout_goes_on_where_another_ended(tmp_path: Path) -> None:
    """Each job saves what it has loaded, bit by bit, and trains one more step.

    The losses, norms and rates of all jobs are those of one rank that never stopped:
    the global batch of a step is the same on any number of ranks.
    """
    names = [layout for layout, _ in CHAIN]
    assert len(set(zip(names, names[1:], strict=False))) == 20
    assert set(names) == set(LAYOUTS)
    flags = (*SAVING, MANY_HEADS, "--training.dtype=float64")
    flags += ("--lr-scheduler.decay-ratio=0.0",)  # no rate depends on the last step
    moved = tmp_path / "moved"
    for step, (layout, microbatches) in enumerate(CHAIN, 2):
        job = run(
            *(moved, *flags, f"--training.steps={step}"),
            *layout_flags(layout, microbatches=microbatches),
            ranks=LAYOUTS[layout][0],
            trainer="resaving",
        )
        if step > 2:
            assert f"training goes on after step {step - 1}" in job.output
            loaded = read_checkpoint(moved / "resaved" / f"step-{step - 1}")
            assert_same_tensors(loaded, read_checkpoint(checkpoint(moved, step - 1)))
    assert any(name.startswith("optimizer.exp_avg_sq.") for name in loaded)
    whole = run(
        *(tmp_path / "whole", *flags, *layout_flags("one_rank")),
        f"--training.steps={len(CHAIN) + 1}",
    )
    for line, expected in zip(job.metrics(), whole.metrics(), strict=True):
        assert line == pytest.approx(expected, rel=1e-9)


def damage(path: Path) -> None:
    """Flip one bit of the largest file of a checkpoint."""
    file = max(path.glob("*.safetensors"), key=lambda each: each.stat().st_size)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)


def test_a_damaged_checkpoint_is_told_and_an_older_one_loaded(tmp_path: Path) -> None:
    flags = (*SAVING, *layout_flags("fsdp_2"), "--training.steps=4")
    run(tmp_path, *flags, ranks=2)
    damage(checkpoint(tmp_path, 4))
    explicit = run(tmp_path, *flags, "--checkpoint.load-step=4", ranks=2, fails=True)
    assert all(code != 0 for code in explicit.exit_codes)
    assert "step-4" in explicit.output and "SHA-256" in explicit.output
    again = run(tmp_path, *flags, ranks=2)
    assert "Damaged, going back to an older checkpoint" in again.output
    assert "training goes on after step 2" in again.output


def test_excluded_parts_keep_their_initial_state(tmp_path: Path) -> None:
    flags = (*SAVING, *layout_flags("one_rank"))
    saved = run(tmp_path, *flags, "--training.steps=4")
    excluded = "--checkpoint.exclude-from-loading=optimizer,lr_scheduler"
    run(tmp_path, *flags, excluded, "--training.steps=4", trainer="resaving")
    loaded = read_checkpoint(tmp_path / "resaved" / "step-4")
    for name, tensor in read_checkpoint(checkpoint(saved.folder, 4)).items():
        if name.startswith("optimizer."):
            assert not loaded[name].any() and tensor.any(), name
        else:
            assert torch.equal(loaded[name], tensor), name


@pytest.mark.parametrize("ranks", [1, 2])
def test_buffers_of_a_python_model_are_saved_and_resumed_from(
    ranks: int, tmp_path: Path
) -> None:
    flags = (*SAVING, *PYTHON_MODEL, "--model.flavor=plain")
    flags += (f"--training.local-batch-size={12 // ranks}",)
    whole = run(tmp_path / "whole", *flags, "--training.steps=4", ranks=ranks)
    saved = read_checkpoint(checkpoint(whole.folder, 4))
    buffers = {name: t for name, t in saved.items() if "." not in name}
    assert buffers.keys() == {"steps", "average", "phase"}
    assert buffers["steps"] == 4 and buffers["phase"].tolist() == [[1, 0], [1, 0]]
    assert "have different values" not in whole.output
    parts = tmp_path / "parts"
    run(parts, *flags, "--training.steps=4", ranks=ranks)
    shutil.rmtree(checkpoint(parts, 4))
    resumed = run(parts, *flags, "--training.steps=4", ranks=ranks)
    assert "training goes on after step 2" in resumed.output
    assert resumed.metrics() == whole.metrics()
    assert_same_checkpoint(checkpoint(parts, 4), checkpoint(whole.folder, 4))


OWN_LOADER = (
    *SAVING[:-1],
    "--experimental.custom-import=tiny_python_model",
    "--model.name=own_loader",
    "--model.flavor=plain",
    "--training.steps=9",
)


def test_a_loader_of_ones_own_goes_on_where_each_rank_was(tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", *OWN_LOADER, ranks=2)
    parts = tmp_path / "parts"
    run(parts, *OWN_LOADER, ranks=2)
    for step in (4, 5):
        shutil.rmtree(checkpoint(parts, step))
    moved = run(parts, *OWN_LOADER, fails=True)
    assert "saved its position on 2 ranks, this run has 1" in moved.output
    resumed = run(parts, *OWN_LOADER, ranks=2)
    assert "training goes on after step 2" in resumed.output
    assert resumed.metrics() == whole.metrics()


@pytest.mark.quick
def test_the_last_step_before_the_data_ends_is_saved(tmp_path: Path) -> None:
    flags = ("--checkpoint.interval=100", "--training.global-batch-size=4")
    ended = run(tmp_path, *OWN_LOADER, *flags)
    assert "The data has ended after step 2 of 9" in ended.output
    manifest = json.loads((checkpoint(tmp_path, 2) / "manifest.json").read_text())
    assert manifest["content"] == "training"
    tokens = 2 * 4 * 16  # steps, rows, tokens of a row: not those of a cut step
    assert manifest["scalars"]["train_state"]["num_tokens_seen"] == tokens


def test_without_train_state_the_run_starts_over_and_saves_its_own_steps(
    tmp_path: Path,
) -> None:
    flags = (*SAVING, *layout_flags("one_rank"), "--training.steps=4")
    run(tmp_path, *flags)
    before = read_checkpoint(checkpoint(tmp_path, 4))
    again = run(tmp_path, *flags, "--checkpoint.exclude-from-loading=train_state")
    assert "training starts at step 1" in again.output
    assert [line["step"] for line in again.metrics()] == [1, 2, 3, 4]
    after = read_checkpoint(checkpoint(tmp_path, 4))
    assert any(not torch.equal(tensor, before[name]) for name, tensor in after.items())
    (kept,) = (tmp_path / "checkpoint").glob("step-4.replaced-by-*")
    assert_same_tensors(read_checkpoint(kept), before)
    # The moments were kept, so their bias correction goes on.
    assert updates(kept) == 4
    assert updates(checkpoint(tmp_path, 4)) == 8


def test_new_moments_start_with_the_bias_correction_of_a_first_update(
    tmp_path: Path,
) -> None:
    flags = (*SAVING, *layout_flags("one_rank"))
    run(tmp_path, *flags, "--training.steps=4")
    new = "--checkpoint.exclude-from-loading=optimizer"
    again = run(tmp_path, *flags, new, "--training.steps=6")
    assert [line["step"] for line in again.metrics()] == [1, 2, 3, 4, 5, 6]
    assert updates(checkpoint(tmp_path, 6)) == 2


def updates(path: Path) -> int:
    """How many updates the saved moments have seen."""
    manifest = json.loads((path / "manifest.json").read_text())
    return int(manifest["scalars"]["optimizer_step"])


def test_a_run_starts_from_the_weights_of_another(tmp_path: Path) -> None:
    flags = layout_flags("one_rank")
    first = run(tmp_path / "first", *SAVING, *flags, "--training.steps=4")
    path = checkpoint(first.folder, 4)
    second = run(
        tmp_path / "second",
        *SAVING,
        *layout_flags("fsdp_2"),
        f"--checkpoint.initial-load-path={path}",
        "--training.steps=1",
        ranks=2,
        trainer="resaving",
    )
    assert f"Loaded the weights in {path}" in second.output
    assert [line["step"] for line in second.metrics()] == [1]
    loaded = read_checkpoint(second.folder / "resaved" / "step-0")
    for name, tensor in read_checkpoint(path).items():
        if name.startswith("optimizer."):
            assert not loaded[name].any(), name
        else:
            assert torch.equal(loaded[name], tensor), name


def test_the_last_save_holds_weights_in_the_export_dtype(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"  # the folder may be an absolute path
    flags = ("--checkpoint.enable", f"--checkpoint.folder={elsewhere}")
    flags += ("--checkpoint.last-save-model-only", "--checkpoint.export-dtype=bfloat16")
    saved = run(tmp_path / "run", *flags, "--training.steps=2")
    assert f" steps in {elsewhere}\n" in saved.output
    tensors = read_checkpoint(elsewhere / "step-2")
    assert tensors and not any(name.startswith("optimizer.") for name in tensors)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}


def test_transformers_loads_the_last_save_and_a_run_starts_from_it(
    tmp_path: Path,
) -> None:
    from transformers import LlamaForCausalLM  # takes a second to import

    exported = run(
        tmp_path / "first",
        "--checkpoint.enable",
        "--checkpoint.last-save-model-only",
        "--checkpoint.last-save-in-hf",
        "--training.steps=2",
        ranks=2,
    )
    path = checkpoint(exported.folder, 2)
    model, found = LlamaForCausalLM.from_pretrained(path, output_loading_info=True)
    assert not found["missing_keys"] and not found["unexpected_keys"]
    second = run(
        tmp_path / "second",
        "--checkpoint.enable",
        "--checkpoint.initial-load-in-hf",
        f"--checkpoint.initial-load-path={path}",
        "--training.steps=1",
        trainer="resaving",
    )
    loaded = read_checkpoint(second.folder / "resaved" / "step-0")
    state = model.state_dict()
    assert torch.equal(
        loaded["tok_embeddings.weight"], state["model.embed_tokens.weight"]
    )
    w1 = "layers.1.feed_forward.w1.weight"
    assert torch.equal(loaded[w1], state["model.layers.1.mlp.gate_proj.weight"])


def test_a_seed_holds_the_initial_weights_whatever_the_folder_holds(
    tmp_path: Path,
) -> None:
    seed = ("--checkpoint.enable", "--checkpoint.create-seed-checkpoint")
    run(tmp_path / "fresh", *seed)
    run(tmp_path / "used", *SAVING, *layout_flags("one_rank"), "--training.steps=2")
    run(tmp_path / "used", *seed)
    one, other = (
        read_checkpoint(checkpoint(tmp_path / name, 0)) for name in ("fresh", "used")
    )
    assert_same_tensors(one, other)


def test_a_seed_checkpoint_starts_every_layout_alike(tmp_path: Path) -> None:
    seeded = run(
        tmp_path / "seed", "--checkpoint.enable", "--checkpoint.create-seed-checkpoint"
    )
    weights = read_checkpoint(checkpoint(seeded.folder, 0))
    folder = tmp_path / "run"
    shutil.copytree(seeded.folder / "checkpoint", folder / "checkpoint")
    flags = (*SAVING, *layout_flags("fsdp_3"), "--debug.seed=8", "--training.steps=1")
    run(folder, *flags, ranks=3, trainer="resaving")
    loaded = read_checkpoint(folder / "resaved" / "step-0")
    for name, tensor in weights.items():
        assert torch.equal(loaded[name], tensor), name


@pytest.mark.quick
def test_only_the_latest_k_checkpoints_are_kept(tmp_path: Path) -> None:
    keep = "--checkpoint.keep-latest-k=2"
    run(tmp_path, *SAVING, *layout_flags("one_rank"), keep, "--training.steps=8")
    names = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())
    assert names == ["step-6", "step-8"]


def test_a_run_that_only_loads_saves_nothing(tmp_path: Path) -> None:
    flags = (*SAVING, *layout_flags("one_rank"))
    run(tmp_path, *flags, "--training.steps=2")
    run(tmp_path, *flags, "--training.steps=6", "--checkpoint.load-only")
    assert [path.name for path in (tmp_path / "checkpoint").iterdir()] == ["step-2"]
