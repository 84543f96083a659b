"""What a run reads: its tokenizer and its loader, checked against the model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch

from torchtitan_cpp.data import DataLoader, check_vocabulary
from torchtitan_cpp.nn import CppModule
from torchtitan_cpp.rank_thread import turn

if TYPE_CHECKING:
    from torchtitan_cpp.trainer import Trainer

Batch = tuple[dict[str, torch.Tensor], torch.Tensor]


def build_tokenizer(trainer: Trainer) -> Any:
    """That of the TrainSpec, or None where it has none or nothing is read.

    Raises:
        ValueError: if it has ids that the model has no row for.
    """
    make = trainer.spec.build_tokenizer_fn
    if make is None or trainer.world.is_fake:
        return None
    tokenizer = make(trainer.job_config)
    if isinstance(trainer.model.module, CppModule):
        trainer.model.module.use_tokenizer(tokenizer)
    vocab_size = getattr(trainer.model.args, "vocab_size", None)
    if vocab_size is not None:
        check_vocabulary(tokenizer, vocab_size)
    return tokenizer


def build_dataloader(trainer: Trainer) -> Any:
    """That of the TrainSpec for this rank's rows, or None where nothing is read."""
    if trainer.world.is_fake:
        return None
    with turn():
        loader = trainer.spec.build_dataloader_fn(
            dp_world_size=trainer.world.parallel_dims.batch,
            dp_rank=trainer.world.data_rank,
            tokenizer=trainer.tokenizer,
            job_config=trainer.job_config,
        )
    vocab_size = getattr(trainer.model.args, "vocab_size", None)
    if vocab_size is not None and isinstance(loader, DataLoader):
        loader.check_ids_below(vocab_size)
    return loader


def batches_of(loader: Any) -> Iterator[Batch]:
    """Its batches; a loader of one's own may draw random numbers for them."""
    with turn():
        iterator = iter(loader)
    while True:
        try:
            with turn():
                batch = next(iterator)
        except StopIteration:
            return
        yield batch
