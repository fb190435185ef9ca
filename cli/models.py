"""`quench models`: which model each stage serves, and the way back to the one before."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.errors import CommandError
from cli.stacks import NotDeployedError, aws_errors, stack_outputs
from cli.synth import load_settings
from lambdas.access import Access
from lambdas.access import session as session_as

if TYPE_CHECKING:
    from workflows.settings import Settings

STAGES = ("qa", "prod")
INVOKE_SECONDS = 70  # a function runs for 60 at most


@dataclass(frozen=True)
class Version:
    """A model package, and who has it."""

    arn: str
    registered: str
    status: str
    base_model: str
    note: str

    @property
    def number(self) -> str:
        return self.arn.rpartition("/")[2]


def list_models(settings: Path | None, console: Console) -> None:
    """Every registered model, newest first, with the stages that serve it."""
    loaded = load_settings(settings)
    with aws_errors():
        approved = approved_model(loaded)
        served, missing = {}, {}
        for stage in STAGES:
            try:
                served[stage] = served_model(loaded, stage)
            except NotDeployedError as error:
                missing[stage] = str(error)
        versions = list(_versions(f"{loaded.name}-models"))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("version", "registered", "status", "serves", "base model"):
        table.add_column(name, no_wrap=True)
    table.add_column("description", overflow="fold")
    for version in versions:
        stages = [stage.upper() for stage, package in served.items() if package == version.arn]
        if approved == version.arn and not stages:
            stages = ["to be released"]
        table.add_row(
            version.number,
            version.registered,
            Text(version.status, {"Approved": "green", "Rejected": "red"}.get(version.status, "")),
            Text(", ".join(stages), "bold"),
            version.base_model,
            Text(version.note, "dim"),
        )
    if versions:
        console.print(table)
    else:
        console.print("No model is registered yet: upload a dataset to have one tuned.")
    for stage, package in served.items():
        if package is None:
            console.print(f"[bold]{stage.upper()}[/] serves the base model only.")
    for stage, why in missing.items():
        console.print(f"[bold]{stage.upper()}[/] serves nothing yet. {why}", soft_wrap=True)
    if len(set(served.values())) > 1:
        console.print(
            "The stages differ: a release is under way, or failed (quench release status)."
        )


def rollback(settings: Path | None, console: Console) -> None:
    """Have restore_model put the model before this one back, and release it."""
    loaded = load_settings(settings)
    with aws_errors():
        function = stack_outputs(f"{loaded.name}-promotion")["RestoreModelFunction"]
        by = boto3.client("sts").get_caller_identity()["Arn"]
        # Not tried again: a second rollback would go one model further back.
        config = Config(read_timeout=INVOKE_SECONDS, retries={"total_max_attempts": 1})
        client = boto3.client("lambda", config=config)
        answer = client.invoke(
            FunctionName=function,
            Payload=json.dumps({"source": "quench.models", "action": "rollback", "by": by}),
        )
        payload = json.loads(answer["Payload"].read())
    if "FunctionError" in answer:
        expected = payload.get("errorType") == "NothingToRollBackToError"
        raise CommandError(
            str(payload.get("errorMessage", payload)),
            "Which model is where: quench models list"
            if expected
            else f"Its log group is /aws/lambda/{function}",
        )
    console.print(
        f"{model_name(payload['from']).capitalize()} gives way to {model_name(payload['to'])}.\n"
        f"Release {payload['release']} brings it to the stages: quench release status",
        soft_wrap=True,
    )


def approved_model(settings: "Settings") -> str | None:
    """The model package that the parameter names. Raises NotDeployedError before there is one."""
    name, ssm = settings.release.parameter, boto3.client("ssm")
    try:
        value = ssm.get_parameter(Name=name)["Parameter"]["Value"]
    except ssm.exceptions.ParameterNotFound as error:
        raise NotDeployedError(
            f"There is no parameter {name} in {ssm.meta.region_name}.",
            "The first release makes it, in its stage DATA: quench release status",
        ) from error
    return _package(value)


def served_model(settings: "Settings", stage: str) -> str | None:
    """The model package that a stage was deployed with. Raises NotDeployedError before it was."""
    session = None
    if stage == "prod" and settings.production_elsewhere:
        role = stack_outputs(f"{settings.name}-promotion").get("ProductionStatusRole")
        if role is None:
            raise NotDeployedError(
                "Production is elsewhere by the settings, but no release has brought it there yet.",
                "See where the release is: quench release status",
            )
        access = Access(role=role, region=settings.production.region)
        session = boto3.Session(botocore_session=session_as(access))
    return _package(stack_outputs(f"{settings.name}-{stage}-inference", session)["ServedModel"])


def _package(value: str) -> str | None:
    package: str | None = json.loads(value)["model_package"]
    return package


def _versions(group: str) -> Iterator[Version]:
    sagemaker = boto3.client("sagemaker")
    pages = sagemaker.get_paginator("list_model_packages").paginate(
        ModelPackageGroupName=group, SortBy="CreationTime", SortOrder="Descending"
    )
    for page in pages:
        for summary in page["ModelPackageSummaryList"]:
            package = sagemaker.describe_model_package(ModelPackageName=summary["ModelPackageArn"])
            yield Version(
                arn=package["ModelPackageArn"],
                registered=f"{package['CreationTime'].astimezone():%Y-%m-%d %H:%M}",
                status=package["ModelApprovalStatus"],
                base_model=package.get("CustomerMetadataProperties", {}).get("base_model", ""),
                note=package.get("ApprovalDescription", ""),
            )


def model_name(served: Mapping[str, Any]) -> str:
    """What people call a parameter's value."""
    package: str | None = served["model_package"]
    return f"model version {package.rpartition('/')[2]}" if package else "the base model"
