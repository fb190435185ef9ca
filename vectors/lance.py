"""A vector index in a folder, for one machine and any number of processes: vectors in LanceDB,
chunks and their words beside them in SQLite.

Vectors are compared one by one, so results are exact; that takes about 50 ms for 50,000 chunks.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
from filelock import FileLock, Timeout
from lancedb.table import Table

from vectors.chunks import Chunks, open_chunks
from vectors.fusion import depth
from vectors.index import (
    Chunk,
    Filter,
    IndexMismatchError,
    IndexNotFoundError,
    IndexWriteError,
    Passage,
    VectorIndexError,
)
from vectors.records import conditions, fused_passages, passage, record, unfit

_PART = 4096
"""LanceDB tidies a table in memory that grows with the table. So vectors lie in several tables, and
one with so many takes no more."""

_TIDY = 8
"""Each write makes a version of a table, and maybe a fragment; after so many they are merged."""


class LanceIndex:
    """A folder of its own in a folder of indexes. Writers take turns by a lock file, waiting up to
    `patience` seconds.

    A chunk is there when SQLite has it. So that nothing is left of a write that was killed, vectors
    are noted there before they are written or removed; the next write removes what was noted and
    is no chunk.
    """

    def __init__(
        self, folder: str | Path, name: str, dimensions: int, *, patience: float = 120
    ) -> None:
        self._folder = Path(folder).absolute() / name
        self._name = name
        self._dimensions = dimensions
        self._patience = patience
        self._lock = FileLock(self._folder / "lock", timeout=patience, poll_interval=0.01)
        self._opened: dict[int, Table] = {}

    def ensure(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._turn(), open_chunks(self._file, self._patience) as chunks:
            if not chunks.dimensions:
                chunks.create(self._dimensions)
        with self._chunks():
            pass  # it fits

    def existing(self, source: str) -> set[str]:
        with self._chunks() as chunks:
            return chunks.ids(source)

    def upsert(self, chunks: Sequence[Chunk]) -> None:
        latest = {chunk.id: chunk for chunk in chunks}
        failures = unfit(latest.values(), self._dimensions)
        records = {id: record(chunk) for id, chunk in latest.items() if id not in failures}
        if records:
            with self._writing() as stored:
                self._write(stored, records)
        if failures:
            raise IndexWriteError(self._name, failures)

    def delete_by_source(self, source: str, keep: Collection[str] = ()) -> int:
        with self._writing() as chunks:
            stale = chunks.ids(source) - set(keep)
            if stale:
                chunks.remove(stale)
                self._settle(chunks)
        return len(stale)

    def search(
        self,
        vector: Sequence[float],
        text: str | None,
        *,
        top_k: int,
        filter: Filter | None = None,
    ) -> list[Passage]:
        size = depth(top_k) if text else top_k
        labels = conditions(filter)
        with self._chunks() as chunks:
            nearest = self._nearest(chunks, vector, labels, size)
            if not text:
                return [passage(record, similarity, similarity) for record, similarity in nearest]
            return fused_passages(nearest, chunks.matching(text, labels, size), top_k)

    def sources(self) -> set[str]:
        with self._chunks() as chunks:
            return chunks.sources()

    def count(self) -> int:
        with self._chunks() as chunks:
            return chunks.count()

    def _write(self, chunks: Chunks, records: dict[str, dict[str, Any]]) -> None:
        sizes = chunks.parts()
        roomy = next(part for part in count(1) if sizes.get(part, 0) < _PART)
        if roomy not in sizes:
            self._create(roomy)
        places = dict.fromkeys(records, roomy)
        places |= {id: found["part"] for id, found in chunks.records(records).items()}
        chunks.note(places)
        by_part = defaultdict(list)
        for id, part in places.items():
            by_part[part].append(records[id])
        for part, rows in by_part.items():
            merge = self._part(part).merge_insert("id")
            merge.when_matched_update_all().when_not_matched_insert_all().execute(
                pa.Table.from_pylist(rows, schema=self._schema())
            )
            self._tidy(part)
        chunks.write([{**each, "part": places[id]} for id, each in records.items()])

    def _settle(self, chunks: Chunks) -> None:
        for part, ids in chunks.stray_vectors().items():
            self._part(part).delete(f"id IN ({_literals(ids)})")
            self._tidy(part)
        chunks.settle()

    def _nearest(
        self, chunks: Chunks, vector: Sequence[float], labels: list[list[str]], size: int
    ) -> list[tuple[dict[str, Any], float]]:
        """The nearest chunks with their similarities. Vectors without a chunk, of writes that go on
        meanwhile, may take the first places: then more are asked for."""
        wanted = size
        while True:
            hits = [
                hit for part in chunks.parts() for hit in self._hits(part, vector, labels, wanted)
            ]
            hits = sorted(hits, key=lambda hit: (hit["_distance"], hit["id"]))[:wanted]
            records = chunks.records([hit["id"] for hit in hits])
            found = [
                (records[hit["id"]], 1 - hit["_distance"] / 2)
                for hit in hits
                if hit["id"] in records
            ]
            if len(found) >= size or len(hits) < wanted:
                return found[:size]
            wanted *= 2

    def _hits(
        self, part: int, vector: Sequence[float], labels: list[list[str]], limit: int
    ) -> list[dict[str, Any]]:
        query: Any = self._part(part).search(list(vector), vector_column_name="vector")
        where = " AND ".join(
            f"array_has_any(labels, [{_literals(each)}])" if each else "false" for each in labels
        )
        if where:
            query = query.where(where, prefilter=True)
        query = query.distance_type("cosine").select(["id", "_distance"]).limit(limit)
        hits: list[dict[str, Any]] = query.to_list()
        return hits

    @property
    def _file(self) -> Path:
        return self._folder / "chunks.sqlite3"

    @contextmanager
    def _chunks(self) -> Iterator[Chunks]:
        if not self._file.exists():
            raise self._missing()
        with open_chunks(self._file, self._patience) as chunks:
            if not chunks.dimensions:
                raise self._missing()
            if chunks.dimensions != self._dimensions:
                raise IndexMismatchError(
                    f"The index {self._name} in {self._folder} does not fit the settings: its "
                    f"vectors have {chunks.dimensions} dimensions, not {self._dimensions}. "
                    f"Re-index: remove {self._folder}, or name another index in the settings, "
                    "and run `quench documents sync`, which fills it with every document."
                )
            yield chunks

    def _missing(self) -> IndexNotFoundError:
        return IndexNotFoundError(
            f"There is no index {self._name} in {self._folder.parent} yet; hydrating documents "
            "creates it."
        )

    @contextmanager
    def _writing(self) -> Iterator[Chunks]:
        with self._chunks() as chunks, self._turn():
            self._settle(chunks)
            yield chunks

    @contextmanager
    def _turn(self) -> Iterator[None]:
        try:
            self._lock.acquire()
        except Timeout as error:
            raise VectorIndexError(
                f"Another process has held {self._lock.lock_file} for {self._patience} s. "
                "Is it still at work?"
            ) from error
        try:
            yield
        finally:
            self._lock.release()

    def _part(self, number: int) -> Table:
        if number not in self._opened:
            self._opened[number] = self._database.open_table(_table(number))
        return self._opened[number]

    def _create(self, part: int) -> None:
        self._opened[part] = self._database.create_table(
            _table(part), schema=self._schema(), exist_ok=True
        )

    def _tidy(self, part: int) -> None:
        table = self._part(part)
        if table.version % _TIDY == 0:
            # another process may be reading what was the newest version just now
            table.optimize(cleanup_older_than=timedelta(minutes=10))

    @cached_property
    def _database(self) -> lancedb.DBConnection:
        # always the newest version: another process may have written
        return lancedb.connect(self._folder, read_consistency_interval=timedelta(0))

    def _schema(self) -> pa.Schema:
        return pa.schema(
            {
                "id": pa.string(),
                "labels": pa.list_(pa.string()),
                "vector": pa.list_(pa.float32(), self._dimensions),
            }
        )


def _table(part: int) -> str:
    return f"vectors-{part:04}"


def _literals(texts: Iterable[str]) -> str:
    """String literals of DataFusion's SQL, in which only the quote is special.

    Source: https://datafusion.apache.org/user-guide/sql/sql_literals.html
    """
    return ", ".join("'" + text.replace("'", "''") + "'" for text in texts)
