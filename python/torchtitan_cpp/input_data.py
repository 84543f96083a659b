"""What a run reads: its tokenizer and its loader, checked against the model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from torchtitan_cpp.config import JobConfig
from torchtitan_cpp.data import DataLoader, check_vocabulary
from torchtitan_cpp.data import build_dataloader as default_builder
from torchtitan_cpp.errors import SettingError
from torchtitan_cpp.nn import CppModule
from torchtitan_cpp.rank_thread import turn
from torchtitan_cpp.train_spec import TrainSpec

if TYPE_CHECKING:
    from torchtitan_cpp.trainer import Trainer

Batch = tuple[dict[str, torch.Tensor], torch.Tensor]
Named = dict[str, torch.Tensor]

_GIVEN = "TrainSpec.build_dataloader_fn: its loader gave"


def data_misfits(spec: TrainSpec, config: JobConfig) -> dict[str, str]:
    """What the loader lacks, by field."""
    reads_text = (
        spec.build_dataloader_fn is default_builder
        and config.comm.mode != "fake_backend"  # which reads nothing
    )
    if not reads_text or spec.build_tokenizer_fn is not None:
        return {}
    return {
        "training.dataset": f"{config.training.dataset} is text, and the model's "
        "TrainSpec has no build_tokenizer_fn; give it one, or a build_dataloader_fn "
        "whose loader reads data of its own"
    }


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


def divide_rows(batch: Named, *, size: int, rows: int) -> list[Named]:
    """The microbatches of a pipeline, ``size`` rows each.

    Args:
        batch: ``labels`` among them; each has the rows of the batch first.
        rows: of a local batch.
    Raises:
        SettingError: for another number of rows: the schedule has no place for them.
    """
    for name, each in batch.items():
        if each.dim() == 0 or len(each) != rows:
            raise SettingError(
                f"{_GIVEN} {name!r} of shape {list(each.shape)}; expected "
                f"training.local_batch_size = {rows} rows in a pipeline"
            )
    return [
        {name: each[row : row + size] for name, each in batch.items()}
        for row in range(0, rows, size)
    ]


def check_one_shape(microbatches: Sequence[Named]) -> None:
    """The stages of a pipeline exchange tensors of one shape in a step.

    Raises:
        SettingError: if the microbatches have several.
    """
    shapes = {tuple(each["labels"].shape) for each in microbatches}
    if len(shapes) > 1:
        found = " and ".join(str(list(shape)) for shape in sorted(shapes))
        raise SettingError(
            f"{_GIVEN} microbatches of the shapes {found} in one step; expected one "
            "length of all in a step of a pipeline"
        )


def check_length(length: int, *, positions: int, tensor_ranks: int) -> None:
    """What ranks that share a sequence of a C++ model do not see each alone.

    Args:
        length: of whole sequences.
        positions: that the model is built for.
        tensor_ranks: which divide the tokens between blocks.
    Raises:
        SettingError: if it does not fit.
    """
    if length > positions:
        raise SettingError(
            f"a batch has sequences of {length} tokens; expected at most "
            f"training.seq_len = {positions}, the positions that the model is built for"
        )
    if length % tensor_ranks:
        below = length // tensor_ranks * tensor_ranks
        raise SettingError(
            f"a batch has sequences of {length} tokens; expected a multiple of "
            f"parallelism.tensor_parallel_degree = {tensor_ranks}, such as "
            f"{below or tensor_ranks}"
        )
