"""Documents within rows of tokens, for attention that stays within them."""

from __future__ import annotations

import torch


def document_starts(tokens: torch.Tensor, eos_id: int) -> torch.Tensor:
    """The first position of each token's document.

    Args:
        tokens: ids ``[B, S]``; a document ends with ``eos_id``, which belongs to it.
    Returns:
        Positions ``[B, S]`` int64. Every row begins a document.
    """
    begins = torch.zeros(tokens.shape, dtype=torch.bool, device=tokens.device)
    begins[:, 1:] = tokens[:, :-1] == eos_id
    positions = torch.arange(tokens.shape[1], device=tokens.device)
    return (begins * positions).cummax(dim=1).values
