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


def passage(record: Mapping[str, Any], score: float) -> Passage:
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
    )


def fused_passages(rankings: Sequence[Sequence[Mapping[str, Any]]], top_k: int) -> list[Passage]:
    """The best passages of several rankings of records."""
    records = {record["id"]: record for ranking in rankings for record in ranking}
    scores = fuse([[record["id"] for record in ranking] for ranking in rankings])
    return [passage(records[id], score) for id, score in scores[:top_k]]


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
