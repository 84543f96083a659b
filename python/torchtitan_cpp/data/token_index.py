"""The packed token sequence of a dataset, made lazily and kept in a cache folder.

Documents are tokenized in order and written in files (shards) whose borders depend only
on the dataset, so that every rank finds or makes the same ones. A thread makes the next
shard while the current one is read; the first is small, so that a run starts at once.
Several ranks and several runs may share a folder: a file lock lets one of them work at
a time, files appear by rename, and a lock that is held too long is passed over,
because two ranks that make a shard make the same bytes. Sizes and checksums are
checked on reading; a damaged shard is made anew.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from torchtitan_cpp import _C
from torchtitan_cpp.data.records import (
    BadRecordsError,
    Cursor,
    DocumentSource,
    Record,
    check_bad_records,
)
from torchtitan_cpp.data.tokenizer import (
    encode_documents,
    largest_token_id,
    tokenizer_fingerprint,
)
from torchtitan_cpp.errors import Explained
from torchtitan_cpp.rank_thread import start_helper

logger = logging.getLogger(__name__)

FIRST_SHARD_BYTES = 2**18
"""Text of the first shard; each next one takes twice as much, up to the largest."""
LARGEST_SHARD_BYTES = 2**24
_ENCODED_AT_ONCE_BYTES = 2**19
_FORMAT = "1"
_LOCK_PATIENCE_SECONDS = 120.0
_STALE_SECONDS = 3600.0


class CacheError(Explained, RuntimeError):
    """Token ids could not be written to the cache; the message has path and reason."""


@dataclass(frozen=True, kw_only=True)
class _ShardNote:
    """What a shard says about itself beside its tokens."""

    cursor: Cursor
    num_documents: int
    bad: list[tuple[str, str]]
    last: bool

    @staticmethod
    def parse(text: str) -> _ShardNote:
        value = json.loads(text)
        return _ShardNote(
            cursor=value["cursor"],
            num_documents=value["num_documents"],
            bad=[(place, problem) for place, problem in value["bad"]],
            last=value["last"],
        )


class TokenIndex:
    """The tokens of all documents, each as BOS + text + EOS, one after the other.

    Args:
        name: of the dataset, for messages.
        source: its documents.
        tokenizer: gives the ids; see ``encode_documents``.
        cache_folder: shards lie in a folder of their own below it.
        max_bad_records: bad records that are skipped before an error.
    """

    def __init__(
        self,
        name: str,
        source: DocumentSource,
        tokenizer: Any,
        *,
        cache_folder: Path,
        max_bad_records: int,
    ) -> None:
        self.name = name
        self._source = source
        self._tokenizer = tokenizer
        self._max_bad_records = max_bad_records
        key = f"{_FORMAT}\n{source.cache_key}\n{tokenizer_fingerprint(tokenizer)}\n"
        key += f"{FIRST_SHARD_BYTES} {LARGEST_SHARD_BYTES}"
        self.folder = cache_folder / hashlib.sha256(key.encode()).hexdigest()[:20]
        self._store = _C.data.TokenStore()
        self._notes: list[_ShardNote] = []
        self._reader: Iterator[Record] | None = None
        self._reader_shard = -1
        self._changed = threading.Condition()
        self._building = threading.Lock()
        self._wanted_token = 0
        self._error: Exception | None = None
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def complete(self) -> bool:
        """Whether all documents are tokenized."""
        return bool(self._notes) and self._notes[-1].last

    @property
    def num_tokens(self) -> int:
        """Tokens that are ready; all tokens of the dataset once ``complete``."""
        return int(self._store.num_tokens)

    def require(self, end_token: int) -> None:
        """Wait until the tokens before ``end_token`` are ready, or all there are.

        Raises:
            BadRecordsError: too many bad records before ``end_token``; no document is
                usable.
            ValueError: the tokenizer gave an id out of its range.
        """
        with self._changed:
            self._wanted_token = max(self._wanted_token, end_token)
            if self._thread is None and not self._enough():
                self._thread = start_helper("token-index", self._run)
            self._changed.notify_all()
            while not self._ready(end_token) and self._error is None:
                if self._closing:
                    raise RuntimeError(f"dataset {self.name}: the loader was closed")
                self._changed.wait()
            if not self._ready(end_token) and self._error is not None:
                raise self._error
        if self.complete and self.num_tokens == 0:
            raise BadRecordsError(f"dataset {self.name} has no usable document")

    def gather(
        self,
        *,
        first_sample: int,
        num_rows: int,
        seq_len: int,
        vocab_size: int,
        at_end: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Rows of consecutive samples: input and labels, int64 ``[num_rows, seq_len]``.

        The tokens must have been required. A shard that was damaged on disk is made
        anew.
        """
        request = {
            "first_sample": first_sample,
            "num_rows": num_rows,
            "seq_len": seq_len,
            "vocab_size": vocab_size,
            "at_end": at_end,
        }
        try:
            return self._gather(request)
        except _C.data.DamagedShard as error:
            logger.warning("%s; making it anew", error)
            needed = self.num_tokens
            self._forget_from(self._store.first_damaged())
            self.require(needed)
            return self._gather(request)

    def close(self) -> None:
        """Stop the thread; the cache stays."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def _gather(self, request: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
        rows: tuple[torch.Tensor, torch.Tensor] = self._store.gather(**request)
        return rows

    def _ready(self, end_token: int) -> bool:
        return self.complete or self.num_tokens >= end_token

    def _enough(self) -> bool:
        """Whether a whole shard lies behind the one that is read."""
        ahead = self._store.shard_of(max(0, self._wanted_token - 1)) + 1
        return self.complete or ahead < self._store.num_shards

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closing and (self._enough() or self._error is not None):
                    self._changed.wait()
                if self._closing:
                    return
            try:
                with self._building:
                    self._add_shard()
            except _Closed:
                return
            except Exception as error:
                with self._changed:
                    self._error = error
            with self._changed:
                self._changed.notify_all()

    def _add_shard(self) -> None:
        number = len(self._notes)
        path = self.folder / f"tokens-{number:06d}.bin"
        self.folder.mkdir(parents=True, exist_ok=True)
        while not self._attach(path):
            with self._lock() as mine:
                if mine and not path.exists():
                    self._build(number, path)

    def _attach(self, path: Path) -> bool:
        if not path.exists():
            return False
        try:
            note = _ShardNote.parse(self._store.attach(str(path)))
        except _C.data.DamagedShard as error:
            logger.warning("%s; making it anew", error)
            path.unlink(missing_ok=True)
            return False
        bad = [entry for earlier in self._notes for entry in earlier.bad] + note.bad
        try:
            check_bad_records(bad, self._max_bad_records, self.name)
        except ValueError:
            self._store.truncate(len(self._notes))
            raise
        with self._changed:
            self._notes.append(note)
        return True

    def _build(self, number: int, path: Path) -> None:
        limit = min(FIRST_SHARD_BYTES << min(number, 40), LARGEST_SHARD_BYTES)
        writer = _C.data.TokenShardWriter(
            vocab_size=largest_token_id(self._tokenizer) + 1
        )
        cursor = self._notes[-1].cursor if self._notes else []
        if self._reader is None or self._reader_shard != number:
            self._reader = self._source.read(cursor)
        self._reader_shard = -1  # until this shard is done
        pending: list[Record] = []
        bad: list[tuple[str, str]] = []
        earlier = sum(len(note.bad) for note in self._notes)
        num_documents = size = pending_size = 0
        last = True
        for record in self._reader:
            cursor = record.cursor
            if record.problem:
                bad.append((record.place, record.problem))
                logger.warning("%s: skipped: %s", record.place, record.problem)
                if earlier + len(bad) > self._max_bad_records:
                    known = [entry for note in self._notes for entry in note.bad]
                    check_bad_records(known + bad, self._max_bad_records, self.name)
                continue
            pending.append(record)
            num_documents += 1
            size += record.num_bytes
            pending_size += record.num_bytes
            if pending_size >= _ENCODED_AT_ONCE_BYTES:
                self._encode(pending, writer)
                pending, pending_size = [], 0
            if size >= limit:
                last = False
                break
        self._encode(pending, writer)
        note = {
            "cursor": cursor,
            "num_documents": num_documents,
            "bad": bad,
            "last": last,
        }
        try:
            writer.write(str(path), note=json.dumps(note))
        except RuntimeError as error:
            raise CacheError(f"{error} (token ids of dataset {self.name})") from None
        self._reader_shard = number + 1

    def _encode(self, records: list[Record], writer: Any) -> None:
        if self._closing:
            raise _Closed
        documents = encode_documents(
            self._tokenizer, [record.text for record in records]
        )
        for record, ids in zip(records, documents, strict=True):
            place = record.place.encode("utf-8", "replace").decode("utf-8")
            writer.append(ids, place=place)

    def _forget_from(self, shard: int) -> None:
        with self._building, self._changed:
            (self.folder / f"tokens-{shard:06d}.bin").unlink(missing_ok=True)
            self._store.truncate(shard)
            del self._notes[shard:]
            self._reader = None

    @contextmanager
    def _lock(self) -> Iterator[bool]:
        """True: this process may build. False: another did, or gave the lock back."""
        descriptor = os.open(self.folder / "lock", os.O_CREAT | os.O_RDWR, 0o644)
        try:
            wait_until = time.monotonic() + _LOCK_PATIENCE_SECONDS
            number = len(self._notes)
            path = self.folder / f"tokens-{number:06d}.bin"
            while not _try_lock(descriptor):
                if self._closing:
                    raise _Closed
                if path.exists():
                    yield False
                    return
                if time.monotonic() > wait_until:
                    logger.warning("%s: its lock is held too long", self.folder)
                    break
                time.sleep(0.01)
            self._remove_stale_files()
            yield True
        finally:
            os.close(descriptor)

    def _remove_stale_files(self) -> None:
        for path in self.folder.glob("*.tmp-*"):
            try:
                if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                    path.unlink()
            except FileNotFoundError:
                continue


class _Closed(Exception):
    """The index was closed while its thread worked."""


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        # A file system without locks: everybody works, which is safe, only not shared.
        logger.debug("no file lock: %s", error)
        return True
    return True
