"""The schema of evaluation.json (documented in docs/evaluation.md), and what a gate may read of it.

Registered beside every model version: a change of meaning needs a new `schema_version`.
"""

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from evaluation.errors import EvaluationError

Interval = tuple[float, float]
Step = Literal["base", "tuned", "embedding"]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TrainingMetrics(_Part):
    """Losses of Bedrock's step_wise_training_metrics.csv."""

    steps: int
    first_loss: float
    last_loss: float


class ValidationMetrics(_Part):
    """Losses of Bedrock's validation_metrics.csv; `first` is before training, where known."""

    first_loss: float | None
    last_loss: float
    first_perplexity: float | None
    last_perplexity: float


class Latency(_Part):
    """Seconds from sending a request to having read its answer; retries and waits left out."""

    p50: float
    p95: float


class ScoreIntervals(_Part):
    """95 % confidence intervals of the mean scores."""

    rouge_l: Interval
    chrf: Interval


class ModelScores(_Part):
    """How one model answered the scored records."""

    perplexity: float | None
    rouge_l: float
    chrf: float
    embedding_similarity: float
    length_ratio: float
    latency_seconds: Latency
    intervals: ScoreIntervals


class Gain(_Part):
    """Tuned against base: positive is better. Perplexity's is its relative fall, 1 - tuned/base."""

    perplexity: float | None = None
    rouge_l: float | None = None
    chrf: float | None = None
    embedding_similarity: float | None = None
    intervals: ScoreIntervals | None = None


class FailedAnswer(_Part):
    """An answer (or its embedding) that failed for good; its record is scored for neither model."""

    line: int
    step: Step
    model: str
    reason: str


class Sample(_Part):
    """One test record with both answers, side by side."""

    system: str | None
    prompt: str
    reference: str
    base: str
    tuned: str


class Evaluation(_Part):
    """All of evaluation.json."""

    schema_version: Literal["1"] = "1"
    base_model: str
    custom_model: str
    serving_model: str | None
    job: str
    test_records: int
    scored_records: int
    training: TrainingMetrics
    validation: ValidationMetrics | None
    base: ModelScores | None
    tuned: ModelScores | None
    gain: Gain
    failed_answers: list[FailedAnswer]
    samples: list[Sample]


def gate_value(evaluation: Evaluation, metric: str) -> float:
    """The number a quality gate reads, such as `gain.rouge_l` or `tuned.latency_seconds.p95`.

    Raises
    ------
    EvaluationError
        The metric is unknown, or has no value in this evaluation; names those that have one.
    """
    available = dict(_numbers(evaluation.model_dump()))
    if metric in available:
        return available[metric]
    raise EvaluationError(
        f"The quality gate's metric {metric!r} has no number in this evaluation. "
        + "".join(_what_is_missing(evaluation))
        + "Metrics that have one: "
        + ", ".join(available)
        + "."
    )


def _numbers(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, inner in value.items():
        if isinstance(inner, dict):
            yield from _numbers(inner, f"{prefix}{name}.")
        elif isinstance(inner, int | float):
            yield prefix + name, inner


def _what_is_missing(evaluation: Evaluation) -> Iterator[str]:
    if evaluation.serving_model is None:
        yield "The tuned model has no serving capacity, so no answers were scored. "
    if evaluation.validation is None:
        yield "The tuning job had no validation data, so perplexities are unknown. "
    elif evaluation.validation.first_loss is None:
        yield (
            "Bedrock's validation metrics hold no loss from before training (step 0), "
            "so the base model's perplexity is unknown. "
        )
