"""A bit that flips in one copy of a weight or moment stops the run, names the rank."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from training_runs import run

CHECKED = ("--debug.replica-check-interval=2", "--training.steps=6")
SAVING = ("--checkpoint.enable", "--checkpoint.interval=1")
NAME = r"layers\.0\.attention\.w[a-z]\.weight"
AGREE = r", which agree\. Something other than training"

LAYOUTS = {
    "ddp_3": (
        3,
        ("--parallelism.data-parallel-replicate-degree=3",),
        rf"rank 1 from ranks 0, 2{AGREE}",
    ),
    "ddp_2": (
        2,
        ("--parallelism.data-parallel-replicate-degree=2",),
        r"rank 0 from rank 1; no majority tells which is right",
    ),
    "hsdp_3x2": (
        6,
        (
            "--parallelism.data-parallel-replicate-degree=3",
            "--parallelism.data-parallel-shard-degree=2",
        ),
        rf"rank 1 from ranks 3, 5{AGREE}",
    ),
}


def flags_of(layout: str) -> tuple[int, list[str], str]:
    ranks, flags, who = LAYOUTS[layout]
    if ranks < 6:
        flags = ("--parallelism.data-parallel-shard-degree=1", *flags)
    return ranks, [*flags, *CHECKED], who


@pytest.mark.parametrize(
    "layout", ["ddp_3", pytest.param("ddp_2", marks=pytest.mark.quick), "hsdp_3x2"]
)
def test_a_flipped_bit_is_found_at_the_next_check(layout: str, tmp_path: Path) -> None:
    ranks, flags, who = flags_of(layout)
    in_moment = layout == "hsdp_3x2"  # where a piece of a moment has copies
    ended = run(
        tmp_path,
        *(*flags, *SAVING),
        threads=ranks,
        trainer="flipping_moment" if in_moment else "flipping",
        fails=True,
        FLIPPED="1",
    )
    assert ended.exit_codes == [1], ended.output
    # The weight follows its moment, which is named first.
    name = rf"optimizer\.exp_avg\.{NAME}" if in_moment else NAME
    line = rf"ReplicaError: step 4: the copies of {name} differ( \(and \d+ more .*)?: "
    assert re.search(line + who, ended.output), ended.output
    assert "Traceback" not in ended.output
    # What was saved before it was noticed stays; nothing is saved after that.
    saved = sorted(path.name for path in (tmp_path / "checkpoint").iterdir())
    assert saved == ["step-1", "step-2", "step-3"]


@pytest.mark.quick
def test_all_processes_tell_of_a_flipped_bit(tmp_path: Path) -> None:
    ranks, flags, who = flags_of("ddp_3")
    ended = run(
        *(tmp_path, *flags), ranks=ranks, trainer="flipping", fails=True, FLIPPED="1"
    )
    assert ended.exit_codes == [1] * ranks, ended.output
    for output in ended.outputs:
        assert re.search(rf"step 4: the copies of {NAME} differ.*{who}", output), output


@pytest.mark.quick
@pytest.mark.parametrize(
    "flags",
    [
        # What tensor parallelism does not divide is held by both ranks.
        ("--parallelism.tensor-parallel-degree=2", "--model.flavor=tiny_heads"),
        # Nothing is held twice.
        ("--parallelism.data-parallel-shard-degree=2",),
    ],
)
def test_ranks_whose_copies_are_equal_train_on(
    flags: tuple[str, ...], tmp_path: Path
) -> None:
    ended = run(tmp_path, *flags, "--debug.replica-check-interval=1", threads=2)
    assert [line["step"] for line in ended.metrics()] == [1, 2, 3, 4, 5]


@pytest.mark.quick
def test_a_bit_in_what_tensor_parallelism_copies_is_found(tmp_path: Path) -> None:
    ended = run(
        tmp_path,
        "--parallelism.tensor-parallel-degree=2",
        "--model.flavor=tiny_heads",
        *CHECKED,
        threads=2,
        trainer="flipping_norm",
        fails=True,
        FLIPPED="1",
    )
    assert re.search(r"step 4: the copies of .*norm\.weight differ", ended.output)


@pytest.mark.quick
def test_a_flip_passes_unseen_where_the_check_is_off(tmp_path: Path) -> None:
    ranks, flags, _ = flags_of("ddp_2")
    off = "--debug.replica-check-interval=0"
    run(tmp_path, *flags, off, threads=ranks, trainer="flipping", FLIPPED="1")
