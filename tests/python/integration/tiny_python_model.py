"""A Python model whose buffers change in training, for jobs that import this module."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import tiny_jobs  # registers its dataset
import torch
from torch import nn

from torchtitan_cpp import get_train_spec, register_train_spec

__all__ = ["Counting", "tiny_jobs"]


@dataclass
class Args:
    """Arguments of the model."""

    dim: int = 12
    vocab_size: int = 2048
    bad_step: int = 0
    """The gradient of the embedding is NaN in the step after so many."""

    def update_from_config(self, job_config: Any) -> None:
        """Nothing depends on the job."""

    def get_nparams_and_flops(self, model: nn.Module, seq_len: int) -> tuple[int, int]:
        count = sum(parameter.numel() for parameter in model.parameters())
        return count, 6 * count


class _Spoiled(torch.autograd.Function):
    """The identity with a gradient of NaN."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * float("nan")


class Counting(nn.Module):
    """Its output depends on the number of steps and on a running average.

    Buffers: ``steps`` int64 [], ``average`` [dim], ``phase`` complex [2], ``twice``
    (``average`` once more) and ``scratch``, which is not saved.
    """

    steps: torch.Tensor
    average: torch.Tensor
    phase: torch.Tensor
    scratch: torch.Tensor

    def __init__(self, args: Args) -> None:
        super().__init__()
        self.bad_step = args.bad_step
        self.embedding = nn.Embedding(args.vocab_size, args.dim)
        self.layers = nn.ModuleList(nn.Linear(args.dim, args.dim) for _ in range(2))
        self.output = nn.Linear(args.dim, args.vocab_size)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("average", torch.zeros(args.dim))
        self.register_buffer("phase", torch.ones(2, dtype=torch.complex64))
        self.register_buffer("scratch", torch.zeros(3), persistent=False)
        self.register_buffer("twice", self.average)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = self.embedding(tokens)
        if self.training:
            if self.bad_step and self.steps == self.bad_step:
                h = _Spoiled.apply(h)
            with torch.no_grad():
                self.steps += 1
                self.phase *= 1j
                # Not the batch: all ranks have the same average.
                self.average.lerp_(torch.ones_like(self.average) / self.steps, 0.1)
        h = h + self.average + self.phase.sum().real * 0.01
        for layer in self.layers:
            h = h + torch.tanh(layer(h))
        return self.output(h)


class Stackable(nn.Module):
    """Any of its children may be absent, as in a pipeline."""

    def __init__(self, args: Args) -> None:
        super().__init__()
        self.tok_embeddings: nn.Module | None = nn.Embedding(args.vocab_size, args.dim)
        self.layers = nn.ModuleDict(
            {str(i): nn.Linear(args.dim, args.dim) for i in range(4)}
        )
        self.norm: nn.Module | None = nn.LayerNorm(args.dim)
        self.output: nn.Module | None = nn.Linear(args.dim, args.vocab_size)
        self.register_buffer("scale", torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.tok_embeddings(x) if self.tok_embeddings is not None else x
        for layer in self.layers.values():
            h = h + torch.tanh(layer(h)) * self.scale
        h = self.norm(h) if self.norm is not None else h
        return self.output(h) if self.output is not None else h


class Noisy(nn.Module):
    """Draws random numbers inside and outside of its layers."""

    def __init__(self, args: Args) -> None:
        super().__init__()
        self.embedding = nn.Embedding(args.vocab_size, args.dim)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(args.dim, args.dim), nn.Dropout(0.5))
            for _ in range(2)
        )
        self.output = nn.Linear(args.dim, args.vocab_size)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        h = self.embedding(tokens)
        for layer in self.layers:
            h = h + layer(h)
            if self.training:
                h = h + 0.01 * torch.randn_like(h)
        return self.output(h)


class OwnLoader:
    """Five batches of rank ``rank``; each rank has a state of its own."""

    def __init__(
        self, dp_world_size: int, dp_rank: int, tokenizer: Any, job_config: Any
    ) -> None:
        training = job_config.training
        self.shape = (training.local_batch_size, training.seq_len + 1)
        self.rank = dp_rank
        self.position = 0

    def __iter__(self) -> Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]:
        while self.position < 5:
            seed = torch.Generator().manual_seed(100 * self.rank + self.position)
            tokens = torch.randint(2048, self.shape, generator=seed)
            self.position += 1
            yield {"input": tokens[:, :-1]}, tokens[:, 1:]

    def state_dict(self) -> dict[str, int]:
        return {"rank": self.rank, "position": self.position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert state["rank"] == self.rank
        self.position = state["position"]


def own_optimizer(
    model_parts: list[nn.Module], config: Any, dims: Any, ft_manager: Any = None
) -> torch.optim.Optimizer:
    """AdamW that counts its steps for every parameter."""
    parameters = [each for part in model_parts for each in part.parameters()]
    return torch.optim.AdamW(parameters, lr=config.lr)


_spec = replace(get_train_spec("llama3"), model_cls=Counting, state_dict_adapter=None)
register_train_spec(
    "counting",
    replace(_spec, model_args={"plain": Args(), "spoiled": Args(bad_step=2)}),
)
register_train_spec(
    "stackable", replace(_spec, model_cls=Stackable, model_args={"plain": Args()})
)
register_train_spec(
    "own_optimizer",
    replace(
        _spec,
        model_cls=Stackable,
        model_args={"plain": Args()},
        build_optimizers_fn=own_optimizer,
    ),
)
register_train_spec(
    "noisy", replace(_spec, model_cls=Noisy, model_args={"plain": Args()})
)
register_train_spec(
    "own_loader",
    replace(_spec, model_args={"plain": Args()}, build_dataloader_fn=OwnLoader),
)
