"""Event source mappings of the embedded cloud: batches, windows, and what comes back."""

import io
import json
import re
import time
import zipfile
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st
from stack import until

from local.cloud import Cloud
from local.config import LocalConfig
from local.queues import within_payload

ROLE = "arn:aws:iam::123456789012:role/functions"
QUEUE = "arn:aws:sqs:us-east-1:123456789012:{}"
WAIT_SCALE = 0.01
HANDLERS = """
def count(event, context):
    print("records", len(event["Records"]))

def refuse(event, context):
    print("records", len(event["Records"]))
    return {"batchItemFailures": [
        {"itemIdentifier": record["messageId"]} for record in event["Records"]
    ]}
"""


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    state = tmp_path_factory.mktemp("cloud")
    with Cloud(LocalConfig(port=0, state_dir=state, wait_scale=WAIT_SCALE)) as running:
        running.client("iam").create_role(RoleName="functions", AssumeRolePolicyDocument="{}")
        yield running


def make_function(cloud: Cloud, name: str, handler: str, timeout: int = 30) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as code:
        code.writestr("handlers.py", HANDLERS)
    cloud.client("lambda").create_function(
        FunctionName=name,
        Handler=f"handlers.{handler}",
        Runtime="python3.13",
        Role=ROLE,
        Code={"ZipFile": archive.getvalue()},
        Timeout=timeout,
    )


def make_queue(cloud: Cloud, name: str, **attributes: str) -> str:
    return str(cloud.client("sqs").create_queue(QueueName=name, Attributes=attributes)["QueueUrl"])


def connect(cloud: Cloud, name: str, **settings: Any) -> str:
    mapping = cloud.client("lambda").create_event_source_mapping(
        EventSourceArn=QUEUE.format(name), FunctionName=name, **settings
    )
    return str(mapping["UUID"])


def send(cloud: Cloud, url: str, bodies: list[str]) -> None:
    for start in range(0, len(bodies), 10):
        entries = [
            {"Id": str(number), "MessageBody": body}
            for number, body in enumerate(bodies[start : start + 10])
        ]
        cloud.client("sqs").send_message_batch(QueueUrl=url, Entries=entries)


def batches(cloud: Cloud, name: str) -> list[int]:
    """How many records each invocation had."""
    log = cloud.config.state_dir / "logs" / f"{name}.log"
    text = log.read_text() if log.exists() else ""
    return [int(count) for count in re.findall(r"^records (\d+)$", text, re.MULTILINE)]


def left(cloud: Cloud, url: str) -> int:
    attributes = cloud.client("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=["All"])
    return sum(
        int(attributes["Attributes"][name])
        for name in ("ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible")
    )


def test_a_thousand_messages_are_one_batch(cloud: Cloud) -> None:
    make_function(cloud, "thousand", "count")
    url = make_queue(cloud, "thousand")
    send(cloud, url, [f"message {number}" for number in range(1005)])
    connect(cloud, "thousand", BatchSize=1000, MaximumBatchingWindowInSeconds=1)
    until(lambda: sum(batches(cloud, "thousand")) >= 1005, "1005 messages", pause=0.02)
    until(lambda: left(cloud, url) == 0, "an empty queue", pause=0.02)
    assert batches(cloud, "thousand") == [1000, 5]


def test_the_window_gathers_what_comes_meanwhile(cloud: Cloud) -> None:
    make_function(cloud, "window", "count")
    url = make_queue(cloud, "window")
    connect(cloud, "window", BatchSize=1000, MaximumBatchingWindowInSeconds=300)
    send(cloud, url, ["first"])
    time.sleep(0.2)  # long enough for the poller to see it
    send(cloud, url, ["second"])
    until(lambda: left(cloud, url) == 0, "an empty queue", pause=0.02)
    assert batches(cloud, "window") == [2]


def test_an_invocation_holds_six_megabytes(cloud: Cloud) -> None:
    make_function(cloud, "large", "count")
    url = make_queue(cloud, "large")
    for _ in range(30):
        send(cloud, url, ["x" * 250_000])
    connect(cloud, "large", BatchSize=1000, MaximumBatchingWindowInSeconds=1)
    until(lambda: left(cloud, url) == 0, "an empty queue", pause=0.02)
    assert batches(cloud, "large") == [25, 5]


@given(st.lists(st.text(max_size=40)), st.integers(1, 60))
def test_parts_hold_every_record_once_and_no_more_than_fits(records: list[str], limit: int) -> None:
    parts = list(within_payload(records, limit))
    assert [record for part in parts for record in part] == records
    for part in parts:
        assert len(part) == 1 or len("".join(part).encode()) + len(part) <= limit
    for part, following in pairwise(parts):
        grown = [*part, following[0]]
        assert len("".join(grown).encode()) + len(grown) > limit


def test_what_a_function_gives_back_waits_for_the_visibility_timeout(cloud: Cloud) -> None:
    make_function(cloud, "busy", "refuse")
    url = make_queue(cloud, "busy", VisibilityTimeout="30")
    send(cloud, url, [f"message {number}" for number in range(50)])
    begun = time.monotonic()
    connect(
        cloud,
        "busy",
        BatchSize=1000,
        MaximumBatchingWindowInSeconds=1,
        FunctionResponseTypes=["ReportBatchItemFailures"],
    )
    until(lambda: len(batches(cloud, "busy")) >= 4, "four attempts", pause=0.02)
    count, seconds = len(batches(cloud, "busy")), time.monotonic() - begun
    assert count <= 1 + seconds / (30 * WAIT_SCALE)
    assert set(batches(cloud, "busy")) == {50}
    assert left(cloud, url) == 50


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"BatchSize": 1000}, "batch window in seconds must be greater than 0"),
        ({"BatchSize": 10_001, "MaximumBatchingWindowInSeconds": 1}, "between 1 and 10000"),
        ({"MaximumBatchingWindowInSeconds": 301}, "between 0 and 300"),
    ],
)
def test_a_batching_that_lambda_does_not_take_is_refused(
    cloud: Cloud, settings: dict[str, Any], complaint: str
) -> None:
    name = f"refused-{len(json.dumps(settings))}"
    make_function(cloud, name, "count")
    make_queue(cloud, name)
    with pytest.raises(ClientError, match=complaint) as caught:
        connect(cloud, name, **settings)
    assert caught.value.response["Error"]["Code"] == "InvalidParameterValueException"
    mapping = connect(cloud, name, BatchSize=10)
    with pytest.raises(ClientError, match=complaint):
        cloud.client("lambda").update_event_source_mapping(UUID=mapping, **settings)


def test_a_queue_of_order_has_small_batches_without_a_window(cloud: Cloud) -> None:
    make_function(cloud, "order", "count")
    make_queue(cloud, "order.fifo", FifoQueue="true")
    with pytest.raises(ClientError, match="between 0 and 0"):
        cloud.client("lambda").create_event_source_mapping(
            EventSourceArn=QUEUE.format("order.fifo"),
            FunctionName="order",
            MaximumBatchingWindowInSeconds=1,
        )


def test_messages_must_stay_hidden_for_as_long_as_the_function_may_run(cloud: Cloud) -> None:
    make_function(cloud, "slow", "count", timeout=31)
    make_queue(cloud, "slow", VisibilityTimeout="30")
    with pytest.raises(ClientError, match="30 seconds is less than Function timeout: 31"):
        connect(cloud, "slow")
