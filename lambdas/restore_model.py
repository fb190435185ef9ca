"""Takes the model back: after a release that failed because of it, or because somebody asks.

The package is rejected in the registry first. Only that makes room for a model approved before it,
and keeps a late copy of its approval event from promoting it again.
"""

from collections.abc import Iterator
from datetime import datetime, timedelta
from enum import Enum
from typing import Annotated, Any, Literal

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.exceptions import ClientError
from pydantic import BaseModel, Field, Json, TypeAdapter, ValidationError

from lambdas.access import Access
from lambdas.callbacks import shorten
from lambdas.clients import client
from lambdas.served_model import (
    NOTHING_APPROVED,
    ServedModel,
    Stored,
    UnusableParameterError,
    approval_status,
    read,
    read_history,
    replace,
    serving_arns,
    settle,
    start_release,
)
from lambdas.validation import explain, read_environment

CLOCKS = timedelta(seconds=1)  # how much those of two services may differ
DESCRIPTION_LIMIT = 1024  # characters of an ApprovalDescription, which is one line
SUBJECT_LIMIT = 99  # of a message's subject: SNS wants less than 100

_NEVER_DEPLOYED = {
    "REVIEW_IN_PROGRESS",
    "CREATE_FAILED",
    "ROLLBACK_IN_PROGRESS",
    "ROLLBACK_FAILED",
    "ROLLBACK_COMPLETE",
}
_ENDED_EARLY = {"Failed", "Stopped", "Cancelled"}
_BEING_DEPLOYED = {"CREATE_IN_PROGRESS", "UPDATE_IN_PROGRESS"}


class Environment(BaseModel):
    MODEL_PARAMETER: str = Field(min_length=1)
    PRODUCTION_PARAMETER: str = Field(min_length=1)
    RELEASE_PIPELINE: str = Field(min_length=1)
    QA_STAGE: str = Field(min_length=1)
    PRODUCTION_STAGE: str = Field(min_length=1)
    PRODUCTION_STACK: str = Field(min_length=1)
    PRODUCTION_ACCESS: Json[Access] | None = None  # if it is elsewhere
    TOPIC_ARN: str = Field(min_length=1)


class StageDetail(BaseModel):
    pipeline: str
    execution_id: str = Field(alias="execution-id")
    stage: str
    state: Literal["FAILED"]


class StageFailed(BaseModel):
    """An EventBridge event of CodePipeline.

    Source: "Monitoring CodePipeline events" in the CodePipeline user guide.
    """

    source: Literal["aws.codepipeline"]
    detail_type: Literal["CodePipeline Stage Execution State Change"] = Field(alias="detail-type")
    detail: StageDetail


class RollbackRequest(BaseModel):
    """Asks for the model that was in production before the one in use."""

    source: Literal["quench.models"]
    action: Literal["rollback"]
    by: str = Field(min_length=1)


class Decision(Enum):
    """What a failed release means for the model."""

    KEEP = "keep"
    RESTORE = "restore"
    RELEASE = "release"


class UnknownExecutionError(Exception):
    """The pipeline does not list the execution whose stage failed."""


class UnusableStackError(Exception):
    """The production stack does not tell the model it was deployed with."""


class NothingToRollBackToError(Exception):
    """No model that was in production can take over."""


environment = read_environment(Environment)
logger = Logger()
event_adapter: TypeAdapter[StageFailed | RollbackRequest] = TypeAdapter(
    Annotated[StageFailed | RollbackRequest, Field(discriminator="source")]
)


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any] | None:
    """Handle the failure of a stage, or roll back.

    Returns
    -------
    dict | None
        For a rollback ``{"from": {…}, "to": {…}, "release": execution id}``, of parameter values.
    """
    request = event_adapter.validate_python(event)
    if isinstance(request, RollbackRequest):
        result = roll_back(request.by)
        logger.info("rolled back", extra=result)
        return result
    logger.info(handle_failure(request.detail))
    return None


# After a release that failed


def handle_failure(failed: StageDetail) -> str:
    """Take the model back if the release failed because of it, and tell people.

    Returns
    -------
    str
        What was done, or why nothing was.

    Raises
    ------
    UnknownExecutionError, UnusableParameterError, UnusableStackError
        If it cannot be told whether the model is the cause; nothing was changed then.
    """
    if failed.pipeline != environment.RELEASE_PIPELINE:
        return f"ignored: {failed.pipeline} is not the pipeline {environment.RELEASE_PIPELINE}"
    why = explain_failure(failed)
    if failed.stage not in (environment.QA_STAGE, environment.PRODUCTION_STAGE):
        outcome = f"The model stays: {failed.stage} says nothing of it."
        notify(f"Release failed in {failed.stage}", why, outcome)
        return outcome

    started = find_start(failed.execution_id)
    current = model_in_use()
    serves = read_production(started)
    decision = decide(started, current.modified, same=current.model.answers_as(serves))
    if decision is Decision.KEEP:
        outcome = (
            f"The model stays: production serves {serves.name} as well, so the release failed for"
            " another reason."
        )
    elif decision is Decision.RESTORE:
        refused = current.model
        # An earlier one is what a rollback goes back to: it was good once, and may be tried again.
        if refused.is_later_than(serves):
            reject(refused, why)
        current = replace(environment.MODEL_PARAMETER, serves)
        release = start_release(environment.RELEASE_PIPELINE, current)
        outcome = (
            f"{refused.name} was taken back. Release {release} deploys QA with"
            f" {current.model.name}; production serves {serves.name}."
        )
    else:
        release = start_release(environment.RELEASE_PIPELINE, current)
        outcome = (
            f"The model has changed since this release started. Release {release} deploys QA with"
            f" {current.model.name}; production serves {serves.name} until it succeeds."
        )
        execution = find_execution(release)
        if execution and execution["status"] in _ENDED_EARLY:
            outcome += " It has ended already: run it again (quench release retry)."
    notify(f"Release failed in {failed.stage}", why, outcome)
    return outcome


def decide(started: datetime, written: datetime, *, same: bool) -> Decision:
    """What to do about the model that is in use now, after a release failed.

    Parameters
    ----------
    started
        When the release's execution started.
    written
        When the model in use now was written to its parameter.
    same
        Whether production serves this model.

    Returns
    -------
    Decision
        A release that started after the model was written carried it, for it reads the parameter
        minutes after its start; one that started just before it has read it, too. It failed

        - with the model that production serves: the model is not the reason, KEEP it.
        - with another: RESTORE the one that production serves.

        A release that started before did not carry the model, which is another release's to judge:

        - production serves it: this event came again, or its restoration was cut short.
        - production serves another: a later approval is on its way.

        Either way see to it that this other RELEASE was started; it starts once only.
    """
    if started < written - CLOCKS:
        return Decision.RELEASE
    return Decision.KEEP if same else Decision.RESTORE


def explain_failure(failed: StageDetail) -> str:
    """Which action of the stage failed last, and why."""
    codepipeline = client("codepipeline")
    pages = codepipeline.get_paginator("list_action_executions").paginate(
        pipelineName=failed.pipeline, filter={"pipelineExecutionId": failed.execution_id}
    )
    failures = [
        action
        for page in pages
        for action in page["actionExecutionDetails"]
        if action["stageName"] == failed.stage and action["status"] == "Failed"
    ]
    if not failures:
        return f"Release {failed.execution_id}: {failed.stage} failed, but no action of it."
    last = max(failures, key=lambda action: action["startTime"])
    result = last.get("output", {}).get("executionResult", {})
    reason = (
        result.get("externalExecutionSummary")
        or result.get("errorDetails", {}).get("message")
        or "it gave no reason"
    )
    action = last["actionName"]
    return f"Release {failed.execution_id}: {action} in {failed.stage} failed: {reason}"


def executions() -> Iterator[dict[str, Any]]:
    """The pipeline's executions, the newest first."""
    pages = client("codepipeline").get_paginator("list_pipeline_executions")
    for page in pages.paginate(pipelineName=environment.RELEASE_PIPELINE):
        yield from page["pipelineExecutionSummaries"]


def find_execution(execution_id: str) -> dict[str, Any] | None:
    """What the pipeline lists of an execution; None while it is not listed."""
    return next((e for e in executions() if e["pipelineExecutionId"] == execution_id), None)


def find_start(execution_id: str) -> datetime:
    """When the execution started. Raises UnknownExecutionError."""
    if execution := find_execution(execution_id):
        started: datetime = execution["startTime"]
        return started
    raise UnknownExecutionError(
        f"pipeline {environment.RELEASE_PIPELINE} lists no execution {execution_id}, so what it"
        " carried is unknown and the model stays: see in the pipeline why it failed"
    )


def read_production(started: datetime) -> ServedModel:
    """The model that production serves, or is being deployed with now, which passed QA.

    After a deployment that failed, the stack's outputs are those of the one before. Where it was
    never deployed, as after production was moved, it is the model that production was to have when
    the failed release started.

    Raises
    ------
    UnusableStackError
        If the stack does not tell.
    UnusableParameterError
        If it is being deployed with something else than a model.
    """
    name = environment.PRODUCTION_STACK
    cloudformation = client("cloudformation", environment.PRODUCTION_ACCESS)
    try:
        [stack] = cloudformation.describe_stacks(StackName=name)["Stacks"]
    except ClientError as error:
        # The service model declares no error of this operation.
        told = error.response["Error"]
        if (access := environment.PRODUCTION_ACCESS) and error.operation_name == "AssumeRole":
            raise UnusableStackError(
                f"stack {name} cannot be asked as {access.role}: {told['Message']}. The stage DATA "
                "makes this role in production's account: is it there?"
            ) from error
        if told["Code"] == "ValidationError" and "does not exist" in told["Message"]:
            return read_intended(started)
        raise
    status = stack["StackStatus"]
    if status in _NEVER_DEPLOYED:
        return read_intended(started)
    if status in _BEING_DEPLOYED:
        stored = read(environment.PRODUCTION_PARAMETER)
        return stored.model if stored else NOTHING_APPROVED
    outputs = {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}
    if "ServedModel" not in outputs:
        raise UnusableStackError(
            f"stack {name} ({status}) has no output ServedModel: deploy it again"
        )
    try:
        return ServedModel.model_validate_json(outputs["ServedModel"])
    except ValidationError as error:
        raise UnusableStackError(f"output ServedModel of stack {name}: {explain(error)}") from error


def read_intended(at: datetime) -> ServedModel:
    """What production was to have at a time, and was not refused since.

    Raises UnusableParameterError.
    """
    for stored in reversed(read_history(environment.PRODUCTION_PARAMETER)):
        package = stored.model.model_package
        if stored.modified < at and (package is None or approval_status(package) == "Approved"):
            return stored.model
    return NOTHING_APPROVED


# Because somebody asks


def roll_back(by: str) -> dict[str, Any]:
    """Take the model in use back, and release the one that was in production before it.

    A rollback that was cut short is carried to its end by the next one, which goes no further.
    Therefore it starts the release last.

    Raises
    ------
    NothingToRollBackToError
        If there is none; nothing was changed then.
    UnusableParameterError
        If a parameter does not hold a served model.
    """
    current = model_in_use()
    before = find_unreleased(current)
    if before is None:
        before = current.model
        target = find_target(before)
        reject(before, f"Rolled back by {by} to {target.name}")
        current = replace(environment.MODEL_PARAMETER, target)
    notify(
        "The model was rolled back",
        f"{by} took {before.name} back.",
        f"A release deploys QA and then production with {current.model.name}.",
    )
    return {
        "from": before.model_dump(mode="json"),
        "to": current.model.model_dump(mode="json"),
        "release": start_release(environment.RELEASE_PIPELINE, current),
    }


def find_unreleased(current: Stored) -> ServedModel | None:
    """The model that was taken back for the current one, if no release has started since then."""
    newest = next(executions(), None)
    if newest and newest["startTime"] >= current.modified - CLOCKS:
        return None
    history = [stored.model for stored in read_history(environment.MODEL_PARAMETER)]
    replaced = next((model for model in reversed(history) if model != current.model), None)
    return replaced if replaced and replaced.is_later_than(current.model) else None


def find_target(current: ServedModel) -> ServedModel:
    """The newest model that was in production and can take over. Raises NothingToRollBackToError.

    Only what passed the tests in QA was ever written to production's parameter.
    """
    skipped: dict[ServedModel, str] = {}
    for stored in reversed(read_history(environment.PRODUCTION_PARAMETER)):
        if stored.model in skipped:
            continue
        reason = why_not(stored.model, current)
        if reason is None:
            return stored.model
        skipped[stored.model] = f"{stored.model.name} {reason}"
    raise NothingToRollBackToError(
        f"nothing to roll {current.name} back to: "
        + ("; ".join(skipped.values()) or "no model was in production yet")
    )


def why_not(model: ServedModel, current: ServedModel) -> str | None:
    """Why this model cannot take over from the current one; None if it can."""
    if model.model_package == current.model_package:
        return "is the one in use"
    if not (model.model_package and model.custom_model and model.model_id):
        return None
    status = approval_status(model.model_package)
    if status != "Approved":
        return f"is {status}" if status else "was deleted"
    if model.model_id not in serving_arns(model.custom_model):
        return f"cannot be invoked by {model.model_id} any more"
    return None


# Both


def model_in_use() -> Stored:
    """What the parameter holds, settled. Raises UnusableParameterError."""
    stored = settle(environment.MODEL_PARAMETER)
    if stored is None:
        raise UnusableParameterError(
            f"parameter {environment.MODEL_PARAMETER} does not exist: deploy the promotion stack"
        )
    return stored


def reject(model: ServedModel, why: str) -> None:
    """Reject the model's package, unless it is no longer approved or was deleted."""
    package = model.model_package
    if package is None:
        return
    status = approval_status(package)
    if status != "Approved":
        logger.info(f"{package} is not rejected: it is {status or 'deleted'}")
        return
    client("sagemaker").update_model_package(
        ModelPackageArn=package,
        ModelApprovalStatus="Rejected",
        ApprovalDescription=shorten(why, DESCRIPTION_LIMIT),
    )


def notify(subject: str, *paragraphs: str) -> None:
    """Tell the topic's subscribers."""
    client("sns").publish(
        TopicArn=environment.TOPIC_ARN,
        Subject=subject[:SUBJECT_LIMIT],
        Message="\n\n".join(paragraphs),
    )
