"""What is recorded of executions: of a pipeline, of a stage in it, and of an action in that."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from local.codepipeline.requests import present
from local.codepipeline.source import Revision
from local.codepipeline.structure import RESERVED_NAMESPACE, Action, Stage, Structure

ExecutionStatus = Literal[
    "InProgress", "Stopping", "Stopped", "Succeeded", "Failed", "Superseded", "Cancelled"
]
StageStatus = Literal["InProgress", "Stopping", "Stopped", "Succeeded", "Failed", "Cancelled"]
ActionStatus = Literal["InProgress", "Succeeded", "Failed", "Abandoned"]

MAX_SUMMARY = 2048
MAX_MESSAGE = 5000


@dataclass(frozen=True)
class Outcome:
    """What an action came to. `summary` is for people; of a failure, it says why."""

    summary: str = ""
    error_code: str | None = None
    external_id: str | None = None
    external_url: str | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    revision: Revision | None = None

    def error_details(self) -> dict[str, str] | None:
        if self.error_code is None:
            return None
        return {"code": self.error_code, "message": self.summary[:MAX_MESSAGE]}


@dataclass
class ActionExecution:
    """One run of an action. Its `id` is also the token of an approval, and the id of a job."""

    stage_execution: "StageExecution"
    action: Action
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    start_time: datetime = field(default_factory=lambda: datetime.now(UTC))
    last_update_time: datetime = field(default_factory=lambda: datetime.now(UTC))
    status: ActionStatus = "InProgress"
    resolved_configuration: Mapping[str, str] | None = None
    outcome: Outcome = field(default_factory=Outcome)

    @property
    def execution(self) -> "Execution":
        return self.stage_execution.execution

    def set_status(self, status: ActionStatus) -> None:
        self.status = status
        self.last_update_time = datetime.now(UTC)

    def describe(self) -> dict[str, Any]:
        """An item of `ListActionExecutions`."""
        outcome, action = self.outcome, self.action
        return {
            "pipelineExecutionId": self.execution.id,
            "actionExecutionId": self.id,
            "pipelineVersion": self.execution.version,
            "stageName": action.stage,
            "actionName": action.name,
            "startTime": self.start_time,
            "lastUpdateTime": self.last_update_time,
            "status": self.status,
            "input": present(
                {
                    "actionTypeId": action.type_id,
                    "configuration": action.configuration,
                    "resolvedConfiguration": self.resolved_configuration,
                    "roleArn": action.role_arn,
                    "inputArtifacts": [{"name": name} for name in action.inputs],
                    "namespace": action.namespace,
                }
            ),
            "output": {
                "outputArtifacts": [
                    {"name": name} for name in action.outputs if self.status == "Succeeded"
                ],
                "executionResult": present(
                    {
                        "externalExecutionId": outcome.external_id,
                        "externalExecutionSummary": outcome.summary or None,
                        "externalExecutionUrl": outcome.external_url,
                        "errorDetails": outcome.error_details(),
                    }
                ),
                "outputVariables": outcome.variables,
            },
        }

    def describe_state(self) -> dict[str, Any]:
        """An item of `actionStates` in `GetPipelineState`."""
        outcome = self.outcome
        waits = self.action.provider == "Manual" and self.status == "InProgress"
        revision = outcome.revision
        return present(
            {
                "actionName": self.action.name,
                "entityUrl": (self.resolved_configuration or {}).get("ExternalEntityLink"),
                "currentRevision": revision
                and {
                    "revisionId": revision.id,
                    "revisionChangeId": revision.created.isoformat(),
                    "created": revision.created,
                },
                "latestExecution": present(
                    {
                        "actionExecutionId": self.id,
                        "status": self.status,
                        "summary": outcome.summary[:MAX_SUMMARY] or None,
                        "lastStatusChange": self.last_update_time,
                        "token": self.id if waits else None,
                        "externalExecutionId": outcome.external_id,
                        "externalExecutionUrl": outcome.external_url,
                        "errorDetails": outcome.error_details(),
                    }
                ),
            }
        )


@dataclass
class StageExecution:
    """An execution in a stage. `runs` has each action's last run, unless it is to be redone."""

    execution: "Execution"
    stage: Stage
    status: StageStatus = "InProgress"
    runs: dict[str, ActionExecution] = field(default_factory=dict)
    last_retry_time: datetime | None = None

    @property
    def is_active(self) -> bool:
        return self.status in ("InProgress", "Stopping")

    def having(self, *statuses: ActionStatus) -> list[ActionExecution]:
        return [run for run in self.runs.values() if run.status in statuses]

    def to_run_next(self) -> list[Action]:
        """The actions of the first group that has not run; none if every action has."""
        for group in self.stage.groups():
            if actions := [action for action in group if action.name not in self.runs]:
                return actions
        return []

    def describe(self) -> dict[str, Any]:
        return {"pipelineExecutionId": self.execution.id, "status": self.status}


@dataclass
class Execution:
    """One execution of a pipeline, with the structure and the version that it started with."""

    pipeline: str
    pipeline_arn: str
    structure: Structure
    version: int
    trigger: str
    folder: Path
    """Where its artifacts lie, each in a folder named like it."""
    id: str
    status: ExecutionStatus = "InProgress"
    start_time: datetime = field(default_factory=lambda: datetime.now(UTC))
    last_update_time: datetime = field(default_factory=lambda: datetime.now(UTC))
    attempt: int = 1
    stop_reason: str | None = None
    runs: list[ActionExecution] = field(default_factory=list)
    succeeded_stages: set[str] = field(default_factory=set)
    variables: dict[str, Mapping[str, str]] = field(default_factory=dict)
    artifacts: dict[str, str] = field(default_factory=dict)
    """The revision of every artifact put out so far, by its name."""
    at_work: int = 0
    """How many threads work for it, even if nobody waits for them any more."""
    is_removed: bool = False
    """Whether its artifacts are."""

    def __post_init__(self) -> None:
        self.variables[RESERVED_NAMESPACE] = {"PipelineExecutionId": self.id}

    @property
    def is_active(self) -> bool:
        return self.status in ("InProgress", "Stopping")

    def set_status(self, status: ExecutionStatus) -> None:
        self.status = status
        self.last_update_time = datetime.now(UTC)

    def describe(self) -> dict[str, Any]:
        """`GetPipelineExecution`."""
        return {
            "pipelineName": self.pipeline,
            "pipelineVersion": self.version,
            "pipelineExecutionId": self.id,
            "status": self.status,
            "artifactRevisions": [
                present(
                    {
                        "name": action.outputs[0],
                        "revisionId": revision.id,
                        "revisionSummary": revision.message[:MAX_SUMMARY] or None,
                        "created": revision.created,
                    }
                )
                for action, revision in self._sources()
            ],
            "trigger": {"triggerType": self.trigger},
            "executionMode": "SUPERSEDED",
            "executionType": "STANDARD",
        }

    def summarize(self) -> dict[str, Any]:
        """An item of `ListPipelineExecutions`."""
        stop_trigger = {"reason": self.stop_reason} if self.stop_reason is not None else None
        return present(
            {
                "pipelineExecutionId": self.id,
                "status": self.status,
                "startTime": self.start_time,
                "lastUpdateTime": self.last_update_time,
                "sourceRevisions": [
                    present(
                        {
                            "actionName": action.name,
                            "revisionId": revision.id,
                            "revisionSummary": revision.message[:MAX_SUMMARY] or None,
                        }
                    )
                    for action, revision in self._sources()
                ],
                "trigger": {"triggerType": self.trigger},
                "stopTrigger": stop_trigger,
                "executionMode": "SUPERSEDED",
                "executionType": "STANDARD",
            }
        )

    def _sources(self) -> list[tuple[Action, Revision]]:
        latest = {
            run.action.name: (run.action, run.outcome.revision)
            for run in self.runs
            if run.outcome.revision is not None
        }
        return list(latest.values())
