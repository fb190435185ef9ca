"""From a question to the passages that may answer it."""

from collections.abc import Callable, Sequence

from vectors.index import Filter, Passage, VectorIndex

MOST_PASSAGES = 100


def retrieve(
    index: VectorIndex,
    embed: Callable[[str], Sequence[float]],
    question: str,
    top_k: int = 5,
    filter: Filter | None = None,
) -> list[Passage]:
    """The passages nearest to a question in meaning and words, best first.

    `embed` turns the question into a vector, as its model does for queries. Raises ValueError for
    an empty question or a `top_k` outside 1 to 100.
    """
    question = question.strip()
    if not question:
        raise ValueError("There is no question to find passages for.")
    if not 1 <= top_k <= MOST_PASSAGES:
        raise ValueError(f"top_k is 1 to {MOST_PASSAGES}, not {top_k}.")
    return index.search(embed(question), question, top_k=top_k, filter=filter)
