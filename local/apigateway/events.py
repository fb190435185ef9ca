"""A request as a function gets it from API Gateway, and what it may answer.

https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-lambda-proxy-integrations.html
"""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from local.apigateway.routes import Route
from local.apigateway.signatures import ReceivedRequest

# Headers that only the gateway itself may set.
_REMAPPED = ("connection", "content-length", "date", "server", "via", "www-authenticate")
_HEADER_NAME = re.compile(r"[\w!#$%&'*+.^`|~-]+", re.ASCII)
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")
_DROPPED = ("transfer-encoding", "keep-alive", "te", "trailer", "upgrade")


class MalformedResponseError(Exception):
    """A function's answer is none that API Gateway understands; the message says why."""


def proxy_event(
    request: ReceivedRequest,
    route: Route,
    parameters: Mapping[str, str],
    context: Mapping[str, Any],
    variables: Mapping[str, str],
    binary_types: Sequence[str],
) -> dict[str, Any]:
    """The event of a request, of payload format version 1.0. `context` is its request context."""
    hidden = "authorization" if route.authorization == "AWS_IAM" else ""
    headers = [(name, value) for name, value in request.headers if name.lower() != hidden]
    source = context["identity"]["sourceIp"]
    headers += [("X-Forwarded-For", source), ("X-Forwarded-Proto", "http")]
    query = request.parameters
    content_type = (request.header("Content-Type") or "").partition(";")[0].strip()
    binary = _any_matches(binary_types, content_type)
    return {
        "resource": route.resource_path,
        "path": context["path"].removeprefix(f"/{context['stage']}") or "/",
        "httpMethod": request.method,
        "headers": dict(headers),
        "multiValueHeaders": _lists(headers),
        "queryStringParameters": dict(query) or None,
        "multiValueQueryStringParameters": _lists(query) or None,
        "pathParameters": dict(parameters) or None,
        "stageVariables": dict(variables) or None,
        "requestContext": dict(context),
        "body": _body(request.body, binary),
        "isBase64Encoded": binary and bool(request.body),
    }


def proxy_response(
    payload: bytes, accept: str, binary_types: Sequence[str]
) -> tuple[int, list[tuple[str, str]], bytes]:
    """Status, headers and body of a function's answer. Raises MalformedResponseError."""
    try:
        answer = json.loads(payload)
    except ValueError as error:
        raise MalformedResponseError(f"it is not JSON: {error}") from error
    if not isinstance(answer, dict):
        raise MalformedResponseError(f"it is no object with statusCode, but {_short(answer)}")
    body = answer.get("body")
    if body is not None and not isinstance(body, str):
        raise MalformedResponseError(f"its body is not text, but {_short(body)}")
    content = (body or "").encode(errors="replace")
    # Base64 is decoded for those only who accept what the API calls binary.
    accepted = accept.partition(",")[0].partition(";")[0].strip()
    if answer.get("isBase64Encoded") is True and _any_matches(binary_types, accepted):
        try:
            content = base64.b64decode(content, validate=True)
        except binascii.Error as error:
            raise MalformedResponseError(f"its body is not Base64: {error}") from error
    return _status(answer.get("statusCode")), _headers(answer), content


def _status(value: object) -> int:
    if isinstance(value, str) and value.isdecimal():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or not 100 <= value <= 599:
        raise MalformedResponseError(f"its statusCode is {_short(value)}")
    return value


def _headers(answer: Mapping[str, Any]) -> list[tuple[str, str]]:
    single = answer.get("headers") or {}
    several = answer.get("multiValueHeaders") or {}
    if not isinstance(single, dict) or not isinstance(several, dict):
        raise MalformedResponseError("its headers or multiValueHeaders are no objects")
    headers: list[tuple[str, str]] = []
    for name, values in several.items():
        if not isinstance(values, list):
            raise MalformedResponseError(f"its multiValueHeaders {name} is no list")
        headers += [(name, _header_value(name, value)) for value in values]
    for name, value in single.items():
        text = _header_value(name, value)
        if (name, text) not in headers:
            headers.append((name, text))
    return [
        (f"x-amzn-Remapped-{name}" if name.lower() in _REMAPPED else name, value)
        for name, value in headers
        if name.lower() not in _DROPPED
    ]


def _header_value(name: str, value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, str | int | float):
        raise MalformedResponseError(f"its header {name} is {_short(value)}")
    text = str(value)
    if not _HEADER_NAME.fullmatch(name) or not _HEADER_VALUE.fullmatch(text):
        raise MalformedResponseError(f"no header can be made of {_short(name)}: {_short(text)}")
    return text


def _body(body: bytes, binary: bool) -> str | None:
    if not body:
        return None
    return base64.b64encode(body).decode() if binary else body.decode(errors="replace")


def _any_matches(patterns: Sequence[str], media_type: str) -> bool:
    return any(pattern == "*/*" or fnmatchcase(media_type, pattern) for pattern in patterns)


def _lists(pairs: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    lists: dict[str, list[str]] = {}
    for name, value in pairs:
        lists.setdefault(name, []).append(value)
    return lists


def _short(value: object) -> str:
    return repr(value)[:100]
