"""Lets a model that passed QA's tests into production: an action of the release pipeline.

CodePipeline tells the model QA was deployed with, as the action's user parameters, and waits until
it is told how the action ended. Source: "AWS Lambda invoke action reference" in its user guide.
"""

from typing import Any, Self

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import BaseModel, Field, Json, ValidationError, model_validator

from lambdas.access import Access
from lambdas.callbacks import shorten
from lambdas.clients import client
from lambdas.served_model import ServedModel, read, write, write_value
from lambdas.validation import explain, read_environment

MESSAGE_LIMIT = 5000  # characters of a failure's message


class Environment(BaseModel):
    MODEL_PARAMETER: str = Field(min_length=1)
    PRODUCTION_PARAMETER: str = Field(min_length=1)
    # if production is elsewhere: how to reach it, and the index that it is to have
    PRODUCTION_ACCESS: Json[Access] | None = None
    INDEX_PARAMETER: str | None = Field(default=None, min_length=1)

    @model_validator(mode="after")
    def _know_both(self) -> Self:
        if (self.PRODUCTION_ACCESS is None) != (self.INDEX_PARAMETER is None):
            raise ValueError("PRODUCTION_ACCESS and INDEX_PARAMETER are set together")
        return self


class Job(BaseModel):
    id: str
    data: dict[str, Any]  # has credentials: it must not be logged


class JobEvent(BaseModel):
    job: Job = Field(alias="CodePipeline.job")


class Configuration(BaseModel):
    UserParameters: Json[ServedModel]


class ActionConfiguration(BaseModel):
    configuration: Configuration


class JobData(BaseModel):
    actionConfiguration: ActionConfiguration


class UnusableJobError(Exception):
    """The action's user parameters are not the model that QA was deployed with."""


class TakenBackError(Exception):
    """The model was taken back after QA was deployed with it."""


environment = read_environment(Environment)
logger = Logger()


@logger.inject_lambda_context(clear_state=True)
def handler(event: dict[str, Any], context: LambdaContext) -> None:
    """Let the job's model into production and answer the job, whatever happens."""
    job = JobEvent.model_validate(event).job
    logger.append_keys(job=job.id)
    try:
        outcome = release(job)
    except Exception as error:
        logger.exception("job failed")
        message = shorten(f"{type(error).__name__}: {error}", MESSAGE_LIMIT)
        details = {"type": "JobFailed", "message": message}
        answer("put_job_failure_result", jobId=job.id, failureDetails=details)
    else:
        logger.info(outcome)
        answer("put_job_success_result", jobId=job.id, executionDetails={"summary": outcome})


def release(job: Job) -> str:
    """Write the model to production's parameter, unless it is there.

    Where production is elsewhere, model and index are then written to its parameters there. Those
    here keep the history.

    Returns
    -------
    str
        What was done.

    Raises
    ------
    UnusableJobError, UnusableParameterError
        If job or parameters do not hold a served model.
    TakenBackError
        If an earlier model is to be released instead. In either case nothing is written.
    """
    try:
        data = JobData.model_validate(job.data)
    except ValidationError as error:
        raise UnusableJobError(
            f"UserParameters must be the output ServedModel of the QA stack: {explain(error)}"
        ) from error
    model = data.actionConfiguration.configuration.UserParameters
    approved = read(environment.MODEL_PARAMETER)
    # One approved later passes QA by a release of its own; this one was tested, and goes on.
    if approved and model.is_later_than(approved.model):
        raise TakenBackError(
            f"{model.name} was taken back since QA was deployed with it: {approved.model.name} is"
            " to be released instead"
        )
    stored = read(environment.PRODUCTION_PARAMETER)
    outcome = f"production was to have {model.name} already"
    if stored is None or stored.model != model:
        write(environment.PRODUCTION_PARAMETER, model)
        outcome = f"production is to have {model.name}"
    if (access := environment.PRODUCTION_ACCESS) and (index := environment.INDEX_PARAMETER):
        write_value(environment.PRODUCTION_PARAMETER, model.model_dump_json(), access)
        value = client("ssm").get_parameter(Name=index)["Parameter"]["Value"]
        write_value(index, value, access)
        outcome += f" in {access.region}, as {access.role}"
    return outcome


def answer(operation: str, **result: Any) -> None:
    """Tell CodePipeline how the job ended; one that has ended already is left so."""
    codepipeline = client("codepipeline")
    try:
        getattr(codepipeline, operation)(**result)
    except codepipeline.exceptions.InvalidJobStateException:
        logger.info("the job was already answered")
