"""What each action does, one function for each provider.

An action that fails raises `ActionFailed`. One that somebody else has to answer (a reviewer, a
function) has no outcome yet.
https://docs.aws.amazon.com/codepipeline/latest/userguide/action-reference.html
"""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from moto.awslambda.exceptions import UnknownFunctionException

from local.codepipeline.executions import Outcome
from local.codepipeline.requests import present
from local.codepipeline.source import Revision, SourceError, snapshot
from local.codepipeline.stacks import Stacks
from local.codepipeline.structure import Action

if TYPE_CHECKING:
    from local.cloud import Cloud
    from local.codebuild.service import CodeBuildService


class ActionFailed(Exception):
    """Why an action failed, as an outcome."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.summary)
        self.outcome = outcome


@dataclass(frozen=True)
class Artifact:
    folder: Path
    revision: str


@dataclass(frozen=True)
class Job:
    """What an action is to work on. Its configuration has the variables filled in."""

    id: str
    pipeline: str
    execution_id: str
    action: Action
    configuration: Mapping[str, str]
    inputs: Mapping[str, Artifact]
    outputs: Mapping[str, Path]
    bucket: str


class Actions:
    """Does the actions' work, and waits for it. Once `stopped` is set, builds end early."""

    def __init__(self, cloud: Cloud, stopped: threading.Event) -> None:
        self._cloud = cloud
        self._stopped = stopped
        self._by_provider: dict[str, Callable[[Job], Outcome | None]] = {
            "CodeCommit": self._take_repository,
            "CodeStarSourceConnection": self._take_connection,
            "CodeBuild": self._build,
            "CloudFormation": self._deploy,
            "Manual": self._ask_for_approval,
            "Lambda": self._invoke,
        }

    def perform(self, job: Job) -> Outcome | None:
        """Do an action's work. Raises `ActionFailed`, or whatever its services do."""
        for folder in job.outputs.values():
            shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
        return self._by_provider[job.action.provider](job)

    # Source

    def _take_repository(self, job: Job) -> Outcome:
        revision = self._snapshot(job)
        variables = {
            "RepositoryName": job.configuration["RepositoryName"],
            "CommitterDate": _date(revision.committer_date),
        }
        return _source_outcome(job, revision, variables)

    def _take_connection(self, job: Job) -> Outcome:
        revision = self._snapshot(job)
        variables = {
            "FullRepositoryName": job.configuration["FullRepositoryId"],
            "ConnectionArn": job.configuration["ConnectionArn"],
        }
        return _source_outcome(job, revision, variables)

    def _snapshot(self, job: Job) -> Revision:
        (target,) = job.outputs.values()
        try:
            return snapshot(self._cloud.config.source, target)
        except SourceError as error:
            raise failure(str(error), "RevisionUnavailable") from error

    # Build

    def _build(self, job: Job) -> Outcome:
        primary = job.configuration.get("PrimarySource") or next(iter(job.inputs))
        environment = environment_variables(job.configuration.get("EnvironmentVariables", "[]"))
        environment |= {
            f"CODEBUILD_SRC_DIR_{name}": str(artifact.folder)
            for name, artifact in job.inputs.items()
            if name != primary
        }
        output = next(iter(job.outputs.values()), None)
        if output is not None:
            output.mkdir(parents=True)
        codebuild = cast("CodeBuildService", self._cloud.services["codebuild"])
        build = codebuild.run(
            job.configuration["ProjectName"],
            job.inputs[primary].folder,
            revision=job.inputs[primary].revision,
            environment=environment,
            artifacts=output,
            stopped=self._stopped,
            initiator=f"codepipeline/{job.pipeline}",
        )
        outcome = Outcome(
            summary=build.reason, external_id=build.id, external_url=build.log_file.as_uri()
        )
        if build.status != "SUCCEEDED":
            reason = f"Build {build.status}: {build.reason}"
            raise ActionFailed(replace(outcome, summary=reason, error_code="JobFailed"))
        return replace(outcome, variables=build.exported_variables)

    # Deploy

    def _deploy(self, job: Job) -> Outcome:
        configuration = job.configuration
        read = {
            key: _read(job, key)
            for key in ("TemplatePath", "TemplateConfiguration")
            if key in configuration
        }
        settings = _json_object("TemplateConfiguration", read.get("TemplateConfiguration", "{}"))
        if unsupported := sorted(set(settings) - {"Parameters", "Tags"}):
            raise failure(
                "The embedded cloud does not support a TemplateConfiguration's "
                f"{', '.join(unsupported)}.",
                "ConfigurationError",
            )
        overrides = _json_object(
            "ParameterOverrides", configuration.get("ParameterOverrides", "{}")
        )
        stacks = Stacks(self._cloud, job.bucket, f"{job.pipeline}/{job.execution_id}/{job.id}")
        return stacks.perform(
            configuration,
            read.get("TemplatePath"),
            {**settings.get("Parameters", {}), **overrides},
            settings.get("Tags", {}),
        )

    # Approval

    def _ask_for_approval(self, job: Job) -> None:
        """Tell the topic, if there is one; `PutApprovalResult` will answer.

        Of what the documentation shows, the links to AWS's console and the time of expiry are left
        out: there is no console, and nothing expires.
        https://docs.aws.amazon.com/codepipeline/latest/userguide/approvals-json-format.html
        """
        if not (topic := job.configuration.get("NotificationArn")):
            return
        approval = {
            "pipelineName": job.pipeline,
            "stageName": job.action.stage,
            "actionName": job.action.name,
            "token": job.id,
            "externalEntityLink": job.configuration.get("ExternalEntityLink"),
            "customData": job.configuration.get("CustomData"),
        }
        message = {"region": self._cloud.config.region, "approval": present(approval)}
        self._cloud.client("sns").publish(TopicArn=topic, Message=json.dumps(message))

    # Invoke

    def _invoke(self, job: Job) -> None:
        """Run a function that will call `PutJobSuccessResult` or `PutJobFailureResult`.

        One that raises before that fails the action at once; AWS would wait for its time-out.
        https://docs.aws.amazon.com/codepipeline/latest/userguide/actions-invoke-lambda-function.html
        """
        name = job.configuration["FunctionName"]
        environment = self._cloud.environment()
        data = {
            "actionConfiguration": {"configuration": job.configuration},
            "inputArtifacts": [],
            "outputArtifacts": [],
            "artifactCredentials": {
                "accessKeyId": environment["AWS_ACCESS_KEY_ID"],
                "secretAccessKey": environment["AWS_SECRET_ACCESS_KEY"],
                "sessionToken": environment["AWS_ACCESS_KEY_ID"],
            },
        }
        event = {
            "CodePipeline.job": {
                "id": job.id,
                "accountId": self._cloud.config.account_id,
                "data": data,
            }
        }
        functions = self._cloud.functions
        try:
            function = functions.find(name)
        except UnknownFunctionException as error:
            raise failure(f"There is no function {name}.", "ConfigurationError") from error
        invocation = functions.invoke(function, json.dumps(event).encode())
        if invocation.failed:
            raised = json.loads(invocation.payload)
            raise failure(
                f"The function {name} failed: "
                f"{raised.get('errorType')}: {raised.get('errorMessage')}"
            )


def failure(message: str, code: str = "JobFailed") -> ActionFailed:
    """A failed action; the codes are those of `FailureType`."""
    return ActionFailed(Outcome(summary=message, error_code=code))


def environment_variables(text: str) -> dict[str, str]:
    """CodeBuild's variables in an action's configuration. Raises `ActionFailed`."""
    wrong = "EnvironmentVariables is not a JSON list of objects with name, value and type"
    try:
        variables = json.loads(text)
    except ValueError as error:
        raise failure(f"{wrong}: {error}. It is: {text}", "ConfigurationError") from error
    if not isinstance(variables, list):
        raise failure(f"{wrong}. It is: {text}", "ConfigurationError")
    environment: dict[str, str] = {}
    for variable in variables:
        match variable:
            case {"name": str(name), "value": str(value)}:
                kind = variable.get("type", "PLAINTEXT")
            case _:
                raise failure(f"{wrong}: {json.dumps(variable)}", "ConfigurationError")
        if kind != "PLAINTEXT":
            raise failure(
                f"The variable {name}: the embedded cloud takes the type PLAINTEXT, not {kind}.",
                "ConfigurationError",
            )
        environment[name] = value
    return environment


def _source_outcome(job: Job, revision: Revision, variables: Mapping[str, str | None]) -> Outcome:
    """With the variables that both providers put out.

    The branch is the one that the action is configured with: the working tree stands for it.
    """
    common = {
        "CommitId": revision.id,
        "BranchName": job.configuration["BranchName"],
        "CommitMessage": revision.message,
        "AuthorDate": _date(revision.author_date),
    }
    return Outcome(
        summary=revision.message,
        external_id=revision.id,
        variables=present({**common, **variables}),
        revision=revision,
    )


def _date(moment: datetime | None) -> str | None:
    return None if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _read(job: Job, key: str) -> str:
    """The file that a configuration names as `ARTIFACT::FILE`."""
    path = job.configuration[key]
    artifact, _, name = path.partition("::")
    file = job.inputs[artifact].folder / name if artifact in job.inputs else None
    if file is None or not file.is_file():
        raise failure(f"{key} {path}: there is no such file.", "ConfigurationError")
    return file.read_text()


def _json_object(key: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise failure(f"{key} is not JSON: {error}. It is: {text}", "ConfigurationError") from error
    if not isinstance(value, dict):
        raise failure(f"{key} is not a JSON object. It is: {text}", "ConfigurationError")
    return value
