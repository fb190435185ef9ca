"""What the system tests are given: a deployed stage's API, and credentials.

    API_URL      with a slash at its end
    STACK_NAME   the inference stack, whose output ServedModel says what it was deployed with
    API_KEY_ID   only where the API asks for keys; else requests are signed (SigV4)

Credentials and region are found as any AWS client finds them.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import boto3
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.httpsession import URLLib3Session

SECONDS = 35.0


@dataclass(frozen=True)
class Response:
    status: int
    headers: dict[str, str]
    content: bytes

    @property
    def body(self) -> dict[str, Any]:
        body: dict[str, Any] = json.loads(self.content)
        return body


Call = Callable[..., Response]


def variable(name: str) -> str:
    if value := os.environ.get(name):
        return value
    pytest.exit(f"{name} is not set; the system tests need a deployed API ({__file__})", 2)


@pytest.fixture(scope="session")
def session() -> boto3.Session:
    return boto3.Session()


@pytest.fixture(scope="session")
def call(session: boto3.Session) -> Call:
    """Sends a request: `call("POST", "text", {…})`; `authorized=False` leaves out who asks."""
    http = URLLib3Session(timeout=SECONDS)
    url, key = variable("API_URL"), api_key(session)

    def send(method: str, path: str, body: Any = None, authorized: bool = True) -> Response:
        data = body if isinstance(body, bytes) else json.dumps(body).encode() if body else None
        request = AWSRequest(method, url + path, data=data)
        request.headers["Content-Type"] = "application/json"
        if authorized and key:
            request.headers["x-api-key"] = key
        elif authorized:
            credentials = session.get_credentials().get_frozen_credentials()
            SigV4Auth(credentials, "execute-api", session.region_name).add_auth(request)
        answer = http.send(request.prepare())
        headers = {name.lower(): value for name, value in answer.headers.items()}
        return Response(answer.status_code, headers, answer.content)

    return send


def api_key(session: boto3.Session) -> str | None:
    if key_id := os.environ.get("API_KEY_ID"):
        found = session.client("apigateway").get_api_key(apiKey=key_id, includeValue=True)
        return str(found["value"])
    return None


@pytest.fixture(scope="session")
def deployed(session: boto3.Session) -> dict[str, str | None]:
    """The model that the stage was deployed with; every value is null before the first approval."""
    name = variable("STACK_NAME")
    (stack,) = session.client("cloudformation").describe_stacks(StackName=name)["Stacks"]
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
    parsed: dict[str, str | None] = json.loads(outputs["ServedModel"])
    return parsed
