"""text_api: questions as API Gateway sends them, to a stand-in that keeps what Bedrock is asked.

Errors of Bedrock, and the personas' bucket, are the embedded cloud's.
"""

import base64
import io
import json
from pathlib import Path

import pytest

from benchmarks.api_stand_in import ANSWER, BASE_MODEL, ApiStandIn
from lambdas import access, generation, http
from lambdas.api_models import MOST_TOKENS
from lambdas.http import ApiError
from lambdas.personas import Persona
from lambdas.validation import EnvironmentVariableError
from local.cloud import Cloud
from local.config import LocalConfig

PERSONAS = "s3://personas/emberfall/"
MARDA = (
    "You are Marda Quill, innkeeper of the Brass Lantern in Emberfall. You are warm and full of "
    "gossip, and you call everyone duckling."
)
ARN = "arn:aws:bedrock:us-east-1:123456789012:custom-model-deployment/abc123def456"
NO_MODEL = {"model_id": None, "base_model": None, "custom_model": None}
TUNED = {"model_id": ARN, "base_model": "amazon.nova-micro-v1:0:128k", "custom_model": "arn:…"}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text-api")
    with Cloud(LocalConfig(port=0, state_dir=folder / "cloud")) as cloud:
        s3 = cloud.client("s3")
        s3.create_bucket(Bucket="personas")
        files = {
            "marda": {
                "name": "Marda Quill, innkeeper of the Brass Lantern in Emberfall",
                "voice": "You are warm and full of gossip, and you call everyone duckling.",
            },
            "strict": {"name": "the reeve", "voice": "You are dry.", "rules": ["Never jest."]},
            "broken": {"name": "nobody"},
        }
        for key, persona in files.items():
            s3.put_object(Bucket="personas", Key=f"emberfall/{key}.json", Body=json.dumps(persona))
        yield cloud


@pytest.fixture
def stand_in():
    with ApiStandIn() as stand_in:
        yield stand_in


@pytest.fixture
def load(cloud, stand_in, load_function):
    """Import the function with what differs from an environment where no model is promoted."""

    def load(**environment):
        defaults = {
            "BASE_MODEL": BASE_MODEL,
            "MODEL": json.dumps(NO_MODEL),
            "GUARDRAIL": "",
            "PERSONAS_URI": PERSONAS,
            "LOG_PROMPTS": "false",
            "VERSION": "1.2.3",
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": stand_in.url,
        }
        return load_function("text_api", **cloud.environment(), **{**defaults, **environment})

    yield load
    cloud.faults.clear()


@pytest.fixture
def ask(load, read_event, context):
    """The status, headers and decoded body of the response to a request; a text is sent as is."""
    event = read_event("api_text")

    def ask(request, function=None):
        event["body"] = request if isinstance(request, str | None) else json.dumps(request)
        response = (function or load()).handler(event, context)
        assert response["headers"]["x-request-id"] == event["requestContext"]["requestId"]
        body = json.loads(response["body"])
        assert body["request_id"] == event["requestContext"]["requestId"]
        return response["statusCode"], response["headers"], body

    return ask


def test_the_recorded_request_is_answered(load, read_event, context, stand_in):
    response = load().handler(read_event("api_text"), context)
    assert response["statusCode"] == 200
    assert response["headers"]["content-type"] == "application/json"
    assert json.loads(response["body"]) == {
        "response": ANSWER,
        "model": "base",
        "model_id": BASE_MODEL,
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 12, "output_tokens": 6},
        "request_id": "c6af9ac6-7b61-11e6-9a41-93e8deadbeef",
    }
    assert stand_in.requests == [
        (
            f"/model/{BASE_MODEL}/invoke",
            {
                "schemaVersion": "messages-v1",
                "system": [{"text": MARDA}],
                "messages": [
                    {"role": "user", "content": [{"text": "Good evening, ma'am."}]},
                    {"role": "assistant", "content": [{"text": "Oh, bless your boots, duckling!"}]},
                    {"role": "user", "content": [{"text": "What does bread cost?"}]},
                ],
                "inferenceConfig": {"maxTokens": 64, "temperature": 0.5},
            },
        )
    ]


def test_a_body_may_come_in_base64(load, read_event, context):
    event = read_event("api_text")
    event["body"] = base64.b64encode(event["body"].encode()).decode()
    event["isBase64Encoded"] = True
    assert load().handler(event, context)["statusCode"] == 200


def test_without_the_gateways_request_id_the_functions_own_is_told(load, context):
    response = load().handler({"body": None}, context)
    assert response["headers"]["x-request-id"] == context.aws_request_id


def test_the_tuned_model_answers_by_what_the_parameter_names(ask, load, stand_in):
    function = load(MODEL=json.dumps(TUNED))
    status, _, body = ask({"question": "Bread?", "model": "tuned"}, function)
    assert (status, body["model"], body["model_id"]) == (200, "tuned", ARN)
    assert "note" not in body
    assert [path for path, _ in stand_in.requests] == [f"/model/{ARN}/invoke"]
    assert ask({"question": "Bread?"}, function)[2]["model_id"] == BASE_MODEL


def test_before_a_promotion_the_base_model_answers_for_the_tuned_one_and_says_so(ask):
    status, _, body = ask({"question": "Bread?", "model": "tuned"})
    assert (status, body["model"], body["model_id"]) == (200, "base", BASE_MODEL)
    assert "No tuned model" in body["note"]


def test_a_models_own_id_stands_for_its_inference_profile(ask, load, stand_in):
    ask({"question": "Bread?"}, load(BASE_MODEL="anthropic.claude-sonnet-4-6"))
    [(path, body)] = stand_in.requests
    assert path == "/model/global.anthropic.claude-sonnet-4-6/invoke"
    assert body["anthropic_version"]


def test_rules_follow_the_voice(ask, stand_in):
    ask({"question": "Bread?", "persona": "strict"})
    assert stand_in.requests[0][1]["system"] == [
        {"text": "You are the reeve. You are dry. Never jest."}
    ]


def test_without_a_persona_there_is_no_system_prompt(ask, stand_in):
    ask({"question": "Bread?"})
    assert "system" not in stand_in.requests[0][1]


def test_an_unknown_persona_is_told_the_known_ones(ask, stand_in):
    status, _, body = ask({"question": "Bread?", "persona": "fenwick"})
    assert status == 422
    [field] = body["error"]["fields"]
    assert field["field"] == "persona"
    assert field["reason"].endswith("known are: broken, marda, strict")
    assert not stand_in.requests


def test_where_no_personas_are_deployed_none_is_known(ask, load):
    status, _, body = ask({"question": "Bread?", "persona": "marda"}, load(PERSONAS_URI=""))
    assert (status, body["error"]["fields"][0]["field"]) == (422, "persona")


def test_a_broken_persona_is_not_the_callers_fault(ask):
    status, _, body = ask({"question": "Bread?", "persona": "broken"})
    assert (status, body["error"]["code"]) == (502, "persona_unusable")


def test_personas_that_cannot_be_read_are_an_error(ask, cloud):
    cloud.faults.add("s3", "GetObject", "InternalError", "Please try again.")
    status, _, body = ask({"question": "Bread?", "persona": "marda"})
    assert (status, body["error"]["code"]) == (502, "personas_unreadable")


def test_a_persona_is_read_once(ask, load, cloud):
    function = load()
    ask({"question": "Bread?", "persona": "marda"}, function)
    cloud.faults.add("s3", "GetObject", "InternalError", "Not to be met.")
    assert ask({"question": "Bread?", "persona": "marda"}, function)[0] == 200


@pytest.mark.parametrize("body", [None, "", "{", "bread", '{"question": "a}', "\\", '{"a": NaN,}'])
def test_what_is_no_json_is_a_bad_request(ask, stand_in, body):
    status, _, answer = ask(body)
    assert (status, answer["error"]["code"]) == (400, "not_json" if body else "no_body")
    assert "fields" not in answer["error"]
    assert not stand_in.requests


def turns(*roles):
    return [{"role": role, "text": "…"} for role in roles]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ([], "body"),
        ("{}", "question"),
        ({"question": ""}, "question"),
        ({"question": " \n\t"}, "question"),
        ({"question": 7}, "question"),
        ({"question": "a" * 8_001}, "question"),
        ({"question": "?", "streaming": True}, "streaming"),
        ({"question": "?", "persona": "../secrets"}, "persona"),
        ({"question": "?", "persona": ""}, "persona"),
        ({"question": "?", "max_tokens": 0}, "max_tokens"),
        ({"question": "?", "max_tokens": MOST_TOKENS + 1}, "max_tokens"),
        ({"question": "?", "max_tokens": "64"}, "max_tokens"),
        ({"question": "?", "max_tokens": None}, "max_tokens"),
        ({"question": "?", "temperature": 1.1}, "temperature"),
        ('{"question": "?", "temperature": NaN}', "temperature"),
        ('{"question": "?", "temperature": 1e999}', "temperature"),
        ({"question": "?", "model": "best"}, "model"),
        ({"question": "?", "history": turns("assistant", "user")}, "history"),
        ({"question": "?", "history": turns("user")}, "history"),
        ({"question": "?", "history": turns("user", "user")}, "history"),
        ({"question": "?", "history": turns(*["user", "assistant"] * 26)}, "history"),
        ({"question": "?", "history": turns("system")}, "history.0.role"),
        ({"question": "?", "history": [{"role": "user", "text": ""}]}, "history.0.text"),
        ({"question": "?", "history": [{"role": "user"}]}, "history.0.text"),
    ],
)
def test_an_invalid_field_is_named_with_the_reason(ask, stand_in, request_, field):
    status, _, body = ask(request_)
    assert (status, body["error"]["code"]) == (422, "invalid_request")
    assert [violation["field"] for violation in body["error"]["fields"]] == [field]
    assert all(violation["reason"] for violation in body["error"]["fields"])
    assert not stand_in.requests


def test_the_longest_answer_may_be_a_turn_of_the_history(ask):
    answer = {"role": "assistant", "text": "word " * MOST_TOKENS}
    history = [{"role": "user", "text": "Tell me all."}, answer]
    assert ask({"question": "And then?", "history": history})[0] == 200


def test_too_many_invalid_fields_are_counted_not_named(ask, stand_in):
    """Named, those of one body would not fit into what a function may answer."""
    status, _, body = ask({"question": "?"} | {f"field_{n}": n for n in range(50_000)})
    assert (status, body["error"]["code"]) == (422, "invalid_request")
    (violation,) = body["error"]["fields"]
    assert violation["field"] == "body"
    assert "50,000 fields" in violation["reason"]
    assert not stand_in.requests


def test_a_reason_is_told_without_pydantics_words(ask):
    _, _, body = ask({"question": "?", "history": turns("user")})
    (violation,) = body["error"]["fields"]
    assert violation["reason"] == "turns must alternate, from a user's to an assistant's"


def test_what_only_some_families_take_is_refused_by_name(ask, load):
    function = load(BASE_MODEL="anthropic.claude-opus-5")
    status, _, body = ask({"question": "?", "temperature": 0.5}, function)
    assert (status, body["error"]["fields"][0]["field"]) == (422, "temperature")


def test_a_base_model_past_its_end_of_life_names_what_replaces_it(ask, load, stand_in):
    function = load(BASE_MODEL="amazon.titan-text-express-v1")
    status, _, body = ask({"question": "?"}, function)
    assert (status, body["error"]["code"]) == (502, "model_unusable")
    assert "end of life" in body["error"]["message"]
    assert not stand_in.requests


def test_a_custom_model_may_outlive_its_base(ask, load, stand_in):
    stand_in.served = "amazon.titan-text-express-v1"
    tuned = {**TUNED, "base_model": "amazon.titan-text-express-v1"}
    function = load(MODEL=json.dumps(tuned))
    status, _, body = ask({"question": "?", "model": "tuned"}, function)
    assert (status, body["response"]) == (200, ANSWER)


@pytest.mark.parametrize("model_id", ["acme.parrot-v1", ARN])
def test_a_model_of_no_known_family_is_an_error(ask, load, model_id):
    function = load(MODEL=json.dumps({"model_id": model_id, "base_model": None}))
    status, _, body = ask({"question": "?", "model": "tuned"}, function)
    assert (status, body["error"]["code"]) == (502, "model_unusable")
    assert BASE_MODEL in body["error"]["message"]


@pytest.mark.parametrize(
    ("error", "status", "code"),
    [
        ("ThrottlingException", 429, "throttled"),
        ("ServiceQuotaExceededException", 429, "throttled"),
        ("ModelTimeoutException", 504, "model_timed_out"),
        ("ModelNotReadyException", 503, "no_capacity"),
        ("ServiceUnavailableException", 503, "no_capacity"),
        ("AccessDeniedException", 502, "model_failed"),
        ("ResourceNotFoundException", 502, "model_failed"),
        ("ValidationException", 502, "model_failed"),
        ("ModelErrorException", 502, "model_failed"),
        ("InternalServerException", 502, "model_failed"),
        ("ExpiredTokenException", 502, "model_failed"),
    ],
)
def test_an_error_of_bedrock_is_told_once_and_for_people(ask, load, cloud, error, status, code):
    secret = "arn:aws:iam::123456789012:role/quench-text-api is not authorized"
    cloud.faults.add("bedrock-runtime", "InvokeModel", error, secret)
    function = load(AWS_ENDPOINT_URL_BEDROCK_RUNTIME=cloud.endpoint)
    told, headers, body = ask({"question": "?"}, function)
    assert (told, body["error"]["code"]) == (status, code)
    assert BASE_MODEL in body["error"]["message"]
    assert "123456789012" not in body["error"]["message"]
    assert (int(headers.get("retry-after", 0)) > 0) == (status in (429, 503))
    if status == 502:
        assert error in body["error"]["message"]
    assert not cloud.faults.concerns("bedrock-runtime")


def test_a_model_that_does_not_answer_in_time_is_a_time_out():
    with ApiStandIn(latency_seconds=5) as slow, pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", slow.url)
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        impatient = generation.client("bedrock-runtime", read_seconds=0.2, region="us-east-1")
        with pytest.raises(ApiError) as raised:
            generation.invoke(impatient, BASE_MODEL, {"messages": []})
        assert raised.value.status == 504
        assert slow.calls + len(slow.requests) == 1


def test_a_model_that_cannot_be_reached_is_an_error(ask, load):
    function = load(AWS_ENDPOINT_URL_BEDROCK_RUNTIME="http://127.0.0.1:1")
    status, _, body = ask({"question": "?"}, function)
    assert (status, body["error"]["code"]) == (502, "model_failed")


def test_a_connection_that_was_closed_while_nobody_looked_is_opened_again(ask, load, stand_in):
    answer, closed = stand_in.answer, []

    def close_once(path, body):
        if not closed:
            closed.append(path)
            raise ConnectionError
        return answer(path, body)

    stand_in.answer = close_once
    assert ask({"question": "?"})[0] == 200
    assert closed


def test_a_response_that_cannot_be_read_is_an_error(ask, stand_in):
    stand_in.answer = lambda path, body: (200, {"surprise": True})
    status, _, body = ask({"question": "?"})
    assert (status, body["error"]["code"]) == (502, "model_failed")


def test_a_defect_of_ours_is_told_without_its_stack(ask, load, monkeypatch):
    function = load()

    def fail(*arguments):
        raise RuntimeError("a secret of the inside")

    monkeypatch.setattr(function.generator, "choose", fail)
    status, _, body = ask({"question": "?"}, function)
    assert (status, body["error"]["code"]) == (500, "internal_error")
    assert "secret" not in json.dumps(body)


def test_a_guardrail_is_passed(ask, load):
    arn = "arn:aws:bedrock:us-east-1:123456789012:guardrail/abc"
    function = load(GUARDRAIL=f"{arn}:3")
    sent = []
    function.bedrock.meta.events.register(
        "before-sign.bedrock-runtime.InvokeModel",
        lambda request, **_: sent.append(dict(request.headers)),
    )
    assert ask({"question": "?"}, function)[0] == 200
    assert sent[0]["X-Amzn-Bedrock-GuardrailIdentifier"] == arn
    assert sent[0]["X-Amzn-Bedrock-GuardrailVersion"] == "3"


def test_prompts_are_logged_only_by_setting(ask, load, monkeypatch):
    secret = "Where is the silver hidden?"
    [handler] = http.logger.handlers
    for setting, logged in (("false", False), ("true", True)):
        stream = io.StringIO()
        monkeypatch.setattr(handler, "stream", stream)
        ask({"question": secret}, load(LOG_PROMPTS=setting))
        ask({"question": secret, "persona": "fenwick"}, load(LOG_PROMPTS=setting))
        ask({"question": secret, "temperature": secret}, load(LOG_PROMPTS=setting))
        ask(f'{{"question": "{secret}"', load(LOG_PROMPTS=setting))
        out = stream.getvalue()
        assert (secret in out) == logged
        assert (ANSWER in out) == logged
        records = [json.loads(line) for line in out.splitlines()]
        assert len(records) == 4
        for record in records:
            assert record["request_id"] == "c6af9ac6-7b61-11e6-9a41-93e8deadbeef"
        assert records[0]["model_id"] == BASE_MODEL


def test_the_environment_is_validated(load):
    with pytest.raises(EnvironmentVariableError, match="GUARDRAIL"):
        load(GUARDRAIL="abc")
    with pytest.raises(EnvironmentVariableError, match="MODEL"):
        load(MODEL="amazon.nova-micro-v1:0")


def test_nothing_waits_longer_than_the_gateway(load):
    function = load()
    config = function.bedrock.meta.config
    assert config.retries["total_max_attempts"] == 1
    assert access.SECONDS + config.connect_timeout + config.read_timeout < 29


def test_production_elsewhere_asks_as_its_role_at_home(ask, load, stand_in):
    role = "arn:aws:iam::222222222222:role/quench-prod-text-api"
    function = load(ACCESS=json.dumps({"role": role, "region": "eu-west-1"}))
    signed = []
    function.bedrock.meta.events.register(
        "before-send.bedrock-runtime.InvokeModel",
        lambda request, **_: signed.append(request.headers["Authorization"].decode()),
    )
    for _ in range(2):
        status, _, body = ask({"question": "What does bread cost?", "persona": "marda"}, function)
        assert (status, body["response"]) == (200, ANSWER)
    assert len(signed) == len(stand_in.requests) == 2
    assert all("/eu-west-1/bedrock/" in header for header in signed)
    assert len({header.partition("/")[0] for header in signed}) == 1  # assumed once
    assert "testing" not in signed[0]


def test_a_role_that_cannot_be_assumed_is_told(ask, load, cloud, stand_in):
    role = "arn:aws:iam::222222222222:role/quench-prod-gone"
    cloud.faults.add("sts", "AssumeRole", "AccessDenied", "It is not authorized.")
    function = load(ACCESS=json.dumps({"role": role, "region": "eu-west-1"}))
    status, _, body = ask({"question": "What does bread cost?"}, function)
    assert (status, body["error"]["code"]) == (502, "model_failed")
    assert "may not assume the role" in body["error"]["message"]
    assert not stand_in.requests


def test_the_examples_personas_speak_as_the_tuning_data_does():
    examples = Path(__file__).parents[2] / "examples" / "emberfall"
    lines = (examples / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()
    known = {json.loads(line)["system"] for line in lines}
    files = [file.read_text(encoding="utf-8") for file in (examples / "personas").iterdir()]
    assert {Persona.model_validate_json(text).system for text in files} == known
