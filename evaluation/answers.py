"""Asks base and tuned model the same questions, and embeds what they answer."""

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from bedrock import embeddings, text
from bedrock.models import FoundationModel
from evaluation.errors import EvaluationError
from evaluation.held_out import HeldOutRecord
from evaluation.metrics import cosine_similarity
from evaluation.report import FailedAnswer, Step

MAX_FAILED_FRACTION = 0.1
ATTEMPTS = 6
CONNECT_SECONDS = 10
READ_SECONDS = 300


@dataclass(frozen=True)
class ModelAnswer:
    """What one model answered, how long it took, and how near it is to the reference."""

    text: str
    latency_seconds: float
    embedding_similarity: float


@dataclass(frozen=True)
class AnswerPair:
    """A test record with the answers of both models."""

    record: HeldOutRecord
    base: ModelAnswer
    tuned: ModelAnswer


class _Failed(Exception):
    """One call failed for good."""

    def __init__(self, step: Step, model_id: str, error: Exception) -> None:
        super().__init__(str(error))
        self.step, self.model_id = step, model_id


class _Sent(threading.local):
    """When this thread sent its latest request."""

    at = 0.0

    def note(self, **_: object) -> None:
        self.at = time.perf_counter()


_sent = _Sent()


def runtime_client(concurrency: int) -> Any:
    """A bedrock-runtime client that slows down when throttled and gives up in the end.

    Each model wants a client of its own: their quotas are apart, and so should their pace be.
    """
    config = Config(
        retries={"mode": "adaptive", "total_max_attempts": ATTEMPTS},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=READ_SECONDS,
        max_pool_connections=concurrency,
    )
    client = boto3.client("bedrock-runtime", config=config)
    client.meta.events.register_last("before-send", _sent.note)  # after the wait of a slowed client
    return client


@dataclass(frozen=True)
class Models:
    """The base and the tuned model under the same limits, and the model that compares texts.

    A tuned model is of its base model's family, whatever ARN serves it.
    """

    base: FoundationModel
    serving_model: str
    embedding: FoundationModel
    limits: text.Limits
    clients: Mapping[Step, Any]

    def answer_pair(self, record: HeldOutRecord) -> AnswerPair:
        """Ask both models one record's prompt. Raises _Failed at the first call that fails."""
        base, base_seconds = self._answer("base", self.base.invoke_id, record)
        tuned, tuned_seconds = self._answer("tuned", self.serving_model, record)
        base_similarity, tuned_similarity = self._similarities(record.reference, (base, tuned))
        return AnswerPair(
            record,
            base=ModelAnswer(base, base_seconds, base_similarity),
            tuned=ModelAnswer(tuned, tuned_seconds, tuned_similarity),
        )

    def _answer(self, step: Step, model_id: str, record: HeldOutRecord) -> tuple[str, float]:
        try:
            request = text.request_body(
                self.base.family, record.system, record.messages, self.limits
            )
            response = self._invoke(step, model_id, request)
            seconds = time.perf_counter() - _sent.at
            return text.parse_answer(self.base.family, response).text, seconds
        except (ClientError, BotoCoreError, ValueError) as error:
            raise _Failed(step, model_id, error) from error

    def _similarities(self, reference: str, answers: Sequence[str]) -> list[float]:
        """Similarity of each answer to the reference; 0 for a blank one, which has no embedding."""
        texts = [reference, *(answer for answer in answers if answer.strip())]
        try:
            expected, *vectors = self._embed(texts)
            similarities = iter([cosine_similarity(expected, vector) for vector in vectors])
        except (ClientError, BotoCoreError, ValueError) as error:
            raise _Failed("embedding", self.embedding.invoke_id, error) from error
        return [next(similarities) if answer.strip() else 0.0 for answer in answers]

    def _embed(self, texts: Sequence[str]) -> Iterator[list[float]]:
        size = embeddings.texts_per_request(self.embedding)
        # The smallest vectors a model makes lose little: Titan V2 keeps 97 % of its accuracy at 256
        dimensions = min(self.embedding.dimensions)
        for start in range(0, len(texts), size):
            batch = texts[start : start + size]
            request = embeddings.request_body(self.embedding, batch, dimensions)
            response = self._invoke("embedding", self.embedding.invoke_id, request)
            yield from embeddings.parse_embeddings(self.embedding, response)

    def _invoke(self, step: Step, model_id: str, request: dict[str, Any]) -> Any:
        response = self.clients[step].invoke_model(
            modelId=model_id,
            body=json.dumps(request),
            contentType="application/json",
            accept="application/json",
        )
        return json.loads(response["body"].read())


def answer_all(
    records: Sequence[HeldOutRecord], models: Models, concurrency: int
) -> tuple[list[AnswerPair], list[FailedAnswer]]:
    """Ask both models every record, `concurrency` records at a time.

    A record with an answer that fails after all retries is scored for neither model: it comes back
    among the failed ones. Both lists are in the records' order.

    Raises
    ------
    EvaluationError
        More than a tenth of the records failed: it then stops asking, and gives the commonest
        reason.
    """
    allowed = int(len(records) * MAX_FAILED_FRACTION)
    pairs: list[AnswerPair] = []
    failed: list[FailedAnswer] = []
    pool = ThreadPoolExecutor(concurrency)
    try:
        waiting = {pool.submit(models.answer_pair, record): record for record in records}
        for future in as_completed(waiting):
            try:
                pairs.append(future.result())
            except _Failed as error:
                line = waiting[future].line
                failed.append(
                    FailedAnswer(
                        line=line, step=error.step, model=error.model_id, reason=str(error)
                    )
                )
            if len(failed) > allowed:
                raise EvaluationError(_too_many(failed, len(pairs), len(records)))
    finally:
        pool.shutdown(cancel_futures=True)
    place = {record.line: number for number, record in enumerate(records)}
    pairs.sort(key=lambda pair: place[pair.record.line])
    failed.sort(key=lambda answer: place[answer.line])
    return pairs, failed


def _too_many(failed: Sequence[FailedAnswer], answered: int, chosen: int) -> str:
    (step, model, reason), count = Counter(
        (answer.step, answer.model, answer.reason) for answer in failed
    ).most_common(1)[0]
    return (
        f"{len(failed)} of {len(failed) + answered} test records could not be answered so far, of "
        f"{chosen} to be scored; more than {MAX_FAILED_FRACTION:.0%} is too many for a fair "
        f"comparison. Most often ({count}) the {step} call to {model} failed: {reason}"
    )
