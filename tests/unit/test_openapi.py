"""The OpenAPI document: that of the models, whole, and true to what the functions answer."""

import json

import pytest
from jsonschema import Draft202012Validator

from lambdas import openapi
from lambdas.api_models import RagRequest
from lambdas.http import ApiError, parse

DOCUMENT = openapi.document()
OPERATIONS = [
    (path, method, operation)
    for path, methods in DOCUMENT["paths"].items()
    for method, operation in methods.items()
]


def test_the_committed_document_is_that_of_the_models():
    assert openapi.FILE.read_text(encoding="utf-8") == openapi.text(), (
        "python -m lambdas.openapi writes it anew"
    )


def test_every_schema_is_one():
    for schema in DOCUMENT["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)


@pytest.mark.parametrize(("path", "method", "operation"), OPERATIONS)
def test_every_status_is_documented(path, method, operation):
    expected = {"200", "403", "413", "429", "500", "502", "503", "504"}
    if method == "post":
        expected |= {"400", "422"}
    assert set(operation["responses"]) == expected
    for response in operation["responses"].values():
        assert response["content"]["application/json"]["schema"]


def test_requests_take_nothing_they_do_not_know():
    for path in ("text", "rag", "image"):
        schema = DOCUMENT["components"]["schemas"][f"{path.capitalize()}Request"]
        assert schema["additionalProperties"] is False


REQUESTS = [
    {"question": "?"},
    {"question": ""},
    {"question": "?", "top_k": 0},
    {"question": "?", "top_k": 5, "filter": {"year": 412, "region": ["a", True]}},
    {"question": "?", "filter": {"year": None}},
    {"question": "?", "filter": {"year": []}},
    {"question": "?", "min_score": None, "persona": None, "temperature": 1},
    {"question": "?", "min_score": 2},
    {"question": "?", "persona": "A b"},
    {"question": "?", "history": [{"role": "user", "text": "?", "name": "x"}]},
    {"question": "?", "more": 1},
    {"question": 1},
    {"question": "?", "max_tokens": "8"},
]


@pytest.mark.parametrize("request_", REQUESTS)
def test_the_document_refuses_what_the_function_refuses(request_):
    validator = Draft202012Validator(
        {"$ref": "#/components/schemas/RagRequest", "components": DOCUMENT["components"]}
    )
    try:
        parse({"body": json.dumps(request_)}, RagRequest)
        accepted = True
    except ApiError:
        accepted = False
    assert validator.is_valid(request_) == accepted
