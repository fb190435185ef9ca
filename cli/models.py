"""`quench models`: which model each stage serves, and the way back to the one before."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
from botocore.config import Config
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.errors import CommandError
from cli.stacks import aws_errors, stack_outputs
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
        approved = approved_model(loaded, boto3.client)
        served = {stage: served_model(loaded, stage) for stage in STAGES}
        versions = list(_versions(f"{loaded.name}-models"))
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("version", "registered", "status", "serves", "base model"):
        table.add_column(name, no_wrap=True)
    table.add_column("", overflow="fold")
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
        raise CommandError(
            str(payload.get("errorMessage", payload)), f"Its log group is /aws/lambda/{function}"
        )
    console.print(
        f"{_name(payload['from'])} gives way to {_name(payload['to'])}.\n"
        f"Release {payload['release']} brings it to the stages: quench release status",
        soft_wrap=True,
    )


def approved_model(settings: "Settings", client: Callable[..., Any]) -> str | None:
    """The model package that the parameter names."""
    name = settings.release.parameter
    value = client("ssm").get_parameter(Name=name)["Parameter"]["Value"]
    return _package(value)


def served_model(settings: "Settings", stage: str) -> str | None:
    """The model package that a stage was deployed with."""
    session = None
    if stage == "prod" and settings.production_elsewhere:
        role = stack_outputs(f"{settings.name}-promotion").get("ProductionStatusRole")
        if role is None:
            raise CommandError(
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


def _name(served: dict[str, Any]) -> str:
    package: str | None = served["model_package"]
    return f"Model version {package.rpartition('/')[2]}" if package else "the base model"
