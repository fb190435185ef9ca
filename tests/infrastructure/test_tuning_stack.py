"""The synthesized stack: linted, least-privileged, and pinned in a golden file."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bedrock.models import all_models
from infrastructure.app import synthesize
from workflows.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(__file__).parent / "golden" / "tuning_stack.json"

ALARM = "AWS::CloudWatch::Alarm"
LISTS_EVERYTHING = {
    # Actions that AWS lets nobody narrow to a resource.
    "ecr:GetAuthorizationToken",
    "bedrock:ListProvisionedModelThroughputs",
    "bedrock:ListCustomModelDeployments",
    "cloudwatch:PutMetricData",
}


@pytest.fixture(scope="module")
def assembly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    settings = Settings(tuning={"schedule": "rate(7 days)"}, release={"pipeline": "quench-release"})
    outdir = tmp_path_factory.mktemp("cdk.out")
    return synthesize(settings, outdir, cache=ROOT / ".quench" / "cache", code="golden")


@pytest.fixture(scope="module")
def template(assembly: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads((assembly / "QuenchTuning.template.json").read_text())
    return loaded


def of_type(template: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [r["Properties"] for r in template["Resources"].values() if r["Type"] == kind]


def statements(template: dict[str, Any]) -> Iterator[tuple[set[str], list[Any]]]:
    for policy in of_type(template, "AWS::IAM::Policy"):
        for statement in policy["PolicyDocument"]["Statement"]:
            actions, resources = statement["Action"], statement["Resource"]
            yield (
                {actions} if isinstance(actions, str) else set(actions),
                resources if isinstance(resources, list) else [resources],
            )


def test_template_is_the_golden_one(template: dict[str, Any]) -> None:
    text = re.sub(r"\b[0-9a-f]{64}\b", "<asset>", json.dumps(template, indent=1)) + "\n"
    if os.environ.get("GOLDEN") == "write":
        GOLDEN.write_text(text, encoding="utf-8")
    assert json.loads(text) == json.loads(GOLDEN.read_text(encoding="utf-8"))


def test_template_has_no_lint(assembly: Path) -> None:
    lint = subprocess.run(
        [
            *(Path(sys.executable).with_name("cfn-lint"), "--config-file", ROOT / ".cfnlintrc"),
            *("--template", assembly / "QuenchTuning.template.json"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (lint.returncode, lint.stdout + lint.stderr) == (0, "")


def test_roles_name_their_actions_and_resources(template: dict[str, Any]) -> None:
    for actions, resources in statements(template):
        assert not {action for action in actions if action == "*" or action.endswith(":*")}
        if "*" in resources:
            assert actions <= LISTS_EVERYTHING
    for role in of_type(template, "AWS::IAM::Role"):
        assert "ManagedPolicyArns" not in role


def test_buckets_are_encrypted_versioned_private_and_publish_events(
    template: dict[str, Any],
) -> None:
    (bucket,) = of_type(template, "AWS::S3::Bucket")
    assert bucket["BucketEncryption"]
    assert bucket["VersioningConfiguration"] == {"Status": "Enabled"}
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    notifications = bucket["NotificationConfiguration"]
    assert notifications["EventBridgeConfiguration"] == {"EventBridgeEnabled": True}
    (policy,) = of_type(template, "AWS::S3::BucketPolicy")
    assert any(
        statement["Effect"] == "Deny"
        and statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
        for statement in policy["PolicyDocument"]["Statement"]
    )


def test_no_queue_is_in_clear_and_every_consumer_has_dead_letters(
    template: dict[str, Any],
) -> None:
    queues = {
        name: resource["Properties"]
        for name, resource in template["Resources"].items()
        if resource["Type"] == "AWS::SQS::Queue"
    }
    assert all(queue["SqsManagedSseEnabled"] for queue in queues.values())
    for mapping in of_type(template, "AWS::Lambda::EventSourceMapping"):
        queue = queues[mapping["EventSourceArn"]["Fn::GetAtt"][0]]
        assert queue["RedrivePolicy"]["maxReceiveCount"] >= 5
        assert mapping["FunctionResponseTypes"] == ["ReportBatchItemFailures"]


def test_every_function_keeps_the_events_it_fails_on(template: dict[str, Any]) -> None:
    functions = of_type(template, "AWS::Lambda::Function")
    kept = of_type(template, "AWS::Lambda::EventInvokeConfig")
    assert len(functions) == len(kept) == 5
    assert all(config["DestinationConfig"]["OnFailure"]["Destination"] for config in kept)


def test_every_rule_keeps_the_events_it_cannot_deliver(template: dict[str, Any]) -> None:
    rules = of_type(template, "AWS::Events::Rule")
    assert len(rules) == 3
    assert all(target["DeadLetterConfig"] for rule in rules for target in rule["Targets"])


def test_alarms_may_publish(template: dict[str, Any]) -> None:
    (policy,) = of_type(template, "AWS::SNS::TopicPolicy")
    (topic,) = policy["Topics"]
    assert all(alarm["AlarmActions"] == [topic] for alarm in of_type(template, ALARM))
    allowed = [s for s in policy["PolicyDocument"]["Statement"] if s["Effect"] == "Allow"]
    assert [(s["Action"], s["Principal"]["Service"]) for s in allowed] == [
        ("sns:Publish", "cloudwatch.amazonaws.com")
    ]


def test_schedule_is_only_there_when_it_is_set(template: dict[str, Any], tmp_path: Path) -> None:
    (schedule,) = of_type(template, "AWS::Scheduler::Schedule")
    assert schedule["ScheduleExpression"] == "rate(7 days)"
    unscheduled = synthesize(Settings(), tmp_path, cache=ROOT / ".quench" / "cache", code="golden")
    text = (unscheduled / "QuenchTuning.template.json").read_text()
    assert of_type(json.loads(text), "AWS::Scheduler::Schedule") == []


def test_every_base_model_a_run_may_name_may_be_tuned_and_invoked(template: dict[str, Any]) -> None:
    tuned, invoked = (
        json.dumps([r for actions, r in statements(template) if action in actions])
        for action in ("bedrock:CreateModelCustomizationJob", "bedrock:InvokeModel")
    )
    for model in all_models():
        if model.tuning and "us-east-1" in model.tuning.regions:
            assert f"foundation-model/{model.id}" in tuned
            assert f"/{model.invoke_id}" in invoked


def test_a_model_behind_an_inference_profile_may_be_invoked_by_it(tmp_path: Path) -> None:
    settings = Settings(tuning={"base_model": "amazon.nova-2-lite-v1:0:256k"})
    assembly = synthesize(settings, tmp_path, cache=ROOT / ".quench" / "cache", code="golden")
    text = (assembly / "QuenchTuning.template.json").read_text()
    assert "foundation-model/amazon.nova-2-lite-v1:0" in text
    assert "inference-profile/us.amazon.nova-2-lite-v1:0" in text
