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


def test_titans_request_body() -> None:
    assert request_body(TITAN, ["ember"], 256) == {
        "inputText": "ember",
        "dimensions": 256,
        "normalize": True,
    }


def test_coheres_request_body() -> None:
    assert request_body(COHERE, ["ember", "fall"], purpose="search_query") == {
        "texts": ["ember", "fall"],
        "input_type": "search_query",
    }
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
    ],
)
def test_a_malformed_request_is_refused(model: Any, body: dict[str, Any]) -> None:
    with pytest.raises(BodyError):
        parse_request(model, body)


@pytest.mark.parametrize("model", [TITAN, COHERE])
def test_what_is_no_response_is_refused(model: Any) -> None:
    with pytest.raises(BodyError, match="no vectors"):
        parse_embeddings(model, {"message": "Too many requests"})
