"""status_api: what is deployed, and the document of the API."""

import json

import pytest
from moto.core import set_initial_no_auth_action_count

from benchmarks.api_stand_in import BASE_MODEL, EMBEDDING_MODEL, IMAGE_MODEL
from benchmarks.bedrock_stand_in import vector
from lambdas import openapi
from vectors.index import Chunk
from vectors.lance import LanceIndex

ARN = "arn:aws:bedrock:us-east-1:123456789012:custom-model-deployment/abc123def456"


@pytest.fixture
def load(tmp_path, load_function):
    def load(location=f"lancedb:{tmp_path}", model_id=None, **environment):
        index = {
            "location": location,
            "name": "lore",
            "embedding_model": EMBEDDING_MODEL,
            "dimensions": 4,
        }
        return load_function(
            "status_api",
            BASE_MODEL=BASE_MODEL,
            MODEL=json.dumps({"model_id": model_id, "base_model": BASE_MODEL}),
            VERSION="1.2.3",
            INDEX=json.dumps(index),
            IMAGE_MODEL=IMAGE_MODEL,
            IMAGE_REGION="us-west-2",
            VECTOR_INDEX_LOCATION="",
            **environment,
        )

    return load


@pytest.fixture
def get(read_event, context):
    event = read_event("api_health")

    def get(function, resource="/health"):
        response = function.handler({**event, "resource": resource, "path": resource}, context)
        return response["statusCode"], json.loads(response["body"])

    return get


def test_health_tells_what_is_deployed(load, get, tmp_path):
    index = LanceIndex(tmp_path, "lore", 4)
    index.ensure()
    index.upsert(
        [
            Chunk(f"c{n}", f"s3://documents/{n % 2}.md", "T", "Text", n, "", vector(str(n), 4))
            for n in range(3)
        ]
    )
    assert get(load(model_id=ARN)) == (
        200,
        {
            "status": "ok",
            "version": "1.2.3",
            "models": {
                "base": BASE_MODEL,
                "tuned": ARN,
                "image": IMAGE_MODEL,
                "embedding": EMBEDDING_MODEL,
            },
            "index": {"name": "lore", "documents": 2, "chunks": 3},
            "request_id": "b2c4e6f8-3a5b-4c7d-9e1f-5a7b9c0d1e33",
        },
    )


@pytest.mark.parametrize("location", ["http://127.0.0.1:1", None])
def test_an_index_that_does_not_tell_degrades_and_no_more(load, get, location):
    status, body = get(load(location) if location else load())
    assert (status, body["status"], body["models"]["tuned"]) == (200, "degraded", None)
    assert body["index"] == {"name": "lore", "documents": None, "chunks": None}


def test_the_document_is_served_as_it_is_committed(load, get):
    assert get(load(), "/openapi.json") == (200, json.loads(openapi.FILE.read_text()))


@set_initial_no_auth_action_count(0)
def test_an_index_at_home_that_cannot_be_asked_is_unknown(load, get, moto_aws):
    access = {"role": "arn:aws:iam::222222222222:role/quench-gone", "region": "us-east-1"}
    domain = "https://search-lore-abc123.eu-west-1.es.amazonaws.com"
    status, body = get(load(domain, ACCESS=json.dumps(access)))
    assert (status, body["status"]) == (200, "degraded")
    assert body["index"] == {"name": "lore", "documents": None, "chunks": None}
