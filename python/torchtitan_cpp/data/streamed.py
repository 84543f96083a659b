"""Batches of a stream: row j of the global batch is every G-th document from j on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.data.batches import (
    Batch,
    Rows,
    check_identity,
    ignored_batch,
)
from torchtitan_cpp.data.registry import Stream
from torchtitan_cpp.data.stream_row import StreamRow

logger = logging.getLogger(__name__)

KIND = "stream"


class StreamedBatches:
    """A :class:`BatchSource` over a stream; each row has a position of its own.

    Args:
        name: of the dataset.
        stream: its samples.
        rows: what this rank reads.
        vocab_size: ids must be below.
        infinite: begin the stream again at its end. Otherwise a row that has ended
            gives ignored rows, until all rows of this rank have ended. Ranks may end at
            different batches then.
        max_bad_records: bad records that are skipped in one row before an error.
        num_threads: rows that are read at the same time.
        tokenizer_fingerprint: a loaded state must have it.
    """

    def __init__(
        self,
        name: str,
        stream: Stream,
        tokenizer: Any,
        *,
        rows: Rows,
        vocab_size: int,
        infinite: bool,
        max_bad_records: int,
        num_threads: int,
        tokenizer_fingerprint: str,
    ) -> None:
        self._name = name
        self._identity = stream.identity
        self._tokenizer = tokenizer_fingerprint
        self._rows = rows
        self._vocab_size = vocab_size
        self._infinite = infinite
        self._microbatch = 0
        self._streams = {
            row: StreamRow(
                stream,
                tokenizer,
                name=name,
                row=row,
                num_rows=rows.global_batch_size,
                infinite=infinite,
                max_bad_records=max_bad_records,
            )
            for microbatch in range(rows.num_microbatches)
            for row in self._rows_of(microbatch)
        }
        self._pool = ThreadPoolExecutor(num_threads) if num_threads > 1 else None

    def next_batch(self) -> Batch | None:
        """The next batch; None when all rows of this rank have ended."""
        if self._microbatch == 0 and not self._infinite and not self._any_sample():
            logger.warning("Dataset %s has run out of data", self._name)
            return None
        numbers = self._rows_of(self._microbatch)
        samples = self._samples([self._streams[number] for number in numbers])
        self._microbatch = (self._microbatch + 1) % self._rows.num_microbatches
        batch, labels = ignored_batch(self._rows)
        tokens = batch["input"]
        for row, sample in enumerate(samples):
            if sample is not None:
                ids = torch.tensor(sample, dtype=torch.int64)
                tokens[row], labels[row] = ids[:-1], ids[1:]
        _C.data.check_token_ids(tokens, labels, vocab_size=self._vocab_size)
        return batch, labels

    def state_dict(self) -> dict[str, Any]:
        """The rows of this rank; ``merge_data_states`` puts those of all together."""
        return {
            "kind": KIND,
            "dataset": self._name,
            "dataset_fingerprint": self._identity,
            "tokenizer_fingerprint": self._tokenizer,
            "global_batch_size": self._rows.global_batch_size,
            "microbatch": self._microbatch,
            "num_microbatches": self._rows.num_microbatches,
            "rows": {str(row): s.state_dict() for row, s in self._streams.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state says; with other rows, start anew and say so.

        Raises:
            ValueError: other dataset or tokenizer; a row of this rank is missing; a
                state from within a step of another accumulation.
        """
        check_identity(
            state,
            kind=KIND,
            dataset=self._name,
            identity=self._identity,
            tokenizer=self._tokenizer,
        )
        size = self._rows.global_batch_size
        if state["global_batch_size"] != size:
            logger.warning(
                "global_batch_size changed from %d to %d: the rows of the stream %s "
                "start again at their first documents",
                state["global_batch_size"],
                size,
                self._name,
            )
            self.reset()
            return
        microbatch = int(state["microbatch"])
        if microbatch and state["num_microbatches"] != self._rows.num_microbatches:
            raise ValueError(
                f"data state: it lies within a step of {state['num_microbatches']} "
                f"microbatches, but a step has {self._rows.num_microbatches} now"
            )
        missing = [row for row in self._streams if str(row) not in state["rows"]]
        if missing:
            raise ValueError(
                f"data state: rows {missing} of the global batch are missing; merge "
                "the states of all ranks with merge_data_states before loading"
            )
        for row, stream in self._streams.items():
            stream.load_state_dict(state["rows"][str(row)])
        self._microbatch = microbatch

    def reset(self) -> None:
        """Every row goes to its first document."""
        self._microbatch = 0
        for stream in self._streams.values():
            stream.reset()

    def check_ids_below(self, vocab_size: int) -> None:
        """Refuse ids that are not below ``vocab_size``."""
        self._vocab_size = vocab_size

    def close(self) -> None:
        """Stop the threads that read rows."""
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def _rows_of(self, microbatch: int) -> range:
        first = self._rows.first_row(microbatch)
        return range(first, first + self._rows.local_batch_size)

    def _samples(self, streams: Sequence[StreamRow]) -> list[list[int] | None]:
        seq_len = self._rows.seq_len
        if self._pool is None:
            return [stream.next_sample(seq_len) for stream in streams]
        return list(self._pool.map(lambda row: row.next_sample(seq_len), streams))

    def _any_sample(self) -> bool:
        return any(stream.fill(self._rows.seq_len) for stream in self._streams.values())
