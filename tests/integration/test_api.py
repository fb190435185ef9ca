"""The API as deployed: its OpenAPI document, its system tests, and `quench ask`."""

import json
import os
import subprocess
import sys
from collections import Counter
from typing import Any

import pytest
import requests
import schemathesis
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from stack import ROOT, Tuning, small, until
from typer.testing import CliRunner

from cli.main import app

pytestmark = pytest.mark.timeout(900)  # a test asks hundreds of times
SETTINGS = small(api={"rate_limit": 10_000, "burst_limit": 5_000})
STACK = "quench-prod-inference"
CASES = 2_000
CHECKS = (
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
)
MOST_TOKENS = 4  # so that answers take no time

schema = schemathesis.openapi.from_path(str(ROOT / "lambdas" / "openapi.json"))


class Signed(requests.auth.AuthBase):
    """Signs requests (SigV4) as API Gateway asks for."""

    def __init__(self, cloud: Any) -> None:
        self._credentials = cloud.session.get_credentials().get_frozen_credentials()
        self._region = cloud.config.region

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        signed = AWSRequest(request.method, request.url, data=request.body or b"")
        SigV4Auth(self._credentials, "execute-api", self._region).add_auth(signed)
        request.headers.update(dict(signed.headers))
        return request


@pytest.fixture(scope="module")
def stack(tuning: Tuning) -> Tuning:
    """With a document to find: an index without any is a 503."""
    tuning.load_models()
    s3 = tuning.client("s3")
    bucket = tuning.outputs["DocumentsBucketName"]
    s3.put_object(Bucket=bucket, Key="gate.md", Body=b"# The gate\n\nIt is kept by Ysolde.")
    session = requests.Session()
    session.auth = Signed(tuning.cloud)
    health = tuning.outputs["ApiUrl"] + "health"
    until(lambda: session.get(health, timeout=35).json()["index"]["chunks"], "the document")
    return tuning


@pytest.mark.parametrize("path", ["/text", "/rag", "/image"])
def test_whatever_is_sent_is_answered_as_documented(path: str, stack: Tuning) -> None:
    operation = schema[path]["POST"]
    answered: Counter[int] = Counter()

    @given(
        operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
        | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
    )
    @settings(
        max_examples=CASES // 3 + 1,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def send(case: schemathesis.Case) -> None:
        if isinstance(case.body, dict) and path != "/image":
            tokens = case.body.get("max_tokens", MOST_TOKENS)
            if isinstance(tokens, int) and tokens >= 1:
                case.body["max_tokens"] = min(tokens, MOST_TOKENS)
        response = case.call(
            base_url=stack.outputs["ApiUrl"].rstrip("/"), auth=Signed(stack.cloud), timeout=35
        )
        answered[response.status_code] += 1
        case.validate_response(response, checks=CHECKS)

    send()
    assert sum(answered.values()) >= CASES // 3
    assert answered[200] > 100, answered
    assert answered[422] > 100, answered


@pytest.mark.parametrize("path", ["/health", "/openapi.json"])
def test_what_takes_nothing_is_answered_as_documented(path: str, stack: Tuning) -> None:
    case = schema[path]["GET"].Case()
    response = case.call(
        base_url=stack.outputs["ApiUrl"].rstrip("/"), auth=Signed(stack.cloud), timeout=35
    )
    case.validate_response(response, checks=CHECKS)


def test_an_answer_at_nearly_no_temperature_is_one_at_none(stack: Tuning) -> None:
    """Found by the cases above: so small a number made the local model's scores infinite."""
    texts = {
        schema["/text"]["POST"]
        .Case(body={"question": "Who?", "max_tokens": 8, "temperature": temperature})
        .call(base_url=stack.outputs["ApiUrl"].rstrip("/"), auth=Signed(stack.cloud), timeout=35)
        .json()["response"]
        for temperature in (0.0, 1e-200)
    }
    assert len(texts) == 1


def system_tests(stack: Tuning) -> subprocess.CompletedProcess[str]:
    """Run them as the release pipeline does: with a URL, a stack and credentials."""
    given = {
        **stack.cloud.environment(),
        "API_URL": stack.outputs["ApiUrl"],
        "STACK_NAME": STACK,
        "PATH": os.environ["PATH"],
    }
    config = "tests/system/pytest.ini"
    command = [sys.executable, "-m", "pytest", "--config-file", config, "tests/system"]
    return subprocess.run(
        command, cwd=ROOT, env=given, capture_output=True, text=True, check=False, timeout=200
    )


def test_the_system_tests_pass_where_the_stage_does_what_it_should(stack: Tuning) -> None:
    run = system_tests(stack)
    assert run.returncode == 0, run.stdout


def test_the_system_tests_fail_where_the_model_cannot_answer(stack: Tuning) -> None:
    name = stack.outputs["ProductionModelParameterName"]
    before = stack.client("ssm").get_parameter(Name=name)["Parameter"]["Value"]
    gone = "arn:aws:bedrock:us-east-1:123456789012:custom-model-deployment/gonegonegone"
    deploy_with(stack, name, json.dumps({**json.loads(before), "model_id": gone}))
    try:
        run = system_tests(stack)
    finally:
        deploy_with(stack, name, before)
    assert run.returncode == 1, run.stdout
    assert "test_the_tuned_model_answers_once_there_is_one" in run.stdout


def deploy_with(stack: Tuning, parameter: str, value: str) -> None:
    stack.client("ssm").put_parameter(Name=parameter, Value=value, Overwrite=True)
    stack.client("cloudformation").update_stack(
        StackName=STACK, UsePreviousTemplate=True, Capabilities=["CAPABILITY_NAMED_IAM"]
    )


def test_ask_shows_the_answer_with_its_sources(stack: Tuning, terminal: CliRunner) -> None:
    answer = terminal.invoke(app, ["ask", "--mode", "rag", "Who keeps the gate?"])
    assert answer.exit_code == 0, answer.output
    assert f"[1] The gate  s3://{stack.outputs['DocumentsBucketName']}/gate.md" in answer.output


def test_ask_of_an_unknown_persona_names_the_known(stack: Tuning, terminal: CliRunner) -> None:
    bucket, _, prefix = stack.outputs["PersonasUri"].removeprefix("s3://").partition("/")
    persona = {"name": "Ysolde", "voice": "You whisper.", "rules": []}
    stack.client("s3").put_object(
        Bucket=bucket, Key=f"{prefix}ysolde.json", Body=json.dumps(persona).encode()
    )
    answer = terminal.invoke(app, ["ask", "--persona", "nobody", "Who are you?"])
    assert answer.exit_code == 1
    assert "ysolde" in answer.output
    assert terminal.invoke(app, ["ask", "--persona", "ysolde", "Who are you?"]).exit_code == 0


def test_chat_goes_on_until_the_input_ends(terminal: CliRunner) -> None:
    answer = terminal.invoke(app, ["chat"], input="Who are you?\n\nAnd where?\n")
    assert answer.exit_code == 0, answer.output
    assert answer.output.count("amazon.nova-micro-v1:0") == 2
