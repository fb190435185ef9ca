"""Starts the tuning pipeline for a dataset: when it is uploaded, or on a schedule.

A file directly under the prefix is a dataset. A folder below the prefix is one once a
``_SUCCESS`` object lands in it. A dataset is known by bucket, key and version of that object.
"""

import hashlib
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import AwareDatetime, BaseModel, Field, TypeAdapter

from lambdas.clients import client
from lambdas.s3_events import ObjectCreated, S3Object
from lambdas.validation import read_environment

ALLOWED = (".jsonl", ".json", ".csv", ".tsv", ".parquet")
SUCCESS = "_SUCCESS"
URI_LIMIT = 256  # characters; of a container argument, and of a model package's metadata
# A pipeline execution that makes another one for the same dataset pointless.
RUNNING_OR_DONE = {"Executing", "Stopping", "Succeeded"}


class Environment(BaseModel):
    PIPELINE_NAME: str = Field(min_length=1)
    DATA_BUCKET: str = Field(min_length=1)
    DATASET_PREFIX: str = Field(pattern=r"^[^/].*/$")


class Schedule(BaseModel):
    """What the schedule sends: the time it was due."""

    source: Literal["quench.schedule"]
    time: AwareDatetime


class UnusableDatasetError(Exception):
    """An object was uploaded as a dataset that cannot be one."""


@dataclass(frozen=True)
class Dataset:
    """A dataset by the object that announces it: the file itself, or a folder's ``_SUCCESS``."""

    bucket: str
    key: str
    version: str

    @property
    def uri(self) -> str:
        """The file, or the folder with a trailing ``/``."""
        return f"s3://{self.bucket}/{self.key.removesuffix(SUCCESS)}"

    @property
    def display_name(self) -> str:
        """Of an execution: a legible beginning, and a digest of what makes the dataset unique."""
        stem = self.uri.rstrip("/").rsplit("/", 1)[-1]
        legible = re.sub(r"[^A-Za-z0-9]+", "-", stem)[:60].strip("-") or "dataset"
        return f"{legible}-{digest(self.bucket, self.key, self.version)[:16]}"


environment = read_environment(Environment)
logger = Logger()
event_adapter: TypeAdapter[ObjectCreated | Schedule] = TypeAdapter(
    Annotated[ObjectCreated | Schedule, Field(discriminator="source")]
)


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, str]:
    """Start a pipeline execution, or answer ``{"skipped": why}``."""
    request = event_adapter.validate_python(event)
    if isinstance(request, Schedule):
        result = start_newest(request.time.isoformat())
    else:
        result = start_uploaded(request.detail.bucket.name, request.detail.object)
    logger.info("event handled", extra=result)
    return result


def start_uploaded(bucket: str, uploaded: S3Object) -> dict[str, str]:
    """Start an execution for an uploaded object, if it announces a dataset.

    Raises
    ------
    UnusableDatasetError
        If it lies where datasets do but has another file type, is empty, or has a key that no
        job or model package can name.
    """
    where = f"s3://{bucket}/{uploaded.key}"
    datasets = f"s3://{environment.DATA_BUCKET}/{environment.DATASET_PREFIX}"
    if not where.startswith(datasets) or where.endswith("/"):
        return {"skipped": f"{where} is not a file under {datasets}"}
    if not announces_dataset(uploaded.key):
        if "/" in where.removeprefix(datasets):
            return {"skipped": f"{where} waits for {SUCCESS} in its folder"}
        raise UnusableDatasetError(
            f"{where} is not a dataset: allowed are {', '.join(ALLOWED)} (each also as .gz), or a"
            f" folder of such files that ends with an object {SUCCESS}"
        )
    dataset = Dataset(bucket, uploaded.key, uploaded.version_id)
    if problem := unnameable(dataset.uri):
        raise UnusableDatasetError(f"{where} {problem}")
    if uploaded.size == 0 and not uploaded.key.endswith(SUCCESS):
        raise UnusableDatasetError(f"{where} is empty: upload it again with its records")
    return start(dataset)


def start_newest(due: str) -> dict[str, str]:
    """Start an execution for the newest dataset, unless there is nothing new to learn."""
    newest = max(list_datasets(), key=lambda found: found["LastModified"], default=None)
    bucket = environment.DATA_BUCKET
    if newest is None:
        return {"skipped": f"there is no dataset in s3://{bucket}/{environment.DATASET_PREFIX}"}
    head = client("s3").head_object(Bucket=bucket, Key=newest["Key"])
    return start(Dataset(bucket, newest["Key"], head["VersionId"]), due)


def start(dataset: Dataset, *attempt: str) -> dict[str, str]:
    """Start an execution for a dataset unless one is running or has succeeded.

    Parameters
    ----------
    dataset
        What to tune on.
    attempt
        Sets a scheduled attempt apart from those before it, which may have failed.
    """
    if execution := find_execution(dataset.display_name):
        return {"skipped": f"{dataset.uri} of version {dataset.version} is tuned by {execution}"}
    execution = client("sagemaker").start_pipeline_execution(
        PipelineName=environment.PIPELINE_NAME,
        PipelineExecutionDisplayName=dataset.display_name,
        PipelineParameters=[
            {"Name": "DatasetUri", "Value": dataset.uri},
            {"Name": "DatasetVersion", "Value": dataset.version},
        ],
        ClientRequestToken=digest(dataset.bucket, dataset.key, dataset.version, *attempt),
    )["PipelineExecutionArn"]
    return {"execution": execution, "dataset": dataset.uri, "version": dataset.version}


def find_execution(display_name: str) -> str | None:
    """The ARN of the execution of this name that is running or has succeeded."""
    pages = client("sagemaker").get_paginator("list_pipeline_executions")
    for page in pages.paginate(PipelineName=environment.PIPELINE_NAME):
        for execution in page["PipelineExecutionSummaries"]:
            if (
                execution.get("PipelineExecutionDisplayName") == display_name
                and execution["PipelineExecutionStatus"] in RUNNING_OR_DONE
            ):
                return str(execution["PipelineExecutionArn"])
    return None


def list_datasets() -> Iterator[dict[str, Any]]:
    """The objects in the bucket that announce a dataset, but for those refused on upload."""
    pages = client("s3").get_paginator("list_objects_v2")
    for page in pages.paginate(Bucket=environment.DATA_BUCKET, Prefix=environment.DATASET_PREFIX):
        for found in page.get("Contents", []):
            empty = found["Size"] == 0 and not found["Key"].endswith(SUCCESS)
            uri = Dataset(environment.DATA_BUCKET, found["Key"], version="").uri
            if announces_dataset(found["Key"]) and not empty and not unnameable(uri):
                yield found


def announces_dataset(key: str) -> bool:
    """Whether a key under the prefix is a file that is a dataset, or completes a folder of them."""
    folder, _, name = key.removeprefix(environment.DATASET_PREFIX).rpartition("/")
    if folder:
        return name == SUCCESS
    return name.removesuffix(".gz").endswith(ALLOWED)


def unnameable(uri: str) -> str | None:
    """Why neither a processing job nor a model package could name a dataset; None if they could.

    Source: ContainerArgument and CustomerMetadataValue of SageMaker's API.
    """
    if len(uri) > URI_LIMIT:
        return f"is longer than {URI_LIMIT} characters: upload it under a shorter key"
    for character in uri:
        if unicodedata.category(character)[0] not in "LNZ" and character not in "_.:/=+-@":
            return (
                f"holds {character!r}, which a model package's metadata cannot: upload it under"
                " a key of letters, digits, spaces and _ . : / = + - @"
            )
    return None


def digest(*parts: str) -> str:
    """A stable token of 64 characters for what the parts name."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
