"""What the environment tells the functions of the API, and the limits they share."""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Json

from lambdas.access import Access

RETRY_AFTER_SECONDS = 5


class _Settings(BaseModel):
    # A function's own settings are built of these, which are not wanted by themselves.
    model_config = ConfigDict(defer_build=True, protected_namespaces=())


class ServedModel(_Settings):
    """Parameter Store's value as it was at deployment; null before any promotion."""

    model_id: str | None
    base_model: str | None


class Guardrail(_Settings):
    """A guardrail, in the environment as `id:version`; the id may be an ARN."""

    id: str = Field(min_length=1)
    version: str = Field(pattern=r"^([1-9][0-9]{0,7}|DRAFT)$")


class Index(_Settings):
    """The vector index, and the model that embeds for it."""

    location: str = Field(min_length=1)
    name: str = Field(min_length=1)
    embedding_model: str = Field(min_length=1)
    dimensions: int = Field(ge=1)


def _guardrail(value: Any) -> Any:
    if isinstance(value, str):
        identifier, _, version = value.rpartition(":")
        return {"id": identifier, "version": version}
    return value


class ApiSettings(_Settings):
    """The environment variables of every function of the API."""

    BASE_MODEL: str = Field(min_length=1)
    MODEL: Json[ServedModel]
    GUARDRAIL: Annotated[Guardrail | None, BeforeValidator(_guardrail)] = None
    PERSONAS_URI: str | None = Field(default=None, pattern=r"^s3://[^/]+/(.*/)?$")
    LOG_PROMPTS: bool = False
    ACCESS: Json[Access] | None = None  # to models and index, if they are elsewhere
    VERSION: str = Field(min_length=1)
