"""Scheduled retraining, as deployed: it starts by itself, and stops when nothing is new."""

import json
from datetime import UTC, datetime, timedelta

from stack import Tuning, dialogues, small, until

SETTINGS = small(tuning={"schedule": "rate(7 days)"})
FUNCTION = "quench-start-tuning"
DATASET = "datasets/dialogues.jsonl"


def reports(tuning: Tuning, text: str) -> bool:
    """Whether start_tuning has logged this."""
    logs = tuning.client("logs")
    events = logs.filter_log_events(logGroupName=f"/aws/lambda/{FUNCTION}")["events"]
    return any(text in event["message"] for event in events)


def stop(tuning: Tuning, execution: str) -> None:
    tuning.client("sagemaker").stop_pipeline_execution(
        PipelineExecutionArn=execution, ClientRequestToken=execution[-12:].ljust(32, "0")
    )
    assert tuning.end_of(execution)["PipelineExecutionStatus"] == "Stopped"


def test_the_schedule_retrains_on_the_newest_dataset_unless_that_is_done(tuning: Tuning) -> None:
    until(lambda: reports(tuning, "there is no dataset in"), "the new schedule's invocation")
    assert not tuning.executions()

    tuning.upload(DATASET, dialogues(40))
    uploaded = tuning.execution_of(DATASET)
    stop(tuning, uploaded)

    scheduler = tuning.client("scheduler")
    (listed,) = scheduler.list_schedules()["Schedules"]
    deployed = scheduler.get_schedule(Name=listed["Name"])
    assert deployed["ScheduleExpression"] == "rate(7 days)"
    due = datetime.now(UTC) + timedelta(seconds=5)
    scheduler.update_schedule(
        Name=listed["Name"],
        ScheduleExpression=f"at({due:%Y-%m-%dT%H:%M:%S})",
        FlexibleTimeWindow=deployed["FlexibleTimeWindow"],
        Target={name: deployed["Target"][name] for name in ("Arn", "RoleArn", "Input")},
    )
    (again,) = until(
        lambda: [found for found in tuning.executions_of(DATASET) if found != uploaded],
        "the scheduled execution",
    )

    event = {"source": "quench.schedule", "time": "2126-01-01T00:00:00Z"}
    answer = tuning.client("lambda").invoke(FunctionName=FUNCTION, Payload=json.dumps(event))
    assert again in json.loads(answer["Payload"].read())["skipped"]
    assert set(tuning.executions_of(DATASET)) == {uploaded, again}
    stop(tuning, again)
