"""One row of the global batch in a stream: every G-th document, packed."""

from __future__ import annotations

import copy
import itertools
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torchtitan_cpp.data.records import check_bad_records
from torchtitan_cpp.data.registry import Stream, process_sample


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a document begins."""

    epoch: int
    num_drawn: int
    """Samples of this row drawn before it in this epoch."""
    library: Any
    """State of the iterable before it, None where it has none."""
    bad: tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class _Document:
    ids: list[int]
    place: _Place


class StreamRow:
    """Packs the documents ``row, row + num_rows, ...`` of a stream into samples.

    A state names the document in which the next sample begins and the token within it.
    Going there takes the library's own time: an iterable with ``state_dict`` and
    ``load_state_dict`` (as those of ``datasets``) goes there itself, others are read
    from the beginning.

    Args:
        infinite: begin the stream again at its end.
    """

    def __init__(
        self,
        stream: Stream,
        tokenizer: Any,
        *,
        name: str,
        row: int,
        num_rows: int,
        infinite: bool,
        max_bad_records: int,
    ) -> None:
        self._stream = stream
        self._tokenizer = tokenizer
        self._name = name
        self._row = row
        self._num_rows = num_rows
        self._infinite = infinite
        self._max_bad_records = max_bad_records
        self.reset()

    def reset(self) -> None:
        """Go to the beginning of the stream."""
        self._documents: deque[_Document] = deque()
        self._num_tokens = 0  # of all documents held
        self._offset = 0  # of the next sample in the first of them
        self._bad: tuple[tuple[str, str], ...] = ()
        self._exhausted = False
        self._begin(epoch=0)

    def fill(self, seq_len: int) -> bool:
        """Read documents until there is a whole sample; False if the stream ends first.

        Raises:
            BadRecordsError: too many bad records in this row.
        """
        while self._num_tokens - self._offset <= seq_len:
            if self._exhausted or not self._draw():
                return False
        return True

    def next_sample(self, seq_len: int) -> list[int] | None:
        """``seq_len + 1`` ids, the last of which begins the next sample; or None.

        Raises:
            BadRecordsError: too many bad records in this row.
        """
        if not self.fill(seq_len):
            return None
        ids: list[int] = []
        first = self._offset
        for document in self._documents:
            ids += document.ids[first : first + seq_len + 1 - len(ids)]
            first = 0
            if len(ids) > seq_len:
                break
        self._offset += seq_len
        while self._documents and self._offset >= len(self._documents[0].ids):
            done = self._documents.popleft()
            self._offset -= len(done.ids)
            self._num_tokens -= len(done.ids)
        return ids

    def state_dict(self) -> dict[str, Any]:
        """Where the next sample begins; JSON-able if the iterable's own state is."""
        place = self._documents[0].place if self._documents else self._place()
        return {
            "epoch": place.epoch,
            "num_drawn": place.num_drawn,
            "library": place.library,
            "bad": [list(entry) for entry in place.bad],
            "offset": self._offset,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the place of a state."""
        self.reset()
        self._bad = tuple((place, problem) for place, problem in state["bad"])
        self._begin(
            epoch=int(state["epoch"]),
            num_drawn=int(state["num_drawn"]),
            library=state["library"],
        )
        self._offset = int(state["offset"])

    def _begin(self, *, epoch: int, num_drawn: int = 0, library: Any = None) -> None:
        self._epoch, self._num_drawn = epoch, num_drawn
        self._documents_of_epoch = num_drawn
        self._start = (num_drawn, library)
        self._iterable: Any = None
        self._samples: Iterator[Any] | None = None

    def _open(self) -> Iterator[Any]:
        num_drawn, library = self._start
        iterable, taken_by_library = _split(
            self._stream.open(), self._row, self._num_rows
        )
        self._iterable = iterable if hasattr(iterable, "state_dict") else None
        if library is not None and self._iterable is not None:
            iterable.load_state_dict(copy.deepcopy(library))
            num_drawn = 0
            if not taken_by_library:
                # Its state lies behind the row's last document.
                return _every(iter(iterable), self._num_rows - 1, self._num_rows)
        samples = iter(iterable)
        if not taken_by_library:
            samples = _every(samples, self._row, self._num_rows)
        return itertools.islice(samples, num_drawn, None)

    def _place(self) -> _Place:
        library = None
        if self._iterable is not None and self._num_drawn > 0:
            library = copy.deepcopy(self._iterable.state_dict())
        elif self._samples is None:
            library = self._start[1]
        return _Place(
            epoch=self._epoch,
            num_drawn=self._num_drawn,
            library=library,
            bad=self._bad,
        )

    def _draw(self) -> bool:
        """Add one document; False at the end of a finite stream."""
        while True:
            place = self._place()
            if self._samples is None:
                self._samples = self._open()
            try:
                sample = next(self._samples)
            except StopIteration:
                if not self._infinite:
                    self._exhausted = True
                    return False
                if self._documents_of_epoch == 0:
                    raise ValueError(
                        f"dataset {self._name}: row {self._row} of {self._num_rows} "
                        "has no usable document; use a smaller global_batch_size"
                    ) from None
                self._begin(epoch=self._epoch + 1)
                continue
            number = self._row + self._num_drawn * self._num_rows
            self._num_drawn += 1
            record = process_sample(
                sample,
                self._stream.sample_processor,
                f"{self._name}:document {number}",
                [],
            )
            if record.problem:
                entry = (record.place, record.problem)
                if entry in self._bad:
                    continue  # counted in an earlier epoch
                self._bad += (entry,)
                check_bad_records(list(self._bad), self._max_bad_records, self._name)
                continue
            ids = self._tokenizer.encode(record.text, add_bos=True, add_eos=True)
            self._documents.append(_Document(ids=ids, place=place))
            self._documents_of_epoch += 1
            self._num_tokens += len(ids)
            return True


def _split(iterable: Any, row: int, num_rows: int) -> tuple[Any, bool]:
    """The part of a row, and whether the library cut it out itself.

    ``datasets`` reads only the files of the row where their number is a multiple of the
    number of rows.
    """
    if type(iterable).__module__.partition(".")[0] != "datasets":
        return iterable, False
    from datasets.distributed import (
        split_dataset_by_node,
    )

    # shard() copies the parts that keep the state; splits alone would share them.
    own = iterable.shard(num_shards=1, index=0)
    return split_dataset_by_node(own, row, num_rows), True


def _every(samples: Iterator[Any], first: int, step: int) -> Iterator[Any]:
    return itertools.islice(samples, first, None, step)
