"""Puts an approved model version in front of the players: Parameter Store names what to invoke.

Approval events come through SQS, so that an approval given before the model has serving
capacity is delivered again until it has. The parameter changes only then.
"""

import hashlib
from collections.abc import Iterator
from datetime import datetime
from typing import Any, Literal

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.batch import (
    BatchProcessor,
    EventType,
    process_partial_response,
)
from aws_lambda_powertools.utilities.data_classes.sqs_event import SQSRecord
from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import AwareDatetime, BaseModel, Field, ValidationError

from lambdas.clients import client
from lambdas.validation import explain, read_environment


class Environment(BaseModel):
    MODEL_PARAMETER: str = Field(min_length=1)
    MODEL_PACKAGE_GROUP: str = Field(min_length=1)
    RELEASE_PIPELINE: str | None = None


class PackageDetail(BaseModel):
    ModelPackageArn: str
    ModelPackageGroupName: str
    ModelApprovalStatus: str
    UpdatedModelPackageFields: list[str] | None = None


class PackageEvent(BaseModel):
    """An EventBridge event of the Model Registry."""

    detail_type: Literal["SageMaker Model Package State Change"] = Field(alias="detail-type")
    time: AwareDatetime
    detail: PackageDetail


class PackageMetadata(BaseModel):
    """What the pipeline noted on the model package, in its customer metadata."""

    custom_model: str
    base_model: str


class ServedModel(BaseModel):
    """The parameter's value: what applications invoke, and why; all null before any approval."""

    model_id: str | None
    base_model: str | None
    custom_model: str | None
    model_package: str | None
    approved_at: AwareDatetime | None


class NoServingCapacity(Exception):
    """The approved model cannot be invoked yet."""


class UnusableParameterError(Exception):
    """The parameter holds something that is not a served model."""


class UnusableModelPackageError(Exception):
    """The approved model package does not name a custom model."""


environment = read_environment(Environment)
logger = Logger()
processor = BatchProcessor(EventType.SQS, raise_on_entire_batch_failure=False)


@logger.inject_lambda_context
def handler(event: dict[str, Any], context: LambdaContext) -> Any:
    """Handle every record of the batch; the answer names those to be delivered again."""
    return process_partial_response(event, handle_record, processor, context)


def handle_record(record: SQSRecord) -> None:
    """Promote the model that one event approves, or log why the event changes nothing."""
    try:
        event = PackageEvent.model_validate_json(record.body)
        outcome = promote(event)
    except Exception:
        logger.exception("event not handled")
        raise
    logger.info(outcome, model_package=event.detail.ModelPackageArn)


def promote(event: PackageEvent) -> str:
    """Write the parameter and start the release, if the event approves what is still approved.

    Returns
    -------
    str
        What was done, or why nothing was.

    Raises
    ------
    NoServingCapacity
        If the model cannot be invoked yet; the parameter stays as it was.
    UnusableModelPackageError, UnusableParameterError
        If package or parameter do not hold what they should.
    """
    detail = event.detail
    if detail.ModelPackageGroupName != environment.MODEL_PACKAGE_GROUP:
        return f"ignored: the package belongs to {detail.ModelPackageGroupName}"
    if detail.ModelApprovalStatus != "Approved":
        return f"ignored: the package is {detail.ModelApprovalStatus}"
    # The registry also reports other changes of a package that was approved long ago.
    changed = detail.UpdatedModelPackageFields
    if changed and "ModelApprovalStatus" not in changed:
        return f"ignored: only {', '.join(changed)} changed"

    package = client("sagemaker").describe_model_package(ModelPackageName=detail.ModelPackageArn)
    if package["ModelApprovalStatus"] != "Approved":
        return f"ignored: the package is {package['ModelApprovalStatus']} by now"
    current = read_parameter()
    if current and current.approved_at and event.time < current.approved_at:
        return f"ignored: {current.model_package} was approved later"

    served = find_served_model(package, event.time)
    if served != current:
        client("ssm").put_parameter(
            Name=environment.MODEL_PARAMETER,
            Value=served.model_dump_json(),
            Type="String",
            Overwrite=True,
        )
    if environment.RELEASE_PIPELINE:
        start_release(environment.RELEASE_PIPELINE, served)
    return f"promoted: {served.model_id} is what applications invoke"


def find_served_model(package: dict[str, Any], approved_at: datetime) -> ServedModel:
    """The approved package's model, with what to invoke it by."""
    arn = package["ModelPackageArn"]
    try:
        metadata = PackageMetadata.model_validate(package.get("CustomerMetadataProperties", {}))
    except ValidationError as error:
        raise UnusableModelPackageError(f"customer metadata of {arn}: {explain(error)}") from error
    model_id = next(serving_arns(metadata.custom_model), None)
    if model_id is None:
        raise NoServingCapacity(
            f"{metadata.custom_model} is approved but has no provisioned throughput in service and"
            " no active deployment: create one; until then the approval is tried again"
        )
    return ServedModel(
        model_id=model_id,
        base_model=metadata.base_model,
        custom_model=metadata.custom_model,
        model_package=arn,
        approved_at=approved_at,
    )


def serving_arns(custom_model: str) -> Iterator[str]:
    """What exactly this custom model can be invoked by now: provisioned throughput comes first."""
    bedrock = client("bedrock")
    throughputs = bedrock.get_paginator("list_provisioned_model_throughputs")
    for page in throughputs.paginate(modelArnEquals=custom_model, statusEquals="InService"):
        for throughput in page["provisionedModelSummaries"]:
            yield throughput["provisionedModelArn"]
    deployments = bedrock.get_paginator("list_custom_model_deployments")
    for page in deployments.paginate(modelArnEquals=custom_model, statusEquals="Active"):
        for deployment in page.get("modelDeploymentSummaries", []):
            yield deployment["customModelDeploymentArn"]


def read_parameter() -> ServedModel | None:
    """What applications invoke now; None before the parameter exists."""
    ssm = client("ssm")
    name = environment.MODEL_PARAMETER
    try:
        value = ssm.get_parameter(Name=name)["Parameter"]["Value"]
    except ssm.exceptions.ParameterNotFound:
        return None
    try:
        return ServedModel.model_validate_json(value)
    except ValidationError as error:
        raise UnusableParameterError(
            f"parameter {name} does not hold a served model, and is left as it is: {explain(error)}"
        ) from error


def start_release(pipeline: str, served: ServedModel) -> None:
    """Start the release pipeline, once for an approval however often its event comes."""
    approval = f"{served.model_package} {served.approved_at}"
    token = hashlib.sha256(approval.encode()).hexdigest()
    client("codepipeline").start_pipeline_execution(name=pipeline, clientRequestToken=token)
