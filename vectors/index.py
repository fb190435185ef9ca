"""What a vector index is to those who fill and search it."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

Attribute = str | float | bool | list[str]
"""One piece of a document's metadata: what Bedrock Knowledge Bases' sidecars can hold."""

Filter = Mapping[str, str | float | bool | Sequence[str | float | bool]]
"""Attributes that a passage must have. Given several values, any one of them will do; an attribute
that is a list matches if one of its items does. Types count: the text "1" is not the number 1."""


@dataclass(frozen=True)
class Chunk:
    """A piece of a document as it is indexed; a chunk of the same id replaces it."""

    id: str
    source: str
    """URI of the document."""
    title: str
    text: str
    position: int
    """Which of its document's chunks it was when it was indexed, counted from 0. What is indexed
    already is not numbered anew when the text before it grows or shrinks."""
    heading: str
    vector: Sequence[float]
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True)
class Passage:
    """A chunk that a search found. A higher score is better; scores compare in one search only."""

    id: str
    text: str
    source: str
    title: str
    heading: str
    score: float
    position: int
    attributes: Mapping[str, Attribute]
    similarity: float = 0.0
    """Of its vector and the question's, (1 + cosine) / 2, which compares between searches. Of a
    passage that only its words found, an upper bound: that of the least similar that was near."""


class VectorIndexError(Exception):
    """The index cannot do what was asked."""


class IndexNotFoundError(VectorIndexError):
    """There is no such index yet."""


class IndexMismatchError(VectorIndexError):
    """The index was made with other settings; the message says how to re-index."""


class IndexWriteError(VectorIndexError):
    """Some chunks could not be written. `failures` has the reason of each; the others are in."""

    def __init__(self, index: str, failures: Mapping[str, str]) -> None:
        self.failures = dict(failures)
        first = "; ".join(f"{id}: {reason}" for id, reason in list(self.failures.items())[:3])
        super().__init__(
            f"{len(self.failures)} chunks could not be written to the index {index}: {first}"
            + (" …" if len(self.failures) > 3 else "")
        )


class VectorIndex(Protocol):
    """Chunks by id, found by their vector and words. Several processes may write at once.

    Every method may raise VectorIndexError, or what its client raises when the service is away.
    """

    def ensure(self) -> None:
        """Creates the index if there is none. Raises IndexMismatchError if one of another shape
        is there."""

    def existing(self, source: str) -> set[str]:
        """The ids of a document's chunks."""

    def upsert(self, chunks: Sequence[Chunk]) -> None:
        """Writes chunks, visible to every search that begins after it returns.

        Raises IndexWriteError naming those that could not be written after retries.
        """

    def delete_by_source(self, source: str, keep: Collection[str] = ()) -> int:
        """Removes a document's chunks, except those whose ids are to be kept; says how many."""

    def search(
        self,
        vector: Sequence[float],
        text: str | None,
        *,
        top_k: int,
        filter: Filter | None = None,
    ) -> list[Passage]:
        """The best passages, best first: by vector and words, fused by reciprocal rank, or by
        vector alone if there is no text."""

    def sources(self) -> set[str]:
        """The documents that have chunks."""

    def count(self) -> int:
        """How many chunks there are."""
