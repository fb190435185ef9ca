"""The chunks of the embedded index and their words, in a SQLite file.

LanceDB has full-text search too, but merges its index in memory that grows with the corpus, and
takes 0.1 ms for every chunk that is not merged yet. SQLite's FTS5 needs a few megabytes however
large the corpus is, and finds a row as soon as it is written.
"""

import json
import re
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from vectors.records import MOST_WORDS

_TABLES = """
CREATE TABLE chunks (
    number INTEGER PRIMARY KEY,
    id TEXT NOT NULL UNIQUE,
    source TEXT NOT NULL,
    part INTEGER NOT NULL,
    labels TEXT NOT NULL,
    attributes TEXT NOT NULL,
    position INTEGER NOT NULL,
    title TEXT NOT NULL,
    heading TEXT NOT NULL,
    text TEXT NOT NULL
);
CREATE INDEX sources ON chunks (source, id);
CREATE INDEX parts ON chunks (part);

CREATE TABLE unsettled (id TEXT NOT NULL, part INTEGER NOT NULL);

CREATE VIRTUAL TABLE words USING fts5 (
    title, heading, text,
    content=chunks, content_rowid=number, tokenize='porter unicode61 remove_diacritics 2'
);
CREATE TRIGGER chunk_added AFTER INSERT ON chunks BEGIN
    INSERT INTO words (rowid, title, heading, text)
    VALUES (new.number, new.title, new.heading, new.text);
END;
CREATE TRIGGER chunk_removed AFTER DELETE ON chunks BEGIN
    INSERT INTO words (words, rowid, title, heading, text)
    VALUES ('delete', old.number, old.title, old.heading, old.text);
END;
"""
"""`part` is where a chunk's vector is; vectors in `unsettled` are being written or removed."""

_INSERT = """
INSERT INTO chunks (id, source, part, labels, attributes, position, title, heading, text)
VALUES (:id, :source, :part, :labels, :attributes, :position, :title, :heading, :text)
"""

_STOP_WORDS = frozenset(
    """a an and are as at be but by for if in into is it no not of on or such that the their then
    there these they this to was will with""".split()  # noqa: SIM905
)
"""Those of Lucene's English analyzer: nearly every chunk has them."""


class Chunks:
    """An open file. Whatever other processes have written is seen at once."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._rows = connection

    def create(self, dimensions: int) -> None:
        self._rows.execute("PRAGMA journal_mode = WAL")  # readers and a writer at once
        self._rows.executescript(
            f"BEGIN; {_TABLES} PRAGMA user_version = {int(dimensions)}; COMMIT;"
        )

    @property
    def dimensions(self) -> int:
        """Of the vectors that the file was created for, 0 if it was not."""
        [[dimensions]] = self._rows.execute("PRAGMA user_version")
        return int(dimensions)

    def ids(self, source: str) -> set[str]:
        return {
            id for (id,) in self._rows.execute("SELECT id FROM chunks WHERE source = ?", [source])
        }

    def sources(self) -> set[str]:
        return {source for (source,) in self._rows.execute("SELECT DISTINCT source FROM chunks")}

    def count(self) -> int:
        [[number]] = self._rows.execute("SELECT count(*) FROM chunks")
        return int(number)

    def parts(self) -> dict[int, int]:
        """How many chunks each part has."""
        return dict(
            self._rows.execute("SELECT part, count(*) FROM chunks GROUP BY part").fetchall()
        )

    def records(self, ids: Collection[str]) -> dict[str, dict[str, Any]]:
        """The chunks that there are of these, as records of `vectors.records` and with `part`."""
        query = "SELECT * FROM chunks WHERE id IN (SELECT value FROM json_each(?))"
        rows = self._rows.execute(query, [json.dumps(list(ids))])
        return {row["id"]: dict(row) for row in rows}

    def matching(
        self, text: str, labels: Sequence[Sequence[str]], limit: int
    ) -> list[dict[str, Any]]:
        """Records that have words of a text, and of each list at least one label; best first by
        BM25."""
        words = [word for word in re.findall(r"\w+", text.lower()) if word not in _STOP_WORDS]
        if not words:
            return []
        labelled = """AND EXISTS (
            SELECT 1 FROM chunks, json_each(chunks.labels) AS label
            WHERE chunks.number = words.rowid AND label.value IN (SELECT value FROM json_each(?))
        )"""
        query = f"""
            SELECT chunks.* FROM chunks JOIN (
                SELECT rowid AS number, rank AS score FROM words
                WHERE words MATCH ? {labelled * len(labels)} ORDER BY rank LIMIT ?
            ) USING (number) ORDER BY score, id
        """  # noqa: S608 - no value is part of it
        distinct = list(dict.fromkeys(words))[:MOST_WORDS]
        expression = " OR ".join(f'"{word}"' for word in distinct)
        rows = self._rows.execute(query, [expression, *map(json.dumps, labels), limit])
        return [dict(row) for row in rows]

    def note(self, parts: Mapping[str, int]) -> None:
        """Vectors of these ids are going to be written to these parts."""
        with self._transaction():
            self._rows.executemany("INSERT INTO unsettled VALUES (?, ?)", parts.items())

    def write(self, records: Collection[Mapping[str, Any]]) -> None:
        """Puts chunks in, or in the place of those of the same ids; their vectors are there."""
        with self._transaction():
            for record in records:
                self._rows.execute("DELETE FROM chunks WHERE id = ?", [record["id"]])
                self._rows.execute(_INSERT, {**record, "labels": json.dumps(record["labels"])})
            self._rows.execute("DELETE FROM unsettled")

    def remove(self, ids: Collection[str]) -> None:
        """Takes chunks out, and notes that their vectors are to follow."""
        gone = json.dumps(list(ids))
        those = "FROM chunks WHERE id IN (SELECT value FROM json_each(?))"
        with self._transaction():
            self._rows.execute(f"INSERT INTO unsettled SELECT id, part {those}", [gone])
            self._rows.execute(f"DELETE {those}", [gone])

    def stray_vectors(self) -> dict[int, list[str]]:
        """By part, what was noted and is no chunk."""
        query = "SELECT part, id FROM unsettled WHERE id NOT IN (SELECT id FROM chunks)"
        strays: dict[int, list[str]] = {}
        for part, id in self._rows.execute(query):
            strays.setdefault(part, []).append(id)
        return strays

    def settle(self) -> None:
        """Of what was noted, nothing is left to do."""
        self._rows.execute("DELETE FROM unsettled")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._rows.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._rows.execute("ROLLBACK")
            raise
        self._rows.execute("COMMIT")


@contextmanager
def open_chunks(path: Path, patience: float) -> Iterator[Chunks]:
    """The chunks in a file, which is made if there is none; waits up to so many seconds for what
    others hold."""
    connection = sqlite3.connect(path, isolation_level=None, timeout=patience)
    connection.row_factory = sqlite3.Row
    with closing(connection):
        yield Chunks(connection)
