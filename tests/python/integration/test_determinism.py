"""Seeds and deterministic mode."""

from __future__ import annotations

from pathlib import Path

import pytest
from training_runs import assert_same_tensors, run

FLAGS = ("--debug.deterministic", "--training.global-batch-size=12")


@pytest.mark.parametrize("ranks", [1, 2])
def test_two_runs_are_equal_bit_by_bit(ranks: int, tmp_path: Path) -> None:
    flags = (*FLAGS, "--training.local-batch-size=3")
    one, two = (
        run(tmp_path / name, *flags, ranks=ranks, trainer="dumping")
        for name in ("one", "two")
    )
    assert one.metrics() == two.metrics()
    for step in (1, 5):
        for kind in ("gradients", "weights"):
            assert_same_tensors(one.dumped(step)[kind], two.dumped(step)[kind])


@pytest.mark.quick
def test_another_seed_gives_another_run(tmp_path: Path) -> None:
    losses = {
        run(tmp_path / str(seed), f"--debug.seed={seed}").metrics()[0]["loss"]
        for seed in (7, 8)
    }
    assert len(losses) == 2


@pytest.mark.quick
def test_initial_weights_of_a_seed_are_equal_in_every_layout(tmp_path: Path) -> None:
    """A learning rate of almost nothing and no decay: the weights stay as they were."""
    layouts = {
        "one_rank": (1, ()),
        "fsdp_3": (3, ()),
        "hsdp_2x2": (
            4,
            (
                "--parallelism.data-parallel-replicate-degree=2",
                "--parallelism.data-parallel-shard-degree=2",
            ),
        ),
    }
    still = (
        "--optimizer.lr=1e-300",
        "--optimizer.weight-decay=0",
        "--training.steps=1",
    )
    weights = [
        run(tmp_path / name, *still, *flags, ranks=ranks, trainer="dumping").dumped(1)
        for name, (ranks, flags) in layouts.items()
    ]
    for other in weights[1:]:
        assert_same_tensors(other["weights"], weights[0]["weights"])


@pytest.mark.quick
def test_without_a_seed_all_ranks_take_the_same_one(tmp_path: Path) -> None:
    """Replicas compare their weights bit by bit when they are put together."""
    flags = (
        "--parallelism.data-parallel-replicate-degree=2",
        "--parallelism.data-parallel-shard-degree=1",
        "--training.steps=2",
    )
    run(tmp_path, *flags, ranks=2, trainer="dumping", without="--debug.seed").dumped(2)
