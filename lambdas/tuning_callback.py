"""Takes the FineTune step's messages from SQS: starts the state machine, or stops the Bedrock job.

Every message ends in an answer to its callback token: by the state machine, or by this function
where no state machine can give one.
"""

from typing import Annotated, Any, Literal

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.batch import (
    BatchProcessor,
    EventType,
    process_partial_response,
)
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from lambdas.callbacks import TuningArguments, TuningCallback, fail_step, find_callback
from lambdas.clients import client
from lambdas.customization_jobs import job_name, stop_job
from lambdas.validation import explain, read_environment


class Environment(BaseModel):
    STATE_MACHINE_ARN: str = Field(pattern=r":stateMachine:")
    MAX_RECEIVE_COUNT: int = Field(ge=1)
    NAME_PREFIX: str = Field(pattern=r"^[0-9A-Za-z]")


class ExecutingMessage(TuningCallback):
    status: Literal["Executing"]
    arguments: TuningArguments


class StoppingMessage(TuningCallback):
    status: Literal["Stopping"]


class UnusableMessageError(Exception):
    """The message is not one that SageMaker sends for the FineTune step."""


environment = read_environment(Environment)
logger = Logger()
processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False)
message_adapter: TypeAdapter[ExecutingMessage | StoppingMessage] = TypeAdapter(
    Annotated[ExecutingMessage | StoppingMessage, Field(discriminator="status")]
)


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> Any:
    """Handle every record of the batch; the answer names those to be delivered again."""
    return process_partial_response(event, handle_record, processor, context)


def handle_record(record: SQSRecord) -> None:
    """Act on one message; what cannot be acted on is told to the pipeline that waits.

    Raises
    ------
    UnusableMessageError
        If nobody can be told, as the message has no token.
    """
    callback = find_callback(record.body)
    try:
        act(record.body)
    except UnusableMessageError as error:
        logger.exception("unusable message")
        if callback is None:
            raise
        fail_step(callback, str(error))
    except Exception as error:
        logger.exception("message not handled")
        last = int(record.attributes.approximate_receive_count) >= environment.MAX_RECEIVE_COUNT
        if callback is not None and last:
            fail_step(callback, f"The FineTune message could not be handled: {error}")
        raise


def act(body: str) -> None:
    """Start or stop what the message asks for."""
    try:
        message = message_adapter.validate_json(body)
    except ValidationError as error:
        raise UnusableMessageError(f"Unusable FineTune message: {explain(error)}") from error
    if isinstance(message, ExecutingMessage):
        start_state_machine(message, body)
        return
    stopped = stop_job(job_name(environment.NAME_PREFIX, message))
    logger.info("stop requested", execution=message.name, bedrock_job_stopped=stopped)
    if not state_machine_runs(message):
        fail_step(message, "The pipeline execution was stopped; no tuning was under way.")


def start_state_machine(message: ExecutingMessage, body: str) -> None:
    """Start the execution of this callback token; there is never a second one."""
    states = client("stepfunctions")
    try:
        states.start_execution(
            stateMachineArn=environment.STATE_MACHINE_ARN, name=message.name, input=body
        )
    except states.exceptions.ExecutionAlreadyExists:
        logger.info("the state machine was already started", execution=message.name)
    else:
        logger.info("state machine started", execution=message.name)


def state_machine_runs(callback: TuningCallback) -> bool:
    """Whether the state machine is at work on this callback, and so will answer it."""
    states = client("stepfunctions")
    machine = environment.STATE_MACHINE_ARN.replace(":stateMachine:", ":execution:")
    try:
        execution = states.describe_execution(executionArn=f"{machine}:{callback.name}")
    except states.exceptions.ExecutionDoesNotExist:
        return False
    return bool(execution["status"] == "RUNNING")
