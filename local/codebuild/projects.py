"""What a build project may say here.

https://docs.aws.amazon.com/codebuild/latest/APIReference/API_CreateProject.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from local.protocol import ServiceError

DEFAULTS: Mapping[str, Any] = {
    "description": "",
    "cache": {"type": "NO_CACHE"},
    "timeoutInMinutes": 60,
    "queuedTimeoutInMinutes": 480,
    "encryptionKey": "alias/aws/s3",
    "tags": [],
    "logsConfig": {"cloudWatchLogs": {"status": "ENABLED"}},
}

# What else the API knows would have to be ignored. What has no meaning here, such as the image or
# the role, is kept and shown.
PROJECT = {"name", "source", "artifacts", "environment", "serviceRole", *DEFAULTS}
SOURCE = {"type", "buildspec"}
# CodePipeline decides on the others, on AWS too.
ARTIFACTS = {"type", "name", "packaging", "encryptionDisabled", "overrideArtifactName"}
ENVIRONMENT = {
    "type",
    "image",
    "computeType",
    "environmentVariables",
    "privilegedMode",
    "imagePullCredentialsType",
}
LOGS = {"status", "groupName"}


def check(project: Mapping[str, Any]) -> None:
    """Raise `ServiceError` for what a project cannot be given here."""
    what = f"Project {project['name']}"
    _only(what, project, PROJECT)
    _only(f"{what}'s source", project["source"], SOURCE)
    _only(f"{what}'s artifacts", project["artifacts"], ARTIFACTS)
    _only(f"{what}'s environment", project["environment"], ENVIRONMENT)
    for part in ("source", "artifacts"):
        if (kind := project[part]["type"]) != "CODEPIPELINE":
            raise invalid(
                f"{what}: the embedded cloud builds in a pipeline only: its {part} must be of "
                f"type CODEPIPELINE, not {kind}."
            )
    for variable in project["environment"].get("environmentVariables", []):
        if (kind := variable.get("type", "PLAINTEXT")) != "PLAINTEXT":
            raise invalid(
                f"{what}: the embedded cloud does not support variables of type {kind} "
                f"({variable['name']})."
            )
    logs = project["logsConfig"]
    if logs.get("s3Logs", {}).get("status") == "ENABLED":
        raise invalid(f"{what}: the embedded cloud does not support s3Logs.")
    cloudwatch = logs.get("cloudWatchLogs", {})
    _only(f"{what}'s cloudWatchLogs", cloudwatch, LOGS)
    if cloudwatch.get("status") == "DISABLED":
        raise invalid(f"{what}: the embedded cloud does not support builds without logs.")


def invalid(message: str) -> ServiceError:
    return ServiceError("InvalidInputException", message)


def log_group(project: Mapping[str, Any]) -> str:
    """Where a project's builds log, in CloudWatch Logs."""
    configured = project["logsConfig"].get("cloudWatchLogs", {})
    return str(configured.get("groupName") or f"/aws/codebuild/{project['name']}")


def caches_folders(project: Mapping[str, Any]) -> bool:
    """Whether the buildspec's `cache.paths` is heeded."""
    cache = project["cache"]
    return cache["type"] == "S3" or "LOCAL_CUSTOM_CACHE" in cache.get("modes", [])


def _only(what: str, given: Mapping[str, Any], known: set[str]) -> None:
    if unknown := sorted(key for key, value in given.items() if value and key not in known):
        raise invalid(f"{what}: the embedded cloud does not support {', '.join(unknown)}.")
