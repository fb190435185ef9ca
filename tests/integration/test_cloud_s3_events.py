"""What S3 tells EventBridge in the embedded cloud, as a queue behind a rule receives it.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html
"""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from stack import until

from local.cloud import Cloud
from local.config import LocalConfig

QUEUE = "arn:aws:sqs:us-east-1:123456789012:{}"


class Watched:
    """A bucket, and the events it has published."""

    def __init__(self, cloud: Cloud, name: str, versioned: bool = True) -> None:
        self.name = name
        self.s3, self.sqs = cloud.client("s3"), cloud.client("sqs")
        self.s3.create_bucket(Bucket=name)
        if versioned:
            self.s3.put_bucket_versioning(
                Bucket=name, VersioningConfiguration={"Status": "Enabled"}
            )
        self.s3.put_bucket_notification_configuration(
            Bucket=name, NotificationConfiguration={"EventBridgeConfiguration": {}}
        )
        self.queue = self.sqs.create_queue(QueueName=name)["QueueUrl"]
        pattern = {"source": ["aws.s3"], "detail": {"bucket": {"name": [name]}}}
        events = cloud.client("events")
        events.put_rule(Name=name, EventPattern=json.dumps(pattern))
        events.put_targets(Rule=name, Targets=[{"Id": "1", "Arn": QUEUE.format(name)}])

    def put(self, key: str, body: bytes = b"1") -> dict[str, Any]:
        answer: dict[str, Any] = self.s3.put_object(Bucket=self.name, Key=key, Body=body)
        return answer

    def events(self, count: int) -> list[dict[str, Any]]:
        """So many events, which must be all there are, in the order of their sequencers."""
        self.put("the end")
        found: dict[str, dict[str, Any]] = {}

        def are_here() -> bool:
            answer = self.sqs.receive_message(QueueUrl=self.queue, MaxNumberOfMessages=10)
            for message in answer.get("Messages", []):
                event = json.loads(message["Body"])
                found[event["detail"]["object"]["sequencer"]] = event
            return len(found) > count and "Messages" not in answer

        until(are_here, f"{count} events", pause=0.02)
        *events, end = (found[sequencer] for sequencer in sorted(found))
        assert end["detail"]["object"]["key"] == "the end"
        assert len(events) == count
        return events


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(LocalConfig(port=0, state_dir=tmp_path_factory.mktemp("cloud"))) as running:
        yield running


def test_a_delete_marker_and_a_permanent_deletion_are_told_apart(cloud: Cloud) -> None:
    bucket = Watched(cloud, "deletions")
    version = bucket.put("a/ö + %20.txt")["VersionId"]
    marker = bucket.s3.delete_object(Bucket=bucket.name, Key="a/ö + %20.txt")["VersionId"]
    bucket.s3.delete_object(Bucket=bucket.name, Key="a/ö + %20.txt", VersionId=version)
    bucket.s3.delete_object(Bucket=bucket.name, Key="a/ö + %20.txt", VersionId=version)  # again
    bucket.s3.delete_object(Bucket=bucket.name, Key="never there", VersionId=version)
    created, marked, deleted = bucket.events(3)
    assert created["detail-type"] == "Object Created"
    assert marked["detail-type"] == deleted["detail-type"] == "Object Deleted"
    assert {event["detail"]["object"]["key"] for event in (created, marked, deleted)} == {
        "a/ö + %20.txt"
    }
    assert set(marked["detail"]) == {
        "version",
        "bucket",
        "object",
        "request-id",
        "requester",
        "source-ip-address",
        "reason",
        "deletion-type",
    }
    assert marked["detail"]["reason"] == deleted["detail"]["reason"] == "DeleteObject"
    assert marked["detail"]["deletion-type"] == "Delete Marker Created"
    assert deleted["detail"]["deletion-type"] == "Permanently Deleted"
    sequencer = marked["detail"]["object"].pop("sequencer")
    assert len(sequencer) == len(created["detail"]["object"]["sequencer"])
    assert marked["detail"]["object"] == {
        "key": "a/ö + %20.txt",
        "etag": "d41d8cd98f00b204e9800998ecf8427e",
        "version-id": marker,
    }
    deleted["detail"]["object"].pop("sequencer")
    assert deleted["detail"]["object"] == {"key": "a/ö + %20.txt", "version-id": version}


def test_deleting_many_at_once_tells_of_each(cloud: Cloud) -> None:
    bucket = Watched(cloud, "many-deletions", versioned=False)
    keys = [f"{number}.txt" for number in range(12)]
    for key in keys:
        bucket.put(key)
    bucket.s3.delete_objects(
        Bucket=bucket.name, Delete={"Objects": [{"Key": key} for key in (*keys, "never there")]}
    )
    events = bucket.events(24)
    deleted = [event["detail"] for event in events if event["detail-type"] == "Object Deleted"]
    assert [detail["object"]["key"] for detail in deleted] == keys
    assert {detail["deletion-type"] for detail in deleted} == {"Permanently Deleted"}
    assert not any("version-id" in detail["object"] for detail in deleted)


def test_the_reason_says_how_an_object_came_to_be(cloud: Cloud, tmp_path: Path) -> None:
    bucket = Watched(cloud, "creations")
    bucket.put("put")
    bucket.s3.copy_object(
        Bucket=bucket.name, Key="copied", CopySource={"Bucket": bucket.name, "Key": "put"}
    )
    (tmp_path / "large").write_bytes(bytes(9 * 1024 * 1024))
    bucket.s3.upload_file(str(tmp_path / "large"), bucket.name, "uploaded in parts")
    events = bucket.events(3)
    assert [
        (detail["object"]["key"], detail["object"]["size"], detail["reason"])
        for detail in (event["detail"] for event in events)
    ] == [
        ("put", 1, "PutObject"),
        ("copied", 1, "CopyObject"),
        ("uploaded in parts", 9 * 1024 * 1024, "CompleteMultipartUpload"),
    ]


def test_the_last_sequencer_of_a_key_is_of_what_the_bucket_holds(cloud: Cloud) -> None:
    bucket = Watched(cloud, "contended")

    def change(number: int) -> None:
        if number % 3 == 2:
            bucket.s3.delete_object(Bucket=bucket.name, Key="key")
        else:
            bucket.put("key", b"%d" % number)

    bucket.put("key")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(change, range(60)))
    last = bucket.events(61)[-1]["detail"]["object"]["version-id"]
    versions = bucket.s3.list_object_versions(Bucket=bucket.name, Prefix="key")
    (latest,) = [
        found["VersionId"]
        for found in (*versions["Versions"], *versions["DeleteMarkers"])
        if found["IsLatest"]
    ]
    assert last == latest


def test_events_reach_a_topic(cloud: Cloud) -> None:
    sns, sqs, events = (cloud.client(service) for service in ("sns", "sqs", "events"))
    topic = sns.create_topic(Name="news")["TopicArn"]
    url = sqs.create_queue(QueueName="readers")["QueueUrl"]
    sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=QUEUE.format("readers"))
    events.put_rule(Name="tell", EventPattern='{"source": ["game"]}')
    events.put_targets(Rule="tell", Targets=[{"Id": "1", "Arn": topic}])
    events.put_events(Entries=[{"Source": "game", "DetailType": "Won", "Detail": '{"by": "Ada"}'}])
    (message,) = until(
        lambda: sqs.receive_message(QueueUrl=url).get("Messages"), "the news", pause=0.02
    )
    event = json.loads(json.loads(message["Body"])["Message"])
    assert event["detail"] == {"by": "Ada"}
