"""Starts the processing job that hydrates the vector index: of changed documents, or of all.

The documents bucket's events come through SQS in batches, and say only where to look: the job
looks at what lies in the bucket by then, so repeats and disorder do no harm. One job runs at a
time; while one does, the messages stay on the queue.
"""

import copy
import re
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.data_classes import SQSEvent
from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import BaseModel, Field, Json, TypeAdapter, ValidationError

from lambdas.clients import client
from lambdas.s3_events import ObjectCreated, ObjectDeleted
from lambdas.validation import explain, read_environment

RUNNING = {"InProgress", "Stopping"}


class Environment(BaseModel):
    PROCESSING_JOB: Json[dict[str, Any]]  # a CreateProcessingJob request, without name and inputs
    DOCUMENTS_BUCKET: str = Field(min_length=1)
    HYDRATION_BUCKET: str = Field(min_length=1)
    # A job's name holds 63 characters, of which a hyphen and the number take at least 7.
    JOB_PREFIX: str = Field(pattern=r"^[a-zA-Z0-9](-*[a-zA-Z0-9])*$", max_length=56)


class SyncRequest(BaseModel):
    """Asks for a full reconciliation of bucket and index."""

    source: Literal["quench.documents"]
    action: Literal["sync"]


class ChangeList(BaseModel):
    """The keys that the job is to look at, by what became of them last."""

    upserts: list[str]
    deletes: list[str]


class UnusableMessageError(Exception):
    """The message is not an event of an object of the documents bucket."""


class HydrationRunning(Exception):
    """A hydration job is running: the next one has to wait."""

    def __init__(self, job: str) -> None:
        super().__init__(f"{job} is running")
        self.job = job


environment = read_environment(Environment)
logger = Logger()
event_adapter: TypeAdapter[ObjectCreated | ObjectDeleted] = TypeAdapter(
    Annotated[ObjectCreated | ObjectDeleted, Field(discriminator="detail_type")]
)


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Start a job for a batch of messages, or for a full reconciliation.

    Returns
    -------
    dict
        For a batch, ``{"batchItemFailures": […]}`` with the messages that stay on the queue; for a
        reconciliation ``{"job": name}``, or ``{"busy": name}`` of the job that is running.
    """
    if "Records" in event:
        return handle_batch(SQSEvent(event), context.aws_request_id)
    SyncRequest.model_validate(event)
    try:
        result = {"job": start_job(next_name())}
    except HydrationRunning as running:
        result = {"busy": running.job}
    logger.info("reconciliation asked for", extra=result)
    return result


def handle_batch(batch: SQSEvent, request_id: str) -> dict[str, Any]:
    """Start one job for what all messages tell; the answer names those to be delivered again."""
    events, again = [], []
    messages = list(batch.records)
    for message in messages:
        try:
            events.append(read_event(message.body))
        except UnusableMessageError as error:
            logger.error(f"unusable message: {error}", message_id=message.message_id)
            again.append(message.message_id)
    changes = collapse(events)
    if changes.upserts or changes.deletes:
        try:
            start_changes_job(changes, request_id)
        except HydrationRunning as running:
            logger.info("messages wait", messages=len(messages), running=running.job)
            again = [message.message_id for message in messages]
    return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in again]}


def read_event(body: str) -> ObjectCreated | ObjectDeleted:
    """The event that a message carries.

    Raises
    ------
    UnusableMessageError
        If it carries none, or one of another bucket.
    """
    try:
        event = event_adapter.validate_json(body)
    except ValidationError as error:
        raise UnusableMessageError(f"not an event of an S3 object: {explain(error)}") from error
    bucket = event.detail.bucket.name
    if bucket != environment.DOCUMENTS_BUCKET:
        raise UnusableMessageError(f"{bucket} is not the bucket {environment.DOCUMENTS_BUCKET}")
    return event


def collapse(events: Iterable[ObjectCreated | ObjectDeleted]) -> ChangeList:
    """Each key once, by its last event; folder marks, whose keys end in ``/``, are left out."""
    in_order = sorted(events, key=lambda event: (event.detail.object.order, event.detail_type))
    last = {event.detail.object.key: event.detail_type for event in in_order}
    keys = sorted(key for key in last if not key.endswith("/"))
    return ChangeList(
        upserts=[key for key in keys if last[key] == "Object Created"],
        deletes=[key for key in keys if last[key] == "Object Deleted"],
    )


def start_changes_job(changes: ChangeList, request_id: str) -> None:
    """Write the change list and start a job that reads it.

    Raises
    ------
    HydrationRunning
        If another job is running.
    """
    name = next_name()
    # Nobody else writes this key, even if they are after the same name.
    key = f"changes/{name}-{request_id}.json"
    client("s3").put_object(
        Bucket=environment.HYDRATION_BUCKET, Key=key, Body=changes.model_dump_json().encode()
    )
    start_job(
        name,
        ProcessingInputs=[
            {
                "InputName": "changes",
                "S3Input": {
                    "S3Uri": f"s3://{environment.HYDRATION_BUCKET}/{key}",
                    "LocalPath": "/opt/ml/processing/input/changes",
                    "S3DataType": "S3Prefix",
                    "S3InputMode": "File",
                    "S3DataDistributionType": "FullyReplicated",
                },
            }
        ],
    )
    logger.info("job started", job=name, upserts=len(changes.upserts), deletes=len(changes.deletes))


def next_name() -> str:
    """The name of the job after the newest.

    Raises
    ------
    HydrationRunning
        If the newest is running.
    """
    prefix = f"{environment.JOB_PREFIX}-"
    pages = client("sagemaker").get_paginator("list_processing_jobs")
    for page in pages.paginate(NameContains=prefix, SortBy="CreationTime", SortOrder="Descending"):
        for job in page["ProcessingJobSummaries"]:
            name = job["ProcessingJobName"]
            if not (number := re.fullmatch(re.escape(prefix) + r"(\d{6,})", name)):
                continue
            if job["ProcessingJobStatus"] in RUNNING:
                raise HydrationRunning(name)
            return f"{prefix}{int(number[1]) + 1:06d}"
    return f"{prefix}000001"


def start_job(name: str, **inputs: Any) -> str:
    """Start a processing job of this name, and answer the name.

    The name is the lock: of functions that saw the same newest job, only one gets the next name.

    Raises
    ------
    HydrationRunning
        If another function took the name.
    """
    request = copy.deepcopy(environment.PROCESSING_JOB)
    for output in request["ProcessingOutputConfig"]["Outputs"]:
        output["S3Output"]["S3Uri"] += f"{name}/"
    sagemaker = client("sagemaker")
    try:
        sagemaker.create_processing_job(ProcessingJobName=name, **request, **inputs)
    except sagemaker.exceptions.ResourceInUse as error:
        raise HydrationRunning(name) from error
    return name
