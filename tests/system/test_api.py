"""A deployed stage does what its users need, with the model that it was deployed with.

The release pipeline runs this against QA. It takes nothing but what conftest.py lists.
"""

import base64
import json

import pytest
from conftest import Call

QUESTION = "What is kept in the bell tower?"


def test_health_names_the_model_that_was_deployed(
    call: Call, deployed: dict[str, str | None]
) -> None:
    response = call("GET", "health")
    assert response.status == 200
    assert response.body["models"]["tuned"] == deployed["model_id"]


def test_the_base_model_answers(call: Call) -> None:
    response = call("POST", "text", {"question": QUESTION, "max_tokens": 16})
    assert response.status == 200, response.content
    assert response.body["model"] == "base"
    assert response.body["response"].strip()
    assert response.headers["x-request-id"] == response.body["request_id"]


def test_the_tuned_model_answers_once_there_is_one(
    call: Call, deployed: dict[str, str | None]
) -> None:
    response = call("POST", "text", {"question": QUESTION, "max_tokens": 16, "model": "tuned"})
    assert response.status == 200, response.content
    assert response.body["response"].strip()
    if deployed["model_id"] is None:
        assert response.body["model"] == "base"
        assert response.body["note"]
    else:
        assert response.body["model"] == "tuned"
        assert response.body["model_id"] == deployed["model_id"]


def test_knowledge_answers_with_sources_or_says_that_there_is_none(call: Call) -> None:
    hydrated = call("GET", "health").body["index"]["chunks"]
    response = call(
        "POST", "rag", {"question": QUESTION, "max_tokens": 16, "top_k": 1, "min_score": 0.0}
    )
    if hydrated:
        assert response.status == 200, response.content
        assert all(source["uri"].startswith("s3://") for source in response.body["sources"])
        assert response.body["sources"]
    else:
        assert response.status == 503, response.content
        assert response.body["error"]["code"] == "index_not_hydrated"


def test_an_image_is_a_png(call: Call) -> None:
    response = call("POST", "image", {"prompt": "A bell tower at dusk", "seed": 7})
    assert response.status == 200, response.content
    assert base64.b64decode(response.body["image"]).startswith(b"\x89PNG\r\n\x1a\n")


@pytest.mark.parametrize(
    ("body", "status"),
    [(b"{not json", 400), ({"question": ""}, 422), ({"question": "Who?", "mood": "sour"}, 422)],
)
def test_bad_input_is_refused_with_its_reason(call: Call, body: object, status: int) -> None:
    response = call("POST", "text", body)
    assert response.status == status, response.content
    assert response.body["error"]["message"]


@pytest.mark.parametrize("path", ["text", "rag", "image"])
def test_nobody_asks_without_saying_who(call: Call, path: str) -> None:
    response = call("POST", path, {"question": QUESTION}, authorized=False)
    assert response.status == 403
    assert response.headers["x-request-id"]


def test_the_openapi_document_is_served(call: Call) -> None:
    response = call("GET", "openapi.json")
    assert response.status == 200
    assert {"/text", "/rag", "/image", "/health"} <= set(json.loads(response.content)["paths"])
