"""Answers for FineTune messages that `tuning_callback` never got to handle.

Where that function itself could not run (throttled, timed out, broken), nobody told the pipeline,
which would wait. Its messages come here, and their steps fail. A message that names no step goes on
to the dead letters, where an alarm watches.
"""

from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.batch import (
    BatchProcessor,
    EventType,
    process_partial_response,
)
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.typing import LambdaContext

from lambdas.callbacks import fail_step, find_callback

logger = Logger()
processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False)


class NobodyWaitsError(Exception):
    """The message names no callback token, so there is no step to fail."""


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> Any:
    """Fail the step of every record; the answer names those that could not be."""
    return process_partial_response(event, handle_record, processor, context)


def handle_record(record: SQSRecord) -> None:
    """Fail the step that waits for this message. Raises NobodyWaitsError."""
    callback = find_callback(record.body)
    if callback is None:
        raise NobodyWaitsError(f"message {record.message_id} names no callback token")
    fail_step(
        callback,
        "The FineTune message was never handled: see the errors and throttles of the function "
        "tuning_callback, then start the pipeline again.",
    )
    logger.error("unanswered callback", token=callback.token)
