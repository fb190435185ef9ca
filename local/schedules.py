"""EventBridge Scheduler: invokes functions at the times of their schedules.

moto keeps the schedules; a thread here looks for those that fell due. A schedule tells calendar
time, which the cloud's `wait_scale` does not shorten. The function is invoked asynchronously, as
by Scheduler itself: an event that it fails on is retried as every other. Occurrences missed while
the machine slept are made up for by one.

https://docs.aws.amazon.com/scheduler/latest/UserGuide/schedule-types.html
"""

from __future__ import annotations

import json
import logging
import re
import threading
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from aws_croniter import AwsCroniter
from moto.scheduler.models import Schedule, scheduler_backends
from moto.scheduler.responses import EventBridgeSchedulerResponse

from local.patches import Patches
from local.protocol import ServiceError

if TYPE_CHECKING:
    from local.cloud import Cloud

log = logging.getLogger(__name__)

POLL_SECONDS = 0.25
SETTINGS = {
    "Name",
    "ClientToken",
    "Description",
    "ScheduleExpression",
    "StartDate",
    "EndDate",
    "State",
    "Target",
}
# Settings that may be given, with a value that asks for nothing more.
PLAIN_VALUES: dict[str, tuple[Any, ...]] = {
    "GroupName": ("default",),
    "ScheduleExpressionTimezone": ("UTC", "Etc/UTC"),
    "FlexibleTimeWindow": ({"Mode": "OFF"},),
    "ActionAfterCompletion": ("NONE",),
}
TARGET_SETTINGS = {"Arn", "RoleArn", "Input"}


class Schedules:
    """Invokes the functions whose schedules are due."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._patches = Patches()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="schedules", daemon=True)
        self._looked = datetime.now(UTC)
        # Held so that no schedule is dated before a look but stored after it.
        self._lock = threading.Lock()

    def start(self) -> None:
        for operation in ("create_schedule", "update_schedule"):
            self._patches.wrap(EventBridgeSchedulerResponse, operation, self._checking)
        self._patches.wrap(Schedule, "update", _enabling)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()
        self._patches.restore()

    def _checking(self, original: Callable[..., str]) -> Callable[..., str]:
        def put_schedule(response: EventBridgeSchedulerResponse) -> str:
            schedule = json.loads(response.body)
            check_schedule(schedule, datetime.now(UTC))
            self._cloud.functions.find(schedule["Target"]["Arn"])  # it raises if there is none
            with self._lock:
                return original(response)

        return put_schedule

    def _run(self) -> None:
        while not self._stopped.wait(POLL_SECONDS):
            for schedule, time in self._due():
                try:
                    self._invoke(schedule, time)
                except Exception:
                    log.exception("Schedule %s could not invoke its function", schedule.name)

    def _due(self) -> list[tuple[Schedule, datetime]]:
        """The schedules that fell due since the last look, and when."""
        with self._lock:
            now = datetime.now(UTC)
            due = [
                (schedule, time)
                for schedule in self._schedules()
                if (time := due_time(schedule, self._looked, now)) is not None
            ]
            self._looked = max(self._looked, now)  # a clock may be put back
            return due

    def _schedules(self) -> Iterator[Schedule]:
        config = self._cloud.config
        groups = scheduler_backends[config.account_id][config.region].schedule_groups
        for group in list(groups.values()):
            yield from list(group.schedules.values())

    def _invoke(self, schedule: Schedule, time: datetime) -> None:
        function = schedule.target["Arn"]
        log.info("Schedule %s of %s invokes %s", schedule.name, time, function)
        payload = target_input(schedule.target["Input"], schedule.arn, time)
        self._cloud.functions.invoke_async(function, payload.encode())


def check_schedule(schedule: dict[str, Any], now: datetime) -> None:
    """Raise `ServiceError` for a schedule, as the API takes it, that the cloud cannot keep."""

    def refuse(reason: str) -> ServiceError:
        return ServiceError("ValidationException", f"The embedded cloud's schedules: {reason}")

    target = schedule["Target"]
    unknown = set(schedule) - SETTINGS - set(PLAIN_VALUES)
    unknown |= {f"Target.{name}" for name in set(target) - TARGET_SETTINGS}
    if unknown:
        raise refuse(f"{', '.join(sorted(unknown))} is not supported.")
    for name, values in PLAIN_VALUES.items():
        if name in schedule and schedule[name] not in values:
            raise refuse(f"{name} {schedule[name]} is not supported, only {values[0]}.")
    if not re.match(r"arn:aws[a-z-]*:lambda:[^:]*:\d*:function:", target["Arn"]):
        raise refuse(f"the target has to be a function, not {target['Arn']}.")
    try:
        json.loads(target.get("Input", ""))
    except ValueError as error:
        raise refuse(f"Target.Input has to be given, and as JSON: {error}.") from error
    expression = schedule["ScheduleExpression"]
    try:
        upcoming = next_time(expression, after=now, start=now)
    except ValueError as error:
        raise refuse(f"{expression} is no valid ScheduleExpression: {error}") from error
    if upcoming is None:
        raise refuse(f"{expression} names no time to come.")


def due_time(schedule: Schedule, after: datetime, until: datetime) -> datetime | None:
    """When an enabled schedule falls due later than `after` and not later than `until`, if so."""
    if schedule.state != "ENABLED":
        return None
    expression = schedule.schedule_expression
    start = schedule.start_date or schedule.creation_date
    time = next_time(expression, after=after, start=datetime.fromtimestamp(start, UTC))
    if time is None or time > until:
        return None
    ended = schedule.end_date and time > datetime.fromtimestamp(schedule.end_date, UTC)
    return None if ended and not expression.startswith("at(") else time


def next_time(expression: str, *, after: datetime, start: datetime) -> datetime | None:
    """The first time later than `after` that an expression, in UTC, names; None if there is none.

    A rate counts from `start` (the schedule's start date, else its creation), which is its first
    occurrence. A cron expression names no time before `start`. Both as documented in
    https://docs.aws.amazon.com/scheduler/latest/UserGuide/schedule-types.html

    Raises `ValueError` for an expression that is none.
    """
    if once := re.fullmatch(r"at\((\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\)", expression):
        time = datetime.fromisoformat(once[1]).replace(tzinfo=UTC)
        return time if time > after else None
    if rate := re.fullmatch(r"rate\(([1-9]\d{0,5}) (minute|hour|day)s?\)", expression):
        period = timedelta(**{f"{rate[2]}s": int(rate[1])})
        if after < start:
            return start
        return start + ((after - start) // period + 1) * period
    if cron := re.fullmatch(r"cron\((.+)\)", expression):
        # It goes from minute to minute: the time that `start` may itself be has to lie ahead.
        earliest = max(after, start - timedelta(microseconds=1)).replace(second=0, microsecond=0)
        following: datetime | None = AwsCroniter(cron[1]).get_next(earliest)[0]
        return following
    raise ValueError("it is neither at(yyyy-mm-ddThh:mm:ss), rate(value unit) nor cron(fields).")


def target_input(template: str, schedule_arn: str, time: datetime) -> str:
    """What a target is sent at a schedule's time, its context attributes filled in.

    https://docs.aws.amazon.com/scheduler/latest/UserGuide/managing-schedule-context-attributes.html
    """
    attributes = {
        "schedule-arn": schedule_arn,
        "scheduled-time": time.strftime("%Y-%m-%dT%H:%M:%SZ"),
        "execution-id": uuid.uuid4().hex[:16],
        "attempt-number": "1",  # Lambda accepts an event at the first
    }
    for name, value in attributes.items():
        template = template.replace(f"<aws.scheduler.{name}>", value)
    return template


def _enabling(original: Callable[..., None]) -> Callable[..., None]:
    def update(schedule: Schedule, *, state: str | None, **more: Any) -> None:
        original(schedule, state=state or "ENABLED", **more)  # moto would leave it without a state

    return update
