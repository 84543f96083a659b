"""Readers of one file: its records, from any place inside it."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol, cast

from torchtitan_cpp.data.records import (
    MAX_RECORD_BYTES,
    Cursor,
    Record,
    bad_record,
    make_record,
)

TEXT_PIECE_BYTES = 2**20
"""A plain text file is one document up to this size; longer ones are cut at line ends
into documents of about this size."""

_DAMAGED_GZIP = (EOFError, gzip.BadGzipFile, zlib.error)


class ReadFile(Protocol):
    """Reads ``path``, file ``number`` of its dataset, from ``inside`` on."""

    def __call__(
        self, path: Path, number: int, inside: Cursor, text_key: str
    ) -> Iterator[Record]:
        """Records; their cursors begin with ``number``."""


def read_json(
    path: Path, number: int, inside: Cursor, text_key: str
) -> Iterator[Record]:
    """One JSON object a line, or one array of objects.

    Blank lines are no records. ``inside`` is byte offset and line number, or the number
    of an element.
    """
    after = [number + 1]
    try:
        with _open(path) as file:
            if _first_byte(file) == b"[":
                yield from _read_array(file, path, number, inside, text_key)
            else:
                yield from _read_lines(file, path, number, inside, text_key)
    except _DAMAGED_GZIP as error:
        yield bad_record(f"damaged gzip file: {error}", place=f"{path}", cursor=after)


def read_plain_text(
    path: Path, number: int, inside: Cursor, text_key: str
) -> Iterator[Record]:
    """The file as one document, or its pieces; ``inside`` is a byte offset."""
    offset = inside[0] if inside else 0
    try:
        with _open(path) as file:
            file.seek(offset)
            first = offset == 0
            while piece := _read_piece(file):
                place = f"{path}" if offset == 0 else f"{path}:byte {offset}"
                offset += len(piece)
                yield _decoded(piece, place=place, cursor=[number, offset])
                first = False
            if first:
                yield bad_record("empty file", place=f"{path}", cursor=[number + 1])
    except _DAMAGED_GZIP as error:
        yield bad_record(
            f"damaged gzip file: {error}", place=f"{path}", cursor=[number + 1]
        )


def read_parquet(
    path: Path, number: int, inside: Cursor, text_key: str
) -> Iterator[Record]:
    """The rows of a parquet file; ``inside`` is the number of a row.

    Raises:
        ImportError: pyarrow is missing.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs pyarrow; run: pip install pyarrow"
        ) from error
    skip = inside[0] if inside else 0
    after = [number + 1]
    try:
        file = parquet.ParquetFile(path)
        if text_key not in file.schema_arrow.names:
            found = ", ".join(file.schema_arrow.names)
            yield bad_record(
                f"no column '{text_key}' (columns: {found})",
                place=f"{path}",
                cursor=after,
            )
            return
        row = 0
        for group in range(file.metadata.num_row_groups):
            size = file.metadata.row_group(group).num_rows
            if row + size <= skip:
                row += size
                continue
            for batch in file.iter_batches(
                batch_size=256, row_groups=[group], columns=[text_key]
            ):
                for scalar in batch.column(0):
                    row += 1
                    if row > skip:
                        yield make_record(
                            _parquet_text(scalar),
                            place=f"{path}:row {row}",
                            cursor=[number, row],
                        )
    except pyarrow.ArrowException as error:
        yield bad_record(
            f"damaged parquet file: {error}", place=f"{path}", cursor=after
        )


def _parquet_text(scalar: Any) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return b""  # no text; the record says bytes


def _open(path: Path) -> IO[bytes]:
    if path.suffix.lower() == ".gz":
        return cast(IO[bytes], gzip.open(path, "rb"))
    return path.open("rb")


def _peek(file: IO[bytes]) -> bytes:
    ahead: bytes = file.peek(1)  # type: ignore[attr-defined]
    return ahead


def _first_byte(file: IO[bytes]) -> bytes:
    while (byte := file.read(1)).isspace():
        pass
    file.seek(0)
    return byte


def _decoded(data: bytes, *, place: str, cursor: Cursor) -> Record:
    try:
        return make_record(data.decode("utf-8"), place=place, cursor=cursor)
    except UnicodeDecodeError as error:
        return bad_record(
            f"invalid UTF-8 at byte {error.start}", place=place, cursor=cursor
        )


def _read_piece(file: IO[bytes]) -> bytes:
    piece = file.read(TEXT_PIECE_BYTES)
    if len(piece) < TEXT_PIECE_BYTES or piece.endswith(b"\n"):
        return piece
    piece += file.readline(TEXT_PIECE_BYTES)
    # Without a line end nearby the cut is between two characters.
    while not piece.endswith(b"\n") and 0x80 <= (_peek(file)[:1] or b"\0")[0] < 0xC0:
        piece += file.read(1)
    return piece


def _read_lines(
    file: IO[bytes], path: Path, number: int, inside: Cursor, text_key: str
) -> Iterator[Record]:
    offset, line_number = (inside[0], inside[1]) if inside else (0, 0)
    file.seek(offset)
    while line := file.readline(MAX_RECORD_BYTES + 1):
        offset += len(line)
        line_number += 1
        place = f"{path}:{line_number}"
        if len(line) > MAX_RECORD_BYTES and not line.endswith(b"\n"):
            while rest := file.readline(MAX_RECORD_BYTES):
                offset += len(rest)
                if rest.endswith(b"\n"):
                    break
            cursor = [number, offset, line_number]
            problem = f"line of more than {MAX_RECORD_BYTES} bytes"
            yield bad_record(problem, place=place, cursor=cursor)
            continue
        if line.isspace():
            continue
        cursor = [number, offset, line_number]
        try:
            value = json.loads(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            problem = f"invalid UTF-8 at byte {error.start}"
            yield bad_record(problem, place=place, cursor=cursor)
        except (ValueError, RecursionError) as error:
            yield bad_record(f"broken JSON: {error}", place=place, cursor=cursor)
        else:
            yield _record_of(value, text_key, place=place, cursor=cursor)


def _read_array(
    file: IO[bytes], path: Path, number: int, inside: Cursor, text_key: str
) -> Iterator[Record]:
    try:
        values = json.loads(file.read().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        problem = f"broken JSON: {error}"
        yield bad_record(problem, place=f"{path}", cursor=[number + 1])
        return
    for index in range(inside[0] if inside else 0, len(values)):
        place, cursor = f"{path}:[{index}]", [number, index + 1]
        yield _record_of(values[index], text_key, place=place, cursor=cursor)


def _record_of(value: Any, text_key: str, *, place: str, cursor: Cursor) -> Record:
    if not isinstance(value, dict):
        problem = f"expected an object, got {type(value).__name__}"
        return bad_record(problem, place=place, cursor=cursor)
    if text_key not in value:
        keys = ", ".join(list(value)[:10])
        problem = f"no key '{text_key}' (keys: {keys})"
        return bad_record(problem, place=place, cursor=cursor)
    return make_record(value[text_key], place=place, cursor=cursor)
