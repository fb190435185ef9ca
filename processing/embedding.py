"""Embeds texts through Bedrock, patiently: throttling slows a caller down, and loses nothing."""

import json
import math
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import NoCredentialsError

from bedrock.embeddings import parse_embeddings, request_body, texts_per_request
from bedrock.models import FoundationModel
from bedrock.text import BodyError
from processing.invocation import InvocationError, Invoker

FIRST_DELAY_SECONDS = 0.25
LONGEST_DELAY_SECONDS = 20.0
PATIENCE_SECONDS = 900.0

_HOPELESS = frozenset(
    {
        "AccessDeniedException",
        "ExpiredTokenException",
        "InvalidSignatureException",
        "ResourceNotFoundException",
        "UnrecognizedClientException",
    }
)


class EmbeddingError(Exception):
    """A text could not be embedded; the message says why."""


class _BadRequestError(EmbeddingError):
    """Bedrock would refuse this very request again."""


class EmbeddingRefusedError(Exception):
    """No text can be embedded: access, credentials or model are wrong, or Bedrock is away."""


class Embedder:
    """Embeds with one model, for up to `concurrency` threads at once.

    `calls` counts requests that were sent, `retries` those of them that repeated an earlier one.
    `seconds` is how long at least one request was under way. Raises BodyError for a model that
    makes no such vectors, and EmbeddingRefusedError without credentials.
    """

    def __init__(
        self,
        model: FoundationModel,
        dimensions: int,
        concurrency: int,
        requests_per_second: float,
    ) -> None:
        self.texts_per_request = texts_per_request(model)
        request_body(model, ["a text"], dimensions)  # refuses dimensions that the model has not
        self.concurrency = concurrency
        self._model, self._dimensions = model, dimensions
        try:
            self._invoker = Invoker(model.invoke_id, concurrency)
        except NoCredentialsError as error:
            raise EmbeddingRefusedError(f"Embedding with {model.id}: {error}") from error
        self._interval = 1 / requests_per_second if requests_per_second else 0.0
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._answered_at = -math.inf
        self._next_start = 0.0
        self._under_way = 0
        self._busy_since = 0.0
        self.calls = self.retries = 0
        self.seconds = 0.0

    def embed(self, texts: Sequence[str]) -> list[list[float] | EmbeddingError]:
        """A vector for each text, or why it has none, from one request.

        When Bedrock refuses several texts at once, each is tried alone, so that one bad text does
        not cost the others. Raises EmbeddingRefusedError when it would refuse any text.
        """
        with self._timed():
            try:
                return [*self._embed(texts)]
            except EmbeddingError as error:
                if len(texts) == 1 or not isinstance(error, _BadRequestError):
                    return [error] * len(texts)
        return [result for text in texts for result in self.embed([text])]

    def stop(self) -> None:
        """Let every request fail that is waiting to be sent."""
        self._stopped.set()

    def _embed(self, texts: Sequence[str]) -> list[list[float]]:
        body = json.dumps(request_body(self._model, texts, self._dimensions)).encode()
        started = time.monotonic()
        longest_delay = FIRST_DELAY_SECONDS
        while True:
            self._wait_for_turn()
            try:
                vectors = parse_embeddings(self._model, self._invoke(body))
            except InvocationError as error:
                if not _transient(error):
                    raise _BadRequestError(str(error)) from error
                if time.monotonic() > started + PATIENCE_SECONDS:
                    reason = f"gave up after {PATIENCE_SECONDS:g} seconds: {error}"
                    if self._answered_at < started:
                        raise EmbeddingRefusedError(f"{self._model.id}: {reason}") from error
                    raise EmbeddingError(reason) from error
            except (BodyError, ValueError) as error:
                raise EmbeddingError(str(error)) from error
            else:
                if [len(vector) for vector in vectors] != [self._dimensions] * len(texts):
                    raise EmbeddingError(
                        f"{self._model.id} did not answer {len(texts)} texts with as many vectors "
                        f"of {self._dimensions} dimensions"
                    )
                return vectors
            # Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
            self._wait(random.uniform(0, longest_delay))  # noqa: S311
            longest_delay = min(2 * longest_delay, LONGEST_DELAY_SECONDS)
            with self._lock:
                self.retries += 1

    def _invoke(self, body: bytes) -> Any:
        with self._lock:
            self.calls += 1
        try:
            answer = self._invoker.invoke(body)
            self._answered_at = time.monotonic()
            return answer
        except InvocationError as error:
            if error.code in _HOPELESS:
                raise EmbeddingRefusedError(f"{self._model.id}: {error}") from error
            raise

    def _wait_for_turn(self) -> None:
        if not self._interval:
            return
        with self._lock:
            start = max(self._next_start, time.monotonic())
            self._next_start = start + self._interval
        self._wait(start - time.monotonic())

    def _wait(self, seconds: float) -> None:
        if self._stopped.wait(max(0.0, seconds)):
            raise EmbeddingError("the job has ended")

    @contextmanager
    def _timed(self) -> Iterator[None]:
        with self._lock:
            self._under_way += 1
            if self._under_way == 1:
                self._busy_since = time.monotonic()
        try:
            yield
        finally:
            with self._lock:
                self._under_way -= 1
                if self._under_way == 0:
                    self.seconds += time.monotonic() - self._busy_since


def _transient(error: InvocationError) -> bool:
    return error.status in (None, 408, 429) or error.status >= 500
