"""Updates of stacks that fail, driven by boto3: the stack goes on as it was before."""

import base64
import json
from collections.abc import Callable, Iterator
from copy import deepcopy
from typing import Any

import pytest
from botocore.exceptions import ClientError

from local.cloud import Cloud
from local.config import LocalConfig

STACK = "release"
MODEL = "/release/model"


def function(name: str, **variables: Any) -> dict[str, Any]:
    return {
        "Type": "AWS::Lambda::Function",
        "Properties": {
            "FunctionName": name,
            "Handler": "index.handler",
            "Runtime": "python3.13",
            "Role": {"Fn::GetAtt": ["Role", "Arn"]},
            "Code": {
                "ZipFile": "import os\ndef handler(event, context):\n    return dict(os.environ)"
            },
            "Environment": {"Variables": variables},
        },
    }


TEMPLATE: dict[str, Any] = {
    "Description": "first",
    "Parameters": {
        "Model": {"Type": "AWS::SSM::Parameter::Value<String>", "Default": MODEL},
        "Colour": {"Type": "String", "Default": "red"},
    },
    "Resources": {
        "Role": {
            "Type": "AWS::IAM::Role",
            "Properties": {"AssumeRolePolicyDocument": {"Statement": []}},
        },
        "Jobs": {"Type": "AWS::SQS::Queue", "Properties": {"QueueName": "jobs"}},
        "First": function("first", MODEL={"Ref": "Model"}, COLOUR={"Ref": "Colour"}),
        "Second": {**function("second", JOBS={"Ref": "Jobs"}), "DependsOn": ["First", "Jobs"]},
    },
    "Outputs": {
        "Model": {"Value": {"Ref": "Model"}},
        "Encoded": {"Value": {"Fn::Base64": {"Fn::Sub": "${Model} of ${Jobs}"}}},
        "Jobs": {"Value": {"Ref": "Jobs"}},
    },
}


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    state = tmp_path_factory.mktemp("cloud")
    with Cloud(LocalConfig(port=0, state_dir=state, wait_scale=0.002)) as running:
        yield running


@pytest.fixture
def stacks(cloud: Cloud) -> Iterator[Any]:
    """A client, and the stack that was made by it."""
    put_model(cloud, "one")
    client = cloud.client("cloudformation")
    client.create_stack(StackName=STACK, TemplateBody=json.dumps(TEMPLATE))
    yield client
    client.delete_stack(StackName=STACK)


@pytest.fixture
def template() -> dict[str, Any]:
    """A new template to be changed."""
    return deepcopy(TEMPLATE)


@pytest.fixture
def failing(template: dict[str, Any]) -> dict[str, Any]:
    """One that changes, creates and deletes before its second function fails."""
    resources = template["Resources"]
    template["Description"] = "second"
    resources["Jobs"]["Properties"] |= {
        "VisibilityTimeout": 99,
        "RedrivePolicy": {
            "deadLetterTargetArn": {"Fn::GetAtt": ["New", "Arn"]},
            "maxReceiveCount": 3,
        },
    }
    resources["First"] = function("first", MODEL={"Ref": "Model"}, NEW="yes")
    resources["First"]["Properties"]["Timeout"] = 20
    resources["New"] = {"Type": "AWS::SQS::Queue", "Properties": {"QueueName": "new"}}
    resources["Second"]["Properties"]["Environment"]["Variables"]["NEW"] = "yes"
    resources["Second"]["Properties"]["Code"] = {"S3Bucket": "nobodys", "S3Key": "code.zip"}
    template["Outputs"] = {"New": {"Value": {"Ref": "New"}}}
    return template


def put_model(cloud: Cloud, value: str) -> None:
    cloud.client("ssm").put_parameter(Name=MODEL, Value=value, Type="String", Overwrite=True)


def update_stack(stacks: Any, template: dict[str, Any]) -> None:
    stacks.update_stack(StackName=STACK, TemplateBody=json.dumps(template))


def execute_change_set(stacks: Any, template: dict[str, Any]) -> None:
    change = {"StackName": STACK, "ChangeSetName": "change"}
    stacks.create_change_set(**change, ChangeSetType="UPDATE", TemplateBody=json.dumps(template))
    try:
        stacks.execute_change_set(**change)
    finally:
        stacks.delete_change_set(**change)


def described(stacks: Any) -> dict[str, Any]:
    stack: dict[str, Any] = stacks.describe_stacks(StackName=STACK)["Stacks"][0]
    return stack


def served(cloud: Cloud, name: str) -> dict[str, str]:
    """The variables that a function runs with."""
    answer = cloud.client("lambda").invoke(FunctionName=name)
    variables: dict[str, str] = json.loads(answer["Payload"].read())
    return {key: variables[key] for key in ("MODEL", "COLOUR", "JOBS", "NEW") if key in variables}


def queues(cloud: Cloud) -> dict[str, dict[str, str]]:
    """All queues with what a template can say of them."""
    sqs = cloud.client("sqs")
    told = ("VisibilityTimeout", "RedrivePolicy", "DelaySeconds", "MessageRetentionPeriod")
    found = {}
    for url in sqs.list_queues().get("QueueUrls", []):
        attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        found[url.rpartition("/")[2]] = {key: attributes.get(key, "") for key in told}
    return found


def picture(cloud: Cloud, stacks: Any) -> Any:
    """Everything that is served, and what the stack says of itself, but for its status."""
    stack = described(stacks)
    functions = cloud.client("lambda").list_functions()["Functions"]
    return (
        {name: served(cloud, name) for name in ("first", "second")},
        {item["FunctionName"]: item["Timeout"] for item in functions},
        queues(cloud),
        stack["Outputs"],
        stack["Parameters"],
        stack["Description"],
        stacks.get_template(StackName=STACK)["TemplateBody"],
        {
            resource["LogicalResourceId"]: resource["PhysicalResourceId"]
            for resource in stacks.list_stack_resources(StackName=STACK)["StackResourceSummaries"]
        },
    )


class TestAFailedUpdate:
    @pytest.mark.parametrize("update", [update_stack, execute_change_set])
    def test_it_leaves_everything_as_it_was(
        self,
        cloud: Cloud,
        stacks: Any,
        failing: dict[str, Any],
        update: Callable[[Any, dict[str, Any]], None],
    ) -> None:
        before = picture(cloud, stacks)
        assert served(cloud, "first") == {"MODEL": "one", "COLOUR": "red"}
        put_model(cloud, "two")
        with pytest.raises(ClientError, match=r"Second \(AWS::Lambda::Function\) failed: "):
            update(stacks, failing)
        assert picture(cloud, stacks) == before
        stack = described(stacks)
        assert stack["StackStatus"] == "UPDATE_ROLLBACK_COMPLETE"
        assert stack["StackStatusReason"].startswith("Second (AWS::Lambda::Function) failed: ")
        events = stacks.describe_stack_events(StackName=STACK)["StackEvents"]
        assert [event["ResourceStatus"] for event in events[:3]] == [
            "UPDATE_ROLLBACK_COMPLETE",
            "UPDATE_ROLLBACK_IN_PROGRESS",
            "UPDATE_IN_PROGRESS",
        ]
        assert events[1]["ResourceStatusReason"] == stack["StackStatusReason"]

    @pytest.mark.parametrize("update", [update_stack, execute_change_set])
    def test_a_later_one_works(
        self,
        cloud: Cloud,
        stacks: Any,
        failing: dict[str, Any],
        update: Callable[[Any, dict[str, Any]], None],
    ) -> None:
        with pytest.raises(ClientError):
            update(stacks, failing)
        failing["Resources"]["Second"]["Properties"]["Code"] = {
            "ZipFile": "def handler(event, context):\n    return {'NEW': 'indeed'}"
        }
        update(stacks, failing)
        stack = described(stacks)
        assert stack["StackStatus"] == "UPDATE_COMPLETE"
        assert "StackStatusReason" not in stack
        assert stack["Description"] == "second"
        assert [output["OutputKey"] for output in stack["Outputs"]] == ["New"]
        assert served(cloud, "first") == {"MODEL": "one", "NEW": "yes"}
        assert served(cloud, "second") == {"NEW": "indeed"}
        assert set(queues(cloud)) == {"jobs", "new"}
        assert queues(cloud)["jobs"]["VisibilityTimeout"] == "99"

    def test_a_new_value_alone_is_a_change_afterwards(
        self, cloud: Cloud, stacks: Any, failing: dict[str, Any]
    ) -> None:
        put_model(cloud, "two")
        with pytest.raises(ClientError):
            update_stack(stacks, failing)
        update_stack(stacks, TEMPLATE)
        assert described(stacks)["StackStatus"] == "UPDATE_COMPLETE"
        assert served(cloud, "first")["MODEL"] == "two"
        outputs = {item["OutputKey"]: item["OutputValue"] for item in described(stacks)["Outputs"]}
        assert outputs["Model"] == "two"
        assert base64.b64decode(outputs["Encoded"]).decode() == f"two of {outputs['Jobs']}"

    def test_a_given_parameter_goes_back(
        self, cloud: Cloud, stacks: Any, failing: dict[str, Any]
    ) -> None:
        blue = {"Parameters": [{"ParameterKey": "Colour", "ParameterValue": "blue"}]}
        stacks.update_stack(StackName=STACK, TemplateBody=json.dumps(TEMPLATE), **blue)
        before = picture(cloud, stacks)
        assert served(cloud, "first")["COLOUR"] == "blue"
        green = {"Parameters": [{"ParameterKey": "Colour", "ParameterValue": "green"}]}
        with pytest.raises(ClientError):
            stacks.update_stack(StackName=STACK, TemplateBody=json.dumps(failing), **green)
        assert picture(cloud, stacks) == before
        with pytest.raises(ClientError, match="No updates are to be performed"):
            stacks.update_stack(StackName=STACK, TemplateBody=json.dumps(TEMPLATE), **blue)

    def test_what_the_template_no_longer_has_was_not_deleted_yet(
        self, cloud: Cloud, stacks: Any, failing: dict[str, Any]
    ) -> None:
        sqs = cloud.client("sqs")
        url = sqs.get_queue_url(QueueName="jobs")["QueueUrl"]
        sqs.send_message(QueueUrl=url, MessageBody="kept")
        del failing["Resources"]["Jobs"], failing["Resources"]["Second"]["DependsOn"]
        failing["Resources"]["Second"]["Properties"]["Environment"] = {}
        with pytest.raises(ClientError, match="Second"):
            update_stack(stacks, failing)
        assert set(queues(cloud)) == {"jobs"}
        (message,) = sqs.receive_message(QueueUrl=url)["Messages"]
        assert message["Body"] == "kept"

    def test_an_output_that_cannot_be_made_is_a_failure(
        self, cloud: Cloud, stacks: Any, template: dict[str, Any]
    ) -> None:
        before = picture(cloud, stacks)
        template["Resources"]["New"] = {"Type": "AWS::SQS::Queue"}
        template["Outputs"]["Wrong"] = {"Value": {"Fn::GetAtt": ["Jobs", "Taste"]}}
        with pytest.raises(ClientError, match="Jobs has no attribute Taste"):
            update_stack(stacks, template)
        assert picture(cloud, stacks) == before
        assert "Jobs has no attribute Taste" in described(stacks)["StackStatusReason"]

    def test_a_type_that_cannot_be_updated_stays(
        self, cloud: Cloud, stacks: Any, template: dict[str, Any]
    ) -> None:
        logs = {"Type": "AWS::Logs::LogGroup", "Properties": {"LogGroupName": "/release/log"}}
        template["Resources"]["Log"] = logs
        update_stack(stacks, template)
        before = picture(cloud, stacks)
        logs["Properties"]["RetentionInDays"] = 7
        template["Resources"]["First"]["Properties"]["Timeout"] = 7
        with pytest.raises(ClientError, match=r"Log \(AWS::Logs::LogGroup\).*cannot update"):
            update_stack(stacks, template)
        assert described(stacks)["StackStatus"] == "UPDATE_ROLLBACK_COMPLETE"
        assert picture(cloud, stacks) == before

    def test_a_rollback_that_fails_says_so_and_a_later_update_repairs(
        self, cloud: Cloud, stacks: Any, template: dict[str, Any]
    ) -> None:
        before = picture(cloud, stacks)
        template["Resources"]["New"] = {"Type": "AWS::SQS::Queue"}
        template["Resources"]["Jobs"]["DependsOn"] = "New"
        template["Resources"]["Jobs"]["Properties"]["DelaySeconds"] = 5
        cloud.faults.add("sqs", "SetQueueAttributes", "AccessDenied", "not today", 2)
        with pytest.raises(ClientError, match=r"Jobs \(AWS::SQS::Queue\) failed: .*not today"):
            update_stack(stacks, template)
        stack = described(stacks)
        assert stack["StackStatus"] == "UPDATE_ROLLBACK_FAILED"
        assert stack["StackStatusReason"].count("Jobs (AWS::SQS::Queue) failed: ") == 2
        update_stack(stacks, TEMPLATE)
        assert described(stacks)["StackStatus"] == "UPDATE_COMPLETE"
        assert picture(cloud, stacks) == before


class TestAnUpdate:
    def test_one_that_changes_nothing_is_refused(self, cloud: Cloud, stacks: Any) -> None:
        for body in (json.dumps(TEMPLATE), json.dumps(TEMPLATE, indent=2)):
            with pytest.raises(ClientError) as refused:
                stacks.update_stack(StackName=STACK, TemplateBody=body)
            assert refused.value.response["Error"] == {
                "Type": "Sender",
                "Code": "ValidationError",
                "Message": "No updates are to be performed.",
            }
        assert described(stacks)["StackStatus"] == "CREATE_COMPLETE"

    def test_one_that_cannot_begin_leaves_the_status(
        self, cloud: Cloud, stacks: Any, template: dict[str, Any]
    ) -> None:
        template["Parameters"]["Model"]["Default"] = "/nobody/put/it"
        with pytest.raises(ClientError, match="/nobody/put/it"):
            update_stack(stacks, template)
        assert described(stacks)["StackStatus"] == "CREATE_COMPLETE"

    def test_what_could_not_be_deleted_is_told_and_the_update_stands(
        self, cloud: Cloud, stacks: Any, template: dict[str, Any]
    ) -> None:
        schedule = {
            "Type": "AWS::Scheduler::Schedule",
            "Properties": {
                "Name": "nightly",
                "ScheduleExpression": "rate(7 days)",
                "FlexibleTimeWindow": {"Mode": "OFF"},
                "Target": {
                    "Arn": {"Fn::GetAtt": ["First", "Arn"]},
                    "RoleArn": {"Fn::GetAtt": ["Role", "Arn"]},
                    "Input": "{}",
                },
            },
        }
        template["Resources"]["Nightly"] = schedule
        update_stack(stacks, template)
        del template["Resources"]["Nightly"]
        cloud.faults.add("scheduler", "DeleteSchedule", "ConflictException", "not now")
        update_stack(stacks, template)
        stack = described(stacks)
        assert stack["StackStatus"] == "UPDATE_COMPLETE"
        assert "Nightly (AWS::Scheduler::Schedule): " in stack["StackStatusReason"]
        cloud.client("scheduler").delete_schedule(Name="nightly")

    def test_a_resource_has_one_logical_id(
        self, cloud: Cloud, stacks: Any, template: dict[str, Any]
    ) -> None:
        before = picture(cloud, stacks)
        resources = template["Resources"]
        resources["Renamed"] = resources.pop("Jobs")
        resources["Second"] = function("second")
        template["Outputs"] = {}
        with pytest.raises(ClientError, match=r"Renamed .*already exists in the stack as Jobs"):
            update_stack(stacks, template)
        assert described(stacks)["StackStatus"] == "UPDATE_ROLLBACK_COMPLETE"
        assert picture(cloud, stacks) == before


def test_a_change_set_whose_stack_fails_leaves_none_of_its_resources(cloud: Cloud) -> None:
    put_model(cloud, "one")
    template = deepcopy(TEMPLATE)
    template["Resources"]["Second"]["Properties"]["Code"] = {"S3Bucket": "no", "S3Key": "no"}
    stacks = cloud.client("cloudformation")
    change = {"StackName": "created", "ChangeSetName": "change"}
    stacks.create_change_set(**change, ChangeSetType="CREATE", TemplateBody=json.dumps(template))
    with pytest.raises(ClientError, match=r"Second \(AWS::Lambda::Function\)"):
        stacks.execute_change_set(**change)
    assert stacks.describe_change_set(**change)["ExecutionStatus"] == "EXECUTE_FAILED"
    stack = stacks.describe_stacks(StackName="created")["Stacks"][0]
    assert stack["StackStatus"] == "ROLLBACK_COMPLETE"
    assert cloud.client("lambda").list_functions()["Functions"] == []
    assert queues(cloud) == {}
    stacks.delete_stack(StackName="created")
