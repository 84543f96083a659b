"""What both kinds of loader share: the shape of a batch and who reads which rows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.errors import SettingError

Batch = tuple[dict[str, torch.Tensor], torch.Tensor]
"""``({"input": int64 [B, S]}, labels int64 [B, S])``; label -100 is ignored."""

IGNORED_LABEL = -100


@dataclass(frozen=True, kw_only=True)
class Rows:
    """The rows of every global batch that one rank reads.

    Microbatch ``a`` of a step holds the rows ``(a * num_ranks + rank) *
    local_batch_size`` and following of the global batch.

    Raises:
        ValueError: the sizes do not fit together.
    """

    global_batch_size: int
    local_batch_size: int
    num_ranks: int
    rank: int
    seq_len: int

    def __post_init__(self) -> None:
        if self.seq_len < 1:
            raise ValueError(f"seq_len: expected at least 1, got {self.seq_len}")
        _C.data.num_microbatches(**self._sizes())

    @property
    def num_microbatches(self) -> int:
        """Batches of one step on each rank."""
        return int(_C.data.num_microbatches(**self._sizes()))

    def first_row(self, microbatch: int) -> int:
        """First row of this rank in a microbatch."""
        return int(_C.data.first_row(microbatch, **self._sizes()))

    def _sizes(self) -> dict[str, int]:
        return {
            "global_batch_size": self.global_batch_size,
            "local_batch_size": self.local_batch_size,
            "num_ranks": self.num_ranks,
            "rank": self.rank,
        }


class BatchSource(Protocol):
    """Makes the batches of one rank, one after the other; not thread-safe."""

    def next_batch(self) -> Batch | None:
        """The next batch, None when the data are exhausted."""

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins; JSON-able, not changed later."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the place of a state."""

    def reset(self) -> None:
        """Go to the beginning."""

    def check_ids_below(self, vocab_size: int) -> None:
        """Refuse batches with ids that are not below ``vocab_size``."""

    def close(self) -> None:
        """Stop threads, close files."""


def ignored_batch(rows: Rows) -> Batch:
    """A batch without any valid token."""
    shape = (rows.local_batch_size, rows.seq_len)
    labels = torch.full(shape, IGNORED_LABEL, dtype=torch.int64)
    return {"input": torch.zeros(shape, dtype=torch.int64)}, labels


def check_identity(
    state: dict[str, Any], *, kind: str, dataset: str, identity: str, tokenizer: str
) -> None:
    """Raise SettingError unless a state was made with this dataset and tokenizer."""
    if state.get("kind") != kind:
        raise SettingError(
            f"data state: it is of kind {state.get('kind')!r}, but dataset {dataset} "
            f"is {kind}; resume with the dataset of the checkpoint"
        )
    if state["dataset_fingerprint"] != identity:
        raise SettingError(
            f"data state: the checkpoint was made with dataset {state['dataset']} "
            f"(fingerprint {state['dataset_fingerprint'][:12]}), but {dataset} now has "
            f"{identity[:12]}: its files or their order changed, so its position means "
            "nothing; restore the files, or leave the data position out with "
            "--checkpoint.exclude_from_loading dataloader"
        )
    if state["tokenizer_fingerprint"] != tokenizer:
        raise SettingError(
            "data state: the checkpoint was made with another tokenizer (fingerprint "
            f"{state['tokenizer_fingerprint'][:12]}, now {tokenizer[:12]}); set "
            "--model.hf_assets_path to the checkpoint's tokenizer"
        )
