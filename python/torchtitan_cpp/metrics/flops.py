"""Parameters and flops per token of a dense transformer."""

from __future__ import annotations

from typing import Protocol

from torch import nn


class DenseModelArgs(Protocol):
    """What the formula needs of a model's arguments."""

    @property
    def n_layers(self) -> int: ...
    @property
    def n_heads(self) -> int: ...


def dense_flops_per_token(
    *, matmul_params: int, n_layers: int, n_heads: int, head_dims: int, seq_len: int
) -> int:
    """Flops of forward and backward for one token of a dense transformer.

    Every parameter that is multiplied costs two flops forward and four backward;
    attention costs the same per pair of positions and head dim. Recomputation is not
    counted, nor is the half that a causal mask saves.

    Args:
        matmul_params: parameters without the input embedding (which is looked up);
            a tied embedding counts, because it is multiplied as the output layer.
        head_dims: head dim of queries and keys plus that of values.
        seq_len: tokens in a sequence.
    Source: PaLM, Chowdhery et al. 2022, appendix B; torchtitan's convention.
    """
    return 6 * matmul_params + 6 * n_layers * n_heads * head_dims * seq_len


def get_dense_model_nparams_and_flops(
    model_args: DenseModelArgs, model: nn.Module, head_dims: int, seq_len: int
) -> tuple[int, int]:
    """Parameters and flops per token of a model (meta tensors are enough).

    The input embedding is found as a direct child that is an ``nn.Embedding`` or is
    named ``tok_embeddings``. Tied weights count once in the parameters, whether they
    are one tensor already or ``model_args.enable_weight_tying`` says they will be.

    Returns:
        Number of parameters, and flops of forward and backward for one token.
    """
    embedding = {
        id(parameter): parameter.numel()
        for name, child in model.named_children()
        if isinstance(child, nn.Embedding) or name == "tok_embeddings"
        for parameter in child.parameters()
    }
    num_params = sum(parameter.numel() for parameter in model.parameters())
    num_embedding = sum(embedding.values())
    is_one_tensor = any(
        id(parameter) in embedding
        for name, child in model.named_children()
        if not (isinstance(child, nn.Embedding) or name == "tok_embeddings")
        for parameter in child.parameters()
    )
    matmul_params = num_params if is_one_tensor else num_params - num_embedding
    if getattr(model_args, "enable_weight_tying", False) and not is_one_tensor:
        num_params -= num_embedding
    return num_params, dense_flops_per_token(
        matmul_params=matmul_params,
        n_layers=model_args.n_layers,
        n_heads=model_args.n_heads,
        head_dims=head_dims,
        seq_len=seq_len,
    )
