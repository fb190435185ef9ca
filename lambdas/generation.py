"""Asking a model on Bedrock, and telling what went wrong in the words of HTTP.

Nothing here waits longer than API Gateway does (29 seconds), and nothing is retried for long: who
asked knows better whether an answer is still wanted.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal

from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    ConnectionClosedError,
    ConnectTimeoutError,
    ReadTimeoutError,
)

from bedrock.models import (
    FoundationModel,
    UnknownModelError,
    UnusableModelError,
    find_model,
    require_usable,
)
from lambdas.access import Access, session
from lambdas.api_settings import RETRY_AFTER_SECONDS, Guardrail
from lambdas.http import ApiError

# https://docs.aws.amazon.com/bedrock/latest/APIReference/API_runtime_InvokeModel.html
_THROTTLED = {"ThrottlingException", "ServiceQuotaExceededException"}
_NO_CAPACITY = {"ModelNotReadyException", "ServiceUnavailableException"}
_REMEDIES = {
    "AccessDenied": "The function may not assume the role that it asks models as (ACCESS): release "
    "it again, or see in its account whether that role is there. Trying again will not help.",
    "AccessDeniedException": "The function may not invoke it: an administrator must give its role "
    "bedrock:InvokeModel on this model, and the account access to it. Trying again will not help.",
    "ResourceNotFoundException": "It is not there, or no longer: an administrator must name another"
    " model, or promote one. Trying again will not help.",
    "ValidationException": "It refused the request, which may be too long or not fit the model. "
    "Trying the same again will not help.",
}


def client(
    service: Literal["bedrock-runtime", "s3"],
    *,
    read_seconds: float,
    region: str | None = None,
    access: Access | None = None,
) -> Any:
    """A client that waits so long for a response, and does not try again by itself.

    Its region is what `access`, which leads elsewhere, or else the function has, if none is given.

    It is botocore's, which is boto3's too: importing boto3 besides takes another 15 ms, and a
    function that starts is waited for.
    """
    config = Config(connect_timeout=1, read_timeout=read_seconds, retries={"total_max_attempts": 1})
    return session(access).create_client(service, region_name=region, config=config)


def invoke(
    bedrock: Any, model_id: str, body: Mapping[str, Any], guardrail: Guardrail | None = None
) -> tuple[dict[str, Any], dict[str, str]]:
    """The decoded body and the headers of InvokeModel's response.

    Raises ApiError: 429 when throttled, 503 without capacity, 504 on a time-out, 502 otherwise.
    """
    parameters = {"modelId": model_id, "body": json.dumps(body)}
    if guardrail is not None:
        parameters |= {
            "guardrailIdentifier": guardrail.id,
            "guardrailVersion": guardrail.version,
        }
    try:
        try:
            response = bedrock.invoke_model(**parameters)
        except ConnectionClosedError:
            # Connections that were open when Lambda froze the function are closed when it thaws.
            response = bedrock.invoke_model(**parameters)
        content = json.loads(response["body"].read())
    except ClientError as error:
        raise _refusal(model_id, error.response["Error"]["Code"]) from error
    except (ReadTimeoutError, ConnectTimeoutError) as error:
        raise _timed_out(model_id) from error
    except (BotoCoreError, ValueError) as error:
        raise failed(model_id, type(error).__name__, "Trying again may help.") from error
    return content, response["ResponseMetadata"]["HTTPHeaders"]


def failed(model_id: str, kind: str, remedy: str) -> ApiError:
    """The error of a model that failed, in a way that is none of the others."""
    return ApiError(502, "model_failed", f"{model_id} failed ({kind}). {remedy}")


def usable_model(model_id: str) -> FoundationModel:
    """The foundation model of an id. Raises ApiError (502) past its end of life, or if unknown."""
    try:
        model = find_model(model_id)
        require_usable(model, datetime.now(UTC).date())
    except (UnknownModelError, UnusableModelError) as error:
        raise ApiError(502, "model_unusable", str(error)) from error
    return model


def invoke_id(model_id: str, model: FoundationModel) -> str:
    """What to invoke for a configured id: a model's own id stands for its inference profile, where
    it has one."""
    return model.invoke_id if model_id == model.id else model_id


def _refusal(model_id: str, code: str) -> ApiError:
    if code in _THROTTLED:
        return ApiError(
            429,
            "throttled",
            f"Too many requests to {model_id}. Try again in some seconds.",
            retry_after=RETRY_AFTER_SECONDS,
        )
    if code in _NO_CAPACITY:
        return ApiError(
            503,
            "no_capacity",
            f"{model_id} has no capacity now ({code}). Try again in some seconds.",
            retry_after=RETRY_AFTER_SECONDS,
        )
    if code == "ModelTimeoutException":
        return _timed_out(model_id)
    return failed(model_id, code, _REMEDIES.get(code, "Trying again may help."))


def _timed_out(model_id: str) -> ApiError:
    return ApiError(
        504,
        "model_timed_out",
        f"{model_id} did not answer in time. Ask for fewer tokens, or try again.",
    )
