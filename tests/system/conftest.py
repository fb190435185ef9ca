"""What the system tests are given: a deployed API's URL, credentials, and the model's parameter.

    API_URL           of the stage, with a slash at its end
    MODEL_PARAMETER   name in Parameter Store of the model that is to be in use
    API_KEY           only where the API asks for keys; else requests are signed (SigV4)

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
    url, key = variable("API_URL"), os.environ.get("API_KEY")

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


@pytest.fixture(scope="session")
def promoted(session: boto3.Session) -> dict[str, str | None]:
    """What the parameter says; every value is null before the first promotion."""
    name = variable("MODEL_PARAMETER")
    value = session.client("ssm").get_parameter(Name=name)["Parameter"]["Value"]
    parsed: dict[str, str | None] = json.loads(value)
    return parsed
