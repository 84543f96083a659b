"""Llama 3 as a ``torch.nn.Module`` over the C++ model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.models.llama3.args import TransformerModelArgs
from torchtitan_cpp.nn import CppModule, GenerationSizes
from torchtitan_cpp.nn.documents import document_starts
from torchtitan_cpp.parallel import Group


class Transformer(CppModule):
    """Token ids ``[B, S]`` to logits ``[B, S, vocab_size]``.

    Built under ``torch.device("meta")`` it has shapes and names but no memory; built
    elsewhere its parameters hold initial values of ``torch.initial_seed()``.

    Raises:
        ValueError: for sizes that do not fit together.
    """

    def __init__(self, model_args: TransformerModelArgs) -> None:
        self.model_args = model_args
        super().__init__()

    def hidden_sizes(
        self, rows: int, tokens: int, *, tensor_ranks: int
    ) -> dict[str, list[int]]:
        # Between its blocks a rank has some of the tokens that it shares with others.
        sizes = {"h": [rows, tokens // tensor_ranks, self.model_args.dim]}
        return sizes | {"logits": [rows, tokens, self.model_args.vocab_size]}

    def attention_inputs(self, tokens: torch.Tensor) -> dict[str, torch.Tensor]:
        if not self.model_args.masks_documents:
            return {}
        return {"document_starts": document_starts(tokens, self.model_args.eos_id)}

    def use_tokenizer(self, tokenizer: Any) -> None:
        """Documents end with its end-of-text token.

        Raises:
            ValueError: if attention stays within documents and it has no such token.
        """
        if not self.model_args.masks_documents:
            return
        if tokenizer.eos_id is None:
            raise ValueError(
                "model.hf_assets_path: the tokenizer has no end-of-text token, with "
                "which this flavor tells documents apart"
            )
        self.model_args.eos_id = tokenizer.eos_id

    def build_core(
        self,
        *,
        head: str,
        device: torch.device,
        dtype: torch.dtype,
        tensor_axis: Group | None = None,
        overlap_exchanges: bool = False,
        loss_parallel: bool = True,
        attention: _C.nn.AttentionKernel | None = None,
        num_positions: int | None = None,
    ) -> _C.nn.Model:
        args = self.model_args
        if num_positions is not None:
            args = replace(args, max_seq_len=num_positions)
        return _C.models.llama.build(
            args.to_core(),
            head=head,
            device=device,
            dtype=dtype,
            tensor_axis=tensor_axis or Group("tp"),
            overlap_exchanges=overlap_exchanges,
            loss_parallel=loss_parallel,
            attention=attention or _C.nn.local_attention(),
        )

    def generation_sizes(self) -> GenerationSizes:
        args = self.model_args
        return GenerationSizes(
            vocab_size=args.vocab_size,
            layers=args.n_layers,
            kv_heads=args.n_kv_heads or args.n_heads,
            head_dim=args.dim // args.n_heads,
            max_len=args.max_seq_len,
            document_end=args.eos_id if args.masks_documents else None,
        )
