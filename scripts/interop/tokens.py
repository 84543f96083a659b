"""The global batch of a step, the same for every program and layout."""

from __future__ import annotations

import torch

ROWS = 4
SEQ_LEN = 128
VOCAB_SIZE = 2048
SAVED_STEP = 4
"""Steps before the checkpoint, and as many behind it."""
LEARNING_RATE = 8e-4
WARMUP_STEPS = 2


def tokens(step: int, rank: int, ranks: int) -> torch.Tensor:
    """[rows, seq_len + 1] int64 of one of the ranks that share the batch of a step."""
    generator = torch.Generator().manual_seed(step)
    # Squared, so that small ids are frequent and the loss can fall.
    ids = torch.rand((ROWS, SEQ_LEN + 1), generator=generator) ** 2 * VOCAB_SIZE
    return ids.long().chunk(ranks)[rank]
