"""Batches of a dataset that can be read at any place: files and sequences."""

from __future__ import annotations

import logging
from typing import Any

from torchtitan_cpp import _C
from torchtitan_cpp.data.batches import Batch, Rows, check_identity
from torchtitan_cpp.data.token_index import TokenIndex

logger = logging.getLogger(__name__)

KIND = "indexed"


class IndexedBatches:
    """A :class:`BatchSource` over packed tokens.

    Row ``j`` of the global batch of a step is sample ``first sample of the step + j``;
    sample ``k`` covers the tokens ``k * seq_len`` to ``k * seq_len + seq_len`` of the
    packed sequence, labels shifted by one. So the order depends on the global batch
    size only, not on the number of ranks, and any place is reached in constant time.

    Args:
        index: the packed tokens.
        rows: what this rank reads.
        vocab_size: ids must be below.
        infinite: begin again after the last document (packing goes on across the seam).
            Otherwise the last global batch is filled up with ignored rows, on every
            rank alike; a rest of less than ``seq_len + 1`` tokens is not read.
        identity, tokenizer: fingerprints that a loaded state must have.
    """

    def __init__(
        self,
        index: TokenIndex,
        *,
        rows: Rows,
        vocab_size: int,
        infinite: bool,
        identity: str,
        tokenizer: str,
    ) -> None:
        self._index = index
        self._rows = rows
        self._vocab_size = vocab_size
        self._infinite = infinite
        self._identity = identity
        self._tokenizer = tokenizer
        self._sample = 0  # first of the current step
        self._microbatch = 0
        self._loops = 0

    def next_batch(self) -> Batch | None:
        """The next batch; waits until its global batch is tokenized.

        Every rank waits for the whole global batch, so that an error in the data stops
        all of them at the same step.
        """
        rows, index = self._rows, self._index
        end = (self._sample + rows.global_batch_size) * rows.seq_len + 1
        index.require(end)
        at_end = _C.data.AtEnd.MORE
        if index.complete:
            at_end = self._at_end(end)
            if at_end is None:
                return None
        tokens, labels = index.gather(
            first_sample=self._sample + rows.first_row(self._microbatch),
            num_rows=rows.local_batch_size,
            seq_len=rows.seq_len,
            vocab_size=self._vocab_size,
            at_end=at_end,
        )
        self._microbatch += 1
        if self._microbatch == rows.num_microbatches:
            self._microbatch = 0
            self._sample += rows.global_batch_size
        return {"input": tokens}, labels

    def _at_end(self, end: int) -> Any:
        total, seq_len, name = (
            self._index.num_tokens,
            self._rows.seq_len,
            self._index.name,
        )
        if self._infinite:
            loops = (end - 1) // total
            if loops > self._loops:
                logger.warning(
                    "Dataset %s is being re-looped (pass %d)", name, loops + 1
                )
                self._loops = loops
            return _C.data.AtEnd.REPEAT
        samples = (total - 1) // seq_len
        if samples == 0:
            raise ValueError(
                f"dataset {name} has {total} tokens, fewer than one sample of seq_len "
                f"+ 1 = {seq_len + 1}"
            )
        if self._sample >= samples:
            logger.warning("Dataset %s has run out of data", name)
            return None
        return _C.data.AtEnd.STOP

    def state_dict(self) -> dict[str, Any]:
        """The same on every rank; holds for any number of ranks between two steps."""
        return {
            "kind": KIND,
            "dataset": self._index.name,
            "dataset_fingerprint": self._identity,
            "tokenizer_fingerprint": self._tokenizer,
            "seq_len": self._rows.seq_len,
            "sample": self._sample,
            "microbatch": self._microbatch,
            "num_microbatches": self._rows.num_microbatches,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where a state says.

        With another ``seq_len`` it goes on at the first sample that begins at or after
        the token of the state, and says so.

        Raises:
            ValueError: other dataset or tokenizer; a state from within a step of
                another accumulation.
        """
        check_identity(
            state,
            kind=KIND,
            dataset=self._index.name,
            identity=self._identity,
            tokenizer=self._tokenizer,
        )
        sample, microbatch = int(state["sample"]), int(state["microbatch"])
        if microbatch and state["num_microbatches"] != self._rows.num_microbatches:
            raise ValueError(
                f"data state: it lies within a step of {state['num_microbatches']} "
                f"microbatches, but a step has {self._rows.num_microbatches} now"
            )
        seq_len = self._rows.seq_len
        if state["seq_len"] != seq_len:
            token = sample * int(state["seq_len"])
            sample = -(-token // seq_len)
            instead = "" if sample * seq_len == token else f" instead of {token}"
            logger.warning(
                "seq_len changed from %d to %d: going on at token %d%s",
                state["seq_len"],
                seq_len,
                sample * seq_len,
                instead,
            )
        self._sample, self._microbatch, self._loops = sample, microbatch, 0

    def reset(self) -> None:
        """Go to the first sample."""
        self._sample = self._microbatch = self._loops = 0

    def check_ids_below(self, vocab_size: int) -> None:
        """Refuse ids that are not below ``vocab_size``, naming the sample."""
        self._vocab_size = vocab_size

    def close(self) -> None:
        """Stop the index's thread."""
        self._index.close()
