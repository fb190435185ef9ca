"""GET /health: what is deployed. GET /openapi.json: how the API is called."""

from pathlib import Path
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext
from opensearchpy.exceptions import OpenSearchException
from pydantic import BaseModel, Field, Json

from lambdas.access import session
from lambdas.api_models import HealthResponse, IndexStatus, Models
from lambdas.api_settings import ApiSettings, Index
from lambdas.http import ApiError, logger, respond
from lambdas.validation import read_environment
from vectors.index import VectorIndexError
from vectors.open import open_index


class Environment(ApiSettings):
    INDEX: Json[Index]
    IMAGE_MODEL: str = Field(min_length=1)
    IMAGE_REGION: str = Field(min_length=1)


environment = read_environment(Environment)
openapi = Path(__file__).with_name("openapi.json").read_text(encoding="utf-8")
index = open_index(
    environment.INDEX.location,
    environment.INDEX.name,
    environment.INDEX.dimensions,
    timeout_seconds=3,
    retries=0,
    credentials=session(environment.ACCESS).get_credentials(),
)


@logger.inject_lambda_context(clear_state=True)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answer one proxy event."""

    def answer(request_id: str) -> BaseModel | str:
        match event.get("resource"):
            case "/health":
                return health(request_id)
            case "/openapi.json":
                return openapi
            case other:
                raise ApiError(404, "not_found", f"Nothing is at {other}.")

    return respond(event, context, answer)


def health(request_id: str) -> HealthResponse:
    """What is deployed, and what the index holds."""
    status = index_status()
    return HealthResponse(
        status="ok" if status.chunks else "degraded",
        version=environment.VERSION,
        models=Models(
            base=environment.BASE_MODEL,
            tuned=environment.MODEL.model_id,
            image=environment.IMAGE_MODEL,
            embedding=environment.INDEX.embedding_model,
        ),
        index=status,
        request_id=request_id,
    )


def index_status() -> IndexStatus:
    """How many documents and chunks there are; unknown, and logged, if the index does not tell."""
    name = environment.INDEX.name
    try:
        return IndexStatus(name=name, documents=len(index.sources()), chunks=index.count())
    except (OpenSearchException, VectorIndexError) as error:
        logger.warning("the index cannot be asked", reason=str(error))
        return IndexStatus(name=name, documents=None, chunks=None)
