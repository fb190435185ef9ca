"""Reciprocal-rank fusion: one ranking from several whose scores do not compare.

Source: Cormack, Clarke, Büttcher: Reciprocal Rank Fusion outperforms Condorcet and individual Rank
Learning Methods, SIGIR 2009.
"""

from collections import defaultdict
from collections.abc import Sequence

CONSTANT = 60
"""What the paper adds to every rank, so that no single first place decides."""


def fuse(rankings: Sequence[Sequence[str]], constant: int = CONSTANT) -> list[tuple[str, float]]:
    """Ids with their scores, the sum of 1 / (constant + rank) over the rankings that hold them,
    best first and then by id. Ranks count from 1; an id counts once in each ranking."""
    scores: dict[str, float] = defaultdict(float)
    for ranking in rankings:
        for rank, id in enumerate(dict.fromkeys(ranking), 1):
            scores[id] += 1 / (constant + rank)
    return sorted(scores.items(), key=lambda item: (-item[1], item[0]))


def depth(top_k: int) -> int:
    """How many of each ranking are worth fusing, to find the best so many."""
    return max(50, 4 * top_k)
