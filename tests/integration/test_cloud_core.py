"""The embedded cloud through its front door: a small assembly of its own, driven by boto3."""

import base64
import io
import json
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st

from local.apigateway.gateway import ApiGateway
from local.assets import DeploymentError
from local.cloud import Cloud
from local.config import LocalConfig
from local.protocol import Service, ServiceError
from local.server import Gateway, PortInUseError, Server

REPOSITORY = Path(__file__).parents[2]

HANDLERS = """
import json, os, sys, time
import boto3

calls = 0

def remember(name, value):
    boto3.client("s3").put_object(Bucket=os.environ["RESULTS"], Key=name, Body=json.dumps(value))

def on_upload(event, context):
    print("uploaded", event["detail"]["object"]["key"])
    remember("event/" + event["detail-type"] + "/" + event["id"], event)

def on_messages(event, context):
    failures = []
    for record in event["Records"]:
        if record["body"] == "poison":
            failures.append({"itemIdentifier": record["messageId"]})
        else:
            count = record["attributes"]["ApproximateReceiveCount"]
            remember(f"message/{record['body']}/{count}-{context.aws_request_id}", record)
    return {"batchItemFailures": failures}

def describe(event, context):
    global calls
    calls += 1
    return {"event": event, "calls": calls, "environment": dict(os.environ),
            "left": context.get_remaining_time_in_millis(), "pid": os.getpid(),
            "arn": context.invoked_function_arn}

def echo(event, context):
    return event

def fail(event, context):
    raise ValueError("no " + json.dumps(event))

def sleep(event, context):
    time.sleep(event.get("seconds", 30))

def leave(event, context):
    os._exit(7)

def step(event, context):
    if event.get("fail"):
        raise RuntimeError("step failed")
    return {**event, "steps": event.get("steps", 0) + 1}
"""

JSON_SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(st.characters(codec="utf-8"))
)


def objects(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.dictionaries(st.text(st.characters(codec="utf-8")), values)


TARGETS_OF_EXECUTIONS = {
    "source": ["aws.states"],
    "detail-type": ["Step Functions Execution Status Change"],
    "detail": {"status": ["SUCCEEDED", "FAILED", "ABORTED", "TIMED_OUT"]},
}


def function(name: str, code_key: str, **more: Any) -> dict[str, Any]:
    return {
        "Type": "AWS::Lambda::Function",
        "Properties": {
            "FunctionName": name,
            "Handler": f"handlers.{name}",
            "Runtime": "python3.13",
            "Role": {"Fn::GetAtt": ["Role", "Arn"]},
            "Code": {
                "S3Bucket": {"Fn::Sub": "cdk-hnb659fds-assets-${AWS::AccountId}-${AWS::Region}"},
                "S3Key": code_key,
            },
            "Timeout": 20,
            "MemorySize": 256,
            "Environment": {"Variables": {"RESULTS": {"Ref": "Results"}}},
            **more,
        },
    }


def machine(**states: Any) -> str:
    return json.dumps({"StartAt": next(iter(states)), "States": states})


def task(**more: Any) -> dict[str, Any]:
    return {
        "Type": "Task",
        "Resource": "arn:aws:states:::lambda:invoke",
        "Parameters": {
            "FunctionName": "${Step}",
            "Payload.$": "$",
        },
        "OutputPath": "$.Payload",
        **more,
    }


def template() -> dict[str, Any]:
    code = "code.zip"
    polling = machine(
        First=task(Next="Pause"),
        Pause={"Type": "Wait", "Seconds": 600, "Next": "Second"},
        Second=task(
            Retry=[{"ErrorEquals": ["RuntimeError"], "IntervalSeconds": 60, "MaxAttempts": 2}],
            Catch=[{"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": "Caught"}],
            Next="Context",
        ),
        Context={
            "Type": "Pass",
            "Parameters": {"started.$": "$$.Execution.StartTime", "state.$": "$"},
            "End": True,
        },
        Caught={"Type": "Pass", "End": True},
    )
    return {
        "Parameters": {
            "BootstrapVersion": {
                "Type": "AWS::SSM::Parameter::Value<String>",
                "Default": "/cdk-bootstrap/hnb659fds/version",
            }
        },
        "Resources": {
            "Uploads": {
                "Type": "AWS::S3::Bucket",
                "Properties": {
                    "VersioningConfiguration": {"Status": "Enabled"},
                    "NotificationConfiguration": {
                        "EventBridgeConfiguration": {"EventBridgeEnabled": True}
                    },
                },
            },
            "Results": {"Type": "AWS::S3::Bucket"},
            "TlsOnly": {
                "Type": "AWS::S3::BucketPolicy",
                "Properties": {
                    "Bucket": {"Ref": "Uploads"},
                    "PolicyDocument": {
                        "Statement": [
                            {
                                "Effect": "Deny",
                                "Principal": {"AWS": "*"},
                                "Action": "s3:*",
                                "Resource": {"Fn::Sub": "${Uploads.Arn}/*"},
                                "Condition": {"Bool": {"aws:SecureTransport": "false"}},
                            }
                        ]
                    },
                },
            },
            "Role": {
                "Type": "AWS::IAM::Role",
                "Properties": {"AssumeRolePolicyDocument": {"Statement": []}},
            },
            "OnUpload": function("on_upload", code),
            "Describe": function("describe", code),
            "Step": function("step", code),
            "Sleep": function("sleep", code, Timeout=3),
            "Echo": function("echo", code),
            "Leave": function("leave", code),
            "Absent": function("absent", code, Handler="nowhere.handler"),
            "Fail": function("fail", code),
            "FailIntoQueue": function(
                "fail_into_queue",
                code,
                Handler="handlers.fail",
                DeadLetterConfig={"TargetArn": {"Fn::GetAtt": ["Failures", "Arn"]}},
            ),
            "FailConfig": {
                "Type": "AWS::Lambda::EventInvokeConfig",
                "Properties": {
                    "FunctionName": {"Ref": "Fail"},
                    "Qualifier": "$LATEST",
                    "MaximumRetryAttempts": 2,
                    "DestinationConfig": {
                        "OnFailure": {"Destination": {"Fn::GetAtt": ["Failures", "Arn"]}}
                    },
                },
            },
            "Uploaded": {
                "Type": "AWS::Events::Rule",
                "Properties": {
                    "EventPattern": {
                        "source": ["aws.s3"],
                        "detail": {
                            "bucket": {"name": [{"Ref": "Uploads"}]},
                            "object": {"key": [{"prefix": "datasets/"}]},
                        },
                    },
                    "Targets": [{"Id": "1", "Arn": {"Fn::GetAtt": ["OnUpload", "Arn"]}}],
                },
            },
            "Ended": {
                "Type": "AWS::Events::Rule",
                "Properties": {
                    "EventPattern": TARGETS_OF_EXECUTIONS,
                    "Targets": [{"Id": "1", "Arn": {"Fn::GetAtt": ["Executions", "Arn"]}}],
                },
            },
            "Executions": {"Type": "AWS::SQS::Queue"},
            "Failures": {"Type": "AWS::SQS::Queue"},
            "DeadLetters": {"Type": "AWS::SQS::Queue"},
            "Messages": {
                "Type": "AWS::SQS::Queue",
                "Properties": {
                    "VisibilityTimeout": 60,
                    "RedrivePolicy": {
                        "deadLetterTargetArn": {"Fn::GetAtt": ["DeadLetters", "Arn"]},
                        "maxReceiveCount": 3,
                    },
                },
            },
            "OnMessages": function("on_messages", code),
            "Mapping": {
                "Type": "AWS::Lambda::EventSourceMapping",
                "Properties": {
                    "EventSourceArn": {"Fn::GetAtt": ["Messages", "Arn"]},
                    "FunctionName": {"Ref": "OnMessages"},
                    "BatchSize": 5,
                    "MaximumBatchingWindowInSeconds": 20,
                    "FunctionResponseTypes": ["ReportBatchItemFailures"],
                },
            },
            "Polling": {
                "Type": "AWS::StepFunctions::StateMachine",
                "Properties": {
                    "StateMachineName": "polling",
                    "RoleArn": {"Fn::GetAtt": ["Role", "Arn"]},
                    "DefinitionString": {
                        "Fn::Sub": [polling, {"Step": {"Fn::GetAtt": ["Step", "Arn"]}}]
                    },
                },
            },
        },
        "Outputs": {
            name: {"Value": {"Ref": name}}
            for name in (
                "Uploads",
                "Results",
                "Messages",
                "DeadLetters",
                "Failures",
                "Executions",
                "Polling",
            )
        },
    }


def write_assembly(folder: Path, body: dict[str, Any], name: str = "Small") -> Path:
    """A cloud assembly as the CDK would write it, with one code asset."""
    (folder / "asset.code").mkdir(parents=True, exist_ok=True)
    (folder / "asset.code" / "handlers.py").write_text(HANDLERS)
    (folder / f"{name}.template.json").write_text(json.dumps(body))
    assets = {
        "files": {
            "code": {
                "source": {"path": "asset.code", "packaging": "zip"},
                "destinations": {
                    "here": {
                        "bucketName": "cdk-hnb659fds-assets-${AWS::AccountId}-${AWS::Region}",
                        "objectKey": "code.zip",
                    }
                },
            }
        },
        "dockerImages": {},
    }
    (folder / f"{name}.assets.json").write_text(json.dumps(assets))
    artifacts = {
        name: {
            "type": "aws:cloudformation:stack",
            "environment": "aws://unknown-account/unknown-region",
            "properties": {"templateFile": f"{name}.template.json", "stackName": name.lower()},
            "dependencies": [f"{name}.assets"],
        },
        f"{name}.assets": {
            "type": "cdk:asset-manifest",
            "properties": {"file": f"{name}.assets.json"},
        },
        "Tree": {"type": "cdk:tree", "properties": {"file": "tree.json"}},
    }
    (folder / "manifest.json").write_text(json.dumps({"version": "1", "artifacts": artifacts}))
    return folder


def topic(output: str) -> dict[str, Any]:
    return {
        "Resources": {"Topic": {"Type": "AWS::SNS::Topic"}},
        "Outputs": {output: {"Value": {"Ref": "Topic"}}},
    }


def following(makes: str, reads: str | None) -> dict[str, Any]:
    """A template that makes a parameter of the one it reads, and of its own name."""
    number = makes.rpartition("/")[2]
    value: Any = {"Fn::Sub": f"${{Before}} {number}"} if reads else number
    body: dict[str, Any] = {
        "Resources": {
            "Made": {
                "Type": "AWS::SSM::Parameter",
                "Properties": {"Name": makes, "Type": "String", "Value": value},
            }
        },
        "Outputs": {"Way": {"Value": value}},
    }
    if reads:
        body["Parameters"] = {
            "Before": {"Type": "AWS::SSM::Parameter::Value<String>", "Default": reads}
        }
    return body


def eventually(what: Callable[[], Any], seconds: float = 30) -> Any:
    """The first truthy answer; the test fails if none comes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if answer := what():
            return answer
        time.sleep(0.05)
    pytest.fail("it did not happen")


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    state = tmp_path_factory.mktemp("cloud")
    with Cloud(LocalConfig(port=0, state_dir=state, wait_scale=0.002)) as running:
        yield running


@pytest.fixture(scope="module")
def outputs(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    assembly = write_assembly(tmp_path_factory.mktemp("assembly"), template())
    return cloud.deploy(assembly)["small"]


def stored(cloud: Cloud, outputs: dict[str, str], prefix: str) -> list[Any]:
    s3 = cloud.client("s3")
    found = s3.list_objects_v2(Bucket=outputs["Results"], Prefix=prefix).get("Contents", [])
    return [
        json.loads(s3.get_object(Bucket=outputs["Results"], Key=item["Key"])["Body"].read())
        for item in found
    ]


def received(cloud: Cloud, url: str) -> list[dict[str, Any]]:
    sqs = cloud.client("sqs")
    answer = sqs.receive_message(
        QueueUrl=url, MaxNumberOfMessages=10, MessageAttributeNames=["All"]
    )
    for message in answer.get("Messages", []):
        sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return list(answer.get("Messages", []))


def invoke(cloud: Cloud, name: str, event: Any = None, **more: Any) -> tuple[dict[str, Any], Any]:
    answer = cloud.client("lambda").invoke(
        FunctionName=name, Payload=json.dumps(event or {}).encode(), **more
    )
    payload = answer["Payload"].read()
    return answer, json.loads(payload) if payload else None


class TestFunctions:
    def test_a_warm_process_sees_its_configuration(
        self, cloud: Cloud, outputs: dict[str, str]
    ) -> None:
        _, first = invoke(cloud, "describe", {"a": "é"})
        _, second = invoke(cloud, "describe")
        assert first["event"] == {"a": "é"}
        assert (first["calls"], second["calls"]) == (1, 2)
        assert first["pid"] == second["pid"]
        environment = first["environment"]
        assert environment["RESULTS"] == outputs["Results"]
        assert environment["AWS_LAMBDA_FUNCTION_NAME"] == "describe"
        assert environment["AWS_LAMBDA_FUNCTION_MEMORY_SIZE"] == "256"
        assert environment["AWS_ENDPOINT_URL"] == cloud.endpoint
        assert "PYTHONPATH" not in environment
        assert first["arn"].endswith(":function:describe")
        assert 0 < first["left"] <= 20_000

    @settings(max_examples=40)
    @given(event=st.recursive(JSON_SCALARS, lambda inner: st.lists(inner) | objects(inner)))
    def test_any_event_arrives_as_it_was_sent(
        self, cloud: Cloud, outputs: dict[str, str], event: Any
    ) -> None:
        answer = cloud.client("lambda").invoke(FunctionName="echo", Payload=json.dumps(event))
        assert json.loads(answer["Payload"].read()) == event

    def test_an_error_has_lambdas_shape(self, cloud: Cloud, outputs: dict[str, str]) -> None:
        answer, payload = invoke(cloud, "fail", {"x": 1}, LogType="Tail")
        assert answer["FunctionError"] == "Unhandled"
        assert payload["errorType"] == "ValueError"
        assert payload["errorMessage"] == 'no {"x": 1}'
        assert any("handlers.py" in line for line in payload["stackTrace"])
        assert b"[ERROR] ValueError" in base64.b64decode(answer["LogResult"])

    def test_a_time_out_ends_the_process_and_the_next_call_has_another(
        self, cloud: Cloud, outputs: dict[str, str]
    ) -> None:
        answer, payload = invoke(cloud, "sleep")
        assert answer["FunctionError"] == "Unhandled"
        assert "Task timed out after 3.00 seconds" in payload["errorMessage"]
        answer, payload = invoke(cloud, "sleep", {"seconds": 0})
        assert "FunctionError" not in answer

    def test_a_process_that_leaves_is_an_error(self, cloud: Cloud, outputs: dict[str, str]) -> None:
        answer, payload = invoke(cloud, "leave")
        assert answer["FunctionError"] == "Unhandled"
        assert payload["errorType"] == "Runtime.ExitError"
        assert "exit status 7" in payload["errorMessage"]

    def test_a_handler_that_cannot_be_imported_is_an_error(
        self, cloud: Cloud, outputs: dict[str, str]
    ) -> None:
        answer, payload = invoke(cloud, "absent")
        assert answer["FunctionError"] == "Unhandled"
        assert payload["errorType"] == "Runtime.ImportModuleError"
        assert "nowhere" in payload["errorMessage"]

    def test_an_unknown_function_is_an_error_of_the_api(self, cloud: Cloud) -> None:
        with pytest.raises(ClientError) as raised:
            invoke(cloud, "nobody")
        assert raised.value.response["Error"]["Code"] == "ResourceNotFoundException"

    def test_what_a_function_prints_is_kept(self, cloud: Cloud, outputs: dict[str, str]) -> None:
        invoke(cloud, "fail")
        text = (cloud.config.state_dir / "logs" / "fail.log").read_text()
        assert "[ERROR] ValueError" in text
        events = cloud.client("logs").filter_log_events(logGroupName="/aws/lambda/fail")["events"]
        assert any("[ERROR] ValueError" in event["message"] for event in events)

    def test_a_failing_event_is_tried_thrice_then_sent_to_the_destination(
        self, cloud: Cloud, outputs: dict[str, str]
    ) -> None:
        answer, _ = invoke(cloud, "fail", {"try": "me"}, InvocationType="Event")
        assert answer["StatusCode"] == 202
        record = json.loads(eventually(lambda: received(cloud, outputs["Failures"]))[0]["Body"])
        assert record["requestPayload"] == {"try": "me"}
        assert record["requestContext"]["condition"] == "RetriesExhausted"
        assert record["requestContext"]["approximateInvokeCount"] == 3
        assert record["responsePayload"]["errorType"] == "ValueError"

    def test_or_to_the_dead_letter_queue(self, cloud: Cloud, outputs: dict[str, str]) -> None:
        invoke(cloud, "fail_into_queue", {"try": "me"}, InvocationType="Event")
        (message,) = eventually(lambda: received(cloud, outputs["Failures"]))
        assert json.loads(message["Body"]) == {"try": "me"}
        assert message["MessageAttributes"]["ErrorMessage"]["StringValue"] == 'no {"try": "me"}'


class TestEvents:
    def test_an_upload_reaches_the_function(self, cloud: Cloud, outputs: dict[str, str]) -> None:
        s3 = cloud.client("s3")
        put = s3.put_object(Bucket=outputs["Uploads"], Key="datasets/a b+é.jsonl", Body=b"12345")
        s3.put_object(Bucket=outputs["Uploads"], Key="elsewhere/x.jsonl", Body=b"1")
        (event,) = eventually(lambda: stored(cloud, outputs, "event/Object Created"))
        assert event["source"] == "aws.s3"
        assert event["resources"] == [f"arn:aws:s3:::{outputs['Uploads']}"]
        item = event["detail"]["object"]
        assert item["key"] == "datasets/a b+é.jsonl"
        assert item["size"] == 5
        assert item["etag"] == put["ETag"].strip('"')
        assert item["version-id"] == put["VersionId"]
        assert int(item["sequencer"], 16)

    def test_so_does_a_deletion(self, cloud: Cloud, outputs: dict[str, str]) -> None:
        s3 = cloud.client("s3")
        s3.put_object(Bucket=outputs["Uploads"], Key="datasets/gone", Body=b"1")
        s3.delete_object(Bucket=outputs["Uploads"], Key="datasets/gone")
        (event,) = eventually(lambda: stored(cloud, outputs, "event/Object Deleted"))
        assert event["detail"]["deletion-type"] == "Delete Marker Created"

    def test_a_target_may_transform_its_input(self, cloud: Cloud, outputs: dict[str, str]) -> None:
        events, sqs = cloud.client("events"), cloud.client("sqs")
        url = sqs.create_queue(QueueName="transformed")["QueueUrl"]
        events.put_rule(Name="transform", EventPattern='{"source": ["game"]}')
        events.put_targets(
            Rule="transform",
            Targets=[
                {
                    "Id": "1",
                    "Arn": "arn:aws:sqs:us-east-1:123456789012:transformed",
                    "InputTransformer": {
                        "InputPathsMap": {"who": "$.detail.who", "type": "$.detail-type"},
                        "InputTemplate": '{"text": "<type> by <who>", "who": <who>}',
                    },
                }
            ],
        )
        events.put_events(
            Entries=[{"Source": "game", "DetailType": "Saved", "Detail": '{"who": "Ada \\"A\\""}'}]
        )
        (message,) = eventually(lambda: received(cloud, url))
        assert json.loads(message["Body"]) == {"text": 'Saved by Ada "A"', "who": 'Ada "A"'}

    def test_what_would_never_fire_is_refused(self, cloud: Cloud) -> None:
        with pytest.raises(ClientError, match="runs no schedules"):
            cloud.client("events").put_rule(Name="x", ScheduleExpression="rate(1 hour)")


class TestQueues:
    def test_one_poisonous_message_ends_in_the_dead_letter_queue_the_others_are_done_once(
        self, cloud: Cloud, outputs: dict[str, str]
    ) -> None:
        bodies = ["one", "two", "poison", "three"]
        cloud.client("sqs").send_message_batch(
            QueueUrl=outputs["Messages"],
            Entries=[{"Id": str(n), "MessageBody": body} for n, body in enumerate(bodies)],
        )
        (dead,) = eventually(lambda: received(cloud, outputs["DeadLetters"]))
        assert dead["Body"] == "poison"
        records = stored(cloud, outputs, "message/")
        assert sorted(record["body"] for record in records) == ["one", "three", "two"]
        assert set(records[0]) == {
            "messageId",
            "receiptHandle",
            "body",
            "attributes",
            "messageAttributes",
            "md5OfBody",
            "eventSource",
            "eventSourceARN",
            "awsRegion",
        }
        assert records[0]["attributes"]["ApproximateReceiveCount"] == "1"
        left = cloud.client("sqs").get_queue_attributes(
            QueueUrl=outputs["Messages"], AttributeNames=["All"]
        )["Attributes"]
        assert left["ApproximateNumberOfMessages"] == "0"
        assert left["ApproximateNumberOfMessagesNotVisible"] == "0"


class TestStateMachines:
    def ended(self, cloud: Cloud, arn: str) -> dict[str, Any]:
        states = cloud.client("stepfunctions")

        def describe() -> dict[str, Any] | None:
            answer: dict[str, Any] = states.describe_execution(executionArn=arn)
            return answer if answer["status"] != "RUNNING" else None

        return dict(eventually(describe))

    def start(self, cloud: Cloud, arn: str, event: Any, **more: Any) -> str:
        started = cloud.client("stepfunctions").start_execution(
            stateMachineArn=arn, input=json.dumps(event), **more
        )
        return str(started["executionArn"])

    def test_tasks_run_waits_are_short_and_the_end_is_published(
        self, cloud: Cloud, outputs: dict[str, str]
    ) -> None:
        arn = self.start(cloud, outputs["Polling"], {"id": "good"})
        execution = self.ended(cloud, arn)
        assert execution["status"] == "SUCCEEDED"
        output = json.loads(execution["output"])
        assert output["state"] == {"id": "good", "steps": 2}
        assert output["started"].endswith("Z")
        states = cloud.client("stepfunctions")
        history = states.get_execution_history(executionArn=arn)["events"]
        assert history[0]["type"] == "ExecutionStarted"
        assert history[-1]["type"] == "ExecutionSucceeded"
        backwards = states.get_execution_history(
            executionArn=arn, reverseOrder=True, maxResults=2, includeExecutionData=False
        )
        assert [event["id"] for event in backwards["events"]] == [
            event["id"] for event in history[:-3:-1]
        ]
        assert "output" not in backwards["events"][0]["executionSucceededEventDetails"]
        pages = states.get_paginator("get_execution_history").paginate(
            executionArn=arn, PaginationConfig={"PageSize": 3}
        )
        assert [event for page in pages for event in page["events"]] == history
        detail = self.published(cloud, outputs, arn)
        assert detail["status"] == "SUCCEEDED"
        assert json.loads(detail["input"]) == {"id": "good"}
        assert json.loads(detail["output"]) == output
        assert detail["stateMachineArn"] == outputs["Polling"]

    def published(self, cloud: Cloud, outputs: dict[str, str], arn: str) -> dict[str, Any]:
        def find() -> dict[str, Any] | None:
            for message in received(cloud, outputs["Executions"]):
                detail: dict[str, Any] = json.loads(message["Body"])["detail"]
                if detail["executionArn"] == arn:
                    return detail
            return None

        return dict(eventually(find))

    def test_an_error_is_retried_then_caught(self, cloud: Cloud, outputs: dict[str, str]) -> None:
        arn = cloud.client("stepfunctions").create_state_machine(
            name="catching",
            roleArn="arn:aws:iam::123456789012:role/any",
            definition=machine(
                Try=task(
                    Parameters={"FunctionName": "step", "Payload.$": "$"},
                    Retry=[
                        {"ErrorEquals": ["RuntimeError"], "IntervalSeconds": 60, "MaxAttempts": 2}
                    ],
                    Catch=[
                        {"ErrorEquals": ["States.ALL"], "ResultPath": "$.error", "Next": "Caught"}
                    ],
                    End=True,
                ),
                Caught={"Type": "Pass", "End": True},
            ),
        )["stateMachineArn"]
        execution = self.start(cloud, arn, {"fail": True})
        output = json.loads(self.ended(cloud, execution)["output"])
        assert output["error"]["Error"] == "RuntimeError"
        assert json.loads(output["error"]["Cause"])["errorMessage"] == "step failed"
        history = cloud.client("stepfunctions").get_execution_history(executionArn=execution)
        failures = [e for e in history["events"] if e["type"] == "TaskFailed"]
        assert len(failures) == 3

    def waiting(self, cloud: Cloud) -> str:
        return str(
            cloud.client("stepfunctions").create_state_machine(
                name="waiting",
                roleArn="arn:aws:iam::123456789012:role/any",
                definition=machine(Pause={"Type": "Wait", "Seconds": 3_600_000, "End": True}),
            )["stateMachineArn"]
        )

    def test_the_same_name_starts_one_execution(
        self, cloud: Cloud, outputs: dict[str, str]
    ) -> None:
        arn = self.waiting(cloud)
        states = cloud.client("stepfunctions")
        first = self.start(cloud, arn, {"n": 1}, name="once")
        assert self.start(cloud, arn, {"n": 1}, name="once") == first
        with pytest.raises(states.exceptions.ExecutionAlreadyExists):
            self.start(cloud, arn, {"n": 2}, name="once")
        others = {self.start(cloud, arn, {}), self.start(cloud, arn, {})}
        assert len(others) == 2
        for execution in (first, *others):
            states.stop_execution(executionArn=execution, error="Enough", cause="of this")
            ended = self.ended(cloud, execution)
            assert (ended["status"], ended["error"], ended["cause"]) == (
                "ABORTED",
                "Enough",
                "of this",
            )
        with pytest.raises(states.exceptions.ExecutionAlreadyExists):
            self.start(cloud, arn, {"n": 1}, name="once")

    def test_a_rejected_definition_harms_no_other(
        self, cloud: Cloud, outputs: dict[str, str]
    ) -> None:
        states = cloud.client("stepfunctions")
        bad = json.dumps({"StartAt": "A", "States": {"A": {"Type": "Nonsense"}}})
        with pytest.raises(states.exceptions.InvalidDefinition):
            states.create_state_machine(name="bad", roleArn="arn:aws:iam::1:role/x", definition=bad)
        arn = self.start(cloud, outputs["Polling"], {"id": "after"})
        assert self.ended(cloud, arn)["status"] == "SUCCEEDED"

    def test_a_machines_time_out_is_real(self, cloud: Cloud, outputs: dict[str, str]) -> None:
        definition = json.loads(machine(Pause={"Type": "Wait", "Seconds": 3_600_000, "End": True}))
        arn = cloud.client("stepfunctions").create_state_machine(
            name="late",
            roleArn="arn:aws:iam::123456789012:role/any",
            definition=json.dumps({**definition, "TimeoutSeconds": 1}),
        )["stateMachineArn"]
        execution = self.start(cloud, arn, {})
        ended = self.ended(cloud, execution)
        assert ended["status"] == "TIMED_OUT"
        assert "stopDate" in ended
        assert self.published(cloud, outputs, execution)["status"] == "TIMED_OUT"

    def test_unknown_arns_have_error_codes(self, cloud: Cloud) -> None:
        states = cloud.client("stepfunctions")
        nobody = "arn:aws:states:us-east-1:123456789012:{}:nobody"
        with pytest.raises(states.exceptions.StateMachineDoesNotExist):
            states.start_execution(stateMachineArn=nobody.format("stateMachine"))
        with pytest.raises(states.exceptions.ExecutionDoesNotExist):
            states.describe_execution(executionArn=nobody.format("execution:polling"))


class TestDeployment:
    def test_a_second_deployment_updates(
        self, cloud: Cloud, outputs: dict[str, str], tmp_path: Path
    ) -> None:
        assert cloud.deploy(write_assembly(tmp_path, template())) == {"small": outputs}
        changed = template()
        properties = changed["Resources"]["Describe"]["Properties"]
        properties["Environment"]["Variables"]["NEW"] = "value"
        changed["Resources"]["More"] = {
            "Type": "AWS::SSM::Parameter",
            "Properties": {"Name": "/small/more", "Type": "String", "Value": "1"},
        }
        _, before = invoke(cloud, "describe")
        assert cloud.deploy(write_assembly(tmp_path, changed)) == {"small": outputs}
        _, after = invoke(cloud, "describe")
        assert after["environment"]["NEW"] == "value"
        assert after["pid"] != before["pid"]
        parameter = cloud.client("ssm").get_parameter(Name="/small/more")["Parameter"]
        assert parameter["Value"] == "1"

    def test_a_type_nobody_creates_is_refused_by_name(self, cloud: Cloud, tmp_path: Path) -> None:
        body = {
            "Resources": {
                "Kept": {"Type": "AWS::S3::Bucket", "Properties": {"BucketName": "not-made"}},
                "Site": {"Type": "AWS::Amplify::App", "Properties": {"Name": "x"}},
            }
        }
        with pytest.raises(DeploymentError, match=r"AWS::Amplify::App \(Site\)"):
            cloud.deploy(write_assembly(tmp_path, body, "Unknown"))
        names = [bucket["Name"] for bucket in cloud.client("s3").list_buckets()["Buckets"]]
        assert "not-made" not in names

    def test_a_resource_that_fails_is_named_and_nothing_of_the_stack_stays(
        self, cloud: Cloud, tmp_path: Path
    ) -> None:
        body = {
            "Resources": {
                "First": {"Type": "AWS::S3::Bucket", "Properties": {"BucketName": "first-made"}},
                "Second": {
                    "Type": "AWS::StepFunctions::StateMachine",
                    "DependsOn": ["First"],
                    "Properties": {
                        "RoleArn": "arn:aws:iam::123456789012:role/any",
                        "DefinitionString": "{}",
                    },
                },
            }
        }
        with pytest.raises(DeploymentError, match=r"Second \(AWS::StepFunctions::StateMachine\)"):
            cloud.deploy(write_assembly(tmp_path, body, "Failing"))
        names = [bucket["Name"] for bucket in cloud.client("s3").list_buckets()["Buckets"]]
        assert "first-made" not in names
        stacks = cloud.client("cloudformation").describe_stacks()["Stacks"]
        assert "failing" not in [stack["StackName"] for stack in stacks]

    def test_every_stack_is_deployed_and_has_its_outputs_by_its_name(
        self, cloud: Cloud, tmp_path: Path
    ) -> None:
        assembly = write_assembly(tmp_path, topic("FirstTopic"), "StackOne")
        manifest = json.loads((assembly / "manifest.json").read_text())["artifacts"]
        write_assembly(tmp_path, topic("SecondTopic"), "StackTwo")
        manifest |= json.loads((assembly / "manifest.json").read_text())["artifacts"]
        (assembly / "manifest.json").write_text(json.dumps({"artifacts": manifest}))
        outputs = cloud.deploy(assembly)
        assert {name: set(keys) for name, keys in outputs.items()} == {
            "stackone": {"FirstTopic"},
            "stacktwo": {"SecondTopic"},
        }

    def test_stages_are_deployed_after_the_assemblys_own_stacks_in_the_order_they_were_made(
        self, cloud: Cloud, tmp_path: Path
    ) -> None:
        # Each stage reads the parameter that the one before it makes.
        assembly = write_assembly(tmp_path, following("/stages/0", None), "Zero")
        artifacts = json.loads((assembly / "manifest.json").read_text())["artifacts"]
        stages = {}
        for number, stage in enumerate(("Zebra", "Quagga", "Horse"), 1):
            nested = write_assembly(
                tmp_path / f"assembly-{stage}",
                following(f"/stages/{number}", f"/stages/{number - 1}"),
                stage,
            )
            manifest = nested / f"{stage}.assets.json"
            published = manifest.read_text().replace("code.zip", f"{stage}.zip")
            manifest.write_text(published.replace("asset.code", "../asset.code"))
            (nested / "asset.code" / "handlers.py").unlink()
            stages[nested.name] = {
                "type": "cdk:cloud-assembly",
                "properties": {"directoryName": nested.name, "displayName": stage},
            }
        (assembly / "manifest.json").write_text(json.dumps({"artifacts": {**stages, **artifacts}}))
        assert cloud.deploy(assembly) == {
            "zero": {"Way": "0"},
            "zebra": {"Way": "0 1"},
            "quagga": {"Way": "0 1 2"},
            "horse": {"Way": "0 1 2 3"},
        }
        s3 = cloud.client("s3")
        bucket = "cdk-hnb659fds-assets-123456789012-us-east-1"
        body = s3.get_object(Bucket=bucket, Key="Horse.zip")["Body"].read()
        assert zipfile.ZipFile(io.BytesIO(body)).namelist() == ["handlers.py"]

    def test_an_artifact_that_cannot_be_deployed_is_named(
        self, cloud: Cloud, tmp_path: Path
    ) -> None:
        (tmp_path / "manifest.json").write_text(
            json.dumps({"artifacts": {"Odd": {"type": "cdk:novelty"}}})
        )
        with pytest.raises(DeploymentError, match=r"Odd: .* does not deploy a cdk:novelty"):
            cloud.deploy(tmp_path)

    def test_a_domain_is_described_as_it_was_asked_for(self, cloud: Cloud, tmp_path: Path) -> None:
        properties: dict[str, Any] = {
            "EngineVersion": "OpenSearch_2.19",
            "ClusterConfig": {"InstanceType": "t3.medium.search", "InstanceCount": 1},
            "EBSOptions": {"EBSEnabled": True, "VolumeType": "gp3", "VolumeSize": 20},
            "EncryptionAtRestOptions": {"Enabled": True},
            "AccessPolicies": {"Version": "2012-10-17", "Statement": []},
            "Tags": [{"Key": "room", "Value": "knowledge"}],
        }
        attributes = ("Arn", "DomainArn", "DomainEndpoint", "Id")
        body = {
            "Resources": {
                "Domain": {"Type": "AWS::OpenSearchService::Domain", "Properties": properties}
            },
            "Outputs": {
                "Domain": {"Value": {"Ref": "Domain"}},
                **{name: {"Value": {"Fn::GetAtt": ["Domain", name]}} for name in attributes},
            },
        }
        deployed = cloud.deploy(write_assembly(tmp_path, body, "ALongNameForAStack"))
        outputs = deployed["alongnameforastack"]
        opensearch = cloud.client("opensearch")

        def domain() -> dict[str, Any]:
            status = opensearch.describe_domain(DomainName=outputs["Domain"])["DomainStatus"]
            return dict(status)

        assert outputs["Arn"] == outputs["DomainArn"] == domain()["ARN"]
        assert outputs["DomainEndpoint"] == domain()["Endpoint"]
        assert outputs["Id"] == domain()["DomainId"]
        assert domain()["EngineVersion"] == "OpenSearch_2.19"
        assert domain()["EBSOptions"]["VolumeSize"] == 20
        assert json.loads(domain()["AccessPolicies"]) == properties["AccessPolicies"]

        properties["EBSOptions"]["VolumeSize"] = 30
        assert cloud.deploy(write_assembly(tmp_path, body, "ALongNameForAStack")) == deployed
        assert domain()["EBSOptions"]["VolumeSize"] == 30

        properties["IPAddressType"] = "dualstack"
        with pytest.raises(DeploymentError, match=r"does not support IPAddressType"):
            cloud.deploy(write_assembly(tmp_path, body, "ALongNameForAStack"))
        cloud.client("cloudformation").delete_stack(StackName="alongnameforastack")
        with pytest.raises(opensearch.exceptions.ResourceNotFoundException):
            domain()

    @pytest.mark.parametrize(
        ("properties", "named"),
        [
            ({"AccelerateConfiguration": {}}, "AccelerateConfiguration"),
            ({"NotificationConfiguration": {"LambdaConfigurations": []}}, "LambdaConfigurations"),
        ],
    )
    def test_a_property_that_would_be_ignored_is_refused_by_name(
        self, cloud: Cloud, tmp_path: Path, properties: dict[str, Any], named: str
    ) -> None:
        body = {"Resources": {"Bucket": {"Type": "AWS::S3::Bucket", "Properties": properties}}}
        with pytest.raises(DeploymentError, match=named):
            cloud.deploy(write_assembly(tmp_path, body, "Property"))


class Greeter(Service):
    name = "codestar-notifications"

    def describe_notification_rule(self, request: dict[str, Any]) -> dict[str, Any]:
        if request["Arn"].endswith("/none"):
            raise ServiceError("ResourceNotFoundException", "There is no such rule")
        return {"Arn": request["Arn"], "Name": "greeting"}

    def list_targets(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"Nonsense": True}


class TestFrontDoor:
    ARN = "arn:aws:codestar-notifications:us-east-1:123456789012:notificationrule/{}"

    @pytest.fixture
    def client(self, cloud: Cloud) -> Any:
        cloud.register([Greeter()])
        return cloud.client("codestar-notifications")

    def test_a_service_of_ours_answers_before_moto(self, client: Any) -> None:
        assert client.describe_notification_rule(Arn=self.ARN.format("one"))["Name"] == "greeting"

    def test_its_errors_are_the_clients_own(self, client: Any) -> None:
        with pytest.raises(client.exceptions.ResourceNotFoundException, match="no such rule"):
            client.describe_notification_rule(Arn=self.ARN.format("none"))

    def test_requests_are_held_to_the_services_constraints(self, client: Any) -> None:
        with pytest.raises(client.exceptions.ValidationException, match="regular expression"):
            client.describe_notification_rule(Arn="nonsense")

    def test_an_operation_nobody_has_is_named(self, client: Any) -> None:
        with pytest.raises(ClientError, match=r"does not implement.*codestar-notifications"):
            client.list_event_types()

    def test_an_answer_not_of_the_services_shape_is_an_error(self, cloud: Cloud) -> None:
        cloud.register([Greeter()])
        without_retries = boto3.session.Config(retries={"max_attempts": 0})
        client: Any = boto3.session.Session(
            aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1"
        ).client("codestar-notifications", endpoint_url=cloud.endpoint, config=without_retries)
        with pytest.raises(ClientError, match=r"answered wrongly.*Nonsense"):
            client.list_targets()

    def test_boto3_round_trips(self, cloud: Cloud, tmp_path: Path) -> None:
        s3, sqs, ssm = cloud.client("s3"), cloud.client("sqs"), cloud.client("ssm")
        s3.create_bucket(Bucket="round-trip")
        big = tmp_path / "big"
        big.write_bytes(os.urandom(9 * 1024 * 1024))
        s3.upload_file(str(big), "round-trip", "folder/big")
        s3.download_file("round-trip", "folder/big", str(tmp_path / "back"))
        assert (tmp_path / "back").read_bytes() == big.read_bytes()
        url = sqs.create_queue(QueueName="round-trip")["QueueUrl"]
        assert url.startswith(cloud.endpoint)
        sqs.send_message(QueueUrl=url, MessageBody="héllo")
        assert received(cloud, url)[0]["Body"] == "héllo"
        ssm.put_parameter(Name="/round/trip", Value="{}", Type="String")
        assert ssm.get_parameter(Name="/round/trip")["Parameter"]["Value"] == "{}"

    def test_faults_happen_as_often_as_asked(self, cloud: Cloud) -> None:
        ssm = cloud.client("ssm")
        ssm.put_parameter(Name="/faulty", Value="1", Type="String")
        cloud.faults.add("ssm", "GetParameter", "AccessDeniedException", "not today", 2)
        for _ in range(2):
            with pytest.raises(ClientError, match=r"AccessDeniedException.*not today"):
                ssm.get_parameter(Name="/faulty")
        assert ssm.get_parameter(Name="/faulty")["Parameter"]["Value"] == "1"


ANOTHER = """
import sys
from pathlib import Path
from local.cloud import Cloud
from local.config import LocalConfig

with Cloud(LocalConfig(port=0, state_dir=Path(sys.argv[1]))) as first:
    first.client("ssm").put_parameter(Name="/first", Value="1", Type="String")
cloud = Cloud(LocalConfig(port=0, state_dir=Path(sys.argv[1])))
cloud.start()
assert cloud.client("ssm").get_parameters(Names=["/first"])["Parameters"] == []
cloud.deploy(Path(sys.argv[2]))
cloud.client("lambda").invoke(FunctionName="describe")
print(cloud.endpoint, flush=True)
if sys.stdin.read(1) == "s":
    cloud.stop()
    print("stopped", flush=True)
    sys.stdin.read()
"""


class TestLifetime:
    def test_one_cloud_in_a_process(self, cloud: Cloud, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match="already runs in this process"):
            Cloud(LocalConfig(port=0, state_dir=tmp_path)).start()

    def test_a_port_that_is_taken_is_a_clear_error(self, cloud: Cloud) -> None:
        taken = int(cloud.endpoint.rpartition(":")[2])
        with pytest.raises(PortInUseError, match=f"Port {taken} .* another program"):
            Server(Gateway({}, cloud.faults, ApiGateway(cloud)), taken)

    @pytest.fixture
    def another(self, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
        assembly = write_assembly(tmp_path / "assembly", template())
        with subprocess.Popen(
            [sys.executable, "-c", ANOTHER, str(tmp_path / "state"), str(assembly)],
            cwd=REPOSITORY,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            yield process
            process.kill()

    def test_two_clouds_side_by_side(
        self, cloud: Cloud, another: subprocess.Popen[str], outputs: dict[str, str]
    ) -> None:
        assert another.stdin is not None
        assert another.stdout is not None
        endpoint = another.stdout.readline().strip()
        assert endpoint != cloud.endpoint
        there: Any = boto3.session.Session(
            aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1"
        ).client("s3", endpoint_url=endpoint)
        there.create_bucket(Bucket="only-there")
        here = [bucket["Name"] for bucket in cloud.client("s3").list_buckets()["Buckets"]]
        assert "only-there" not in here
        assert outputs["Results"] in here

    def test_stopping_leaves_no_process(self, another: subprocess.Popen[str]) -> None:
        assert another.stdin is not None
        assert another.stdout is not None
        another.stdout.readline()
        process = psutil.Process(another.pid)
        assert process.children(recursive=True)
        another.stdin.write("s")
        another.stdin.flush()
        assert another.stdout.readline() == "stopped\n"
        assert process.children(recursive=True) == []

    def test_being_killed_leaves_no_process(self, another: subprocess.Popen[str]) -> None:
        assert another.stdout is not None
        another.stdout.readline()
        children = psutil.Process(another.pid).children(recursive=True)
        assert children
        another.kill()
        _, alive = psutil.wait_procs(children, timeout=10)
        assert alive == []
