"""From pairs of answers to the scores of both models and what tuning gained."""

from collections.abc import Sequence

from evaluation import metrics
from evaluation.answers import AnswerPair, ModelAnswer
from evaluation.report import Gain, Latency, ModelScores, ScoreIntervals, ValidationMetrics


def compare(
    pairs: Sequence[AnswerPair], validation: ValidationMetrics | None
) -> tuple[ModelScores, ModelScores, Gain]:
    """Scores of the base model, of the tuned model, and the gain of tuned over base.

    Perplexities are those of the validation data, where known: no model that is only invoked
    tells the probability of a text.
    """
    references = [pair.record.reference for pair in pairs]
    base_answers = [pair.base for pair in pairs]
    tuned_answers = [pair.tuned for pair in pairs]
    base_rouge, base_chrf = _text_scores(references, base_answers)
    tuned_rouge, tuned_chrf = _text_scores(references, tuned_answers)
    base = _model_scores(
        references,
        base_answers,
        base_rouge,
        base_chrf,
        perplexity=validation.first_perplexity if validation else None,
    )
    tuned = _model_scores(
        references,
        tuned_answers,
        tuned_rouge,
        tuned_chrf,
        perplexity=validation.last_perplexity if validation else None,
    )
    gain = Gain(
        perplexity=perplexity_gain(validation),
        rouge_l=tuned.rouge_l - base.rouge_l,
        chrf=tuned.chrf - base.chrf,
        embedding_similarity=tuned.embedding_similarity - base.embedding_similarity,
        intervals=_intervals(
            [after - before for before, after in zip(base_rouge, tuned_rouge, strict=True)],
            [after - before for before, after in zip(base_chrf, tuned_chrf, strict=True)],
        ),
    )
    return base, tuned, gain


def perplexity_gain(validation: ValidationMetrics | None) -> float | None:
    """The relative fall of perplexity, 1 - tuned/base; None where either is unknown."""
    if validation is None or validation.first_perplexity is None:
        return None
    return 1 - validation.last_perplexity / validation.first_perplexity


def _text_scores(
    references: Sequence[str], answers: Sequence[ModelAnswer]
) -> tuple[list[float], list[float]]:
    """ROUGE-L and chrF of each answer."""
    texts = [(ref, answer.text) for ref, answer in zip(references, answers, strict=True)]
    return [metrics.rouge_l(*pair) for pair in texts], [metrics.chrf(*pair) for pair in texts]


def _model_scores(
    references: Sequence[str],
    answers: Sequence[ModelAnswer],
    rouge_l: Sequence[float],
    chrf: Sequence[float],
    perplexity: float | None,
) -> ModelScores:
    latencies = [answer.latency_seconds for answer in answers]
    return ModelScores(
        perplexity=perplexity,
        rouge_l=metrics.mean(rouge_l),
        chrf=metrics.mean(chrf),
        embedding_similarity=metrics.mean([answer.embedding_similarity for answer in answers]),
        length_ratio=metrics.length_ratio(references, [answer.text for answer in answers]),
        latency_seconds=Latency(
            p50=metrics.percentile(latencies, 50), p95=metrics.percentile(latencies, 95)
        ),
        intervals=_intervals(rouge_l, chrf),
    )


def _intervals(rouge_l: Sequence[float], chrf: Sequence[float]) -> ScoreIntervals:
    return ScoreIntervals(
        rouge_l=metrics.bootstrap_interval(rouge_l), chrf=metrics.bootstrap_interval(chrf)
    )
