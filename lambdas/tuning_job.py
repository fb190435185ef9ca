"""The tasks of the tuning state machine: one Bedrock job from its start to the callback.

An action takes the state machine's state and answers it whole, with what became known. The
function also hears of state machine executions that ended badly, and answers for them.
"""

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.exceptions import ClientError
from pydantic import AwareDatetime, BaseModel, Field, Json

from lambdas.callbacks import TuningArguments, TuningCallback, fail_step, succeed_step
from lambdas.clients import client
from lambdas.customization_jobs import find_job, job_name, stop_job
from lambdas.validation import read_environment

# An account whose quota is full, or that is throttled, waits and tries again.
QUOTA_CODES = {
    "ServiceQuotaExceededException",
    "ThrottlingException",
    "Throttling",
    "TooManyRequestsException",
}


class Environment(BaseModel):
    BEDROCK_ROLE_ARN: str = Field(pattern=r"^arn:.+:role/.+$")
    TIMEOUT_SECONDS: int = Field(gt=0)
    NAME_PREFIX: str = Field(pattern=r"^[0-9A-Za-z]")
    KMS_KEY_ARN: str | None = None


class TaskError(BaseModel):
    """What a Catch of the state machine leaves of a task that raised."""

    Error: str = "Error"
    Cause: str = ""

    @property
    def reason(self) -> str:
        """The error's name and its message, which a Lambda function's Cause holds as JSON."""
        try:
            cause = json.loads(self.Cause)
        except ValueError:
            cause = None
        message = cause.get("errorMessage") if isinstance(cause, dict) else None
        return f"{self.Error}: {message or self.Cause or 'no cause given'}"


class State(TuningCallback):
    """The state machine's state: the callback's message and what has become known since."""

    arguments: TuningArguments
    job_arn: str | None = None
    custom_model_arn: str | None = None
    deployment_arn: str | None = None
    refusal: str | None = None
    reason: str | None = None
    error: TaskError | None = None


class Task(BaseModel):
    """One task of the state machine."""

    action: Literal["start", "check", "deploy", "check_deployment", "succeed", "fail"]
    execution_started: AwareDatetime
    state: State

    @property
    def is_late(self) -> bool:
        """Whether the state machine's execution has used up its time."""
        limit = timedelta(seconds=environment.TIMEOUT_SECONDS)
        return datetime.now(UTC) > self.execution_started + limit


class ExecutionDetail(BaseModel):
    name: str
    status: str
    input: Json[TuningCallback]
    error: str | None = None
    cause: str | None = None


class ExecutionEnded(BaseModel):
    """An EventBridge event: an execution of the state machine failed, timed out or was aborted."""

    detail_type: Literal["Step Functions Execution Status Change"] = Field(alias="detail-type")
    detail: ExecutionDetail


class MissingResultError(Exception):
    """A step needs a model or job that none of the steps before it made."""


environment = read_environment(Environment)
logger = Logger()


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Run the action the state machine asks for, or answer for an execution that ended badly."""
    if "detail-type" in event:
        return answer_for(ExecutionEnded.model_validate(event).detail)
    task = Task.model_validate(event)
    changes = ACTIONS[task.action](task)
    logger.info("task done", action=task.action, job=name_of(task.state), extra=changes)
    return {**event["state"], **changes}


def start(task: Task) -> dict[str, str]:
    """Create the job: Started, QuotaFull, Stopped or TimedOut."""
    if over := why_over(task):
        stop_job(name_of(task.state))
        return over
    try:
        return {"status": "Started", "job_arn": create_job(task.state)}
    except ClientError as error:
        if error.response["Error"]["Code"] in QUOTA_CODES:
            return {"status": "QuotaFull", "refusal": str(error)}
        raise


def check(task: Task) -> dict[str, str]:
    """Look at the job: InProgress, Completed, Failed, Stopped or TimedOut."""
    state = task.state
    job = find_job(state.job_arn or name_of(state))
    if job is None:
        raise MissingResultError(f"the tuning job {name_of(state)} does not exist")
    match job["status"]:
        case "Completed":
            done = {"status": "Completed", "custom_model_arn": job["outputModelArn"]}
            return why_stopped(task) or done
        case "Failed":
            why = job.get("failureMessage") or "Bedrock gave no reason"
            return {"status": "Failed", "reason": f"Tuning job {name_of(state)} failed: {why}"}
        case "Stopping" | "Stopped":
            return {"status": "Stopped", "reason": f"Tuning job {name_of(state)} was stopped."}
    if over := why_over(task):
        stop_job(name_of(state))
        return over
    return {"status": "InProgress"}


def deploy(task: Task) -> dict[str, str]:
    """Put the custom model into an on-demand deployment of its own: Deploying."""
    model = task.state.custom_model_arn
    if model is None:
        raise MissingResultError("there is no custom model to deploy")
    name = name_of(task.state)
    bedrock = client("bedrock")
    try:
        arn = bedrock.create_custom_model_deployment(
            modelDeploymentName=name, modelArn=model, clientRequestToken=name
        )["customModelDeploymentArn"]
    except bedrock.exceptions.ValidationException:
        # Refused because a call before this one made it?
        try:
            made = bedrock.get_custom_model_deployment(customModelDeploymentIdentifier=name)
        except bedrock.exceptions.ResourceNotFoundException:
            made = {}
        if made.get("modelArn") != model:
            raise
        arn = made["customModelDeploymentArn"]
    return {"status": "Deploying", "deployment_arn": arn}


def check_deployment(task: Task) -> dict[str, str]:
    """Look at the deployment: Deploying, Active, Failed, TimedOut or Stopped."""
    arn = task.state.deployment_arn
    if arn is None:
        raise MissingResultError("there is no custom model deployment to check")
    deployment = client("bedrock").get_custom_model_deployment(customModelDeploymentIdentifier=arn)
    match deployment["status"]:
        case "Active":
            return {"status": "Active"}
        case "Failed":
            why = deployment.get("failureMessage") or "Bedrock gave no reason"
            return {"status": "Failed", "reason": f"Deployment {name_of(task.state)} failed: {why}"}
    return why_over(task) or {"status": "Deploying"}


def succeed(task: Task) -> dict[str, str]:
    """Answer the callback with all that was made."""
    state = task.state
    if state.custom_model_arn is None or state.job_arn is None:
        raise MissingResultError("there is no custom model to report")
    outputs = {
        "custom_model_arn": state.custom_model_arn,
        "job_arn": state.job_arn,
        "serving_model_id": state.deployment_arn or "none",
        # As name=value: what goes into a model package's metadata may hold no braces and quotes.
        "hyperparameters": " ".join(
            f"{name}={value}" for name, value in sorted(state.arguments.hyperparameters.items())
        ),
    }
    succeed_step(state, outputs)
    return {"status": "Succeeded"}


def fail(task: Task) -> dict[str, str]:
    """Answer the callback with the reason, and leave no job running that nobody waits for."""
    state = task.state
    # An error ended the machine, so it is what came last.
    reason = state.error.reason if state.error else state.reason or "The tuning failed."
    fail_step(state, reason)
    stop_job(name_of(state))
    return {"status": "Failed", "reason": reason}


ACTIONS: Mapping[str, Callable[[Task], dict[str, str]]] = {
    "start": start,
    "check": check,
    "deploy": deploy,
    "check_deployment": check_deployment,
    "succeed": succeed,
    "fail": fail,
}


def answer_for(execution: ExecutionDetail) -> dict[str, str]:
    """Answer the callback of a state machine execution that ended without succeeding."""
    error = TaskError(Error=execution.error or "Error", Cause=execution.cause or "")
    why = error.reason if execution.error or execution.cause else "no cause given"
    reason = f"State machine execution {execution.name} ended {execution.status}: {why}"
    fail_step(execution.input, reason)
    stop_job(name_of(execution.input))
    return {"status": execution.status, "reason": reason}


def create_job(state: State) -> str:
    """Create the customization job of this callback, or find it if it was created before; its ARN.

    Job and custom model have the same name, which is also the client request token: Bedrock
    makes at most one of them.
    """
    arguments = state.arguments
    name = name_of(state)
    tags = [
        {"key": "quench:pipeline-execution", "value": state.pipeline_execution_arn},
        {"key": "quench:base-model", "value": arguments.base_model},
    ]
    request = {
        "jobName": name,
        "customModelName": name,
        "clientRequestToken": name,
        "roleArn": environment.BEDROCK_ROLE_ARN,
        "baseModelIdentifier": arguments.base_model,
        "customizationType": "FINE_TUNING",
        "trainingDataConfig": {"s3Uri": arguments.training_data},
        "validationDataConfig": {"validators": [{"s3Uri": arguments.validation_data}]},
        "outputDataConfig": {"s3Uri": arguments.output_data},
        "hyperParameters": arguments.hyperparameters,
        "jobTags": tags,
        "customModelTags": tags,
    }
    if environment.KMS_KEY_ARN:
        request["customModelKmsKeyId"] = environment.KMS_KEY_ARN
    bedrock = client("bedrock")
    try:
        return str(bedrock.create_model_customization_job(**request)["jobArn"])
    except bedrock.exceptions.ConflictException:
        job = find_job(name)
        if job is None:
            raise
        return str(job["jobArn"])


def why_over(task: Task) -> dict[str, str] | None:
    """Status and reason if there is no point in going on: the pipeline stopped, or time is up."""
    if stopped := why_stopped(task):
        return stopped
    if task.is_late:
        hours = environment.TIMEOUT_SECONDS / 3600
        reason = f"Tuning {name_of(task.state)} did not end within {hours:g} hours."
        if task.state.refusal and task.state.job_arn is None:
            reason += f" Its job never started: {task.state.refusal}"
        return {"status": "TimedOut", "reason": reason}
    return None


def why_stopped(task: Task) -> dict[str, str] | None:
    """Status and reason if the pipeline execution does not go on."""
    arn = task.state.pipeline_execution_arn
    execution = client("sagemaker").describe_pipeline_execution(PipelineExecutionArn=arn)
    status = execution["PipelineExecutionStatus"]
    if status == "Executing":
        return None
    return {"status": "Stopped", "reason": f"The pipeline execution is {status}."}


def name_of(callback: TuningCallback) -> str:
    """The name of the callback's job, custom model and deployment."""
    return job_name(environment.NAME_PREFIX, callback)
