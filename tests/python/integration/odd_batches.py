"""A loader that gives batches of the shapes in BATCHES, for jobs that import this."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import tiny_jobs  # registers its dataset
import torch

from torchtitan_cpp import get_train_spec, register_train_spec
from torchtitan_cpp.models.llama3 import llama3_args

__all__ = ["tiny_jobs"]


class OddLoader:
    """The same rows on every data rank, one shape after the other, for ever."""

    def __init__(self, **of_the_run: Any) -> None:
        self.shapes = json.loads(os.environ["BATCHES"])

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        for number, (rows, length) in enumerate(itertools.cycle(self.shapes)):
            generator = torch.Generator().manual_seed(number)
            ids = torch.randint(2048, (rows, length + 1), generator=generator)
            yield {"input": ids[:, :-1].contiguous()}, ids[:, 1:].contiguous()


register_train_spec(
    "odd_batches",
    replace(
        get_train_spec("llama3"),
        model_args={"plain": llama3_args["tiny_heads"]},
        build_dataloader_fn=OddLoader,
        build_tokenizer_fn=None,
    ),
)
