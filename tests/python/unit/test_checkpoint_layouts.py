"""What one layout saves, every other layout loads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from checkpoint_ranks import (
    Grid,
    example_tensors,
    is_box_of,
    results,
    run_ranks,
    state_of,
)
from checkpoint_runs import (
    ONE,
    SCALARS,
    manager,
)

from torchtitan_cpp.checkpoint import (
    LoadedState,
)

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
