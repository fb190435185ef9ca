"""Every synthesized stack: linted, least-privileged, encrypted, and pinned in a golden file."""

import json
import os
import re
from pathlib import Path

import pytest
from templates import Template, lint, of_type, statements, template_files

GOLDEN = Path(__file__).parent / "golden"
ALARM = "AWS::CloudWatch::Alarm"
KNOWS_NO_RESOURCE = {
    # Actions that AWS lets nobody narrow to a resource.
    "ecr:GetAuthorizationToken",
    "bedrock:ListProvisionedModelThroughputs",
    "bedrock:ListCustomModelDeployments",
    "cloudwatch:PutMetricData",
    "sagemaker:ListProcessingJobs",
    "codepipeline:PutJobSuccessResult",
    "codepipeline:PutJobFailureResult",
    "lambda:ListFunctions",
}


CDK_PIPELINES = (
    # What it gives its own builds, beside roles of the bootstrap that they may assume.
    {"codebuild:BatchGetBuilds", "codebuild:StartBuild", "codebuild:StopBuild"},
    {"cloudformation:DescribeStacks"},
    {"s3:ListBucket"},
)
PUSH_LOGS = ":iam::aws:policy/service-role/AmazonAPIGatewayPushToCloudWatchLogs"
UPLOADED_TO = ["tuning", "knowledge"]
HANDLE_EVENTS = [*UPLOADED_TO, "promotion"]
HAVE_FUNCTIONS = [*HANDLE_EVENTS, "qa-inference"]
uploaded_to = pytest.mark.parametrize("name", UPLOADED_TO, indirect=True)
handles_events = pytest.mark.parametrize("name", HANDLE_EVENTS, indirect=True)
has_functions = pytest.mark.parametrize("name", HAVE_FUNCTIONS, indirect=True)


@pytest.fixture(params=[*HAVE_FUNCTIONS, "prod-inference", "release"])
def name(request: pytest.FixtureRequest) -> str:
    stack: str = request.param
    return stack


@pytest.fixture
def path(name: str, assembly: Path) -> Path:
    return template_files(assembly)[f"quench-{name}"]


@pytest.fixture
def template(path: Path) -> Template:
    loaded: Template = json.loads(path.read_text(encoding="utf-8"))
    return loaded


def test_template_is_the_golden_one(name: str, template: Template) -> None:
    golden = GOLDEN / f"{name.replace('-', '_')}_stack.json"
    text = re.sub(r"\b[0-9a-f]{64}\b", "<asset>", json.dumps(template, indent=1)) + "\n"
    if os.environ.get("GOLDEN") == "write":
        golden.write_text(text, encoding="utf-8")
    assert json.loads(text) == json.loads(golden.read_text(encoding="utf-8"))


@pytest.mark.slow
def test_templates_have_no_lint(assembly: Path) -> None:
    assert lint(assembly) == (0, "")


def test_no_function_runs_while_the_stack_is_deployed(template: Template) -> None:
    kinds = {resource["Type"] for resource in template["Resources"].values()}
    assert not {kind for kind in kinds if "Custom" in kind}


def test_roles_name_their_actions_and_resources(name: str, template: Template) -> None:
    for actions, resources in statements(template):
        assert not {action for action in actions if action == "*" or action.endswith(":*")}
        if "*" in resources:
            assert actions <= KNOWS_NO_RESOURCE or (name == "release" and actions in CDK_PIPELINES)
    for role in of_type(template, "AWS::IAM::Role"):
        for managed in role.get("ManagedPolicyArns", []):
            assert managed["Fn::Join"][1][-1] == PUSH_LOGS  # what the gateway's account asks for


def test_buckets_are_encrypted_and_private(template: Template) -> None:
    buckets = of_type(template, "AWS::S3::Bucket")
    for bucket in buckets:
        assert bucket["BucketEncryption"]
        assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    policies = of_type(template, "AWS::S3::BucketPolicy")
    assert len(policies) == len(buckets)
    for policy in policies:
        assert any(
            statement["Effect"] == "Deny"
            and statement["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
            for statement in policy["PolicyDocument"]["Statement"]
        )


@uploaded_to
def test_the_bucket_people_upload_to_keeps_versions_and_publishes_events(
    template: Template,
) -> None:
    (bucket,) = [
        bucket
        for bucket in of_type(template, "AWS::S3::Bucket")
        if bucket.get("VersioningConfiguration") == {"Status": "Enabled"}
    ]
    notifications = bucket["NotificationConfiguration"]
    assert notifications["EventBridgeConfiguration"] == {"EventBridgeEnabled": True}


def test_no_queue_is_in_clear_and_every_consumer_has_dead_letters(template: Template) -> None:
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


@handles_events
def test_every_queue_that_nobody_reads_has_an_alarm(template: Template) -> None:
    queues = {
        name
        for name, resource in template["Resources"].items()
        if resource["Type"] == "AWS::SQS::Queue"
    }
    read = {
        mapping["EventSourceArn"]["Fn::GetAtt"][0]
        for mapping in of_type(template, "AWS::Lambda::EventSourceMapping")
    }
    watched = {
        dimension["Value"]["Fn::GetAtt"][0]
        for alarm in of_type(template, ALARM)
        for dimension in alarm["Dimensions"]
        if dimension["Name"] == "QueueName"
    }
    assert read
    assert queues - read == watched


@handles_events
def test_every_function_keeps_the_events_it_fails_on(template: Template) -> None:
    functions = of_type(template, "AWS::Lambda::Function")
    kept = of_type(template, "AWS::Lambda::EventInvokeConfig")
    assert len(functions) == len(kept) > 0
    assert all(config["DestinationConfig"]["OnFailure"]["Destination"] for config in kept)


@handles_events
def test_every_rule_keeps_the_events_it_cannot_deliver(template: Template) -> None:
    rules = of_type(template, "AWS::Events::Rule")
    assert rules
    assert all(target["DeadLetterConfig"] for rule in rules for target in rule["Targets"])


@has_functions
def test_every_log_group_ends_its_lines(template: Template) -> None:
    groups = of_type(template, "AWS::Logs::LogGroup")
    assert groups
    assert {group["RetentionInDays"] for group in groups} == {180}


@has_functions
def test_alarms_may_publish(template: Template) -> None:
    (policy,) = of_type(template, "AWS::SNS::TopicPolicy")
    (topic,) = policy["Topics"]
    assert all(alarm["AlarmActions"] == [topic] for alarm in of_type(template, ALARM))
    allowed = [s for s in policy["PolicyDocument"]["Statement"] if s["Effect"] == "Allow"]
    assert [(s["Action"], s["Principal"]["Service"]) for s in allowed] == [
        ("sns:Publish", "cloudwatch.amazonaws.com")
    ]
