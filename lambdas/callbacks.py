"""The callback of the pipeline's FineTune step: its message, and how it is answered, once."""

import hashlib
import json
import re
from collections.abc import Mapping
from typing import Annotated, Any

from aws_lambda_powertools import Logger
from botocore.exceptions import ClientError
from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from lambdas.clients import client

logger = Logger()

FAILURE_REASON_LIMIT = 256  # characters; SageMaker rejects a longer one, and the step waits on

# What SendPipelineExecutionStepSuccess and …Failure may answer for a token that is no longer open.
_REFUSALS = {"ValidationException", "ConflictException", "ResourceNotFound"}
_OPEN_STEP = {"Starting", "Executing", "Stopping"}
_OPEN_EXECUTION = {"Executing", "Stopping"}

Token = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9]{10}$")]
ExecutionArn = Annotated[
    str, StringConstraints(pattern=r"^arn:[^:]+:sagemaker:.+:pipeline/.+/execution/.+$")
]


class Callback(BaseModel):
    """Who waits for an answer: the token of a callback step and the execution it belongs to."""

    model_config = ConfigDict(validate_by_name=True)

    token: Token
    pipeline_execution_arn: ExecutionArn | None = Field(None, alias="pipelineExecutionArn")


class TuningArguments(BaseModel):
    """What to tune on what: the FineTune step's arguments, all of them strings."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, str]

    base_model: str = Field(min_length=1)
    training_data: str = Field(pattern=r"^s3://.+/.+")
    validation_data: str = Field(pattern=r"^s3://.+/.+")
    output_data: str = Field(pattern=r"^s3://.+/.+")

    @property
    def hyperparameters(self) -> dict[str, str]:
        """Bedrock's hyperparameters by name, from ``hyperparameter_<name>``."""
        prefix = "hyperparameter_"
        return {
            name.removeprefix(prefix): value
            for name, value in self.__pydantic_extra__.items()
            if name.startswith(prefix)
        }


class TuningCallback(Callback):
    """A callback whose message could be read: it names the pipeline execution."""

    pipeline_execution_arn: ExecutionArn = Field(alias="pipelineExecutionArn")

    @property
    def name(self) -> str:
        """``<execution id>-<token>``: names the state machine's execution and the Bedrock job."""
        return f"{self.pipeline_execution_arn.rsplit('/', 1)[-1]}-{self.token}"


def find_callback(body: str) -> Callback | None:
    """The token, and the execution if it is legible, of a message however garbled."""
    token = re.search(r'"token"\s*:\s*"([a-zA-Z0-9]{10})"', body)
    arn = re.search(r'"(arn:[^:"\s]+:sagemaker:[^"\s]+:pipeline/[^"\s]+/execution/[^"\s]+)"', body)
    if token is None:
        return None
    return Callback(token=token[1], pipeline_execution_arn=arn[1] if arn else None)


def succeed_step(callback: Callback, outputs: Mapping[str, str]) -> None:
    """Tell the pipeline that the step succeeded; a token that is already answered is left so."""
    _answer(
        callback,
        "send_pipeline_execution_step_success",
        OutputParameters=[{"Name": name, "Value": value} for name, value in outputs.items()],
    )


def fail_step(callback: Callback, reason: str) -> None:
    """Tell the pipeline why the step failed; a token that is already answered is left so."""
    _answer(callback, "send_pipeline_execution_step_failure", FailureReason=shorten(reason))


def shorten(reason: str, limit: int = FAILURE_REASON_LIMIT) -> str:
    """One line of at most so many characters: a long reason keeps its beginning and its end.

    The service may count UTF-16 units, in which a character beyond the basic plane is two:
    such characters are replaced.
    """
    line = re.sub("[\ud800-\udfff\U00010000-\U0010ffff]", "\N{REPLACEMENT CHARACTER}", reason)
    line = " ".join(line.split())
    if len(line) <= limit:
        return line
    gap = " … "
    end = limit // 3
    beginning = limit - end - len(gap)
    return f"{line[:beginning]}{gap}{line[-end:]}"


def _answer(callback: Callback, operation: str, **content: Any) -> None:
    answer = {"CallbackToken": callback.token, **content}
    request_token = hashlib.sha256(json.dumps([operation, answer]).encode()).hexdigest()
    try:
        getattr(client("sagemaker"), operation)(**answer, ClientRequestToken=request_token)
    except ClientError as error:
        if error.response["Error"]["Code"] not in _REFUSALS or _is_open(callback):
            raise
        logger.info("the callback was already answered", token=callback.token)


def _is_open(callback: Callback) -> bool:
    """Whether SageMaker still waits for an answer to this token, as far as can be known."""
    arn = callback.pipeline_execution_arn
    if arn is None:
        return True
    sagemaker = client("sagemaker")
    pages = sagemaker.get_paginator("list_pipeline_execution_steps").paginate(
        PipelineExecutionArn=arn
    )
    for page in pages:
        for step in page["PipelineExecutionSteps"]:
            if step.get("Metadata", {}).get("Callback", {}).get("CallbackToken") == callback.token:
                return step["StepStatus"] in _OPEN_STEP
    execution = sagemaker.describe_pipeline_execution(PipelineExecutionArn=arn)
    return execution["PipelineExecutionStatus"] in _OPEN_EXECUTION
