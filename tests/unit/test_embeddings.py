import json
from pathlib import Path
from typing import Any

import pytest

from bedrock.embeddings import (
    parse_embeddings,
    parse_request,
    request_body,
    response_body,
    texts_per_request,
)
from bedrock.models import all_models, find_model
from bedrock.text import BodyError

TITAN = find_model("amazon.titan-embed-text-v2:0")
COHERE = find_model("cohere.embed-english-v3")
COHERE_4 = find_model("cohere.embed-v4:0")
NOVA = find_model("amazon.nova-2-multimodal-embeddings-v1:0")
BODIES = Path(__file__).parents[1] / "bodies"


def body_of(model: Any, kind: str) -> dict[str, Any]:
    """The family's request or response as its service documents it."""
    path = BODIES / model.family / f"{kind}.json"
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


@pytest.mark.parametrize(
    ("model", "dimensions"),
    [(TITAN, 256), (COHERE, 1024), (NOVA, 256)],
    ids=lambda value: str(value),
)
def test_bodies_are_as_documented(model: Any, dimensions: int) -> None:
    body = request_body(model, ["ember"], dimensions, purpose="search_query")
    assert body == body_of(model, "request")
    assert parse_request(model, body_of(model, "request")) == (["ember"], dimensions)
    assert parse_embeddings(model, body_of(model, "response")) == [[0.25, -1.0, 0.5]]


def test_cohere_4_is_told_the_dimensions() -> None:
    assert request_body(COHERE_4, ["ember"], 512)["output_dimension"] == 512


@pytest.mark.parametrize("model", [m for m in all_models() if "embedding" in m.tasks])
def test_requests_and_responses_are_understood_as_meant(model: Any) -> None:
    texts = [f"text {number}" for number in range(min(3, texts_per_request(model)))]
    for dimensions in model.dimensions:
        body = request_body(model, texts, dimensions)
        assert parse_request(model, body) == (texts, dimensions)
    vectors = [[0.25, -1.0, float(number)] for number in range(len(texts))]
    assert parse_embeddings(model, response_body(model, vectors, texts, 7)) == vectors


def test_vectors_are_found_by_type_too() -> None:
    assert parse_embeddings(COHERE_4, {"embeddings": {"float": [[1.0]]}}) == [[1.0]]


def test_titan_says_how_many_tokens_it_read() -> None:
    assert response_body(TITAN, [[1.0]], ["ember"], 7)["inputTextTokenCount"] == 7


@pytest.mark.parametrize(
    ("model", "texts", "dimensions"),
    [
        (TITAN, [], None),
        (TITAN, ["one", "two"], None),
        (TITAN, ["one"], 384),
        (COHERE, ["x"] * 97, None),
        (COHERE, ["one"], 256),
        (find_model("amazon.nova-micro-v1:0"), ["one"], None),
    ],
)
def test_what_a_model_cannot_embed_is_refused(
    model: Any, texts: list[str], dimensions: int | None
) -> None:
    with pytest.raises(BodyError):
        request_body(model, texts, dimensions)


@pytest.mark.parametrize(
    ("model", "body"),
    [
        (TITAN, {}),
        (TITAN, {"inputText": ""}),
        (TITAN, {"inputText": "x", "dimensions": "256"}),
        (TITAN, {"inputText": "x", "embeddingTypes": ["binary"]}),
        (COHERE, {"texts": ["x"]}),
        (COHERE, {"texts": ["x"], "input_type": "search_query", "embedding_types": ["int8"]}),
        (COHERE, {"texts": [], "input_type": "search_query"}),
        (COHERE, {"texts": "x", "input_type": "search_query"}),
        (NOVA, {}),
        (NOVA, body_of(NOVA, "request") | {"schemaVersion": "v9"}),
        (NOVA, body_of(NOVA, "request") | {"taskType": "SEGMENTED_EMBEDDING"}),
        (NOVA, body_of(NOVA, "request") | {"singleEmbeddingParams": {"text": {"value": "x"}}}),
        (NOVA, body_of(NOVA, "request") | {"singleEmbeddingParams": {"embeddingPurpose": "x"}}),
        (NOVA, body_of(NOVA, "request") | {"singleEmbeddingParams": {"image": {}}}),
    ],
)
def test_a_malformed_request_is_refused(model: Any, body: dict[str, Any]) -> None:
    with pytest.raises(BodyError):
        parse_request(model, body)


@pytest.mark.parametrize("model", [TITAN, COHERE, NOVA])
def test_what_is_no_response_is_refused(model: Any) -> None:
    with pytest.raises(BodyError, match="no vectors"):
        parse_embeddings(model, {"message": "Too many requests"})
