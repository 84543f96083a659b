"""A C++ model seen as a ``torch.nn.Module``: same tensors, state_dict and autograd."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchtitan_cpp import _C


@dataclass(frozen=True, kw_only=True)
class GenerationSizes:
    """What must be known of a model to read and write tokens with it."""

    vocab_size: int
    layers: int
    kv_heads: int
    """Of all ranks together."""
    head_dim: int
    max_len: int
    """Longest sequence, in tokens."""
    document_end: int | None
    """The token after which attention begins anew; None: it never does."""


class Weights(nn.Module):
    """Names a part of a C++ model and holds its parameters; it cannot be called."""

    def extra_repr(self) -> str:
        return ", ".join(
            f"{name}={list(parameter.shape)}"
            for name, parameter in self.named_parameters(recurse=False)
        )


class CppModule(nn.Module):
    """Base of the Python view of a model whose math is in C++.

    The parameters are ordinary ``nn.Parameter`` objects under the C++ model's names,
    so optimizers, ``state_dict``, ``load_state_dict``, ``to`` and hooks on the module
    work. The children only hold parameters; the whole model runs in one call.
    """

    def __init__(self) -> None:
        super().__init__()
        device = torch.empty(0).device
        core = self.build_core(
            head="logits", device=torch.device("meta"), dtype=torch.float32
        )
        self._names = [
            [spec.name for spec in group.parameters] for group in core.groups
        ]
        self._built: tuple[torch.device, torch.dtype, _C.nn.Model] | None = None
        for group in core.groups:
            for spec in group.parameters:
                parent = self._make_parent(spec.name)
                leaf = spec.name.rpartition(".")[2]
                parent.register_parameter(leaf, nn.Parameter(torch.empty(spec.shape)))
        if device.type != "meta":
            self.init_weights()

    def __getstate__(self) -> dict[str, Any]:
        """For copies, which build a C++ model of their own when they are called."""
        return self.__dict__ | {"_built": None}

    @abstractmethod
    def build_core(
        self,
        *,
        head: str,
        device: torch.device,
        dtype: torch.dtype,
        tensor_axis: _C.collectives.Group | None = None,
        overlap_exchanges: bool = False,
        loss_parallel: bool = True,
        attention: _C.nn.AttentionKernel | None = None,
        num_positions: int | None = None,
    ) -> _C.nn.Model:
        """The C++ model with a head of "loss" or "logits".

        Args:
            head: what the last segment gives.
            device: of constant tables.
            dtype: of their arithmetic.
            tensor_axis: ranks that divide the work of each segment; None: one.
            overlap_exchanges: whether they exchange while they multiply.
            loss_parallel: whether they also divide that of the loss.
            attention: which tokens of a sequence are here; None: all.
            num_positions: rows of tables by position; None: as many as the model's
                longest sequence has tokens.
        """

    @abstractmethod
    def generation_sizes(self) -> GenerationSizes:
        """Of the model as it is now."""

    @abstractmethod
    def hidden_sizes(
        self, rows: int, tokens: int, *, tensor_ranks: int
    ) -> dict[str, list[int]]:
        """Sizes of what segments hand on, on a rank that has these tokens of each row.

        Args:
            tensor_ranks: ranks that have them together.
        """

    def attention_inputs(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        """What attention reads beside hidden states, from token ids ``[B, S]``."""
        return {}

    def use_tokenizer(self, tokenizer: Any) -> None:
        """Learn from the tokenizer of the data which ids have a meaning."""

    def _make_parent(self, name: str) -> nn.Module:
        parts = name.split(".")[:-1]
        module: nn.Module = self
        for index, part in enumerate(parts):
            child = getattr(module, part, None)
            if child is None and isinstance(module, nn.ModuleDict) and part in module:
                child = module[part]
            if child is None:
                numbered = index + 1 < len(parts) and parts[index + 1].isdigit()
                child = nn.ModuleDict() if numbered else Weights()
                module.add_module(part, child)
            assert isinstance(child, nn.Module)
            module = child
        return module

    @torch.no_grad()
    def init_weights(
        self, buffer_device: torch.device | None = None, *, seed: int | None = None
    ) -> None:
        """Fill the parameters with the initial values of (seed, name, element).

        Args:
            buffer_device: not needed; the model has no buffers of its own.
            seed: by default ``torch.initial_seed()``.
        """
        seed = torch.initial_seed() if seed is None else seed
        core = self.build_core(
            head="logits", device=torch.device("meta"), dtype=torch.float32
        )
        for group in core.groups:
            for spec in group.parameters:
                value = self.get_parameter(spec.name)
                whole = _C.nn.initial_value(spec, seed)
                value.copy_(whole)

    def parameters_by_group(self) -> list[list[torch.Tensor]]:
        """As the C++ model takes them."""
        return [[self.get_parameter(name) for name in group] for group in self._names]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits ``[B, S, vocab_size]`` of token ids ``[B, S]`` (int64)."""
        groups = self.parameters_by_group()
        first = groups[0][0]
        dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
        if self._built is None or self._built[:2] != (first.device, dtype):
            core = self.build_core(head="logits", device=first.device, dtype=dtype)
            self._built = (first.device, dtype, core)
        values = {"input": tokens, **self.attention_inputs(tokens)}
        return self._built[2].forward(groups, values)["logits"]
