"""Shapes that differ: of batches, as in BATCHES, and between layers. For jobs."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import tiny_jobs  # registers its dataset
import torch
from tiny_python_model import Args
from torch import nn

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


class Shortening(nn.Module):
    """Drops its last token in every second call."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.linear(x[:, : x.shape[1] - (self.calls + 1) % 2])


class OddLayers(nn.Module):
    """A Python model whose layers give what depends on more than shapes."""

    def __init__(self, args: Args) -> None:
        super().__init__()
        self.embedding = nn.Embedding(args.vocab_size, args.dim)
        self.layers = nn.ModuleList(Shortening(args.dim) for _ in range(2))
        self.output = nn.Linear(args.dim, args.vocab_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = self.embedding(tokens) if self.embedding else tokens
        for layer in self.layers:
            h = layer(h)
        return self.output(h) if self.output else h


register_train_spec(
    "odd_layers",
    replace(
        get_train_spec("llama3"),
        model_cls=OddLayers,
        model_args={"plain": Args()},
        state_dict_adapter=None,
    ),
)
