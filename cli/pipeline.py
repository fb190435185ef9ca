"""The deployed release pipeline, as those see it who wait for a release."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from cli.errors import CommandError

CLOCKS_DIFFER = timedelta(seconds=1)


@dataclass(frozen=True)
class Action:
    """What an action of a stage did, last or in an execution.

    `token` answers an approval that waits; `outputs` are variables for later actions.
    """

    stage: str
    name: str
    status: str  # "" before it ever ran
    changed: datetime | None
    message: str = ""
    execution: str = ""  # which one is in the stage now
    token: str = ""
    outputs: Mapping[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return f"{self.stage}/{self.name}"


@dataclass(frozen=True)
class Execution:
    id: str
    status: str
    started: datetime

    @property
    def running(self) -> bool:
        return self.status in ("InProgress", "Stopping")


class ReleasePipeline:
    """`client` makes a boto3 client of a service."""

    def __init__(self, name: str, client: Callable[..., Any]) -> None:
        self.name = name
        self._codepipeline = client("codepipeline")

    def actions(self) -> list[Action]:
        """Every action of the pipeline, in order, as it ran last in whatever execution."""
        state = self._codepipeline.get_pipeline_state(name=self.name)
        return [
            _action(stage, action)
            for stage in state["stageStates"]
            for action in stage.get("actionStates", [])
        ]

    def executions(self) -> list[Execution]:
        """Newest first."""
        listed = self._codepipeline.list_pipeline_executions(pipelineName=self.name)
        return [
            Execution(found["pipelineExecutionId"], found["status"], found["startTime"])
            for found in listed["pipelineExecutionSummaries"]
        ]

    def release_since(self, written: datetime) -> Execution | None:
        """The first execution that began when a parameter had been written, and so reads it.

        One that a later one took the place of does not count: as when the pipeline updated itself.
        """
        since = [e for e in self.executions() if e.started >= written - CLOCKS_DIFFER]
        deciding = [e for e in since if e.status not in ("Cancelled", "Superseded")]
        return next(reversed(deciding or since), None)

    def actions_of(self, execution: str) -> dict[str, Action]:
        """The actions that began in an execution, by place, as each ran last."""
        pages = self._codepipeline.get_paginator("list_action_executions").paginate(
            pipelineName=self.name, filter={"pipelineExecutionId": execution}
        )
        found: dict[str, Action] = {}
        for page in pages:
            for detail in page["actionExecutionDetails"]:  # newest first: a retry counts
                action = _action_of(detail)
                found.setdefault(action.place, action)
        return found

    def answer(self, approval: Action, approved: bool, summary: str) -> None:
        """Let a release pass an approval that waits, or not."""
        self._codepipeline.put_approval_result(
            pipelineName=self.name,
            stageName=approval.stage,
            actionName=approval.name,
            token=approval.token,
            result={"status": "Approved" if approved else "Rejected", "summary": summary},
        )

    def retry(self, stage: str, execution: str) -> None:
        """Run the failed actions of a stage again. Raises CommandError if that cannot be."""
        refusals = self._codepipeline.exceptions
        try:
            self._codepipeline.retry_stage_execution(
                pipelineName=self.name,
                stageName=stage,
                pipelineExecutionId=execution,
                retryMode="FAILED_ACTIONS",
            )
        except (
            refusals.StageNotRetryableException,
            refusals.NotLatestPipelineExecutionException,
        ) as error:
            raise CommandError(
                f"{stage} cannot run again in {execution}: {error.response['Error']['Message']}",
                f"Release anew: aws codepipeline start-pipeline-execution --name {self.name}",
            ) from error


def find_failed(actions: Mapping[str, Action]) -> Action | None:
    """What failed of an execution's actions, the newest first."""
    return next((action for action in actions.values() if action.status == "Failed"), None)


def _action(stage: Mapping[str, Any], action: Mapping[str, Any]) -> Action:
    latest = action.get("latestExecution", {})
    return Action(
        stage=stage["stageName"],
        name=action["actionName"],
        status=latest.get("status", ""),
        changed=latest.get("lastStatusChange"),
        message=latest.get("errorDetails", {}).get("message") or latest.get("summary", ""),
        execution=stage.get("latestExecution", {}).get("pipelineExecutionId", ""),
        token=latest.get("token", ""),
    )


def _action_of(detail: Mapping[str, Any]) -> Action:
    output = detail.get("output", {})
    result = output.get("executionResult", {})
    return Action(
        stage=detail["stageName"],
        name=detail["actionName"],
        status=detail["status"],
        changed=detail.get("lastUpdateTime"),
        message=result.get("errorDetails", {}).get("message")
        or result.get("externalExecutionSummary", ""),
        outputs=output.get("outputVariables", {}),
    )
