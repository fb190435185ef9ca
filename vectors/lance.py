"""A vector index in a folder, on LanceDB: for one machine, with any number of processes.

Vectors are compared one by one, so results are exact; that takes about 10 ms for 20,000 chunks.
"""

from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import lancedb
import pyarrow as pa
from filelock import FileLock, Timeout
from lancedb.index import FTS
from lancedb.table import Table

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

_FRAGMENTS = 32
"""Each write adds a fragment; so many are merged into one."""

_COLUMNS = ["id", "source", "title", "heading", "text", "position", "attributes"]


class LanceIndex:
    """A table in a LanceDB folder. Writers take turns by a lock file, waiting up to `patience`
    seconds: LanceDB lets two processes insert the same id at once, and would keep both."""

    def __init__(
        self, folder: str | Path, name: str, dimensions: int, *, patience: float = 120
    ) -> None:
        self._folder = Path(folder)
        self._name = name
        self._dimensions = dimensions
        self._lock = FileLock(self._folder / f"{name}.lock", timeout=patience, poll_interval=0.01)
        self._opened: Table | None = None

    def ensure(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        with self._writing():
            table = self._found()
            if table is None:
                table = self._database().create_table(self._name, schema=self._schema())
            found = table.schema
            if found == self._schema() and not table.list_indices():
                table.create_index("words", config=FTS())
        if found != self._schema():
            raise IndexMismatchError(
                f"The index {self._name} in {self._folder} does not fit the settings: its columns "
                f"are {_columns(found)}, not {_columns(self._schema())}. Re-index: remove "
                f"{self._folder / self._name}.lance, or name another index in the settings, and "
                "run `quench documents sync`, which fills it with every document."
            )

    def existing(self, source: str) -> set[str]:
        return self._values("id", f"source = {_quoted(source)}")

    def upsert(self, chunks: Sequence[Chunk]) -> None:
        latest = {chunk.id: chunk for chunk in chunks}
        failures = unfit(latest.values(), self._dimensions)
        rows = [
            {**record(chunk), "words": f"{chunk.title}\n{chunk.heading}\n{chunk.text}"}
            for id, chunk in latest.items()
            if id not in failures
        ]
        if rows:
            with self._writing():
                merge = self._table().merge_insert("id")
                merge.when_matched_update_all().when_not_matched_insert_all().execute(
                    pa.Table.from_pylist(rows, schema=self._schema())
                )
                self._tidy()
        if failures:
            raise IndexWriteError(self._name, failures)

    def delete_by_source(self, source: str, keep: Collection[str] = ()) -> int:
        with self._writing():
            stale = sorted(self.existing(source) - set(keep))
            if stale:
                self._table().delete(f"id IN ({', '.join(map(_quoted, stale))})")
                self._tidy()
        return len(stale)

    def search(
        self,
        vector: Sequence[float],
        text: str | None,
        *,
        top_k: int,
        filter: Filter | None = None,
    ) -> list[Passage]:
        table = self._table()
        size = depth(top_k) if text else top_k
        by_vector: Any = table.search(list(vector), vector_column_name="vector")
        rows = self._ranking(by_vector.distance_type("cosine"), filter, size, "_distance")
        nearest = [(row, 1 - row["_distance"] / 2) for row in rows]
        if not text:
            return [passage(row, similarity, similarity) for row, similarity in nearest]
        by_words = table.search(text, query_type="fts", fts_columns="words")
        return fused_passages(nearest, self._ranking(by_words, filter, size, "_score"), top_k)

    def sources(self) -> set[str]:
        return self._values("source")

    def count(self) -> int:
        return self._table().count_rows()

    def _database(self) -> lancedb.DBConnection:
        # always the newest version: another process may have written
        return lancedb.connect(self._folder, read_consistency_interval=timedelta(0))

    def _table(self) -> Table:
        if self._opened is None:
            self._opened = self._found()
        if self._opened is None:
            raise IndexNotFoundError(
                f"There is no index {self._name} in {self._folder} yet; hydrating documents "
                "creates it."
            )
        return self._opened

    def _found(self) -> Table | None:
        try:
            return self._database().open_table(self._name)
        except ValueError as error:
            if "was not found" in str(error):
                return None
            raise

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            with self._lock:
                yield
        except Timeout as error:
            raise VectorIndexError(
                f"Another process has held {self._lock.lock_file} for {self._lock.timeout} s. "
                "Is it still at work?"
            ) from error

    def _tidy(self) -> None:
        table = self._table()
        stats: Any = table.stats()  # a mapping, whatever its annotation says
        if stats["fragment_stats"]["num_fragments"] >= _FRAGMENTS:
            table.optimize(cleanup_older_than=timedelta(minutes=10))

    def _schema(self) -> pa.Schema:
        return pa.schema(
            {
                **dict.fromkeys(_COLUMNS, pa.string()),
                "position": pa.int32(),
                "labels": pa.list_(pa.string()),
                "words": pa.string(),  # what a search by words looks at
                "vector": pa.list_(pa.float32(), self._dimensions),
            }
        )

    def _values(self, column: str, where: str | None = None) -> set[str]:
        query = self._table().search().select([column])
        if where:
            query = query.where(where)
        return set(query.to_arrow()[column].to_pylist())

    @staticmethod
    def _ranking(query: Any, filter: Filter | None, size: int, score: str) -> list[dict[str, Any]]:
        where = " AND ".join(
            f"array_has_any(labels, [{', '.join(map(_quoted, labels))}])" if labels else "false"
            for labels in conditions(filter)
        )
        if where:
            query = query.where(where, prefilter=True)
        rows: list[dict[str, Any]] = query.select([*_COLUMNS, score]).limit(size).to_list()
        return rows


def _columns(schema: pa.Schema) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


def _quoted(text: str) -> str:
    """A string literal of DataFusion's SQL, in which only the quote is special.

    Source: https://datafusion.apache.org/user-guide/sql/sql_literals.html
    """
    return "'" + text.replace("'", "''") + "'"
