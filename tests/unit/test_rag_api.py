"""rag_api: from a question to passages to an answer with sources, or to none.

Chunks lie in a real index; a stand-in embeds: texts that are the same have the same vector, others
are about as unlike as they can be.
"""

import json

import pytest
import urllib3

from benchmarks.api_stand_in import (
    ANSWER,
    BASE_MODEL,
    DIMENSIONS,
    EMBEDDING_MODEL,
    ApiStandIn,
    hits,
)
from benchmarks.bedrock_stand_in import vector
from lambdas import access
from lambdas.access import Access, session
from vectors.index import Chunk
from vectors.lance import LanceIndex
from vectors.open import open_index

NOTHING_FOUND = "I found nothing about that in the documents that I know."
QUESTION = "What does bread cost?"
EMBED = f"/model/{EMBEDDING_MODEL}/invoke"
GENERATE = f"/model/{BASE_MODEL}/invoke"


def chunk(number, text, meaning, **attributes):
    """A chunk that means the same as another text."""
    return Chunk(
        id=f"c{number}",
        source=f"s3://documents/{number}.md",
        title=f"Ledger {number}",
        text=text,
        position=0,
        heading="Prices",
        vector=vector(meaning, DIMENSIONS),
        attributes=attributes,
    )


BREAD = chunk(1, "Bread costs two coins. " * 30, QUESTION, region="Emberfall", year=412)
SALT = chunk(2, "Salt is three coins; bread was cheaper once.", "salt", region="Lull", year=410)


@pytest.fixture
def stand_in():
    with ApiStandIn() as stand_in:
        yield stand_in


@pytest.fixture
def index(tmp_path):
    index = LanceIndex(tmp_path / "index", "lore", DIMENSIONS)
    index.ensure()
    index.upsert([BREAD, SALT])
    return index


@pytest.fixture
def load(tmp_path, stand_in, load_function):
    def load(location=f"lancedb:{tmp_path / 'index'}", **environment):
        index = {
            "location": location,
            "name": "lore",
            "embedding_model": EMBEDDING_MODEL,
            "dimensions": DIMENSIONS,
        }
        defaults = {
            "BASE_MODEL": BASE_MODEL,
            "MODEL": json.dumps({"model_id": None, "base_model": None}),
            "VERSION": "1.2.3",
            "INDEX": json.dumps(index),
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": stand_in.url,
            "VECTOR_INDEX_LOCATION": "",
        }
        return load_function("rag_api", **{**defaults, **environment})

    return load


@pytest.fixture
def ask(load, read_event, context):
    event = read_event("api_rag")

    def ask(request, function=None):
        event["body"] = json.dumps(request)
        response = (function or load()).handler(event, context)
        return response["statusCode"], response["headers"], json.loads(response["body"])

    return ask


def asked(stand_in, path):
    return [body for at, body in stand_in.requests if at == path]


def test_the_recorded_request_is_answered_with_sources(load, read_event, context, index, stand_in):
    response = load().handler(read_event("api_rag"), context)
    assert response["statusCode"] == 200
    body = json.loads(response["body"])
    bread, salt = body.pop("sources")
    assert body == {
        "response": ANSWER,
        "model": "base",
        "model_id": BASE_MODEL,
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 12, "output_tokens": 6},
        "request_id": "0f2c1e3a-5d34-4f0e-9d58-2a3b7a5f8c11",
    }
    assert (bread["uri"], bread["title"]) == (BREAD.source, BREAD.title)
    assert bread["score"] == pytest.approx(1, abs=1e-3)
    assert bread["excerpt"].startswith("Bread costs two coins.")
    assert len(bread["excerpt"]) <= 302
    assert bread["excerpt"].endswith("…")
    assert (salt["uri"], salt["excerpt"]) == (SALT.source, SALT.text)
    assert 0.3 < salt["score"] < 0.7
    [embedded], [generated] = asked(stand_in, EMBED), asked(stand_in, GENERATE)
    assert embedded["inputText"] == QUESTION
    question = generated["messages"][-1]["content"][0]["text"]
    assert question.endswith(QUESTION)
    assert f"Prices\n{BREAD.text}" in question
    assert 'title="Ledger 1"' in question


def test_the_rule_of_knowledge_follows_the_persona(ask, index, stand_in):
    ask({"question": QUESTION})
    [rule] = asked(stand_in, GENERATE)[0]["system"]
    assert rule["text"].startswith("Answer from the passages")


def test_so_many_passages_as_are_asked_for(ask, index):
    assert len(ask({"question": QUESTION, "top_k": 1})[2]["sources"]) == 1


def test_nothing_relevant_is_said_and_no_model_asked(ask, index, stand_in):
    status, _, body = ask({"question": "Who won the cup?"})
    assert status == 200
    assert (body["response"], body["sources"]) == (NOTHING_FOUND, [])
    assert (body["stop_reason"], body["model_id"]) == ("nothing_found", BASE_MODEL)
    assert body["usage"] == {"input_tokens": 0, "output_tokens": 0}
    assert not asked(stand_in, GENERATE)


def test_a_least_score_leaves_out_what_is_below(ask, index):
    _, _, body = ask({"question": QUESTION, "min_score": 0.9})
    assert [source["uri"] for source in body["sources"]] == [BREAD.source]
    _, _, body = ask({"question": "Who won the cup?", "min_score": 0})
    assert len(body["sources"]) == 2


@pytest.mark.parametrize(
    ("filter", "found"),
    [
        ({"region": "Emberfall"}, [BREAD.source]),
        ({"year": 412}, [BREAD.source]),
        ({"year": [412, 500]}, [BREAD.source]),
        ({"year": "412"}, []),
        ({"region": "Lull", "year": 412}, []),
    ],
)
def test_filters(ask, index, filter, found):
    status, _, body = ask({"question": QUESTION, "filter": filter})
    assert status == 200
    assert [source["uri"] for source in body["sources"]] == found


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ({"top_k": 0}, "top_k"),
        ({"top_k": 21}, "top_k"),
        ({"min_score": 1.5}, "min_score"),
        ({"filter": {"region": None}}, "filter.region"),
        ({"filter": {"region": {"$ne": "x"}}}, "filter.region"),
        ({"filter": {"region": []}}, "filter.region"),
        ({"filter": {f"a{n}": 1 for n in range(21)}}, "filter"),
        ({"filter": "region"}, "filter"),
        ({"topk": 3}, "topk"),
    ],
)
def test_an_invalid_field_is_named(ask, stand_in, part, field):
    status, _, body = ask({"question": QUESTION, **part})
    assert status == 422
    named = {violation["field"] for violation in body["error"]["fields"]}
    assert all(name.startswith(field) for name in named)
    assert not stand_in.requests


def test_an_index_that_is_not_there_is_not_hydrated(ask):
    status, _, body = ask({"question": QUESTION})
    assert (status, body["error"]["code"]) == (503, "index_not_hydrated")
    assert "lore" in body["error"]["message"]


def test_an_index_without_documents_is_not_hydrated(ask, index):
    for source in (BREAD.source, SALT.source):
        index.delete_by_source(source)
    status, _, body = ask({"question": QUESTION})
    assert (status, body["error"]["code"]) == (503, "index_not_hydrated")


def test_an_index_in_opensearch_is_searched(ask, load, stand_in):
    status, _, body = ask({"question": QUESTION, "top_k": 2}, load(stand_in.url))
    assert status == 200
    assert [source["score"] for source in body["sources"]] == [0.9, 0.899]


NOT_FOUND = {"error": {"type": "index_not_found_exception", "reason": "no index"}, "status": 404}
FAILED = {"error": {"type": "search_phase_execution_exception", "reason": "…"}, "status": 500}


@pytest.mark.parametrize(
    ("found", "status", "code"),
    [
        ((200, {"responses": [NOT_FOUND, NOT_FOUND]}), 503, "index_not_hydrated"),
        ((200, {"responses": [FAILED, FAILED]}), 502, "index_failed"),
        ((200, hits(0)), 503, "index_not_hydrated"),
        ((429, {"error": "too many"}), 429, "throttled"),
        ((403, {"error": "no"}), 502, "index_failed"),
        ((500, {"error": "no"}), 502, "index_failed"),
    ],
)
def test_errors_of_opensearch(ask, load, stand_in, found, status, code):
    stand_in.found = found
    told, headers, body = ask({"question": QUESTION}, load(stand_in.url))
    assert (told, body["error"]["code"]) == (status, code)
    assert ("retry-after" in headers) == (status == 429)


def test_an_opensearch_that_is_away_is_an_error(ask, load):
    status, _, body = ask({"question": QUESTION}, load("http://127.0.0.1:1"))
    assert (status, body["error"]["code"]) == (502, "index_failed")
    assert "(ConnectionError)" in body["error"]["message"]


def test_an_embedding_model_that_throttles_is_told_by_name(ask, load, stand_in):
    stand_in.answer = lambda path, body: (429, {"message": "Too many requests"})
    status, headers, body = ask({"question": QUESTION}, load())
    assert (status, body["error"]["code"]) == (429, "throttled")
    assert EMBEDDING_MODEL in body["error"]["message"]
    assert headers["retry-after"]


def test_nothing_waits_longer_than_the_gateway(load):
    function = load()
    clients = (function.embedding_client, function.text_client)
    configs = [client.meta.config for client in clients]
    assert all(config.retries["total_max_attempts"] == 1 for config in configs)
    models = sum(config.connect_timeout + config.read_timeout for config in configs)
    assert access.SECONDS + models + function.SEARCH_SECONDS < 29


def test_an_opensearch_that_does_not_answer_in_time_is_a_time_out(ask, load, monkeypatch):
    with ApiStandIn(latency_seconds=5) as slow:
        function = load(slow.url)
        impatient = open_index(slow.url, "lore", DIMENSIONS, timeout_seconds=1, retries=0)
        monkeypatch.setattr(function, "index", impatient)
        status, _, body = ask({"question": QUESTION}, function)
        assert (status, body["error"]["code"]) == (504, "index_timed_out")
        assert len(slow.requests) == 1


def test_production_elsewhere_searches_as_its_role_at_home(ask, load, moto_aws, monkeypatch):
    role = "arn:aws:iam::222222222222:role/quench-prod-rag-api"
    home = {"role": role, "region": "us-east-1"}
    signed = []

    def urlopen(pool, method, url, body=None, **options):
        signed.append(options["headers"]["Authorization"])
        content = json.dumps(hits(0)).encode()
        headers = {"content-type": "application/json"}
        return urllib3.HTTPResponse(content, headers, 200, preload_content=False)

    monkeypatch.setattr(urllib3.HTTPSConnectionPool, "urlopen", urlopen)
    function = load(
        "https://search-lore-abc123.eu-west-1.es.amazonaws.com", ACCESS=json.dumps(home)
    )
    status, _, body = ask({"question": QUESTION}, function)
    assert (status, body["error"]["code"]) == (503, "index_not_hydrated")
    key = session(Access(**home)).get_credentials().access_key
    assert key != "testing"
    assert all(f"Credential={key}/" in header for header in signed)
    assert all("/eu-west-1/es/" in header for header in signed)
    assert signed
