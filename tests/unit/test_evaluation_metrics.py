"""Properties of the scores that hold for all texts and numbers."""

import math
from statistics import fmean

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from evaluation import metrics

texts = st.text(min_size=1, max_size=60)
words = st.lists(
    st.sampled_from(["the", "lantern", "lanterns", "burned", "blue", "Emberfall's", "42"]),
    min_size=1,
).map(" ".join)
numbers = st.floats(min_value=-100, max_value=100)
vectors = st.integers(1, 8).flatmap(
    lambda size: st.tuples(*[st.lists(numbers, min_size=size, max_size=size)] * 2)
)


@given(texts, texts)
def test_text_scores_are_in_range(reference: str, answer: str) -> None:
    assert 0 <= metrics.rouge_l(reference, answer) <= 1
    assert 0 <= metrics.chrf(reference, answer) <= 100


@given(texts)
def test_identical_text_scores_the_maximum(text: str) -> None:
    assert metrics.rouge_l(text, text) == 1
    assert metrics.chrf(text, text) == 100


@given(texts)
def test_no_answer_scores_nothing(reference: str) -> None:
    assert metrics.rouge_l(reference, "") == 0
    assert metrics.chrf(reference, "") == 0


@given(words, words)
def test_rouge_l_of_english_is_that_of_rouge_score(reference: str, answer: str) -> None:
    theirs = RougeScorer(["rougeL"], use_stemmer=True).score(reference, answer)["rougeL"].fmeasure
    assert metrics.rouge_l(reference, answer) == pytest.approx(theirs)


@pytest.mark.parametrize(
    ("reference", "answer"),
    [("Der Löwe schläft heute", "Der Löwe schläft nicht"), ("лампа горит синим", "лампа горит")],
)
def test_rouge_l_reads_every_alphabet(reference: str, answer: str) -> None:
    assert 0.7 < metrics.rouge_l(reference, answer) < 1


@given(vectors)
def test_cosine_similarity_is_symmetric_and_in_range(pair: tuple[list[float], list[float]]) -> None:
    a, b = pair
    assert -1 <= metrics.cosine_similarity(a, b) <= 1
    assert metrics.cosine_similarity(a, b) == pytest.approx(metrics.cosine_similarity(b, a))


@given(st.lists(st.floats(min_value=0.01, max_value=100), min_size=1))
def test_a_vector_is_most_similar_to_itself(vector: list[float]) -> None:
    assert metrics.cosine_similarity(vector, vector) == pytest.approx(1)
    assert metrics.cosine_similarity(vector, [-value for value in vector]) == pytest.approx(-1)
    assert metrics.cosine_similarity(vector, [0.0] * len(vector)) == 0


def test_vectors_of_different_size_do_not_compare() -> None:
    with pytest.raises(ValueError, match="2 and 3 dimensions"):
        metrics.cosine_similarity([1, 2], [1, 2, 3])


@given(st.lists(st.floats(min_value=0, max_value=1), min_size=1, max_size=50))
def test_the_interval_contains_the_mean_and_stays_among_the_scores(scores: list[float]) -> None:
    low, high = metrics.bootstrap_interval(scores)
    assert low <= metrics.mean(scores) <= high
    assert min(scores) - 1e-9 <= low <= high <= max(scores) + 1e-9
    assert metrics.bootstrap_interval(scores) == (low, high)


def test_the_interval_of_many_scores_is_that_of_the_normal_distribution() -> None:
    scores = [0.0, 1.0] * 200
    low, high = metrics.bootstrap_interval(scores)
    half_width = 1.96 * 0.5 / math.sqrt(len(scores))
    assert (low, high) == pytest.approx((0.5 - half_width, 0.5 + half_width), abs=0.01)
    assert fmean(scores) == metrics.mean(scores)


@given(st.floats(min_value=0, max_value=700))
def test_perplexity_is_e_to_the_loss(loss: float) -> None:
    assert math.log(metrics.perplexity(loss)) == pytest.approx(loss, abs=1e-9)


@pytest.mark.parametrize("loss", [math.nan, math.inf, 1000.0])
def test_perplexity_of_no_real_loss_is_an_error(loss: float) -> None:
    with pytest.raises(ValueError, match="loss"):
        metrics.perplexity(loss)


@given(st.lists(texts, min_size=1))
def test_length_ratio_of_references_doubled_is_two(references: list[str]) -> None:
    assert metrics.length_ratio(references, [text * 2 for text in references]) == pytest.approx(2)
