"""EventBridge Scheduler in the embedded cloud, and the tuning stack's scheduled retraining."""

import io
import json
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from botocore.exceptions import ClientError
from stack import until

from local.cloud import Cloud
from local.config import LocalConfig

ROLE = "arn:aws:iam::123456789012:role/schedules"
FUNCTION = "arn:aws:lambda:us-east-1:123456789012:function:{}"
HANDLERS = """
import json

def tell(event, context):
    print("told", json.dumps(event))

def fail(event, context):
    print("told", json.dumps(event))
    raise ValueError("no")
"""


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as code:
        code.writestr("handlers.py", HANDLERS)
    state = tmp_path_factory.mktemp("cloud")
    with Cloud(LocalConfig(port=0, state_dir=state, wait_scale=0.002)) as running:
        running.client("iam").create_role(RoleName="schedules", AssumeRolePolicyDocument="{}")
        for name in ("tell", "fail"):
            running.client("lambda").create_function(
                FunctionName=name,
                Handler=f"handlers.{name}",
                Runtime="python3.13",
                Role=ROLE,
                Code={"ZipFile": archive.getvalue()},
            )
        yield running


def schedule(name: str, expression: str, function: str = "tell", **more: Any) -> dict[str, Any]:
    """A schedule whose function is told the schedule's name and all the context attributes."""
    event = {"name": name} | {
        attribute: f"<aws.scheduler.{attribute}>"
        for attribute in ("scheduled-time", "schedule-arn", "execution-id", "attempt-number")
    }
    target = {"Arn": FUNCTION.format(function), "RoleArn": ROLE, "Input": json.dumps(event)}
    return {
        "Name": name,
        "ScheduleExpression": expression,
        "FlexibleTimeWindow": {"Mode": "OFF"},
        **more,
        "Target": target | more.get("Target", {}),
    }


def soon() -> datetime:
    """A whole second, which is what an expression can name, between 4 and 5 s from now."""
    return datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=5)


def at(moment: datetime) -> str:
    return f"at({moment:%Y-%m-%dT%H:%M:%S})"


def told(cloud: Cloud, name: str, function: str = "tell") -> list[dict[str, Any]]:
    logs = cloud.client("logs")
    group = f"/aws/lambda/{function}"
    try:
        found = logs.filter_log_events(logGroupName=group, filterPattern="told")["events"]
    except logs.exceptions.ResourceNotFoundException:  # before the first invocation
        return []
    events = [json.loads(entry["message"].partition(" ")[2]) for entry in found]
    return [event for event in events if event["name"] == name]


class TestSchedules:
    def test_a_due_schedule_invokes_its_function_once_and_a_disabled_one_never(
        self, cloud: Cloud
    ) -> None:
        scheduler = cloud.client("scheduler")
        due = soon()
        later = due + timedelta(seconds=1)
        scheduler.create_schedule(**schedule("disabled", at(due), State="DISABLED"))
        arn = scheduler.create_schedule(**schedule("once", at(due)))["ScheduleArn"]
        scheduler.create_schedule(**schedule("deleted", at(due)))
        scheduler.delete_schedule(Name="deleted")
        scheduler.create_schedule(**schedule("later", at(later)))

        until(lambda: told(cloud, "later"), "the last schedule's invocation")
        (event,) = until(lambda: told(cloud, "once"), "the invocation due before it")
        assert event.pop("execution-id").isalnum()
        assert event == {
            "name": "once",
            "scheduled-time": f"{due:%Y-%m-%dT%H:%M:%SZ}",
            "schedule-arn": arn,
            "attempt-number": "1",
        }
        assert not told(cloud, "disabled")
        assert not told(cloud, "deleted")
        assert scheduler.get_schedule(Name="once")["ScheduleExpression"] == at(due)

    def test_a_rate_starts_at_once_or_at_its_start_date_and_ends(self, cloud: Cloud) -> None:
        scheduler = cloud.client("scheduler")
        now = datetime.now(UTC)
        day = timedelta(days=1)
        rate = "rate(7 days)"
        scheduler.create_schedule(**schedule("started", rate, StartDate=now - day))
        scheduler.create_schedule(**schedule("starting", rate, StartDate=now + day))
        scheduler.create_schedule(**schedule("ended", rate, EndDate=now - day))
        scheduler.create_schedule(**schedule("new", rate))
        until(lambda: told(cloud, "new"), "the new schedule's invocation")
        assert not any(told(cloud, name) for name in ("started", "starting", "ended"))
        # An update does not start it anew; another expression holds from then on.
        scheduler.update_schedule(**schedule("new", "rate(8 days)"))
        scheduler.update_schedule(**schedule("starting", at(soon())))
        until(lambda: told(cloud, "starting"), "the updated schedule's invocation")
        assert scheduler.get_schedule(Name="new")["State"] == "ENABLED"
        assert len(told(cloud, "new")) == 1

    def test_an_event_that_fails_is_retried(self, cloud: Cloud) -> None:
        cloud.client("scheduler").create_schedule(**schedule("failing", "rate(7 days)", "fail"))
        events = until(
            lambda: found if len(found := told(cloud, "failing", "fail")) == 3 else None,
            "three attempts",
        )
        assert events[0] == events[1] == events[2]

    @pytest.mark.parametrize(
        ("change", "named"),
        [
            ({"ScheduleExpression": "rate(7 weeks)"}, "rate"),
            ({"ScheduleExpression": "cron(0 3 * * SUN *)"}, "question mark"),
            ({"ScheduleExpression": "at(2020-01-01T00:00:00)"}, "no time to come"),
            ({"FlexibleTimeWindow": {"Mode": "FLEXIBLE", "MaximumWindowInMinutes": 5}}, "FLEXIBLE"),
            ({"ScheduleExpressionTimezone": "Europe/Berlin"}, "Europe/Berlin"),
            ({"GroupName": "others"}, "GroupName others"),
            ({"ActionAfterCompletion": "DELETE"}, "ActionAfterCompletion DELETE"),
            ({"KmsKeyArn": "arn:aws:kms:us-east-1:123456789012:key/a"}, "KmsKeyArn"),
            ({"Target": {"RetryPolicy": {"MaximumRetryAttempts": 1}}}, "Target.RetryPolicy"),
            ({"Target": {"Arn": "arn:aws:sqs:us-east-1:123456789012:queue"}}, "sqs"),
            ({"Target": {"Arn": "arn:aws:scheduler:::aws-sdk:lambda:invoke"}}, "aws-sdk"),
            ({"Target": {"Arn": FUNCTION.format("absent")}}, "absent"),
            ({"Target": {"Input": "not JSON"}}, "Target.Input"),
        ],
    )
    def test_what_it_cannot_do_is_refused_by_name(
        self, cloud: Cloud, change: dict[str, Any], named: str
    ) -> None:
        scheduler = cloud.client("scheduler")
        with pytest.raises(ClientError, match=named):
            scheduler.create_schedule(**schedule("refused", "rate(7 days)", **change))
        with pytest.raises(scheduler.exceptions.ResourceNotFoundException):
            scheduler.get_schedule(Name="refused")

    def test_a_stack_makes_changes_and_removes_one(self, cloud: Cloud) -> None:
        scheduler, stacks = cloud.client("scheduler"), cloud.client("cloudformation")

        def template(expression: str) -> str:
            properties = schedule("stacked", expression, StartDate="2120-01-01T00:00:00Z")
            made = {"Type": "AWS::Scheduler::Schedule", "Properties": properties}
            arn = {"Value": {"Fn::GetAtt": ["Made", "Arn"]}}
            return json.dumps({"Resources": {"Made": made}, "Outputs": {"Arn": arn}})

        stacks.create_stack(StackName="timed", TemplateBody=template("rate(1 hour)"))
        (output,) = stacks.describe_stacks(StackName="timed")["Stacks"][0]["Outputs"]
        made = scheduler.get_schedule(Name="stacked")
        assert (made["Arn"], made["ScheduleExpression"]) == (output["OutputValue"], "rate(1 hour)")
        assert made["StartDate"] == datetime(2120, 1, 1, tzinfo=UTC)
        stacks.update_stack(StackName="timed", TemplateBody=template("cron(0 3 ? * SUN *)"))
        changed = scheduler.get_schedule(Name="stacked")
        assert changed["ScheduleExpression"] == "cron(0 3 ? * SUN *)"
        with pytest.raises(ClientError, match=r"Made \(AWS::Scheduler::Schedule\).*rate\(soon\)"):
            stacks.update_stack(StackName="timed", TemplateBody=template("rate(soon)"))
        stacks.delete_stack(StackName="timed")
        with pytest.raises(scheduler.exceptions.ResourceNotFoundException):
            scheduler.get_schedule(Name="stacked")
