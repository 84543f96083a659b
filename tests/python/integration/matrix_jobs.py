"""Models and data of the equality matrix, for jobs that import this module.

The cells are those of tests/cpp/train/matrix.cpp, which writes them to a table.
"""

from __future__ import annotations

import csv
import itertools
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import tiny_jobs  # registers the dataset that every job here names
import torch

from torchtitan_cpp import get_train_spec, register_train_spec
from torchtitan_cpp.models.llama3 import TransformerModelArgs
from torchtitan_cpp.tensor_parallel import tensor_parallel_plan

__all__ = ["tiny_jobs"]

TESTS = Path(__file__).parents[2]
sys.path.insert(0, str(TESTS / "python" / "unit"))

from styled_models import SEQUENCE, WHOLE, Args, Styled  # noqa: E402

LENGTH = 16
MICROBATCH = 2
"""Rows."""
END = 0
"""The token that ends a document."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One row of the table; a number that says nothing without a parallelism is 1."""

    number: int
    is_quick: bool
    is_python: bool
    pipeline: int
    replicas: int
    shards: int
    context: int
    tensor: int
    schedule: str
    stages: int
    """Of a rank."""
    microbatches: int
    """Of a round of the schedule."""
    method: str
    balance: str
    loss_parallel: str
    overlap: str
    reshard: str
    accumulation: int
    """Rounds of the schedule, microbatches without a pipeline."""
    checkpoint: str
    offload: str
    tied: str
    vocabulary: int
    masked: str
    documents: str

    @property
    def data_ranks(self) -> int:
        return self.replicas * self.shards

    @property
    def ranks(self) -> int:
        return self.pipeline * self.data_ranks * self.context * self.tensor

    @property
    def local_rows(self) -> int:
        """That a rank reads at once."""
        return MICROBATCH * self.microbatches

    @property
    def rows(self) -> int:
        return self.local_rows * self.data_ranks * self.accumulation

    @property
    def layers(self) -> int:
        return max(2, self.pipeline * self.stages)

    @property
    def model(self) -> str:
        """As registered here."""
        if not self.is_python:
            return "matrix"
        return "matrix_sequence" if self.number % 2 else "matrix_whole"

    @property
    def flavor(self) -> str:
        return f"cell_{self.number}"

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        """The whole batch of a step: ``input`` and ``labels`` ``[rows, LENGTH]``."""
        generator = torch.Generator().manual_seed(1000 * self.number + step)
        shape = (self.rows, LENGTH + 1)
        ids = torch.randint(END + 1, self.vocabulary, shape, generator=generator)
        for row in range(self.rows):
            ids[row, [2 + row % 3, 5 + row % 3]] = END
        labels = ids[:, 1:].clone()
        labels[::3, 2] = -100
        if self.masked:
            labels[: self.rows // 2] = -100
        return {"input": ids[:, :-1].contiguous(), "labels": labels}


@cache
def cells() -> list[Cell]:
    """All of the table."""
    with (TESTS / "equality_cells.csv").open() as table:
        return [_cell(row) for row in csv.DictReader(table)]


def _cell(row: dict[str, str]) -> Cell:
    numbers = {
        name: int(row.pop(name) or 1)
        for name in Cell.__annotations__
        if name in row and Cell.__annotations__[name] == "int"
    }
    return Cell(
        number=int(row.pop("cell")),
        is_quick=row.pop("suite") == "quick",
        is_python=bool(row.pop("model")),
        **numbers,
        **row,  # type: ignore[arg-type]
    )


class Rows:
    """The rows of a data rank, in the order of microbatches, then ranks."""

    def __init__(
        self, *, dp_world_size: int, dp_rank: int, tokenizer: None, job_config: Any
    ) -> None:
        self._size, self._rank = dp_world_size, dp_rank
        self._training = job_config.training
        number = int(job_config.model.flavor.removeprefix("cell_"))
        (self._cell,) = (cell for cell in cells() if cell.number == number)

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        local = self._training.local_batch_size
        for step in itertools.count(1):
            batch = self._cell.batch(step)
            for first in range(self._rank * local, self._cell.rows, self._size * local):
                tokens, labels = (
                    batch[name][first : first + local] for name in ("input", "labels")
                )
                yield {"input": tokens}, labels


def _llama_args(cell: Cell) -> TransformerModelArgs:
    masks = {"attn_type": "flex", "attn_mask_type": "block_causal"}
    return TransformerModelArgs(
        dim=16,
        n_layers=cell.layers,
        n_heads=8,
        # Ulysses gives every rank of context x tensor a key head of its own.
        n_kv_heads=max(4, cell.context * cell.tensor),
        vocab_size=cell.vocabulary,
        multiple_of=12,
        rope_theta=10000,
        enable_weight_tying=bool(cell.tied),
        eos_id=END,
        **(masks if cell.documents else {}),
    )


def _styled_args(cell: Cell) -> Args:
    return Args(
        heads=8,
        vocab_size=cell.vocabulary,
        num_layers=cell.layers,
        tied=bool(cell.tied),
    )


_spec = replace(
    get_train_spec("llama3"), build_dataloader_fn=Rows, build_tokenizer_fn=None
)
register_train_spec(
    "matrix",
    replace(
        _spec, model_args={c.flavor: _llama_args(c) for c in cells() if not c.is_python}
    ),
)
_styled = replace(
    _spec,
    model_cls=Styled,
    model_args={c.flavor: _styled_args(c) for c in cells() if c.is_python},
    state_dict_adapter=None,
)
for _name, _plan in (("matrix_sequence", SEQUENCE), ("matrix_whole", WHOLE)):
    register_train_spec(
        _name, replace(_styled, parallelize_fn=tensor_parallel_plan(_plan))
    )
