"""POST /rag: a question, answered from the passages that the vector index has about it."""

from collections.abc import Sequence
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext
from opensearchpy.exceptions import ConnectionTimeout, OpenSearchException, TransportError
from pydantic import Json

from bedrock.embeddings import parse_embeddings, request_body
from bedrock.passages import Passage as ContextPassage
from bedrock.text import BodyError
from lambdas.access import session
from lambdas.answers import Generator
from lambdas.api_models import RagRequest, RagResponse, Source, Usage
from lambdas.api_settings import RETRY_AFTER_SECONDS, ApiSettings, Index
from lambdas.generation import client, failed, invoke, invoke_id, usable_model
from lambdas.http import ApiError, logger, parse, respond
from lambdas.personas import Personas
from lambdas.validation import read_environment
from vectors.index import IndexNotFoundError, Passage, VectorIndexError
from vectors.open import open_index

RELEVANT = 0.6
"""Similarity, (1 + cosine) / 2, from which on something relevant was found. Of the example's 60
questions 59 find a passage of at least so much; of 11 questions about other things, 9 do not."""

RULE = (
    "Answer from the passages that come with the question. If they do not hold the answer, say "
    "that you do not know it."
)
NOTHING_FOUND = "I found nothing about that in the documents that I know."
EXCERPT_CHARACTERS = 300
SEARCH_SECONDS = 3.0


class Environment(ApiSettings):
    INDEX: Json[Index]


environment = read_environment(Environment)
# Together they stay below API Gateway's 29 seconds: to connect takes up to a second more each.
embedding_client = client("bedrock-runtime", read_seconds=4, access=environment.ACCESS)
text_client = client("bedrock-runtime", read_seconds=16, access=environment.ACCESS)
personas = Personas(environment.PERSONAS_URI)
generator = Generator(environment, text_client, personas)
index = open_index(
    environment.INDEX.location,
    environment.INDEX.name,
    environment.INDEX.dimensions,
    timeout_seconds=SEARCH_SECONDS,
    retries=0,
    credentials=session(environment.ACCESS).get_credentials(),
)


@logger.inject_lambda_context(clear_state=True)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answer one proxy event."""
    return respond(event, context, lambda request_id: answer(parse(event, RagRequest), request_id))


def answer(request: RagRequest, request_id: str) -> RagResponse:
    """The answer with its sources. If nothing relevant is found, no model is asked.

    Raises ApiError, of model or index.
    """
    model = generator.choose(request.model)
    persona = generator.system(request)
    passages = relevant(search(request), request.min_score)
    if passages:
        system = f"{persona}\n\n{RULE}" if persona else RULE
        context = [ContextPassage(passage.title, _text(passage)) for passage in passages]
        reply = generator.answer(model, system, request, request_id, context)
    else:
        none = Usage(input_tokens=0, output_tokens=0)
        reply = generator.respond(model, request, request_id, NOTHING_FOUND, "nothing_found", none)
    sources = [
        Source(
            uri=passage.source,
            title=passage.title,
            score=round(passage.similarity, 4),
            excerpt=excerpt(passage.text),
        )
        for passage in passages
    ]
    return RagResponse(**reply.model_dump(exclude_unset=True), sources=sources)


def search(request: RagRequest) -> list[Passage]:
    """The best passages by meaning and words.

    Raises ApiError: 503 for an index without documents, 429, 502 or 504 for one that fails.
    """
    name = environment.INDEX.name
    try:
        vector = embed(request.question)
        passages = index.search(
            vector, request.question, top_k=request.top_k, filter=request.filter
        )
        empty = not passages and not index.search(vector, None, top_k=1)
    except IndexNotFoundError as error:
        raise _not_hydrated() from error
    except ConnectionTimeout as error:
        raise ApiError(
            504, "index_timed_out", f"The index {name} did not answer in time. Try again."
        ) from error
    except TransportError as error:
        if error.status_code == 429:
            raise ApiError(
                429,
                "throttled",
                f"Too many searches of the index {name}. Try again in some seconds.",
                retry_after=RETRY_AFTER_SECONDS,
            ) from error
        raise _index_failed(error) from error
    except (OpenSearchException, VectorIndexError) as error:
        raise _index_failed(error) from error
    if empty:
        raise _not_hydrated()
    return passages


def embed(question: str) -> Sequence[float]:
    """The question's vector. Raises ApiError."""
    configured = environment.INDEX.embedding_model
    model = usable_model(configured)
    invoked = invoke_id(configured, model)
    body = request_body(model, [question], environment.INDEX.dimensions, "search_query")
    content, _ = invoke(embedding_client, invoked, body)
    try:
        [vector] = parse_embeddings(model, content)
    except (BodyError, ValueError) as error:
        raise failed(invoked, "unreadable response", "Trying again may help.") from error
    return vector


def relevant(passages: Sequence[Passage], min_score: float | None) -> list[Passage]:
    """The passages worth to be used: those of at least this similarity; or without such a limit
    all, if the most similar is relevant. What words find may be right with a lower one."""
    if min_score is None:
        best = max((passage.similarity for passage in passages), default=0.0)
        return list(passages) if best >= RELEVANT else []
    return [passage for passage in passages if passage.similarity >= min_score]


def excerpt(text: str) -> str:
    """The beginning of a text in one line, cut between words."""
    line = " ".join(text.split())
    if len(line) <= EXCERPT_CHARACTERS:
        return line
    return f"{line[:EXCERPT_CHARACTERS].rpartition(' ')[0] or line[:EXCERPT_CHARACTERS]} …"


def _text(passage: Passage) -> str:
    return f"{passage.heading}\n{passage.text}" if passage.heading else passage.text


def _not_hydrated() -> ApiError:
    return ApiError(
        503,
        "index_not_hydrated",
        f"The index {environment.INDEX.name} holds no documents yet: they must be hydrated first.",
    )


def _index_failed(error: OpenSearchException | VectorIndexError) -> ApiError:
    status = error.status_code if isinstance(error, TransportError) else None
    kind = f"status {status}" if isinstance(status, int) else type(error).__name__
    return ApiError(
        502,
        "index_failed",
        f"The index {environment.INDEX.name} failed ({kind}). Trying again may help.",
    )
