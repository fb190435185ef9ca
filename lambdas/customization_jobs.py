"""Bedrock's model customization jobs, each known by the callback it was started for."""

import re
from typing import Any

from botocore.exceptions import ClientError

from lambdas.callbacks import TuningCallback
from lambdas.clients import client

NAME_LIMIT = 63  # characters, of a job, a custom model and a deployment alike


def job_name(prefix: str, callback: TuningCallback) -> str:
    """``<prefix>-<execution id>-<token>``: valid for the job, its custom model and a deployment.

    A name that would be too long loses its beginning: execution and token make it unique.
    """
    name = f"{prefix}-{callback.name}"
    return re.sub(r"[^0-9A-Za-z]+", "-", name)[-NAME_LIMIT:].strip("-")


def find_job(identifier: str) -> dict[str, Any] | None:
    """The job of this name or ARN, as GetModelCustomizationJob answers it, or None."""
    bedrock = client("bedrock")
    try:
        job: dict[str, Any] = bedrock.get_model_customization_job(jobIdentifier=identifier)
    except bedrock.exceptions.ResourceNotFoundException:
        return None
    return job


def stop_job(identifier: str) -> bool:
    """Stop the job of this name or ARN if it is running; whether there was one to stop."""
    job = find_job(identifier)
    if job is None or job["status"] != "InProgress":
        return False
    try:
        client("bedrock").stop_model_customization_job(jobIdentifier=identifier)
    except ClientError:
        # Refused because it ended in between?
        job = find_job(identifier)
        if job is not None and job["status"] == "InProgress":
            raise
    return True
