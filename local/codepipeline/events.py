"""What CodePipeline tells EventBridge.

https://docs.aws.amazon.com/codepipeline/latest/userguide/detect-state-changes-cloudwatch-events.html
"""

from datetime import UTC, datetime
from typing import Any, NamedTuple

from local.codepipeline.executions import ActionExecution, Execution, StageExecution
from local.codepipeline.requests import present


class Event(NamedTuple):
    detail_type: str
    detail: dict[str, Any]
    resources: list[str]


def pipeline_event(execution: Execution, state: str) -> Event:
    trigger = {"trigger-type": execution.trigger} if state == "STARTED" else None
    more = {
        "execution-trigger": trigger,
        "stop-execution-comments": execution.stop_reason if state == "STOPPING" else None,
    }
    return _event("Pipeline", execution, state, execution.start_time, more)


def stage_event(entered: StageExecution, state: str) -> Event:
    retried = entered.last_retry_time
    more = {
        "stage": entered.stage.name,
        "stage-last-retry-attempt-time": _time(retried) if retried else None,
    }
    return _event("Stage", entered.execution, state, entered.execution.start_time, more)


def action_event(run: ActionExecution, state: str) -> Event:
    outcome, action = run.outcome, run.action
    result = present(
        {
            "external-execution-id": outcome.external_id,
            "external-execution-url": outcome.external_url,
            "external-execution-summary": outcome.summary or None,
            "error-code": outcome.error_code,
        }
    )
    inputs = action.inputs if state == "STARTED" else ()
    outputs = action.outputs if state == "SUCCEEDED" else ()
    more = {
        "stage": action.stage,
        "action-execution-id": run.id,
        "action": action.name,
        "execution-result": result or None,
        "input-artifacts": [{"name": name} for name in inputs] or None,
        "output-artifacts": [{"name": name} for name in outputs] or None,
        "region": run.execution.pipeline_arn.split(":")[3],
        "type": action.type_id,
    }
    return _event("Action", run.execution, state, run.start_time, more)


def _event(
    level: str, execution: Execution, state: str, start_time: datetime, more: dict[str, Any]
) -> Event:
    detail = {
        "pipeline": execution.pipeline,
        "execution-id": execution.id,
        "start-time": _time(start_time),
        "state": state,
        "version": float(execution.version),
        "pipeline-execution-attempt": float(execution.attempt),
        **present(more),
    }
    detail_type = f"CodePipeline {level} Execution State Change"
    return Event(detail_type, detail, [execution.pipeline_arn])


def _time(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "Z"
