"""The deployed release pipeline, as those see it who wait for a release."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

CLOCKS_DIFFER = timedelta(seconds=1)


@dataclass(frozen=True)
class Action:
    """What an action of a stage did last; `token` answers an approval that waits."""

    stage: str
    name: str
    status: str  # "" before it ever ran
    changed: datetime | None
    execution: str
    message: str = ""
    token: str = ""

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
        """Every action of the pipeline, in order, as it ran last."""
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
        """The newest execution that began when a parameter had been written, and so reads it."""
        for execution in self.executions():
            if execution.started >= written - CLOCKS_DIFFER:
                return execution
        return None

    def statuses(self, execution: str) -> dict[str, str]:
        """How the actions of an execution stand, by `stage/action`; those that began."""
        pages = self._codepipeline.get_paginator("list_action_executions").paginate(
            pipelineName=self.name, filter={"pipelineExecutionId": execution}
        )
        found: dict[str, str] = {}
        for page in pages:
            for detail in page["actionExecutionDetails"]:  # newest first: a retry counts
                place = f"{detail['stageName']}/{detail['actionName']}"
                found.setdefault(place, detail["status"])
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
        """Run the failed actions of a stage again."""
        self._codepipeline.retry_stage_execution(
            pipelineName=self.name,
            stageName=stage,
            pipelineExecutionId=execution,
            retryMode="FAILED_ACTIONS",
        )


def _action(stage: Mapping[str, Any], action: Mapping[str, Any]) -> Action:
    latest = action.get("latestExecution", {})
    return Action(
        stage=stage["stageName"],
        name=action["actionName"],
        status=latest.get("status", ""),
        changed=latest.get("lastStatusChange"),
        execution=stage.get("latestExecution", {}).get("pipelineExecutionId", ""),
        message=latest.get("errorDetails", {}).get("message") or latest.get("summary", ""),
        token=latest.get("token", ""),
    )
