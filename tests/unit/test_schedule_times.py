"""When a schedule is next due: the embedded cloud's reading of Scheduler's expressions."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.schedules import next_time, target_input

MOMENTS = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))
SHORT = st.timedeltas(timedelta(0), timedelta(days=400))
ARN = "arn:aws:scheduler:us-east-1:123456789012:schedule/default/retraining"


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


class TestRate:
    @given(
        start=MOMENTS,
        passed=SHORT,
        value=st.integers(1, 1000),
        unit=st.sampled_from(["minute", "hour", "day"]),
        plural=st.booleans(),
    )
    def test_it_recurs_by_whole_periods_from_its_start(
        self, start: datetime, passed: timedelta, value: int, unit: str, plural: bool
    ) -> None:
        period = timedelta(**{f"{unit}s": value})
        expression = f"rate({value} {unit}{'s' if plural else ''})"
        found = next_time(expression, after=start + passed, start=start)
        assert found is not None
        assert found - period <= start + passed < found
        assert (found - start) % period == timedelta(0)

    @given(start=MOMENTS, before=st.timedeltas(timedelta(microseconds=1), timedelta(days=9)))
    def test_its_start_is_its_first_occurrence(self, start: datetime, before: timedelta) -> None:
        assert next_time("rate(7 days)", after=start - before, start=start) == start


class TestOnce:
    @given(after=MOMENTS, time=MOMENTS.map(lambda moment: moment.replace(microsecond=0)))
    def test_it_is_due_unless_it_is_past(self, after: datetime, time: datetime) -> None:
        found = next_time(f"at({time:%Y-%m-%dT%H:%M:%S})", after=after, start=after)
        assert found == (time if time > after else None)


class TestCron:
    @given(
        after=MOMENTS,
        since=st.timedeltas(timedelta(days=-2), timedelta(days=2)),
        hour=st.integers(0, 23),
        minute=st.integers(0, 59),
    )
    def test_a_daily_one(self, after: datetime, since: timedelta, hour: int, minute: int) -> None:
        start = after - since
        days = (max(after, start) + timedelta(days=ahead) for ahead in (-1, 0, 1, 2))
        times = [day.replace(hour=hour, minute=minute, second=0, microsecond=0) for day in days]
        found = next_time(f"cron({minute} {hour} * * ? *)", after=after, start=start)
        assert found == next(time for time in times if time > after and time >= start)

    @pytest.mark.parametrize(
        ("fields", "expected"),
        [
            ("0 3 ? * SUN *", "2026-11-29T03:00:00"),
            ("0/15 * * * ? *", "2026-11-23T03:15:00"),
            ("0 0 L * ? *", "2026-11-30T00:00:00"),
            ("0 0 ? * 2#1 *", "2026-12-07T00:00:00"),
            ("0 12 29 FEB ? *", "2028-02-29T12:00:00"),
        ],
    )
    def test_others(self, fields: str, expected: str) -> None:
        now = at("2026-11-23T03:00:00")
        assert next_time(f"cron({fields})", after=now, start=now) == at(expected)


@pytest.mark.parametrize(
    "expression",
    [
        "rate(0 days)",
        "rate(1 week)",
        "rate(-1 days)",
        "rate(7 days) ",
        "at(2026-11-23)",
        "at(2026-13-23T00:00:00)",
        "at(2026-11-23T00:00:00Z)",
        "cron(0 3 * * SUN *)",
        "cron(0 3 ? * SUN)",
        "cron(61 3 * * ? *)",
        "every day",
        "",
    ],
)
def test_what_is_no_expression_is_an_error(expression: str) -> None:
    now = at("2026-11-23T03:00:00")
    with pytest.raises(ValueError, match=r"."):
        next_time(expression, after=now, start=now)


@given(fields=st.text("0123456789*?/,-LW# ANUJS", max_size=24))
def test_any_fields_have_a_time_or_are_an_error(fields: str) -> None:
    now = at("2026-11-23T03:00:00")
    try:
        found = next_time(f"cron({fields})", after=now, start=now)
    except ValueError:
        return
    assert found is None or found > now


def test_context_attributes_are_filled_in() -> None:
    template = '{"time": "<aws.scheduler.scheduled-time>", "n": "<aws.scheduler.attempt-number>"}'
    filled = target_input(template, ARN, at("2026-11-23T03:00:00"))
    assert filled == '{"time": "2026-11-23T03:00:00Z", "n": "1"}'
    assert target_input("<aws.scheduler.schedule-arn>", ARN, at("2026-11-23")) == ARN
    ids = {target_input("<aws.scheduler.execution-id>", ARN, at("2026-11-23")) for _ in range(9)}
    assert len(ids) == 9
