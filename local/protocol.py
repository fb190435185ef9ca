"""How an API call becomes a method call: parsed, checked and answered by botocore's models.

Routing, parsing and serialising are moto's (`moto.core.routing`, `.parse`, `.serialize`): they
work from the same `service-2.json` models the real clients are made of.
"""

import json
import logging
from contextvars import ContextVar
from typing import Any, ClassVar

import regex
from botocore import xform_name
from botocore.utils import parse_timestamp
from botocore.validate import ParamValidator
from moto.core.model import OperationModel
from moto.core.parse import PROTOCOL_PARSERS, RequestParserError
from moto.core.request import Request
from moto.core.routing import get_service_router
from moto.core.serialize import get_serializer_class
from moto.core.utils import get_service_model
from werkzeug.exceptions import NotFound
from werkzeug.wrappers import Response

log = logging.getLogger(__name__)

REGION: ContextVar[str] = ContextVar("REGION")
"""The region that the call being answered is signed for."""


class ServiceError(Exception):
    """Becomes the AWS error response a client raises as `ClientError`.

    `status` is used for a code the service's model does not give a status of its own.
    """

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


class Service:
    """Base of every engine that answers API calls.

    One method for each operation, in snake case: `def start_pipeline_execution(self, request)`.
    It takes the request with botocore's member names, already validated, and returns the response
    in the same names (`datetime` for timestamps, `bytes` for blobs). Headers that the operation's
    model does not know go where the client will find them: `ResponseMetadata`, `HTTPHeaders`.
    It raises `ServiceError`.
    """

    name: ClassVar[str]
    refuses: ClassVar[bool] = False
    """Whether an operation that there is no method for is refused; otherwise moto answers it."""

    def start(self) -> None:
        """Start what runs in the background. Called once, before the first request."""

    def stop(self) -> None:
        """End everything that runs in the background. Called once."""

    def implements(self, operation: str) -> bool:
        """Whether calls of an operation are answered here."""
        return self.refuses or hasattr(self, xform_name(operation))

    def answer(
        self, operation: OperationModel, request: Request, labels: dict[str, Any]
    ) -> Response:
        """The HTTP response for one call."""
        method = getattr(self, xform_name(operation.name), None)
        if method is None:
            message = f"The embedded cloud does not implement {self.name}:{operation.name}."
            return error_response(self.name, ServiceError("NotImplemented", message, 501))
        try:
            arguments = parse_request(operation, request, labels)
            if scope := credential_scope(request.headers.get("Authorization", "")):
                REGION.set(scope[0])
            result = dict(method(arguments) or {})
            headers = result.pop("ResponseMetadata", {}).get("HTTPHeaders", {})
            response = serialize_response(operation, result)
            response.headers.update(headers)
            return response
        except ServiceError as error:
            return error_response(self.name, error)


def credential_scope(authorization: str) -> tuple[str, str] | None:
    """Region and service that a SigV4 header is scoped to; None for any other header."""
    parts = authorization.partition("Credential=")[2].split(",")[0].split("/")
    return None if len(parts) < 5 else (parts[-3], parts[-2])


def match_operation(service: str, request: Request) -> tuple[OperationModel, dict[str, Any]] | None:
    """The operation a request calls and the labels in its path; None if the service has none."""
    try:
        operation, labels = get_service_router(service).match(request)
    except (NotFound, NotImplementedError):
        return None
    return operation, labels


def parse_request(
    operation: OperationModel, request: Request, labels: dict[str, Any]
) -> dict[str, Any]:
    """A call's arguments under botocore's names. Raises `ServiceError` where AWS rejects them."""
    body = request.get_data()
    input_shape = operation.input_shape
    if input_shape is None:
        return {}
    payload = input_shape.serialization.get("payload")
    if body and (payload is None or input_shape.members[payload].type_name == "structure"):
        try:
            json.loads(body)
        except ValueError as error:
            raise ServiceError(
                "SerializationException", f"The request body is not JSON: {error}"
            ) from error
    parser = PROTOCOL_PARSERS[operation.service_model.resolved_protocol](
        operation, timestamp_parser=parse_timestamp
    )
    try:
        arguments: dict[str, Any] = parser.parse(
            {
                "method": request.method,
                "values": request.args,
                "headers": request.headers,
                "body": body,
                "url_path": request.path,
                "url_params": labels,
            }
        )
    except (RequestParserError, ValueError, TypeError, AttributeError) as error:
        raise ServiceError(
            "SerializationException", f"{operation.name}: a value has the wrong type: {error}"
        ) from error
    report = ParamValidator().validate(arguments, input_shape)
    if report.has_errors():
        raise ServiceError("ValidationException", report.generate_report())
    if violations := list(_violations(input_shape, arguments, "")):
        count = f"{len(violations)} validation error{'s' if len(violations) > 1 else ''} detected"
        raise ServiceError("ValidationException", f"{count}: {'; '.join(violations)}")
    return arguments


def serialize_response(operation: OperationModel, result: dict[str, Any]) -> Response:
    """A call's response on the wire. Raises `TypeError` for a result not of the output's shape."""
    shape = operation.output_shape
    if shape is not None and not operation.has_event_stream_output:
        report = _AnswerValidator().validate(result, shape)
        if report.has_errors():
            raise TypeError(f"{operation.name} answered wrongly: {report.generate_report()}")
    service = operation.service_model
    serializer = get_serializer_class(service.service_name, service.resolved_protocol)(operation)
    serialized = serializer.serialize(result)
    headers = dict(serialized["headers"])
    for name, member in (shape.members if shape is not None else {}).items():
        # The serializer says application/json even where the response names its own content type.
        if member.serialization.get("name") == "Content-Type" and name in result:
            headers["Content-Type"] = result[name]
    return Response(serialized["body"], serialized["status_code"], headers)


class _AnswerValidator(ParamValidator):
    """As for requests, but lists may be empty: services answer with lists they would not take."""

    def _validate_list(self, param: Any, shape: Any, errors: Any, name: str) -> None:
        if param or not isinstance(param, list):
            super()._validate_list(param, shape, errors, name)  # type: ignore[misc]


def error_response(service: str, error: ServiceError) -> Response:
    """The response a real client turns into a `ClientError` with the error's code and message."""
    model = get_service_model(service)
    status = error.status
    for shape in model.error_shapes:
        if shape.error_code == error.code:
            status = shape.metadata.get("error", {}).get("httpStatusCode", status)
    if model.resolved_protocol in ("json", "rest-json"):
        headers = {
            "Content-Type": "application/x-amz-json-1.1"
            if model.resolved_protocol == "json"
            else "application/json",
            "x-amzn-errortype": error.code,
        }
        if "awsQueryCompatible" in model.metadata:
            headers["x-amzn-query-error"] = f"{error.code};Sender"
        body = json.dumps({"__type": error.code, "message": error.message})
        return Response(body, status, headers)
    serializer = get_serializer_class(service, model.resolved_protocol)(OperationModel({}, model))
    serialized = serializer.serialize(error)
    return Response(serialized["body"], status, serialized["headers"])


def _violations(shape: Any, value: Any, path: str) -> Any:
    """What botocore's own validator leaves to the service, in AWS's words."""
    if shape.type_name == "structure":
        if shape.is_document_type:
            return
        for name, member in shape.members.items():
            if value.get(name) is not None:
                yield from _violations(member, value[name], f"{path}.{name}".lstrip("."))
    elif shape.type_name == "list":
        yield from _length(shape, value, path)
        for index, item in enumerate(value, 1):
            yield from _violations(shape.member, item, f"{path}.{index}.member")
    elif shape.type_name == "map":
        yield from _length(shape, value, path)
        for key, item in value.items():
            yield from _violations(shape.key, key, f"{path}.{key}.key")
            yield from _violations(shape.value, item, f"{path}.{key}.value")
    elif shape.type_name == "string":
        yield from _length(shape, value, path)
        if shape.enum and value not in shape.enum:
            yield _violation(value, path, f"satisfy enum value set: [{', '.join(shape.enum)}]")
        pattern = shape.metadata.get("pattern")
        if pattern and not _matches(pattern, value):
            yield _violation(value, path, f"satisfy regular expression pattern: {pattern}")
    elif shape.type_name in ("integer", "long", "float", "double"):
        maximum = shape.metadata.get("max")
        if maximum is not None and value > maximum:
            yield _violation(value, path, f"have value less than or equal to {maximum}")
    elif shape.type_name == "blob":
        yield from _length(shape, value, path)


def _length(shape: Any, value: Any, path: str) -> Any:
    maximum = shape.metadata.get("max")
    if maximum is not None and len(value) > maximum:
        shown = value if isinstance(value, str) else f"{len(value)} members"
        yield _violation(shown, path, f"have length less than or equal to {maximum}")


def _violation(value: Any, path: str, constraint: str) -> str:
    return f"Value '{value}' at '{path}' failed to satisfy constraint: Member must {constraint}"


def _matches(pattern: str, value: str) -> bool:
    try:
        return regex.fullmatch(pattern, value, regex.ASCII) is not None
    except regex.error:  # a few are written with surrogates, which no pattern of Python's may be
        return True
