"""Signature Version 4, checked as API Gateway checks it for methods that AWS_IAM authorizes.

https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html
"""

import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from hashlib import sha256
from urllib.parse import parse_qsl, quote

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.compat import HTTPHeaders
from botocore.credentials import Credentials

ALGORITHM = "AWS4-HMAC-SHA256"
SERVICE = "execute-api"
_TIMESTAMP = "%Y%m%dT%H%M%SZ"
_SKEW = timedelta(minutes=5)
_LONGEST = 604_800  # seconds that a presigned request may be good for


class SignatureError(Exception):
    """Why a request is refused: API Gateway's gateway response type, error type and message."""

    def __init__(self, response_type: str, error_type: str, message: str) -> None:
        super().__init__(message)
        self.response_type = response_type
        self.error_type = error_type
        self.message = message


@dataclass(frozen=True)
class ReceivedRequest:
    """A request as it came over the wire: path and query as they were encoded."""

    method: str
    path: str
    query: str
    headers: tuple[tuple[str, str], ...]
    body: bytes

    def header(self, name: str) -> str | None:
        """The value of a header; the last, if there are several."""
        values = [value for known, value in self.headers if known.lower() == name.lower()]
        return values[-1] if values else None

    @property
    def parameters(self) -> list[tuple[str, str]]:
        """The parameters of the query, decoded."""
        return parse_qsl(self.query, keep_blank_values=True)


def verify(request: ReceivedRequest, credentials: Credentials, region: str) -> None:
    """Raises SignatureError unless the request is signed with these credentials, and just now."""
    signed = _by_header(request) or _by_query(request)
    if signed is None:
        raise SignatureError(
            "MISSING_AUTHENTICATION_TOKEN",
            "MissingAuthenticationTokenException",
            "Missing Authentication Token",
        )
    access_key, _, scope = signed.credential.partition("/")
    date, _, rest = scope.partition("/")
    wrong = []
    if rest.split("/")[0] != region:
        wrong.append(f"Credential should be scoped to a valid region, not '{rest.split('/')[0]}'. ")
    if rest.split("/")[1:2] != [SERVICE]:
        wrong.append(f"Credential should be scoped to correct service: '{SERVICE}'. ")
    if rest.split("/")[2:] != ["aws4_request"]:
        wrong.append("Credential should be scoped with a valid terminator: 'aws4_request'. ")
    if wrong:
        raise _invalid("".join(wrong))
    if access_key != credentials.access_key or signed.token is not None:
        raise SignatureError(
            "INVALID_SIGNATURE",
            "UnrecognizedClientException",
            "The security token included in the request is invalid.",
        )
    _check_time(signed, date)
    if "host" not in signed.headers:
        raise _invalid("'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
    auth = _Auth(credentials, region, request, signed)
    aws_request = AWSRequest(request.method, request.path, data=request.body)
    aws_request.context["timestamp"] = signed.timestamp
    canonical = auth.canonical_request(aws_request)
    to_sign = auth.string_to_sign(aws_request, canonical)
    if not hmac.compare_digest(auth.signature(to_sign, aws_request), signed.signature):
        raise _invalid(
            "The request signature we calculated does not match the signature you provided. Check "
            "your AWS Secret Access Key and signing method. Consult the service documentation for "
            f"details.\n\nThe Canonical String for this request should have been\n'{canonical}'\n\n"
            f"The String-to-Sign should have been\n'{to_sign}'\n"
        )


@dataclass(frozen=True)
class _Signed:
    """What a request says of its signature. `seconds` None: not presigned."""

    credential: str
    headers: frozenset[str]
    signature: str
    timestamp: str
    token: str | None
    seconds: int | None = None


class _Auth(SigV4Auth):
    """botocore's signer, of what was received."""

    def __init__(
        self, credentials: Credentials, region: str, request: ReceivedRequest, signed: _Signed
    ) -> None:
        super().__init__(credentials, SERVICE, region)
        self._request = request
        self._signed = signed

    def headers_to_sign(self, request: AWSRequest) -> HTTPHeaders:
        headers = HTTPHeaders()
        for name, value in self._request.headers:
            if name.lower() in self._signed.headers:
                headers[name.lower()] = value  # adds to those of the same name
        return headers

    def canonical_query_string(self, request: AWSRequest) -> str:
        pairs = [
            (quote(name, safe="-_.~"), quote(value, safe="-_.~"))
            for name, value in self._request.parameters
            if name != "X-Amz-Signature"
        ]
        return "&".join(f"{name}={value}" for name, value in sorted(pairs))

    def payload(self, request: AWSRequest) -> str:
        return sha256(self._request.body).hexdigest()


def _by_header(request: ReceivedRequest) -> _Signed | None:
    authorization = request.header("Authorization")
    if authorization is None:
        return None
    algorithm, _, rest = authorization.partition(" ")
    if algorithm != ALGORITHM:
        raise _incomplete(
            "Invalid key=value pair (missing equal-sign) in Authorization header: "
            f"'{authorization}'."
        )
    parts = dict(part.partition("=")[::2] for part in re.split(r"\s*,\s*", rest.strip()))
    required = ("Credential", "Signature", "SignedHeaders")
    if missing := [name for name in required if not parts.get(name)]:
        raise _incomplete(
            "".join(f"Authorization header requires '{name}' parameter. " for name in missing)
            + f"Authorization={ALGORITHM}"
        )
    when = request.header("X-Amz-Date")
    if when is None and (date := request.header("Date")) is not None:
        try:
            when = parsedate_to_datetime(date).astimezone(UTC).strftime(_TIMESTAMP)
        except ValueError:
            when = date
    if when is None:
        raise _incomplete(
            "Authorization header requires existence of either a 'X-Amz-Date' or a 'Date' header. "
            f"Authorization={ALGORITHM}"
        )
    return _Signed(
        parts["Credential"],
        frozenset(parts["SignedHeaders"].split(";")),
        parts["Signature"],
        when,
        request.header("X-Amz-Security-Token"),
    )


def _by_query(request: ReceivedRequest) -> _Signed | None:
    query: Mapping[str, str] = dict(request.parameters)
    if query.get("X-Amz-Algorithm") != ALGORITHM:
        return None
    names = ("Credential", "SignedHeaders", "Signature", "Date", "Expires")
    if missing := [name for name in names if not query.get(f"X-Amz-{name}")]:
        raise _incomplete(
            "AWS query-string parameters must include "
            + ", ".join(f"'X-Amz-{name}'" for name in missing)
            + ". Re-examine the query-string parameters."
        )
    expires = query["X-Amz-Expires"]
    if not expires.isdecimal() or not 1 <= int(expires) <= _LONGEST:
        raise _invalid(f"X-Amz-Expires must be a number of seconds from 1 to {_LONGEST}.")
    return _Signed(
        query["X-Amz-Credential"],
        frozenset(query["X-Amz-SignedHeaders"].split(";")),
        query["X-Amz-Signature"],
        query["X-Amz-Date"],
        query.get("X-Amz-Security-Token"),
        int(expires),
    )


def _check_time(signed: _Signed, date: str) -> None:
    try:
        when = datetime.strptime(signed.timestamp, _TIMESTAMP).replace(tzinfo=UTC)
    except ValueError:
        raise _invalid(
            f"Date must be in ISO-8601 'basic format'. Got '{signed.timestamp}'."
        ) from None
    if date != signed.timestamp[:8]:
        raise _invalid(
            "Date in Credential scope does not match YYYYMMDD from ISO-8601 version of date from "
            f"HTTP: '{date}' != '{signed.timestamp[:8]}', from '{signed.timestamp}'."
        )
    now = datetime.now(UTC)
    until = when + (_SKEW if signed.seconds is None else timedelta(seconds=signed.seconds))
    if now > until:
        limit = (now - _SKEW).strftime(_TIMESTAMP)
        raise _invalid(
            f"Signature expired: {signed.timestamp} is now earlier than {limit} "
            f"({now.strftime(_TIMESTAMP)} - 5 min.)"
        )
    if when > now + _SKEW:
        limit = (now + _SKEW).strftime(_TIMESTAMP)
        raise _invalid(
            f"Signature not yet current: {signed.timestamp} is still later than {limit} "
            f"({now.strftime(_TIMESTAMP)} + 5 min.)"
        )


def _invalid(message: str) -> SignatureError:
    return SignatureError("INVALID_SIGNATURE", "InvalidSignatureException", message)


def _incomplete(message: str) -> SignatureError:
    return SignatureError("INVALID_SIGNATURE", "IncompleteSignatureException", message)
