"""Loaders for training and validation, from a job configuration."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torchtitan_cpp.data.batches import BatchSource, Rows
from torchtitan_cpp.data.indexed import IndexedBatches
from torchtitan_cpp.data.loader import DataLoader
from torchtitan_cpp.data.records import MAX_BAD_RECORDS
from torchtitan_cpp.data.registry import Stream, open_dataset
from torchtitan_cpp.data.streamed import StreamedBatches
from torchtitan_cpp.data.token_index import TokenIndex
from torchtitan_cpp.data.tokenizer import largest_token_id, tokenizer_fingerprint

CACHE_FOLDER = "data_cache"
"""Folder below ``job.dump_folder`` that keeps tokens; it may be deleted at any time."""

_PREFETCH_FACTOR = 2


def build_dataloader(
    dp_world_size: int,
    dp_rank: int,
    tokenizer: Any,
    job_config: Any,
    infinite: bool = True,
) -> DataLoader:
    """The training loader (TrainSpec's ``build_dataloader_fn``).

    Reads ``training.dataset``, ``dataset_path``, ``local_batch_size``,
    ``global_batch_size``, ``seq_len`` and ``dataloader.*``, and ``job.dump_folder``.
    ``dataloader.num_workers`` is a number of threads: 0 makes a batch when it is asked
    for, n > 0 keeps n * ``prefetch_factor`` (default 2) batches ready and reads n rows
    of a stream at a time. Files are tokenized ahead by a thread of their own in any
    case.

    Args:
        dp_world_size, dp_rank: size and coordinate of the mesh axis "batch".
        tokenizer: see ``encode_documents``.
        infinite: begin again at the end of the data.
    Raises:
        ValueError, FileNotFoundError: for what the configuration names.
    """
    training = job_config.training
    return _build(
        training,
        global_batch_size=training.global_batch_size,
        dp_world_size=dp_world_size,
        dp_rank=dp_rank,
        tokenizer=tokenizer,
        dump_folder=job_config.job.dump_folder,
        infinite=infinite,
        restart=False,
    )


def build_validation_dataloader(
    dp_world_size: int,
    dp_rank: int,
    tokenizer: Any,
    job_config: Any,
    infinite: bool = False,
) -> DataLoader:
    """The validation loader: the section ``validation`` and no accumulation.

    ``iter()`` begins anew each time, so every validation sees the same samples. A
    finite one ends on all ranks at the same batch, the last one filled up with ignored
    rows; of a stream, ranks may end apart.
    """
    validation = job_config.validation
    return _build(
        validation,
        global_batch_size=-1,
        dp_world_size=dp_world_size,
        dp_rank=dp_rank,
        tokenizer=tokenizer,
        dump_folder=job_config.job.dump_folder,
        infinite=infinite,
        restart=True,
    )


def _build(
    section: Any,
    *,
    global_batch_size: int,
    dp_world_size: int,
    dp_rank: int,
    tokenizer: Any,
    dump_folder: str,
    infinite: bool,
    restart: bool,
) -> DataLoader:
    if global_batch_size < 0:
        global_batch_size = section.local_batch_size * dp_world_size
    rows = Rows(
        global_batch_size=global_batch_size,
        local_batch_size=section.local_batch_size,
        num_ranks=dp_world_size,
        rank=dp_rank,
        seq_len=section.seq_len,
    )
    opened = open_dataset(section.dataset, section.dataset_path)
    max_bad_records = getattr(section, "max_bad_records", MAX_BAD_RECORDS)
    vocab_size = largest_token_id(tokenizer) + 1
    options = section.dataloader
    source: BatchSource
    if isinstance(opened.documents, Stream):
        source = StreamedBatches(
            opened.name,
            opened.documents,
            tokenizer,
            rows=rows,
            vocab_size=vocab_size,
            infinite=infinite,
            max_bad_records=max_bad_records,
            num_threads=options.num_workers,
            tokenizer_fingerprint=tokenizer_fingerprint(tokenizer),
        )
    else:
        source = IndexedBatches(
            TokenIndex(
                opened.name,
                opened.documents,
                tokenizer,
                cache_folder=Path(dump_folder) / CACHE_FOLDER,
                max_bad_records=max_bad_records,
            ),
            rows=rows,
            vocab_size=vocab_size,
            infinite=infinite,
            identity=opened.documents.identity,
            tokenizer=tokenizer_fingerprint(tokenizer),
        )
    return DataLoader(
        source,
        rows=rows,
        prefetch=options.num_workers * (options.prefetch_factor or _PREFETCH_FACTOR),
        pin_memory=options.pin_memory,
        restart=restart,
    )
