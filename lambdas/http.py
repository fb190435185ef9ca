"""API Gateway's proxy events: from event to request, from result or error to response.

Source: https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-lambda-proxy-integrations.html
"""

import base64
import binascii
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import BaseModel, ValidationError

from lambdas.api_models import ErrorDetail, ErrorResponse, FieldError

Request = TypeVar("Request", bound=BaseModel)
Event = Mapping[str, Any]
logger = Logger()

MOST_VIOLATIONS = 100
"""That are named one by one: a body may hold more than fit a function's memory, or its answer."""


class ApiError(Exception):
    """An error that a caller is told, as it is."""

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        *,
        fields: Mapping[str, str] | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.fields = dict(fields or {})
        self.retry_after = retry_after


def respond(
    event: Event, context: LambdaContext, answer: Callable[[str], BaseModel | str]
) -> dict[str, Any]:
    """The proxy response with what `answer` makes of the request id: a model, or JSON text.

    The request id is API Gateway's, so that its access log tells of the same request.
    """
    request_id = (event.get("requestContext") or {}).get("requestId") or context.aws_request_id
    logger.append_keys(request_id=request_id, path=event.get("path"))
    try:
        result = answer(request_id)
        body = result if isinstance(result, str) else result.model_dump_json(exclude_unset=True)
        return _response(200, body, request_id)
    except ApiError as error:
        logger.warning(error.code, status=error.status, reason=error.message, cause=error.__cause__)
        refusal = error
    except Exception:
        logger.exception("unexpected error")
        refusal = ApiError(
            500, "internal_error", f"Something failed here. The log has it under {request_id}."
        )
    detail = ErrorDetail(code=refusal.code, message=refusal.message)
    if refusal.fields:
        detail.fields = [FieldError(field=f, reason=why) for f, why in refusal.fields.items()]
    body = ErrorResponse(error=detail, request_id=request_id).model_dump_json(exclude_unset=True)
    return _response(refusal.status, body, request_id, refusal.retry_after)


def parse(event: Event, model: type[Request]) -> Request:
    """The request in an event's body. Raises ApiError: 400 for no JSON, 422 for a bad field."""
    body = event.get("body")
    if not body:
        raise ApiError(400, "no_body", "The request has no body. Send a JSON object.")
    try:
        text = base64.b64decode(body) if event.get("isBase64Encoded") else body
        return model.model_validate_json(text)
    except binascii.Error as error:
        raise ApiError(400, "not_json", "The body is not base64, as the event says.") from error
    except ValidationError as error:
        count = error.error_count()
        violations = (
            error.errors(include_url=False, include_input=False, include_context=False)
            if count <= MOST_VIOLATIONS
            else []
        )
    # pydantic's own error is left behind: it holds what was sent
    if not violations:
        raise invalid({"body": f"{count:,} fields are unknown or not valid, too many to name them"})
    if violations[0]["type"] == "json_invalid":
        raise ApiError(400, "not_json", f"The body is not JSON: {violations[0]['msg']}.")
    fields: dict[str, str] = {}
    for violation in violations:
        field = ".".join(str(part) for part in violation["loc"])[:100] or "body"
        fields.setdefault(field, violation["msg"].removeprefix("Value error, "))
    raise invalid(fields)


def invalid(fields: Mapping[str, str]) -> ApiError:
    """The error of fields, each with the reason why it cannot be as it is."""
    reasons = "; ".join(f"{field}: {reason}" for field, reason in fields.items())
    return ApiError(422, "invalid_request", f"The request is not valid. {reasons}", fields=fields)


def _response(
    status: int, body: str, request_id: str, retry_after: int | None = None
) -> dict[str, Any]:
    headers = {"content-type": "application/json", "x-request-id": request_id}
    if retry_after is not None:
        headers["retry-after"] = str(retry_after)
    return {"statusCode": status, "headers": headers, "body": body, "isBase64Encoded": False}
