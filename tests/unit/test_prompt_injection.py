"""Documents with instructions planted in them, as a model would get them from POST /rag.

Each family's request body is compared, byte by byte, with that for a harmless document: only what
stands in the fence may differ. What a model would make of it is not asked.
"""

import json
from pathlib import Path

import boto3
import pytest

from bedrock.models import all_models
from bedrock.text import FAMILIES, parse_request
from benchmarks.api_stand_in import BASE_MODEL, DIMENSIONS, EMBEDDING_MODEL, ApiStandIn
from benchmarks.bedrock_stand_in import vector
from vectors.index import Chunk
from vectors.lance import LanceIndex

TESTS = Path(__file__).parents[1]
PERSONAS = Path(__file__).parents[2] / "examples" / "emberfall" / "personas"
QUESTION = "What does bread cost?"
ARN = "arn:aws:bedrock:us-east-1:123456789012:provisioned-model/abc123def456"
HARMLESS = {"name": "harmless", "title": "Ledger", "text": "Bread costs two coins."}
PLANTED = [
    json.loads(line)
    for line in (TESTS / "injections.jsonl").read_text(encoding="utf-8").splitlines()
]
REQUEST = {
    "question": QUESTION,
    "persona": "marda",
    "history": [
        {"role": "user", "text": "Good evening, ma'am."},
        {"role": "assistant", "text": "Oh, bless your boots, duckling!"},
    ],
    "model": "tuned",
    "min_score": 0,
}


@pytest.fixture(scope="module")
def location(tmp_path_factory):
    """An index in which every planted document can be found by its number; -1 is harmless."""
    folder = tmp_path_factory.mktemp("injections")
    index = LanceIndex(folder, "lore", DIMENSIONS)
    index.ensure()
    index.upsert(
        [
            Chunk(
                id=f"c{number}",
                source=f"s3://documents/{number}.md",
                title=planted["title"],
                text=planted["text"],
                position=0,
                heading=planted["title"],
                vector=vector(planted["name"], DIMENSIONS),
                attributes={"number": number},
            )
            for number, planted in enumerate([HARMLESS, *PLANTED], -1)
        ]
    )
    return f"lancedb:{folder}"


@pytest.fixture
def sent(location, load_function, moto_aws, read_event, context):
    """For a family, what its model is sent with the document of a number."""

    def prepare(family, stand_in):
        base = next(model for model in all_models() if model.family == family)
        stand_in.served = base.id
        index = {
            "location": location,
            "name": "lore",
            "embedding_model": EMBEDDING_MODEL,
            "dimensions": DIMENSIONS,
        }
        function = load_function(
            "rag_api",
            BASE_MODEL=BASE_MODEL,
            MODEL=json.dumps({"model_id": ARN, "base_model": base.id}),
            VERSION="1.2.3",
            INDEX=json.dumps(index),
            PERSONAS_URI="s3://personas/",
            AWS_ENDPOINT_URL_BEDROCK_RUNTIME=stand_in.url,
            VECTOR_INDEX_LOCATION="",
        )
        s3 = boto3.client("s3")
        s3.create_bucket(Bucket="personas")
        s3.upload_file(str(PERSONAS / "marda.json"), "personas", "marda.json")

        def ask(number):
            event = read_event("api_rag")
            event["body"] = json.dumps({**REQUEST, "filter": {"number": number}})
            response = function.handler(event, context)
            assert response["statusCode"] == 200, response["body"]
            path, body = stand_in.requests[-1]
            assert path == f"/model/{ARN}/invoke"
            return body

        return ask

    with ApiStandIn() as stand_in:
        yield lambda family: prepare(family, stand_in)


def around_the_passages(family, body):
    """All that is sent before and after the passages."""
    if FAMILIES[family].documents:
        assert set(body["documents"][0]) == {"title", "snippet"}
        return json.dumps({name: part for name, part in body.items() if name != "documents"})
    text = json.dumps(body, ensure_ascii=False)
    before, *opened = text.split("<passages>")
    *closed, after = text.split("</passages>")
    assert len(opened) == len(closed) == 1
    return before, after


def test_there_are_at_least_twenty_documents():
    assert len({planted["name"] for planted in PLANTED}) >= 20


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_planted_instructions_change_nothing_but_the_passages(sent, family):
    ask = sent(family)
    harmless = ask(-1)
    system, turns, limits = parse_request(family, harmless)
    persona = json.loads((PERSONAS / "marda.json").read_text(encoding="utf-8"))
    for text in (persona["name"], persona["voice"], "Answer from the passages"):
        assert text in (system or turns[0].text)
    for number, planted in enumerate(PLANTED):
        body = ask(number)
        assert around_the_passages(family, body) == around_the_passages(family, harmless), planted
        read_system, read_turns, read_limits = parse_request(family, body)
        assert (read_system, read_turns[:-1], read_limits) == (system, turns[:-1], limits), planted
        assert len(read_turns) == len(turns), planted
        assert read_turns[-1].role == "user"
        assert read_turns[-1].text.endswith(QUESTION), planted
