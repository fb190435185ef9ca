"""Documents through the stages of hydration, which overlap: fetch, read and chunk, embed, index.

A few threads fetch documents ahead, one thread reads and chunks them, a pool of threads embeds, and
the caller's thread indexes. Between them stand queues of bounded length that keep the order, so
that documents are completed in the order they are read, and memory does not grow with their number
or size.
"""

import queue
import tempfile
import threading
import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from processing.bucket import REQUESTS_AT_ONCE, DocumentsBucket, FailureMarkers
from processing.chunking import ChunkSettings, chunk_document, embedding_text
from processing.documents import DocumentError
from processing.embedding import Embedder, EmbeddingError
from processing.hydration_report import Failure, HydrationReport
from processing.isolation import DocumentReader
from processing.sidecars import SUFFIX, SidecarError, read_sidecar
from vectors.index import Attribute, Chunk, IndexWriteError, VectorIndex

CHUNKS_PER_WRITE = 512
SECONDS_PER_WRITE = 5.0
"""A write waits for this many chunks, but no longer than this."""
FETCHED_AHEAD = 2 * REQUESTS_AT_ONCE
"""So many documents may be fetched or being fetched before they are read."""
CHUNKS_WAITING = 1024
"""So many may wait to be embedded, or to be indexed, beside those being embedded: more than are
embedded while a write takes its time."""


@dataclass
class _Progress:
    """What has become of one document so far."""

    source: str
    gone: bool = False
    """It is not in the bucket."""
    before: Set[str] = frozenset()
    """Ids of the chunks that the index had of it."""
    attributes: Mapping[str, Attribute] = field(default_factory=dict)
    ids: set[str] = field(default_factory=set)
    added: int = 0
    failed: int = 0
    error: str | None = None


@dataclass
class _Batch:
    """The chunks of one request, and the documents that are complete with it."""

    chunks: list[tuple[Chunk, _Progress]] = field(default_factory=list)
    completed: list[_Progress] = field(default_factory=list)
    vectors: Future[list[list[float] | EmbeddingError]] | None = None


class _StoppedError(Exception):
    """The thread that indexes has ended before the one that reads."""


class Pipeline:
    """Hydrates documents into an index; `report` is kept up to date. For one use."""

    def __init__(
        self,
        bucket: DocumentsBucket,
        markers: FailureMarkers,
        index: VectorIndex,
        embedder: Embedder,
        settings: ChunkSettings,
        report: HydrationReport,
    ) -> None:
        self._bucket, self._markers, self._index = bucket, markers, index
        self._embedder, self._settings = embedder, settings
        self._report = report
        self._pool = ThreadPoolExecutor(embedder.concurrency, thread_name_prefix="embed")
        self._batches: queue.Queue[_Batch | BaseException | None] = queue.Queue(
            embedder.concurrency + CHUNKS_WAITING // embedder.texts_per_request
        )
        self._stopped = threading.Event()
        self._batch = _Batch()
        self._held_up = 0.0  # seconds that the reading thread has waited for room in the queue

    def run(self, sources: Iterable[str], indexed: Set[str] | None) -> None:
        """Bring the index to what the bucket holds of these documents.

        `indexed` are the documents that have chunks in the index, if that is known. Raises what
        listing the bucket, the markers and the index raise, and EmbeddingRefusedError; a document
        that fails only itself is in the report, and marked.
        """
        reading = threading.Thread(target=self._read, args=(sources, indexed), name="read")
        reading.start()
        try:
            self._write(self._received())
        finally:
            self._stopped.set()
            self._embedder.stop()
            reading.join()
            self._pool.shutdown(cancel_futures=True)

    def _read(self, sources: Iterable[str], indexed: Set[str] | None) -> None:
        started = time.monotonic()
        with suppress(_StoppedError):
            try:
                with (
                    DocumentReader() as reader,
                    closing(self._fetched(sources, indexed)) as fetched,
                ):
                    for progress, path in fetched:
                        try:
                            self._read_one(reader, progress, path)
                        except DocumentError as error:
                            progress.error = str(error)
                        path.unlink(missing_ok=True)
                        self._batch.completed.append(progress)
                        # A request need not be full: few of many documents may have new chunks
                        if (
                            not self._batch.chunks
                            or len(self._batch.completed) >= self._embedder.texts_per_request
                        ):
                            self._send()
                self._send()
                self._report.seconds.reading = time.monotonic() - started - self._held_up
                self._put(None)
            except _StoppedError:
                raise
            except BaseException as error:  # noqa: BLE001 - raised again by the thread that receives it
                self._put(error)

    def _fetched(
        self, sources: Iterable[str], indexed: Set[str] | None
    ) -> Generator[tuple[_Progress, Path], None, None]:
        """Documents in order, with the files that hold those that are there."""
        waiting: deque[tuple[Future[_Progress], Path]] = deque()
        with tempfile.TemporaryDirectory() as folder:
            pool = ThreadPoolExecutor(REQUESTS_AT_ONCE, thread_name_prefix="fetch")
            try:
                for number, source in enumerate(sources):
                    path = Path(folder, str(number))
                    known = indexed is None or source in indexed
                    waiting.append((pool.submit(self._fetch, source, path, known), path))
                    if len(waiting) == FETCHED_AHEAD:
                        progress, path = waiting.popleft()
                        yield progress.result(), path
                for progress, path in waiting:
                    yield progress.result(), path
            finally:
                pool.shutdown(cancel_futures=True)

    def _fetch(self, source: str, path: Path, indexed: bool) -> _Progress:
        progress = _Progress(source, before=self._index.existing(source) if indexed else set())
        try:
            progress.gone = not self._bucket.download(source, path)
            sidecar = None if progress.gone else self._bucket.sidecar(source)
        except DocumentError as error:
            progress.error = str(error)
            return progress
        if sidecar is not None:
            try:
                progress.attributes = read_sidecar(sidecar)
            except SidecarError as error:
                failure = Failure(document=source + SUFFIX, reason=str(error))
                self._report.broken_metadata.append(failure)
        return progress

    def _read_one(self, reader: DocumentReader, progress: _Progress, path: Path) -> None:
        if progress.gone or progress.error:
            return
        source = progress.source
        document = reader.read(path, source.rpartition("/")[2])
        for chunk in chunk_document(document, source, progress.attributes, self._settings):
            progress.ids.add(chunk.id)
            if chunk.id not in progress.before:
                self._batch.chunks.append((chunk, progress))
                if len(self._batch.chunks) == self._embedder.texts_per_request:
                    self._send()

    def _send(self) -> None:
        batch, self._batch = self._batch, _Batch()
        if batch.chunks:
            texts = [embedding_text(chunk) for chunk, _ in batch.chunks]
            batch.vectors = self._pool.submit(self._embedder.embed, texts)
        self._put(batch)

    def _put(self, item: _Batch | BaseException | None) -> None:
        started = time.monotonic()
        while not self._stopped.is_set():
            try:
                self._batches.put(item, timeout=0.2)
            except queue.Full:
                continue
            self._held_up += time.monotonic() - started
            return
        raise _StoppedError

    def _received(self) -> Iterator[_Batch | None]:
        """Batches in order; None when there was none for a while."""
        while True:
            try:
                item = self._batches.get(timeout=SECONDS_PER_WRITE)
            except queue.Empty:
                yield None
                continue
            if item is None:
                return
            if isinstance(item, BaseException):
                raise item
            yield item

    def _write(self, batches: Iterable[_Batch | None]) -> None:
        waiting: list[tuple[Chunk, _Progress]] = []
        completed: list[_Progress] = []
        written_at = time.monotonic()
        for batch in batches:
            if batch is not None:
                if batch.vectors is not None:
                    for (chunk, progress), vector in zip(
                        batch.chunks, batch.vectors.result(), strict=True
                    ):
                        if isinstance(vector, EmbeddingError):
                            progress.failed += 1
                            progress.error = str(vector)
                        else:
                            waiting.append((replace(chunk, vector=vector), progress))
                completed += batch.completed
            if (
                len(waiting) >= CHUNKS_PER_WRITE
                or time.monotonic() - written_at >= SECONDS_PER_WRITE
            ):
                self._flush(waiting, completed)
                waiting, completed = [], []
                written_at = time.monotonic()
        self._flush(waiting, completed)

    def _flush(self, chunks: list[tuple[Chunk, _Progress]], completed: list[_Progress]) -> None:
        """Write chunks, and only then take out what the completed documents no longer hold."""
        started = time.monotonic()
        failures: Mapping[str, str] = {}
        if chunks:
            try:
                self._index.upsert([chunk for chunk, _ in chunks])
            except IndexWriteError as error:
                failures = error.failures
        for chunk, progress in chunks:
            if reason := failures.get(chunk.id):
                progress.failed += 1
                progress.error = reason
            else:
                progress.added += 1
        for progress in completed:
            self._complete(progress)
        self._markers.write({each.source: each.error for each in completed if each.error})
        self._markers.remove([each.source for each in completed if not each.error])
        self._report.seconds.indexing += time.monotonic() - started

    def _complete(self, progress: _Progress) -> None:
        documents, counts = self._report.documents, self._report.chunks
        counts.added += progress.added
        counts.failed += progress.failed
        counts.unchanged += len(progress.ids & progress.before)
        removed = 0
        if not progress.error and progress.before - progress.ids:
            try:
                removed = self._index.delete_by_source(progress.source, keep=progress.ids)
            except IndexWriteError as error:
                progress.error = str(error)
        counts.removed += removed
        if progress.error:
            documents.failed += 1
            self._report.failures.append(Failure(document=progress.source, reason=progress.error))
        elif progress.gone:
            documents.removed += bool(progress.before)
        elif not progress.before:
            documents.added += 1
        elif progress.added or removed:
            documents.changed += 1
        else:
            documents.unchanged += 1
