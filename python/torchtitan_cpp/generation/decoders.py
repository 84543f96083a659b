"""Models that read prompts and then token after token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import nn

from torchtitan_cpp import _C
from torchtitan_cpp.nn import CppModule


class Decoder(Protocol):
    """Says what may come next; rows are sequences under way."""

    def read(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        """Forget everything, read; logits ``[prompts, vocab_size]`` behind each."""

    def read_next(self, tokens: Sequence[int]) -> torch.Tensor:
        """Read one more token of each row; logits ``[rows, vocab_size]`` behind it."""

    def keep(self, rows: Sequence[int]) -> None:
        """Go on with these rows only, which ascend."""


def cached_decoder(
    model: CppModule,
    *,
    rows: int,
    max_len: int,
    tensor_axis: _C.collectives.Group | None = None,
    parameters: Sequence[Sequence[torch.Tensor]] | None = None,
) -> Decoder:
    """A C++ model with a cache of keys and values.

    Args:
        rows: sequences at once, at most.
        max_len: tokens of a sequence, at most.
        tensor_axis: ranks that divide the model, each with its heads of the cache;
            None: one.
        parameters: this rank's pieces of the parameters by group; None: the model's
            own, whole.
    Raises:
        ValueError: if the ranks cannot divide the model.
    """
    axis = tensor_axis or _C.collectives.Group("tp")
    if parameters is None:
        parameters = model.parameters_by_group()
    first = parameters[0][0]
    sizes = model.generation_sizes()
    cache = _C.generation.KeyValueCache(
        layers=sizes.layers,
        rows=rows,
        kv_heads=sizes.kv_heads // axis.size,
        max_len=max_len,
        head_dim=sizes.head_dim,
        dtype=first.dtype,
        device=first.device,
    )
    core = model.build_core(
        head="logits",
        device=first.device,
        dtype=torch.float64 if first.dtype == torch.float64 else torch.float32,
        tensor_axis=axis,
        attention=_C.generation.cached_attention(cache),
        # A step's tokens are padded to a multiple of the ranks.
        num_positions=max(max_len, rows) + axis.size,
    )
    return _C.generation.Decoder(
        core,
        parameters=[[tensor.detach() for tensor in group] for group in parameters],
        cache=cache,
        tensor_axis=axis,
        document_end=sizes.document_end,
    )


class RecomputingDecoder:
    """A causal model written in Python, which computes all tokens again for each one.

    Without a cache a token costs as much as the sequence before it. Rows are padded
    behind their ends, where no token of theirs looks.

    Args:
        model: token ids ``[B, S]`` to logits ``[B, S, vocab_size]``.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._rows: list[list[int]] = []
        first = next(model.parameters(), None)
        self._device = torch.device("cpu") if first is None else first.device

    def read(self, prompts: Sequence[Sequence[int]]) -> torch.Tensor:
        self._rows = [list(prompt) for prompt in prompts]
        return self._logits()

    def read_next(self, tokens: Sequence[int]) -> torch.Tensor:
        for row, token in zip(self._rows, tokens, strict=True):
            row.append(token)
        return self._logits()

    def keep(self, rows: Sequence[int]) -> None:
        self._rows = [self._rows[row] for row in rows]

    @torch.no_grad()
    def _logits(self) -> torch.Tensor:
        longest = max(len(row) for row in self._rows)
        tokens = torch.zeros(len(self._rows), longest, dtype=torch.int64)
        for row, ids in zip(tokens, self._rows, strict=True):
            row[: len(ids)] = torch.tensor(ids)
        was_training = self._model.training
        self._model.eval()
        try:
            logits: torch.Tensor = self._model(tokens.to(self._device))
        finally:
            self._model.train(was_training)
        if logits.dim() != 3 or logits.shape[:2] != tokens.shape:
            raise ValueError(
                f"{type(self._model).__name__}: expected logits of shape "
                f"[{tokens.shape[0]}, {tokens.shape[1]}, vocab_size], found "
                f"{list(logits.shape)}"
            )
        last = torch.tensor([len(row) - 1 for row in self._rows], device=logits.device)
        return logits[torch.arange(len(self._rows), device=logits.device), last]
