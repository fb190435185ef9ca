"""A pipeline and the executions in it: which may enter a stage, and what comes next.

https://docs.aws.amazon.com/codepipeline/latest/userguide/concepts-how-it-works.html
"""

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from local.codepipeline.events import Event, action_event, pipeline_event, stage_event
from local.codepipeline.executions import (
    ActionExecution,
    Execution,
    ExecutionStatus,
    Outcome,
    StageExecution,
    StageStatus,
)
from local.codepipeline.requests import present
from local.codepipeline.structure import Stage, Structure
from local.protocol import ServiceError

KEPT_EXECUTIONS = 3
"""How many of the newest executions keep their artifacts, whatever became of them."""

_EVENT_STATES = {
    "Succeeded": "SUCCEEDED",
    "Failed": "FAILED",
    "Stopping": "STOPPING",
    "Stopped": "STOPPED",
    "Superseded": "SUPERSEDED",
    "Cancelled": "CANCELED",
}


@dataclass
class Place:
    """What is in a stage, and what waits to enter it."""

    latest: StageExecution | None = None
    inbound: Execution | None = None
    runs: dict[str, ActionExecution] = field(default_factory=dict)
    """The last run of each action, of whatever execution."""

    @property
    def is_locked(self) -> bool:
        return self.latest is not None and self.latest.is_active

    def held_by(self, execution: Execution) -> StageExecution | None:
        """The execution in this stage, if it is this one, and still in it."""
        latest = self.latest
        if latest is None or not latest.is_active or latest.execution is not execution:
            return None
        return latest


class Pipeline:
    """A pipeline. Whoever calls a method, or looks into it, holds the service's lock.

    `begin` is to start the work of an action, and `tell` to publish an event; neither waits.
    """

    def __init__(
        self,
        arn: str,
        structure: Structure,
        folder: Path,
        begin: Callable[["Pipeline", ActionExecution], None],
        tell: Callable[[Event], None],
    ) -> None:
        self.arn = arn
        self.structure = structure
        self.folder = folder
        self.version = 1
        self.created = self.updated = datetime.now(UTC)
        self.executions: dict[str, Execution] = {}  # by id, oldest first
        self.places = {stage.name: Place() for stage in structure.stages}
        self._by_token: dict[str, Execution] = {}
        self._begin = begin
        self._tell = tell

    @property
    def name(self) -> str:
        return self.structure.name

    # What callers ask for

    def update(self, structure: Structure) -> bool:
        """Take another structure, cancelling what is in progress. False if it is the same."""
        if structure.declaration == self.structure.declaration:
            return False
        self.cancel()
        self.structure = structure
        self.version += 1
        self.updated = datetime.now(UTC)
        self.places = {
            stage.name: self.places.get(stage.name, Place()) for stage in structure.stages
        }
        return True

    def cancel(self) -> None:
        """Cancel every execution in progress. The work of its actions goes on, and is not heard."""
        for place in self.places.values():
            place.inbound = None
            if place.latest is not None and place.latest.is_active:
                self._abandon(place.latest, "CANCELED")
                self._set_stage_status(place.latest, "Cancelled")
        for execution in self.executions.values():
            if execution.is_active:
                self._set_status(execution, "Cancelled")

    def start(self, token: str | None, trigger: str) -> Execution:
        """Start an execution, or find the one that was started with this token."""
        if token is not None and token in self._by_token:
            return self._by_token[token]
        execution_id = str(uuid.uuid4())
        execution = Execution(
            pipeline=self.name,
            pipeline_arn=self.arn,
            structure=self.structure,
            version=self.version,
            trigger=trigger,
            folder=self.folder / execution_id,
            id=execution_id,
        )
        self.executions[execution_id] = execution
        if token is not None:
            self._by_token[token] = execution
        self._tell(pipeline_event(execution, "STARTED"))
        self._arrive(execution, self.structure.stages[0])
        return execution

    def stop(self, execution: Execution, reason: str, *, abandon: bool) -> None:
        """Start no more actions. Those that run are waited for, or abandoned."""
        if not execution.is_active:
            raise ServiceError(
                "PipelineExecutionNotStoppableException",
                f"The execution {execution.id} has ended already ({execution.status}).",
            )
        if execution.status == "Stopping" and not abandon:
            raise ServiceError(
                "DuplicatedStopRequestException", f"The execution {execution.id} is stopping."
            )
        execution.stop_reason = reason
        if execution.status != "Stopping":
            self._set_status(execution, "Stopping")
        for place in self.places.values():
            if place.inbound is execution:
                place.inbound = None
                self._set_status(execution, "Stopped")
            elif (entered := place.held_by(execution)) is not None:
                if entered.status != "Stopping":
                    self._set_stage_status(entered, "Stopping")
                if abandon:
                    self._abandon(entered, "ABANDONED")
                self._proceed(entered)

    def retry(
        self, stage: str, execution: Execution, mode: Literal["FAILED_ACTIONS", "ALL_ACTIONS"]
    ) -> None:
        """Run a stage's failed actions again, or all of them, and go on from there.

        https://docs.aws.amazon.com/codepipeline/latest/userguide/stage-retry.html
        """
        entered = self.places[stage].latest
        if entered is None or entered.execution is not execution:
            raise ServiceError(
                "NotLatestPipelineExecutionException",
                f"The execution {execution.id} is not the latest one in the stage {stage}.",
            )
        if entered.status not in ("Failed", "Stopped") or execution.version != self.version:
            raise ServiceError(
                "StageNotRetryableException",
                f"The stage {stage} cannot be retried: it is {entered.status}, of version "
                f"{execution.version} of the pipeline, which is now at {self.version}.",
            )
        for run in list(entered.runs.values()):
            if mode == "ALL_ACTIONS" or run.status != "Succeeded":
                del entered.runs[run.action.name]
        execution.attempt += 1
        execution.stop_reason = None
        execution.set_status("InProgress")
        entered.status = "InProgress"
        entered.last_retry_time = datetime.now(UTC)
        self._tell(pipeline_event(execution, "RESUMED"))
        self._tell(stage_event(entered, "RESUMED"))
        self._proceed(entered)

    def finish(self, run: ActionExecution, outcome: Outcome) -> None:
        """An action's work is done. Nothing happens if nobody waits for it any more."""
        if run.status != "InProgress":
            return
        run.outcome = outcome
        run.set_status("Succeeded" if outcome.error_code is None else "Failed")
        if outcome.error_code is None:
            self._keep(run, outcome)
        self._tell(action_event(run, _EVENT_STATES[run.status]))
        self._proceed(run.stage_execution)

    def describe_stages(self) -> list[dict[str, Any]]:
        """The `stageStates` of `GetPipelineState`."""
        return [self._describe_stage(stage) for stage in self.structure.stages]

    def take_superfluous(self) -> list[Path]:
        """The folders of old executions that nobody can want any more; each is named once."""
        retryable = {place.latest.execution.id for place in self.places.values() if place.latest}
        kept = retryable | set(list(self.executions)[-KEPT_EXECUTIONS:])
        superfluous = [
            execution
            for execution in self.executions.values()
            if execution.id not in kept
            and not (execution.is_active or execution.at_work or execution.is_removed)
        ]
        for execution in superfluous:
            execution.is_removed = True
        return [execution.folder for execution in superfluous]

    # What follows from what

    def _arrive(self, execution: Execution, stage: Stage) -> None:
        """An execution comes to a stage: it enters, or waits in the place of an older one."""
        place = self.places[stage.name]
        if not place.is_locked:
            self._enter(execution, stage)
            return
        if place.inbound is not None:
            self._set_status(place.inbound, "Superseded")
        place.inbound = execution

    def _enter(self, execution: Execution, stage: Stage) -> None:
        entered = self.places[stage.name].latest = StageExecution(execution, stage)
        self._tell(stage_event(entered, "STARTED"))
        self._proceed(entered)

    def _proceed(self, entered: StageExecution) -> None:
        """Start the next actions of a stage; or leave it, if there are none or one has failed."""
        execution = entered.execution
        if entered.having("InProgress"):
            return
        if execution.status == "Stopping":
            self._set_stage_status(entered, "Stopped")
            self._set_status(execution, "Stopped")
        elif entered.having("Failed"):
            self._set_stage_status(entered, "Failed")
            self._set_status(execution, "Failed")
        elif actions := entered.to_run_next():
            runs = [ActionExecution(entered, action) for action in actions]
            entered.runs |= {run.action.name: run for run in runs}
            self.places[entered.stage.name].runs |= entered.runs
            execution.runs += runs
            execution.at_work += len(runs)
            for run in runs:
                self._tell(action_event(run, "STARTED"))
                self._begin(self, run)
            return
        else:
            execution.succeeded_stages.add(entered.stage.name)
            self._set_stage_status(entered, "Succeeded")
            self._go_on(execution, entered.stage)
        place = self.places[entered.stage.name]
        if place.inbound is not None:
            waiting, place.inbound = place.inbound, None
            self._enter(waiting, entered.stage)

    def _go_on(self, execution: Execution, left: Stage) -> None:
        stages = self.structure.stages
        following = stages.index(left) + 1
        if following < len(stages):
            self._arrive(execution, stages[following])
        else:
            self._set_status(execution, "Succeeded")

    def _keep(self, run: ActionExecution, outcome: Outcome) -> None:
        """Let later actions have what this one has put out."""
        execution, action = run.execution, run.action
        if action.namespace is not None:
            execution.variables[action.namespace] = outcome.variables
        if outcome.revision is not None:
            revision = outcome.revision.id
        else:
            revision = next((execution.artifacts[name] for name in action.inputs), "")
        execution.artifacts |= dict.fromkeys(action.outputs, revision)

    def _abandon(self, entered: StageExecution, event_state: str) -> None:
        for run in entered.having("InProgress"):
            run.set_status("Abandoned")
            self._tell(action_event(run, event_state))

    def _set_status(self, execution: Execution, status: ExecutionStatus) -> None:
        execution.set_status(status)
        self._tell(pipeline_event(execution, _EVENT_STATES[status]))

    def _set_stage_status(self, entered: StageExecution, status: StageStatus) -> None:
        entered.status = status
        self._tell(stage_event(entered, _EVENT_STATES[status]))

    def _describe_stage(self, stage: Stage) -> dict[str, Any]:
        place = self.places[stage.name]
        inbound = place.inbound and {
            "pipelineExecutionId": place.inbound.id,
            "status": "InProgress",
        }
        return present(
            {
                "stageName": stage.name,
                "inboundExecution": inbound,
                "inboundExecutions": [inbound] if inbound else [],
                "inboundTransitionState": {"enabled": True},
                "actionStates": [
                    place.runs[action.name].describe_state()
                    if action.name in place.runs
                    else {"actionName": action.name}
                    for action in stage.actions
                ],
                "latestExecution": place.latest and place.latest.describe(),
            }
        )
