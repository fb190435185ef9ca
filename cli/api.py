"""The deployed API, as an application calls it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import HTTPClientError, NoCredentialsError
from botocore.httpsession import URLLib3Session

from cli.errors import CommandError

Mode = Literal["base", "tuned", "rag"]
SECONDS = 35  # API Gateway answers within 29


@dataclass(frozen=True)
class Reply:
    status: int
    body: dict[str, Any]
    request_id: str

    @property
    def problem(self) -> str:
        """What an error says, for people."""
        error = self.body.get("error") or {}
        return str(error.get("message") or self.body.get("message") or self.body)


class Api:
    """`url` ends in a slash. Requests are signed with the session's credentials, or carry a key."""

    def __init__(self, url: str, session: boto3.Session, key: str | None = None) -> None:
        self._url, self._session, self._key = url, session, key
        self._http = URLLib3Session(timeout=SECONDS)

    def ask(
        self,
        mode: Mode,
        question: str,
        max_tokens: int,
        persona: str | None = None,
        history: Sequence[Mapping[str, str]] = (),
    ) -> Reply:
        """One question to a mode's endpoint; `history` are earlier turns, as the API takes them."""
        body: dict[str, Any] = {
            "question": question,
            "max_tokens": max_tokens,
            "history": list(history),
        }
        if persona:
            body["persona"] = persona
        if mode == "rag":
            return self.post("rag", body)
        return self.post("text", {**body, "model": mode})

    def draw(self, prompt: str) -> Reply:
        return self.post("image", {"prompt": prompt})

    def health(self) -> Reply:
        return self._send(AWSRequest("GET", f"{self._url}health"))

    def post(self, path: str, body: dict[str, Any]) -> Reply:
        """Raises CommandError if there is no response."""
        return self._send(
            AWSRequest(
                "POST",
                self._url + path,
                data=json.dumps(body).encode(),
                headers={"Content-Type": "application/json"},
            )
        )

    def _send(self, request: AWSRequest) -> Reply:
        if self._key:
            request.headers["x-api-key"] = self._key
        else:
            credentials = self._session.get_credentials()
            if credentials is None:
                raise NoCredentialsError
            region = self._session.region_name
            SigV4Auth(credentials.get_frozen_credentials(), "execute-api", region).add_auth(request)
        try:
            response = self._http.send(request.prepare())
            request_id = response.headers.get("x-amzn-RequestId", "without an id")
            return Reply(response.status_code, json.loads(response.content), request_id)
        except (HTTPClientError, ValueError) as error:
            raise CommandError(f"{request.url} did not answer: {error}") from error


def deployed_api(outputs: dict[str, str], session: boto3.Session) -> Api:
    """The API of an inference stack, by the stack's outputs."""
    key_id = outputs.get("ApiKeyId")
    key = key_id and session.client("apigateway").get_api_key(apiKey=key_id, includeValue=True)
    return Api(outputs["ApiUrl"], session, key["value"] if key else None)
