"""The loader that a trainer sees: batches, prefetch, and a state that can be saved."""

from __future__ import annotations

import queue
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from torchtitan_cpp.data.batches import Batch, BatchSource, Rows
from torchtitan_cpp.rank_thread import start_helper

_Item = tuple[Batch | None, dict[str, Any] | None, BaseException | None]


class DataLoader:
    """Batches of one rank, each ``({"input": int64 [B, S]}, labels int64 [B, S])``.

    It is its own iterator: ``iter()`` goes on where it is, except that an exhausted
    loader, and a validation loader always, begins anew.

    Args:
        source: makes the batches.
        rows: what this rank reads; an attribute too.
        prefetch: batches that a thread makes ahead; 0: the caller's thread makes each.
        pin_memory: give batches in page-locked memory (where there is CUDA).
        restart: whether ``iter()`` always begins anew.
    """

    def __init__(
        self,
        source: BatchSource,
        *,
        rows: Rows,
        prefetch: int = 0,
        pin_memory: bool = False,
        restart: bool = False,
    ) -> None:
        self._source = source
        self.rows = rows
        self._prefetch = prefetch
        self._pin_memory = pin_memory and torch.cuda.is_available()
        self._restart = restart
        self._exhausted = False
        self._state: dict[str, Any] | None = None
        self._prefetchers: list[_Prefetcher] = []  # the running one, if any
        # Threads stop before the interpreter does, also when close() is forgotten.
        self._finalizer = weakref.finalize(self, _close, source, self._prefetchers)

    def __iter__(self) -> Iterator[Batch]:
        if self._restart or self._exhausted:
            self._stop_prefetch()
            self._source.reset()
            self._state = None
            self._exhausted = False
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            StopIteration: the data are exhausted (and stay so until ``iter``).
            BadRecordsError: too many bad records.
            ValueError: an id that the model has no row for, naming the sample.
        """
        if self._exhausted:
            raise StopIteration
        if self._prefetch == 0:
            batch = self._source.next_batch()
        else:
            if not self._prefetchers:
                self._prefetchers.append(_Prefetcher(self._source, self._prefetch))
            batch, self._state = self._prefetchers[0].get()
        if batch is None:
            self._stop_prefetch()
            self._exhausted = True
            raise StopIteration
        if self._pin_memory:
            tokens, labels = batch
            return {k: v.pin_memory() for k, v in tokens.items()}, labels.pin_memory()
        return batch

    def state_dict(self) -> dict[str, Any]:
        """JSON-able position behind the last batch that was given out."""
        if self._state is not None:
            return self._state
        return self._source.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` says.

        For a stream it needs the rows of all ranks (``merge_data_states``).

        Raises:
            ValueError: it belongs to other data or another tokenizer.
        """
        self._stop_prefetch()
        self._source.load_state_dict(state)
        self._state = None
        self._exhausted = False

    def check_ids_below(self, vocab_size: int) -> None:
        """From now on refuse batches with ids that the model has no row for.

        Args:
            vocab_size: rows of the model's embedding.
        """
        self._source.check_ids_below(vocab_size)

    def close(self) -> None:
        """Stop all threads. The loader gives no batch after that."""
        self._state = self.state_dict()
        self._exhausted = True
        self._finalizer()

    def _stop_prefetch(self) -> None:
        if self._prefetchers:
            self._prefetchers.pop().stop()


class _Prefetcher:
    """A thread that keeps up to ``depth`` batches, each with the state behind it."""

    def __init__(self, source: BatchSource, depth: int) -> None:
        self._queue: queue.Queue[_Item] = queue.Queue(maxsize=depth)
        self._stopping = threading.Event()
        self._thread = start_helper(
            "data-prefetch", _fill, source, self._queue, self._stopping
        )

    def get(self) -> tuple[Batch | None, dict[str, Any] | None]:
        batch, state, error = self._queue.get()
        if error is not None:
            self._queue.put((batch, state, error))  # it stays an error
            raise error
        return batch, state

    def stop(self) -> None:
        """Ask the thread to end and wait until the batch that it makes is done."""
        self.ask_to_stop()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def ask_to_stop(self) -> None:
        self._stopping.set()


def _fill(
    source: BatchSource, batches: queue.Queue[_Item], stopping: threading.Event
) -> None:
    while not stopping.is_set():
        item: _Item
        try:
            batch = source.next_batch()
            item = (batch, source.state_dict(), None)
        except BaseException as error:
            item = (None, None, error)
        while not stopping.is_set():
            try:
                batches.put(item, timeout=0.05)
                break
            except queue.Full:
                continue
        if item[0] is None:
            return


def _close(source: BatchSource, prefetchers: list[_Prefetcher]) -> None:
    for prefetcher in prefetchers:
        prefetcher.ask_to_stop()
    source.close()  # wakes a thread that waits for tokens
    while prefetchers:
        prefetchers.pop().stop()


def merge_data_states(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One state from those of all ranks, which any number of ranks can load.

    Args:
        states: ``DataLoader.state_dict()`` of every rank of the axis "batch", all taken
            behind the same step.
    Raises:
        ValueError: the states do not belong together.
    """
    if not states:
        raise ValueError("merge_data_states: expected at least one state")
    merged = dict(states[0])
    for state in states[1:]:
        for key in merged.keys() | state.keys():
            if key != "rows" and merged.get(key) != state.get(key):
                raise ValueError(
                    f"merge_data_states: ranks differ in {key}: {merged.get(key)!r} "
                    f"and {state.get(key)!r}"
                )
        if "rows" in merged:
            merged["rows"] = {**merged["rows"], **state["rows"]}
    return merged
