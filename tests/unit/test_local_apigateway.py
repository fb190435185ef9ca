"""What the embedded API Gateway decides: whose signature holds, what a function may answer."""

import json
from typing import Any
from urllib.parse import quote, urlencode

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.wrappers import Response

from local.apigateway.events import MalformedResponseError, proxy_response
from local.apigateway.signatures import ReceivedRequest, SignatureError, verify
from local.apigateway.throttling import Throttles

OURS = Credentials("quench", "quench")
REGION = "us-east-1"

TEXT = st.text(st.characters(codec="utf-8"), max_size=12)
HEADER_TEXT = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=12)
REQUESTS = st.fixed_dictionaries(
    {
        "method": st.sampled_from(["GET", "POST", "PUT"]),
        "path": st.lists(TEXT.filter(lambda part: part not in ("", ".", "..")), min_size=1),
        "query": st.lists(st.tuples(TEXT, TEXT), max_size=4),
        "headers": st.dictionaries(st.sampled_from(["X-Game", "X-Player"]), HEADER_TEXT),
        "body": st.binary(max_size=20),
    }
)


def signed(asked: dict[str, Any]) -> ReceivedRequest:
    """A request as it arrives that botocore has signed."""
    path = "/_aws/execute-api/api/v1/" + "/".join(quote(part, safe="") for part in asked["path"])
    query = urlencode(asked["query"], quote_via=quote, safe="-_.~")
    url = f"http://127.0.0.1:4566{path}" + (f"?{query}" if query else "")
    request = AWSRequest(asked["method"], url, data=asked["body"], headers=asked["headers"])
    SigV4Auth(OURS, "execute-api", REGION).add_auth(request)
    headers = (("Host", "127.0.0.1:4566"), *request.headers.items())
    return ReceivedRequest(asked["method"], path, query, headers, asked["body"])


@given(REQUESTS)
def test_what_botocore_signs_is_let_in(asked: dict[str, Any]) -> None:
    verify(signed(asked), OURS, REGION)


@given(
    REQUESTS,
    st.sampled_from(["method", "path", "query", "header", "body", "host", "secret"]),
)
def test_and_nothing_of_it_can_be_changed(asked: dict[str, Any], what: str) -> None:
    request = signed({**asked, "headers": {"X-Game": "Emberfall"}})
    method, path, query, body = request.method, request.path, request.query, request.body
    headers, credentials = dict(request.headers), OURS
    match what:
        case "method":
            method = "DELETE"
        case "path":
            path += "x"
        case "query":
            query += "&x=1" if query else "x=1"
        case "header":
            headers["X-Game"] = "Other"
        case "body":
            body += b"x"
        case "host":
            headers["Host"] = "other"
        case "secret":
            credentials = Credentials("quench", "other")
    changed = ReceivedRequest(method, path, query, tuple(headers.items()), body)
    with pytest.raises(SignatureError, match="does not match"):
        verify(changed, credentials, REGION)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
ANSWERS = JSON | st.fixed_dictionaries(
    {"statusCode": st.integers(100, 599) | JSON},
    optional={
        "body": st.text() | JSON,
        "headers": st.dictionaries(st.text(), st.text() | JSON, max_size=3) | JSON,
        "multiValueHeaders": st.dictionaries(st.text(), st.lists(st.text()), max_size=3) | JSON,
        "isBase64Encoded": st.booleans() | JSON,
    },
)


@given(ANSWERS, st.sampled_from(["", "image/png"]))
def test_an_answer_is_sent_or_malformed(answer: Any, accept: str) -> None:
    try:
        status, headers, body = proxy_response(json.dumps(answer).encode(), accept, ["image/*"])
    except MalformedResponseError:
        return
    sent: list[tuple[str, str]] = []
    Response(body, status, headers)(
        {"REQUEST_METHOD": "GET", "wsgi.url_scheme": "http", "HTTP_HOST": "h"},
        lambda _status, wire: sent.extend(wire),
    )
    for name, value in sent:
        assert "\n" not in name + value
        (name + value).encode("latin-1")


def test_a_bucket_is_empty_after_its_burst_and_another_is_not() -> None:
    throttles = Throttles()
    assert [throttles.allow("one", 0.001, 3) for _ in range(4)] == [True, True, True, False]
    assert throttles.allow("two", 0.001, 3)
    assert throttles.allow("one", 0.001, 4), "other limits, a full bucket"
    assert not throttles.allow("none", 0.001, 0)
