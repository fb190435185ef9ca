"""Scores of answers against references: pure functions of texts and numbers.

Every score of one answer is worth the same: a model's score is the mean over its answers.
"""

import math
import re
from collections.abc import Sequence

import numpy as np
from nltk.stem.porter import PorterStemmer  # type: ignore[import-untyped]
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import CHRF

BOOTSTRAP_RESAMPLES = 1000
BOOTSTRAP_SEED = 20231128


class _Words:
    """Lower-cased words, longer ones stemmed, as ROUGE-1.5.5 has them.

    rouge-score's own tokenizer drops every letter outside a-z; this one keeps all alphabets.
    """

    def __init__(self) -> None:
        self._stemmer = PorterStemmer()

    def tokenize(self, text: str) -> list[str]:
        words = re.findall(r"[^\W_]+", text.casefold())
        return [self._stemmer.stem(word) if len(word) > 3 else word for word in words]


_rouge = RougeScorer(["rougeL"], tokenizer=_Words())
_chrf = CHRF()


def rouge_l(reference: str, answer: str) -> float:
    """ROUGE-L F-measure, 0 to 1: the longest common subsequence of words (Lin, 2004)."""
    if reference == answer:  # also texts without a word in them
        return 1.0
    return float(_rouge.score(reference, answer)["rougeL"].fmeasure)


def chrf(reference: str, answer: str) -> float:
    """chrF2, 0 to 100: F-score of character n-grams up to 6 (Popović, 2015), by sacreBLEU."""
    if reference == answer:
        return 100.0
    return min(100.0, float(_chrf.sentence_score(answer, [reference]).score))


def cosine_similarity(a: Sequence[float], b: Sequence[float]) -> float:
    """Cosine of the angle between two embeddings, -1 to 1; 0 where one of them is all zeros.

    Raises
    ------
    ValueError
        The vectors differ in length.
    """
    left, right = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if left.shape != right.shape:
        raise ValueError(f"Embeddings of {left.size} and {right.size} dimensions do not compare.")
    norms = float(np.linalg.norm(left)) * float(np.linalg.norm(right))
    if norms == 0.0:
        return 0.0
    return max(-1.0, min(1.0, float(left @ right) / norms))


def length_ratio(references: Sequence[str], answers: Sequence[str]) -> float:
    """Characters of all answers over characters of all references: 1 is as long as expected."""
    return sum(map(len, answers)) / sum(map(len, references))


def mean(scores: Sequence[float]) -> float:
    """Arithmetic mean of at least one score."""
    return math.fsum(scores) / len(scores)


def bootstrap_interval(scores: Sequence[float]) -> tuple[float, float]:
    """95 % confidence interval of the mean: percentile bootstrap (Efron, 1979), fixed seed.

    For a difference of two models, hand in the differences record by record (paired bootstrap).
    """
    values = np.asarray(scores, dtype=float)
    draws = np.random.default_rng(BOOTSTRAP_SEED).integers(
        values.size, size=(BOOTSTRAP_RESAMPLES, values.size)
    )
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    centre = mean(scores)  # rounding alone may put the mean of equal scores outside by a hair
    return min(float(low), centre), max(float(high), centre)


def percentile(values: Sequence[float], percent: float) -> float:
    """Percentile of at least one value, linearly interpolated."""
    return float(np.percentile(values, percent))


def perplexity(loss: float) -> float:
    """exp(loss), where loss is the mean cross-entropy of a token in nats.

    Raises
    ------
    ValueError
        The loss is not finite, or so large that its perplexity is not.
    """
    if not math.isfinite(loss):
        raise ValueError(f"a loss of {loss} is not a finite number; the training diverged")
    try:
        return math.exp(loss)
    except OverflowError:
        raise ValueError(f"a loss of {loss} has no finite perplexity") from None
