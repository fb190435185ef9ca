"""Reading dataset files row by row, in memory bounded by a row (in Parquet: a batch of rows).

JSON Lines, JSON, CSV, TSV and Parquet, each also gzipped. Text is UTF-8, with or without a byte
order mark. A row that cannot be read is a `Row` with an error, and reading goes on; a file that
cannot be read to its end is no dataset at all, and raises UnreadableFileError before its first row.
"""

import csv
import gzip
import io
import json
import shutil
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, cast

import pyarrow as pa
import pyarrow.parquet as pq

BATCH_ROWS = 1_000
MAXIMUM_ROW_BYTES = 8 * 2**20
MAXIMUM_JSON_BYTES = 64 * 2**20


class UnreadableFileError(Exception):
    """The file is of an unknown type, or cannot be read to its end; the message says why."""


@dataclass(frozen=True)
class Row:
    """One row of a file: what it holds, or why it could not be read.

    `line` is the line it starts on, counted from 1 (a quoted CSV field may span several); in a JSON
    array and in Parquet, which have no lines, it is the row's number.
    """

    line: int
    value: object
    error: str | None = None


def read_rows(path: Path) -> Iterator[Row]:
    """The rows of a file; blank lines are no rows. Raises UnreadableFileError.

    The file is read twice: first to its end, to find out whether that is possible, so that half a
    file (an upload cut short, a damaged archive) is never taken for a dataset.
    """
    name = path.name.lower().removesuffix(".gz")
    reader = _READERS.get(name[name.rfind(".") :])
    if reader is None:
        known = ", ".join(_READERS)
        raise UnreadableFileError(f"unknown file type; known are {known}, each also with .gz")
    try:
        deque(reader(path), maxlen=0)
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableFileError(f"cannot be read to its end: {error}") from error
    except pa.ArrowException as error:
        raise UnreadableFileError(f"not valid Parquet: {error}") from error
    except csv.Error as error:
        raise UnreadableFileError(f"has no valid header: {error}") from error
    return reader(path)


def _read_json_lines(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        line = 0
        while content := file.readline(MAXIMUM_ROW_BYTES + 1):
            line += 1
            if len(content) > MAXIMUM_ROW_BYTES:
                start = content[:1_000].decode("utf-8", "backslashreplace")
                yield Row(line, start, f"longer than {MAXIMUM_ROW_BYTES:,} bytes")
                while content and not content.endswith(b"\n"):
                    content = file.readline(MAXIMUM_ROW_BYTES)
            elif content.strip():
                yield _json_row(line, content)


def _json_row(line: int, content: bytes) -> Row:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return Row(line, content.decode("utf-8", "backslashreplace"), "not valid UTF-8")
    try:
        return Row(line, json.loads(text))
    except (ValueError, RecursionError):
        return Row(line, text, "not valid JSON")


def _read_json(path: Path) -> Iterator[Row]:
    """A JSON array of records; any other content is read as JSON Lines."""
    with _open(path) as file:
        content = file.read(MAXIMUM_JSON_BYTES + 1)
    if not content.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"["):
        yield from _read_json_lines(path)
        return
    if len(content) > MAXIMUM_JSON_BYTES:
        raise UnreadableFileError(
            f"a JSON array of more than {MAXIMUM_JSON_BYTES // 2**20} MiB, which must be held in "
            "memory whole; write it as JSON Lines (.jsonl), one record on each line"
        )
    try:
        records = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise UnreadableFileError(f"not valid JSON: {error}") from error
    for number, record in enumerate(records, start=1):
        yield Row(number, record)


def _read_csv(path: Path) -> Iterator[Row]:
    return _read_delimited(path, ",")


def _read_tsv(path: Path) -> Iterator[Row]:
    return _read_delimited(path, "\t")


def _read_delimited(path: Path, separator: str) -> Iterator[Row]:
    # Not pandas.read_csv, which silently drops surplus columns, fills missing ones, ends a file at
    # an unbalanced quote, and knows no line numbers.
    csv.field_size_limit(MAXIMUM_ROW_BYTES)
    with (
        _open(path) as binary,
        # Bytes that are no UTF-8 become surrogates, which processing/records.py rejects.
        io.TextIOWrapper(binary, "utf-8-sig", errors="surrogateescape", newline="") as file,
    ):
        lines = csv.reader(file, delimiter=separator, strict=True)
        columns = next(filter(None, lines), [])
        if len(set(columns)) < len(columns):
            raise UnreadableFileError(f"a column is named twice: {columns!a}")
        while True:
            line = lines.line_num + 1
            try:
                fields = next(lines)
            except StopIteration:
                return
            except csv.Error as error:
                # After text behind a closing quote the next line is sound. A quote that is never
                # closed has swallowed the lines after it: then nothing in this file is certain.
                if "expected after" not in str(error):
                    raise UnreadableFileError(f"not valid from line {line} on: {error}") from error
                yield Row(line, None, "text after a closing quote")
            else:
                if fields:
                    yield _delimited_row(line, columns, fields)


def _delimited_row(line: int, columns: list[str], fields: list[str]) -> Row:
    if len(fields) != len(columns):
        more_or_fewer = "more" if len(fields) > len(columns) else "fewer"
        return Row(line, fields, f"{more_or_fewer} columns than the header")
    return Row(line, dict(zip(columns, fields, strict=True)))


def _read_parquet(path: Path) -> Iterator[Row]:
    with tempfile.TemporaryFile() as unzipped:
        source: Path | IO[bytes] = path
        if path.name.lower().endswith(".gz"):  # Parquet is read from its end: it cannot be streamed
            with _open(path) as file:
                shutil.copyfileobj(file, unzipped)
            source = unzipped
        with pq.ParquetFile(source) as parquet:
            number = 0
            for batch in parquet.iter_batches(batch_size=BATCH_ROWS):
                for record in batch.to_pylist():
                    number += 1
                    yield Row(number, record)


def _open(path: Path) -> BinaryIO:
    if path.name.lower().endswith(".gz"):
        return cast(BinaryIO, gzip.open(path, "rb"))
    return path.open("rb")


_READERS: Mapping[str, Callable[[Path], Iterator[Row]]] = {
    ".jsonl": _read_json_lines,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".parquet": _read_parquet,
}
