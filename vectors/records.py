"""How a chunk is stored, the same in every index.

Attributes are kept twice: as JSON, to be given back, and as labels, one string for each value, to
be filtered by. So documents may use one name for a text and another for a number, and no name or
value can be mistaken for an expression.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from vectors.fusion import fuse
from vectors.index import Chunk, Filter, Passage

MOST_WORDS = 1000
"""So many words of a text are looked for; OpenSearch refuses more than 1,024."""

_LONGEST_LABEL = 256


def record(chunk: Chunk) -> dict[str, Any]:
    """What is stored of a chunk."""
    return {
        "id": chunk.id,
        "source": chunk.source,
        "title": chunk.title,
        "heading": chunk.heading,
        "text": chunk.text,
        "position": chunk.position,
        "vector": chunk.vector,
        "attributes": json.dumps(dict(chunk.attributes)),
        "labels": [
            label for name, value in chunk.attributes.items() for label in _labels(name, value)
        ],
    }


def passage(record: Mapping[str, Any], score: float, similarity: float) -> Passage:
    """The passage of a stored record."""
    return Passage(
        id=record["id"],
        text=record["text"],
        source=record["source"],
        title=record["title"],
        heading=record["heading"],
        score=score,
        position=record["position"],
        attributes=json.loads(record["attributes"]),
        similarity=similarity,
    )


def fused_passages(
    nearest: Sequence[tuple[Mapping[str, Any], float]],
    by_words: Sequence[Mapping[str, Any]],
    top_k: int,
) -> list[Passage]:
    """The best of two rankings of records: the nearest, with their similarities, and by words."""
    records = {record["id"]: record for record in [*by_words, *(near for near, _ in nearest)]}
    similarities = {record["id"]: similarity for record, similarity in nearest}
    bound = min(similarities.values(), default=0.0)
    scores = fuse([list(similarities), [record["id"] for record in by_words]])
    return [
        passage(records[id], score, similarities.get(id, bound)) for id, score in scores[:top_k]
    ]


def conditions(filter: Filter | None) -> list[list[str]]:
    """The labels to look for: at least one of every list."""
    return [_labels(name, value) for name, value in (filter or {}).items()]


def unfit(chunks: Iterable[Chunk], dimensions: int) -> dict[str, str]:
    """Why some chunks cannot be indexed, by id: a cosine needs vectors of one length."""
    reasons = {}
    for chunk in chunks:
        if len(chunk.vector) != dimensions:
            reasons[chunk.id] = f"its vector has {len(chunk.vector)} dimensions, not {dimensions}"
        elif not 0 < math.hypot(*chunk.vector) < math.inf:
            reasons[chunk.id] = "its vector is zero or not finite"
    return reasons


def _labels(name: str, value: str | float | bool | Sequence[str | float | bool]) -> list[str]:
    if isinstance(value, str | float | int):
        return [_label(name, value)]
    return [_label(name, item) for item in value]


def _label(name: str, value: str | float | bool) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    label = f"{json.dumps(name, ensure_ascii=False)}: {json.dumps(value, ensure_ascii=False)}"
    if len(label) > _LONGEST_LABEL:  # Lucene holds terms of up to 32,766 bytes
        return hashlib.sha256(label.encode()).hexdigest()
    return label
