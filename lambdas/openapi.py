"""The OpenAPI document of the API, from its models: `python -m lambdas.openapi` rewrites it."""

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from lambdas.api_models import (
    ErrorResponse,
    GatewayError,
    HealthResponse,
    ImageRequest,
    ImageResponse,
    RagRequest,
    RagResponse,
    TextRequest,
    TextResponse,
)

FILE = Path(__file__).with_name("openapi.json")
_POSTS: dict[str, tuple[str, type[BaseModel], type[BaseModel]]] = {
    "/text": ("Ask the base model or the tuned one", TextRequest, TextResponse),
    "/rag": ("Ask a model that is given what the documents say", RagRequest, RagResponse),
    "/image": ("Draw a picture", ImageRequest, ImageResponse),
}
# of API Gateway: https://docs.aws.amazon.com/apigateway/latest/developerguide/supported-gateway-response-types.html
_GATEWAY_ERRORS = {
    "403": "No signature or API key, or one that is not valid here.",
    "413": "The request is larger than API Gateway takes.",
    "429": "Too many requests: to this API, or to the model behind it. `Retry-After` tells, in "
    "seconds, when to try again; without it, at once is too soon.",
    "500": "Something failed that should not have; the log has it under the request id.",
    "502": "The model or the index failed; the message says whether trying again may help.",
    "503": "Not ready: the index holds no documents yet, or the model has no capacity.",
    "504": "The model, or the index, did not answer in time.",
}
_REQUEST_ERRORS = {
    "400": "No body, or one that is not JSON.",
    "422": "A field is missing, unknown or not as it must be; `fields` says which, and why.",
}
_REQUEST_ID = {
    "description": "Finds what the log has about this request.",
    "schema": {"type": "string"},
}
_RETRY_AFTER = {"description": "Seconds.", "schema": {"type": "integer"}}


def document() -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    models: set[type[BaseModel]] = {ErrorResponse, GatewayError, HealthResponse}
    for _, request, response in _POSTS.values():
        models |= {request, response}
    _, definitions = models_json_schema(
        [(model, "validation") for model in sorted(models, key=lambda model: model.__name__)],
        ref_template="#/components/schemas/{model}",
    )
    paths: dict[str, Any] = {path: {"post": _post(path, *parts)} for path, parts in _POSTS.items()}
    paths["/health"] = {
        "get": _operation("health", "What is deployed", _schema(HealthResponse), {})
    }
    paths["/openapi.json"] = {"get": _operation("openapi", "This document", {"type": "object"}, {})}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Quench",
            "version": "1",
            "description": "Text from a base model or the tuned one, with or without knowledge, "
            "and pictures. Answers come whole; nothing is streamed.",
        },
        "servers": [{"url": "/v1"}],
        "security": [{"iam": []}, {"api_key": []}],
        "paths": paths,
        "components": {
            "schemas": definitions["$defs"],
            "securitySchemes": {
                "iam": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "Authorization",
                    "description": "AWS Signature Version 4, service `execute-api`; the default.",
                    "x-amazon-apigateway-authtype": "awsSigv4",
                },
                "api_key": {
                    "type": "apiKey",
                    "in": "header",
                    "name": "x-api-key",
                    "description": "Where the API is deployed with API keys.",
                },
            },
        },
    }


def text() -> str:
    """The document as the file holds it."""
    return json.dumps(document(), indent=2, ensure_ascii=False) + "\n"


def _post(
    path: str, summary: str, request: type[BaseModel], response: type[BaseModel]
) -> dict[str, Any]:
    operation = _operation(path.removeprefix("/"), summary, _schema(response), _REQUEST_ERRORS)
    operation["requestBody"] = {
        "required": True,
        "content": {"application/json": {"schema": _schema(request)}},
    }
    return operation


def _operation(
    name: str, summary: str, schema: dict[str, Any], errors: dict[str, str]
) -> dict[str, Any]:
    responses = {"200": _response("The answer.", schema)}
    for status, description in errors.items():
        responses[status] = _response(description, _schema(ErrorResponse))
    either = {"anyOf": [_schema(ErrorResponse), _schema(GatewayError)]}
    for status, description in _GATEWAY_ERRORS.items():
        responses[status] = _response(description, either)
    for status in ("429", "503"):
        responses[status]["headers"]["Retry-After"] = _RETRY_AFTER
    return {
        "operationId": name,
        "summary": summary,
        "responses": dict(sorted(responses.items())),
    }


def _response(description: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "description": description,
        "headers": {"x-request-id": _REQUEST_ID},
        "content": {"application/json": {"schema": schema}},
    }


def _schema(model: type[BaseModel]) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
