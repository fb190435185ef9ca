"""Puts an approved model version on its way to the players: into Parameter Store, and a release.

Approval events come through SQS, so that an approval given before the model has serving
capacity is delivered again until it has. The parameter changes only then. An event that was cut
short is delivered again, too: it settles first what it may have left.
"""

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

from lambdas.served_model import (
    NOTHING_APPROVED,
    ServedModel,
    describe_package,
    replace,
    serving_arns,
    settle,
    start_release,
)
from lambdas.validation import explain, read_environment


class Environment(BaseModel):
    MODEL_PARAMETER: str = Field(min_length=1)
    MODEL_PACKAGE_GROUP: str = Field(min_length=1)
    RELEASE_PIPELINE: str = Field(min_length=1)


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


class NoServingCapacity(Exception):
    """The approved model cannot be invoked yet."""


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

    current = settle(environment.MODEL_PARAMETER)
    package = describe_package(detail.ModelPackageArn)
    status = package["ModelApprovalStatus"] if package else "deleted"
    if package is None or status != "Approved":
        outcome = f"ignored: the package is {status} by now"
    elif current and current.model.approved_at and event.time < current.model.approved_at:
        outcome = f"ignored: {current.model.name} was approved later"
    else:
        served = find_served_model(package, event.time)
        if current is None or served != current.model:
            current = replace(environment.MODEL_PARAMETER, served)
        outcome = f"promoted: {current.model.model_id} is what the release deploys"
    # Even if the event changes nothing now: it may have, before it was cut short.
    if current and current.model != NOTHING_APPROVED:
        start_release(environment.RELEASE_PIPELINE, current)
    return outcome


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
