"""The parameters that name the model in use, and the release that takes it to the players.

Parameter Store has no conditional write: of two functions that read the same value, either may
write last, and one may be killed in between. Therefore whoever writes settles afterwards, and so
does whoever comes again after an interruption. Each version of the parameter has one release.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from aws_lambda_powertools import Logger
from botocore.exceptions import ClientError
from pydantic import AwareDatetime, BaseModel, ConfigDict, ValidationError

from lambdas.access import Access
from lambdas.clients import client
from lambdas.validation import explain

logger = Logger()


class ServedModel(BaseModel):
    """A parameter's value: what applications invoke, and why; all null before any approval."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    model_id: str | None
    base_model: str | None
    custom_model: str | None
    model_package: str | None
    approved_at: AwareDatetime | None

    @property
    def name(self) -> str:
        """What people know it by."""
        return self.model_package or "the base model"

    def is_later_than(self, other: "ServedModel") -> bool:
        """Whether it was approved after the other one, or the other one never was."""
        if self.approved_at is None:
            return False
        return other.approved_at is None or self.approved_at > other.approved_at

    def answers_as(self, other: "ServedModel") -> bool:
        """Whether it is the same model by the same id, whenever it was approved."""
        return (self.model_package, self.model_id) == (other.model_package, other.model_id)


NOTHING_APPROVED = ServedModel(
    model_id=None, base_model=None, custom_model=None, model_package=None, approved_at=None
)


@dataclass(frozen=True)
class Stored:
    """A version of a parameter."""

    version: int
    modified: datetime
    model: ServedModel


class UnusableParameterError(Exception):
    """The parameter holds something that is not a served model."""


def read(name: str) -> Stored | None:
    """What the parameter holds; None before it exists. Raises UnusableParameterError."""
    ssm = client("ssm")
    try:
        return _parse(ssm.get_parameter(Name=name)["Parameter"])
    except ssm.exceptions.ParameterNotFound:
        return None


def read_history(name: str) -> list[Stored]:
    """The versions of the parameter that are kept, oldest first; empty before it exists.

    Parameter Store keeps the last 100 (``ParameterMaxVersionLimitExceeded`` in botocore's model).
    Former values that are no served model are left out.

    Raises
    ------
    UnusableParameterError
        If the newest is not a served model.
    """
    ssm = client("ssm")
    pages = ssm.get_paginator("get_parameter_history").paginate(Name=name)
    try:
        versions = [version for page in pages for version in page["Parameters"]]
    except ssm.exceptions.ParameterNotFound:
        return []
    *former, newest = sorted(versions, key=lambda version: int(version["Version"]))
    history = []
    for version in former:
        try:
            history.append(_parse(version))
        except UnusableParameterError as error:
            logger.info(f"version {version['Version']} is left out: {error}")
    return [*history, _parse(newest)]


def write(name: str, model: ServedModel) -> None:
    """Make it the parameter's value."""
    write_value(name, model.model_dump_json())


def write_value(name: str, value: str, access: Access | None = None) -> None:
    """Make it the value of a parameter, here or where access leads."""
    client("ssm", access).put_parameter(Name=name, Value=value, Type="String", Overwrite=True)


def settle(name: str) -> Stored | None:
    """Undo what a writer did that read the parameter before another one wrote it.

    Returns
    -------
    Stored | None
        What is in force; None before the parameter exists.

    Raises
    ------
    UnusableParameterError
        If the parameter does not hold a served model; it stays as it is.
    """
    while history := read_history(name):
        model = in_force((stored.model for stored in history), cache(can_serve))
        if model == history[-1].model:
            return history[-1]
        logger.warning(f"{history[-1].model.name} gives way to {model.name}, approved later")
        write(name, model)
    return None


def replace(name: str, model: ServedModel) -> Stored:
    """Write the parameter and settle; answer what is in force. Raises UnusableParameterError."""
    write(name, model)
    stored = settle(name)
    if stored is None:
        raise UnusableParameterError(f"parameter {name} was deleted while it was written")
    return stored


def in_force(
    history: Iterable[ServedModel], can_serve: Callable[[ServedModel], bool]
) -> ServedModel:
    """What the parameter should hold after these values, oldest first.

    Each value replaces the one in force, unless that one was approved later and still can serve:
    then its writer had read the parameter too early. It needs all values, for what such a writer
    overwrote may be older still: of three that raced, the last two may be wrong.
    """
    model = NOTHING_APPROVED
    for value in history:
        if not (model.is_later_than(value) and can_serve(model)):
            model = value
    return model


def can_serve(model: ServedModel) -> bool:
    """Whether its package is still approved, and the model invoked as when it was."""
    if not (model.model_package and model.custom_model and model.model_id):
        return False
    approved = approval_status(model.model_package) == "Approved"
    return approved and model.model_id in serving_arns(model.custom_model)


def approval_status(model_package: str) -> str | None:
    """A package's approval status; None if it was deleted."""
    package = describe_package(model_package)
    return package["ModelApprovalStatus"] if package else None


def describe_package(model_package: str) -> dict[str, Any] | None:
    """What the registry knows of a package; None if it was deleted."""
    try:
        package: dict[str, Any] = client("sagemaker").describe_model_package(
            ModelPackageName=model_package
        )
    except ClientError as error:
        # The service model declares no error of this operation.
        told = error.response["Error"]
        if told["Code"] == "ValidationException" and "does not exist" in told["Message"]:
            return None
        raise
    return package


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


def start_release(pipeline: str, stored: Stored) -> str:
    """Start the release of this version, once however often it is asked for; answer its id."""
    version = f"{stored.version} {stored.model.model_dump_json()}"
    token = hashlib.sha256(version.encode()).hexdigest()
    answer = client("codepipeline").start_pipeline_execution(
        name=pipeline, clientRequestToken=token
    )
    return str(answer["pipelineExecutionId"])


def _parse(described: dict[str, Any]) -> Stored:
    try:
        model = ServedModel.model_validate_json(described["Value"])
    except ValidationError as error:
        raise UnusableParameterError(
            f"parameter {described['Name']} does not hold a served model, and is left as it is: "
            f"{explain(error)}"
        ) from error
    return Stored(described["Version"], described["LastModifiedDate"], model)
