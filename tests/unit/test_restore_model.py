"""restore_model: what failed is taken back, once, however often it is told and wherever it stops.

Parameter Store, CloudFormation and SNS are moto's. The others are simulated here: botocore checks
what is asked against the service model, and `Services` what is answered.
"""

import importlib
import json
import sys
from datetime import UTC, datetime, timedelta
from itertools import count
from types import SimpleNamespace

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.validate import validate_parameters
from moto import mock_aws
from moto.core import DEFAULT_ACCOUNT_ID, set_initial_no_auth_action_count
from moto.ssm.models import ssm_backends

from lambdas import clients
from lambdas.access import Access
from lambdas.served_model import NOTHING_APPROVED, ServedModel, read, read_history, write

MODEL_PARAMETER, PRODUCTION_PARAMETER = "/quench/model", "/quench/model-prod"
PIPELINE, STACK = "quench-release", "quench-prod-inference"
TOPIC = "arn:aws:sns:us-east-1:123456789012:quench-operators"
EXECUTION = "5f3c1b52-9f0e-4c3d-a6f7-2b8f1e7d4a90"  # as in the event
PACKAGES = "arn:aws:sagemaker:us-east-1:123456789012:model-package/quench-models"
ROLLBACK = {"source": "quench.models", "action": "rollback", "by": "Ada"}
HOUR = timedelta(hours=1)
SUMMARY = "42 of 50 answers came too late"


def approved(number):
    """A model by the version of its package, which says how late it was approved."""
    return ServedModel(
        model_id=f"arn:aws:bedrock:us-east-1:123456789012:custom-model-deployment/{number}",
        base_model="amazon.nova-micro-v1:0:128k",
        custom_model=f"arn:aws:bedrock:us-east-1:123456789012:custom-model/x/{number:012}",
        model_package=f"{PACKAGES}/{number}",
        approved_at=datetime(2026, 11, 20, 12, number, tzinfo=UTC),
    )


BASE, A, B, C = NOTHING_APPROVED, approved(1), approved(2), approved(3)


class Killed(Exception):
    """The function's time was up."""


class Services:
    """SageMaker, Bedrock and CodePipeline as restore_model needs them; and what may befall it."""

    def __init__(self):
        self.reset()
        for name in ("sagemaker", "bedrock", "codepipeline"):
            clients.client(name).meta.events.register("before-call.*.*", self.answer)
        for name in ("sagemaker", "bedrock", "codepipeline", "ssm", "cloudformation", "sns"):
            events = clients.client(name).meta.events
            events.register_first("before-call.*.*", self.begin)
            events.register("after-call.*.*", self.end)

    def reset(self):
        self.status = {model.model_package: "Approved" for model in (A, B, C)}
        self.description = {}
        self.serving = {A, B, C}
        self.executions = []
        self.actions = [action("RunTests", "Failed", externalExecutionSummary=SUMMARY)]
        self.tokens = {}
        self.calls = []
        self.kill_at = None  # the number of the call
        self.meddle = {}  # what others do before an operation
        self.stack_status = None

    def begin(self, model, **_):
        self.calls.append(model.name)
        if len(self.calls) == self.kill_at:
            raise Killed
        if meddle := self.meddle.pop(model.name, None):
            meddle()

    def end(self, model, parsed, **_):
        if model.name == "DescribeStacks" and self.stack_status:
            parsed["Stacks"][0]["StackStatus"] = self.stack_status

    def answer(self, model, params, **_):
        request = json.loads(params["body"] or "null") or params["query_string"]
        try:
            response = getattr(self, model.name)(**request)
        except LookupError:
            message = f"ModelPackage {request['ModelPackageName']} does not exist."
            error = {"Code": "ValidationException", "Message": message}
            return SimpleNamespace(status_code=400), {"Error": error}
        validate_parameters(response, model.output_shape)
        return SimpleNamespace(status_code=200), response

    def DescribeModelPackage(self, ModelPackageName):
        return {
            "ModelPackageName": "quench-models",
            "ModelPackageArn": ModelPackageName,
            "CreationTime": 1795172553,
            "ModelPackageStatus": "Completed",
            "ModelPackageStatusDetails": {"ValidationStatuses": []},
            "ModelApprovalStatus": self.status[ModelPackageName],
        }

    def UpdateModelPackage(self, ModelPackageArn, ModelApprovalStatus, ApprovalDescription):
        assert len(ApprovalDescription) <= 1024
        assert "\n" not in ApprovalDescription
        self.status[ModelPackageArn] = ModelApprovalStatus
        self.description[ModelPackageArn] = ApprovalDescription
        return {"ModelPackageArn": ModelPackageArn}

    def ListProvisionedModelThroughputs(self, **_):
        return {"provisionedModelSummaries": []}

    def ListCustomModelDeployments(self, modelArnEquals, **_):
        summaries = [
            {
                "customModelDeploymentArn": model.model_id,
                "customModelDeploymentName": "players",
                "modelArn": model.custom_model,
                "createdAt": 1795172553,
                "status": "Active",
            }
            for model in self.serving
            if model.custom_model == modelArnEquals
        ]
        return {"modelDeploymentSummaries": summaries}

    def ListPipelineExecutions(self, pipelineName, nextToken="0"):
        """A page per execution, the newest first."""
        number = int(nextToken)
        response = {"pipelineExecutionSummaries": self.executions[number : number + 1]}
        if number + 1 < len(self.executions):
            response["nextToken"] = str(number + 1)
        return response

    def ListActionExecutions(self, pipelineName, filter):
        assert (pipelineName, filter) == (PIPELINE, {"pipelineExecutionId": EXECUTION})
        return {"actionExecutionDetails": self.actions}

    def StartPipelineExecution(self, name, clientRequestToken):
        assert name == PIPELINE
        if clientRequestToken not in self.tokens:
            execution = f"{len(self.tokens):08}-0000-0000-0000-000000000000"
            self.tokens[clientRequestToken] = execution
            self.execution(execution, ago=timedelta(0))
        return {"pipelineExecutionId": self.tokens[clientRequestToken]}

    def execution(self, execution_id, ago=HOUR, status="InProgress"):
        started = datetime.now(UTC) - ago
        summary = {"pipelineExecutionId": execution_id, "startTime": started, "status": status}
        self.executions.insert(0, summary)


def action(name, status, stage="QA", attempt=1, **result):
    return {
        "pipelineExecutionId": EXECUTION,
        "stageName": stage,
        "actionName": name,
        "status": status,
        "startTime": datetime(2026, 11, 20, 12, 40 + attempt, tzinfo=UTC),
        "output": {"executionResult": result},
    }


@pytest.fixture(scope="module")
def loaded():
    """The function and its clients, which take their time to make."""
    environment = {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "MODEL_PARAMETER": MODEL_PARAMETER,
        "PRODUCTION_PARAMETER": PRODUCTION_PARAMETER,
        "RELEASE_PIPELINE": PIPELINE,
        "QA_STAGE": "QA",
        "PRODUCTION_STAGE": "PROD",
        "PRODUCTION_STACK": STACK,
        "TOPIC_ARN": TOPIC,
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        clients.cached_client.cache_clear()
        sys.modules.pop("lambdas.restore_model", None)
        yield importlib.import_module("lambdas.restore_model"), Services(), boto3.client("sqs")
        clients.cached_client.cache_clear()


@pytest.fixture
def function(loaded):
    loaded[1].reset()
    with mock_aws():
        assert clients.client("sns").create_topic(Name="quench-operators")["TopicArn"] == TOPIC
        yield loaded[0]


@pytest.fixture
def services(loaded, function):
    loaded[1].calls.clear()
    return loaded[1]


@pytest.fixture
def messages(loaded, services):
    """The messages that the topic's subscribers got."""
    sqs = loaded[2]
    queue = sqs.create_queue(QueueName="operators")["QueueUrl"]
    attributes = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])
    clients.client("sns").subscribe(
        TopicArn=TOPIC,
        Protocol="sqs",
        Endpoint=attributes["Attributes"]["QueueArn"],
    )

    services.calls.clear()

    def receive():
        received = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10)
        return [json.loads(message["Body"]) for message in received.get("Messages", [])]

    return receive


@pytest.fixture
def event(read_event):
    return read_event("codepipeline_stage_failed")


def deploy_production(value, name="ServedModel", access=None):
    """A stack whose output is this text."""
    template = {
        "Resources": {"Queue": {"Type": "AWS::SQS::Queue"}},
        "Outputs": {name: {"Value": value}},
    }
    clients.client("cloudformation", access).create_stack(
        StackName=STACK, TemplateBody=json.dumps(template)
    )


def put(*models, name=MODEL_PARAMETER):
    """These were written one after the other, two hours ago."""
    for model in models:
        write(name, model)
    for version in ssm_backends[DEFAULT_ACCOUNT_ID]["us-east-1"]._parameters[name]:
        version.last_modified_date -= 2 * HOUR


def in_use():
    return read(MODEL_PARAMETER).model


def versions():
    return [stored.model for stored in read_history(MODEL_PARAMETER)]


# What to do


MODIFIED = datetime(2026, 11, 20, 12, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("seconds", "same", "expected"),
    [
        (60, True, "KEEP"),
        (60, False, "RESTORE"),
        (0, False, "RESTORE"),
        (-1, False, "RESTORE"),
        (-1.1, False, "RELEASE"),
        (-60, True, "RELEASE"),
        (-60, False, "RELEASE"),
    ],
)
def test_the_decision(function, seconds, same, expected):
    started = MODIFIED + timedelta(seconds=seconds)
    decision = function.decide(started, MODIFIED, same=same)
    assert decision is function.Decision[expected]


# After a release that failed


def test_a_model_that_failed_is_taken_back(function, services, messages, event, context):
    put(A, B)
    deploy_production(A.model_dump_json())
    services.execution(EXECUTION)
    assert function.handler(event, context) is None
    assert versions() == [A, B, A]
    assert services.status[B.model_package] == "Rejected"
    assert services.description[B.model_package] == (
        f"Release {EXECUTION}: RunTests in QA failed: {SUMMARY}"
    )
    [release] = services.tokens.values()
    [message] = messages()
    assert message["Subject"] == "Release failed in QA"
    assert message["Message"] == (
        f"Release {EXECUTION}: RunTests in QA failed: {SUMMARY}\n\n"
        f"{B.name} was taken back. Release {release} deploys QA with {A.name};"
        f" production serves {A.name}."
    )


def test_the_event_again_starts_nothing_new(function, services, messages, event, context):
    put(A, B)
    deploy_production(A.model_dump_json())
    services.execution(EXECUTION)
    for _ in range(2):
        function.handler(event, context)
    assert versions() == [A, B, A]
    assert len(services.tokens) == 1
    assert len(messages()) == 2


def test_production_without_a_stack_is_the_base_model(function, services, event, context):
    put(BASE, A)
    services.execution(EXECUTION)
    function.handler(event, context)
    assert versions() == [BASE, A, BASE]
    assert services.status[A.model_package] == "Rejected"


def test_production_that_was_moved_is_to_have_what_it_had(function, services, event, context):
    """There is no stack in its new place yet, and the first release to it fails."""
    put(BASE, A)
    put(BASE, A, name=PRODUCTION_PARAMETER)
    services.execution(EXECUTION)
    function.handler(event, context)
    assert versions() == [BASE, A]
    assert services.status[A.model_package] == "Approved"


def test_production_that_is_being_moved_gets_no_model_that_fails(
    function, services, event, context
):
    put(BASE, A, B)
    put(BASE, A, name=PRODUCTION_PARAMETER)
    services.execution(EXECUTION)
    write(PRODUCTION_PARAMETER, B)  # by the release, after it started
    function.handler(event, context)
    assert versions() == [BASE, A, B, A]
    assert services.status[B.model_package] == "Rejected"


def test_production_that_cannot_be_made_is_not_given_one_model_after_the_other(
    function, services, event, context
):
    """Every release fails there, also the one that brings QA back."""
    put(BASE, A, B)
    put(BASE, A, name=PRODUCTION_PARAMETER)
    services.execution(EXECUTION)
    write(PRODUCTION_PARAMETER, B)
    function.handler(event, context)
    services.executions[0]["pipelineExecutionId"] = EXECUTION
    write(PRODUCTION_PARAMETER, A)
    function.handler(event, context)
    assert versions() == [BASE, A, B, A]
    assert services.status[A.model_package] == "Approved"
    assert len(services.tokens) == 1


def test_what_production_serves_and_was_approved_again_is_not_taken_back(
    function, services, messages, event, context
):
    put(A, B, B.model_copy(update={"approved_at": C.approved_at}))
    deploy_production(B.model_dump_json())
    services.execution(EXECUTION)
    function.handler(event, context)
    assert len(versions()) == 3
    assert services.status[B.model_package] == "Approved"
    assert "The model stays: production serves" in messages()[0]["Message"]


def test_a_release_that_failed_with_what_production_serves_takes_nothing_back(
    function, services, messages, event, context
):
    put(A, B)
    deploy_production(B.model_dump_json())
    services.execution(EXECUTION)
    function.handler(event, context)
    assert versions() == [A, B]
    assert services.status[B.model_package] == "Approved"
    assert not services.tokens
    assert "The model stays: production serves" in messages()[0]["Message"]


def test_a_later_approval_is_left_to_its_own_release(function, services, messages, event, context):
    put(A, B, C)
    deploy_production(A.model_dump_json())
    services.execution("12345678-1234-1234-1234-123456789012")
    services.execution(EXECUTION, ago=3 * HOUR)
    function.handler(event, context)
    assert versions() == [A, B, C]
    assert services.status[C.model_package] == "Approved"
    told = messages()[0]["Message"]
    assert "The model has changed since this release started" in told
    assert "ended already" not in told


def test_a_later_approval_whose_release_has_failed_is_to_be_run_again(
    function, services, messages, event, context
):
    put(A, B)
    deploy_production(A.model_dump_json())
    services.execution(EXECUTION, ago=3 * HOUR)
    function.handler(event, context)
    services.executions[0]["status"] = "Failed"
    function.handler(event, context)
    told = [message["Message"] for message in messages()]
    assert ["ended already: run it again" in text for text in told] == [False, True]


def test_a_rejection_by_hand_keeps_its_description(function, services, event, context):
    put(A, B)
    deploy_production(A.model_dump_json())
    services.execution(EXECUTION)
    services.status[B.model_package] = "Rejected"
    function.handler(event, context)
    assert in_use() == A
    assert not services.description


def test_a_package_that_was_deleted_is_taken_back(function, services, event, context):
    put(A, B)
    deploy_production(A.model_dump_json())
    services.execution(EXECUTION)
    del services.status[B.model_package]
    function.handler(event, context)
    assert versions() == [A, B, A]


def test_an_approval_during_the_restoration_is_in_force(
    function, services, messages, event, context
):
    put(A, B)
    deploy_production(A.model_dump_json())
    services.execution(EXECUTION)
    services.meddle["PutParameter"] = lambda: write(MODEL_PARAMETER, C)
    function.handler(event, context)
    assert versions() == [A, B, C, A, C]
    assert len(services.tokens) == 1
    assert f"deploys QA with {C.name}" in messages()[0]["Message"]


def test_production_that_is_being_deployed_counts_as_deployed(function, services, event, context):
    """An earlier execution passed QA and is on its way while this one fails there."""
    put(A, B, C)
    put(A, B, name=PRODUCTION_PARAMETER)
    deploy_production(A.model_dump_json())
    services.execution(EXECUTION)
    services.stack_status = "UPDATE_IN_PROGRESS"
    function.handler(event, context)
    assert versions() == [A, B, C, B]


def test_production_that_was_never_deployed_is_the_base_model(function, services, event, context):
    put(BASE, A)
    deploy_production("anything", name="Other")
    services.execution(EXECUTION)
    services.stack_status = "ROLLBACK_COMPLETE"
    function.handler(event, context)
    assert in_use() == BASE


@pytest.mark.parametrize(
    ("output", "value", "told"),
    [
        ("Url", "https://example.com", "has no output ServedModel"),
        (
            "ServedModel",
            "x",
            "output ServedModel of stack quench-prod-inference: value: Invalid JSON",
        ),
    ],
)
def test_a_stack_that_does_not_tell_its_model_changes_nothing(
    function, services, event, context, output, value, told
):
    put(A, B)
    deploy_production(value, name=output)
    services.execution(EXECUTION)
    with pytest.raises(function.UnusableStackError, match=told):
        function.handler(event, context)
    assert versions() == [A, B]


def test_an_execution_that_is_not_listed_is_an_error(function, services, event, context):
    put(A, B)
    for number in range(3):
        services.execution(f"{number:08}-0000-0000-0000-000000000000")
    with pytest.raises(function.UnknownExecutionError, match=EXECUTION):
        function.handler(event, context)
    assert services.calls.count("ListPipelineExecutions") == 3
    assert versions() == [A, B]


def test_without_the_parameter_nothing_can_be_taken_back(function, services, event, context):
    services.execution(EXECUTION)
    with pytest.raises(Exception, match="/quench/model does not exist"):
        function.handler(event, context)


def test_a_stage_without_a_model_takes_nothing_back(function, services, messages, event, context):
    event["detail"]["stage"] = "Build"
    services.actions = [action("Assets", "Failed", "Build", errorDetails={"message": "exit 1"})]
    function.handler(event, context)
    assert services.calls == ["ListActionExecutions", "Publish"]
    [message] = messages()
    assert message["Subject"] == "Release failed in Build"
    assert message["Message"] == (
        f"Release {EXECUTION}: Assets in Build failed: exit 1\n\n"
        "The model stays: Build says nothing of it."
    )


def test_another_pipeline_is_ignored(function, services, event, context, caplog):
    event["detail"]["pipeline"] = "another"
    function.handler(event, context)
    assert not services.calls
    assert "another is not the pipeline quench-release" in caplog.text


@pytest.mark.parametrize(
    ("actions", "told"),
    [
        ([], "QA failed, but no action of it."),
        ([action("Deploy", "Succeeded")], "QA failed, but no action of it."),
        ([action("Deploy", "Failed")], "Deploy in QA failed: it gave no reason"),
        (
            [
                action("Deploy", "Failed", attempt=2, errorDetails={"message": "again"}),
                action("Deploy", "Failed", attempt=1, errorDetails={"message": "at first"}),
                action("Deploy", "Failed", "PROD", attempt=3),
            ],
            "Deploy in QA failed: again",
        ),
    ],
)
def test_why_a_stage_failed(function, services, event, actions, told):
    services.actions = actions
    detail = function.StageDetail.model_validate(event["detail"])
    assert function.explain_failure(detail).endswith(told)


def test_a_long_reason_fits_the_registry_and_a_long_stage_the_subject(
    function, services, messages, event, context
):
    put(A, B)
    services.execution(EXECUTION)
    services.actions = [action("Tests", "Failed", externalExecutionSummary="Zeile\n" * 999)]
    function.handler(event, context)
    assert len(services.description[B.model_package]) == 1024
    services.actions = []
    event["detail"]["stage"] = "S" * 100
    function.handler(event, context)
    assert max(len(message["Subject"]) for message in messages()) == 99


# Because somebody asks


def test_a_rollback_takes_the_model_back(function, services, messages, context):
    put(BASE, A, B)
    put(BASE, A, B, name=PRODUCTION_PARAMETER)
    result = function.handler(ROLLBACK, context)
    assert result == {
        "from": B.model_dump(mode="json"),
        "to": A.model_dump(mode="json"),
        "release": "00000000-0000-0000-0000-000000000000",
    }
    assert json.loads(json.dumps(result)) == result
    assert versions() == [BASE, A, B, A]
    assert services.status[B.model_package] == "Rejected"
    assert services.description[B.model_package] == f"Rolled back by Ada to {A.name}"
    [message] = messages()
    assert message["Subject"] == "The model was rolled back"
    assert message["Message"] == (
        f"Ada took {B.name} back.\n\nA release deploys QA and then production with {A.name}."
    )


def test_each_rollback_goes_further_back_until_nothing_is_left(function, services, context):
    put(BASE, A, B, C)
    put(BASE, A, B, C, name=PRODUCTION_PARAMETER)
    targets = [function.handler(ROLLBACK, context)["to"]["model_package"] for _ in range(3)]
    assert targets == [B.model_package, A.model_package, None]
    assert versions() == [BASE, A, B, C, B, A, BASE]
    assert services.description[A.model_package] == "Rolled back by Ada to the base model"
    assert len(services.tokens) == 3
    with pytest.raises(function.NothingToRollBackToError) as raised:
        function.handler(ROLLBACK, context)
    assert str(raised.value) == (
        "nothing to roll the base model back to: "
        f"{C.name} is Rejected; {B.name} is Rejected; {A.name} is Rejected;"
        " the base model is the one in use"
    )


def test_a_model_in_qa_goes_back_to_what_was_in_production(function, services, context):
    put(BASE, A, B)
    put(BASE, A, name=PRODUCTION_PARAMETER)
    assert function.handler(ROLLBACK, context)["to"]["model_package"] == A.model_package


def test_what_cannot_take_over_is_skipped_and_the_reasons_are_told(function, services, context):
    put(A, B, C)
    put(A, B, C, B, name=PRODUCTION_PARAMETER)
    services.serving.remove(B)
    del services.status[A.model_package]
    with pytest.raises(function.NothingToRollBackToError) as raised:
        function.handler(ROLLBACK, context)
    assert str(raised.value) == (
        f"nothing to roll {C.name} back to: {B.name} cannot be invoked by {B.model_id} any more;"
        f" {C.name} is the one in use; {A.name} was deleted"
    )
    assert versions() == [A, B, C]
    assert services.status[C.model_package] == "Approved"

    services.serving.add(B)
    assert function.handler(ROLLBACK, context)["to"]["model_package"] == B.model_package


def test_what_is_skipped_does_not_come_back_by_settling(function, services, context):
    """B is approved later than A, and still is, but nothing serves it."""
    put(A, B, C)
    put(A, B, C, name=PRODUCTION_PARAMETER)
    services.serving.remove(B)
    assert function.handler(ROLLBACK, context)["to"]["model_package"] == A.model_package
    assert in_use() == A


def test_before_anything_was_in_production_there_is_nothing_to_go_back_to(
    function, services, context
):
    put(A)
    with pytest.raises(function.NothingToRollBackToError, match="no model was in production yet"):
        function.handler(ROLLBACK, context)


def test_the_same_package_approved_twice_is_no_way_back(function, services, context):
    again = B.model_copy(update={"approved_at": C.approved_at})
    put(A, B, again)
    put(A, B, again, name=PRODUCTION_PARAMETER)
    assert function.handler(ROLLBACK, context)["to"]["model_package"] == A.model_package


def test_an_approval_during_the_rollback_is_in_force(function, services, context):
    put(A, B)
    put(A, B, name=PRODUCTION_PARAMETER)
    services.meddle["PutParameter"] = lambda: write(MODEL_PARAMETER, C)
    result = function.handler(ROLLBACK, context)
    assert result["to"]["model_package"] == C.model_package
    assert versions() == [A, B, C, A, C]


def test_a_failed_rollback_keeps_production(function, services, event, context):
    """The model that was rolled back to fails in QA: production goes on with the other one.

    It may have failed for another reason, so the rollback can be tried again.
    """
    put(A, B)
    put(A, B, name=PRODUCTION_PARAMETER)
    deploy_production(B.model_dump_json())
    function.handler(ROLLBACK, context)
    services.executions[0]["pipelineExecutionId"] = EXECUTION
    function.handler(event, context)
    assert versions() == [A, B, A, B]
    assert services.status[A.model_package] == "Approved"
    assert services.status[B.model_package] == "Rejected"
    assert function.handler(ROLLBACK, context)["to"]["model_package"] == A.model_package
    assert versions() == [A, B, A, B, A]


# Killed at every call: before it, which is after the one before it


def kills(services, function, event, context, prepare):
    """Prepare, kill the function at a call, invoke it again; for each call the second result."""
    for number in count(1):
        for name in (MODEL_PARAMETER, PRODUCTION_PARAMETER):
            clients.client("ssm").delete_parameters(Names=[name])
        services.reset()
        prepare()
        services.calls.clear()
        services.kill_at = number
        try:
            function.handler(event, context)
        except Killed:
            yield services.calls[-1], function.handler(event, context)
        else:
            return


@pytest.mark.slow
def test_a_restoration_that_was_cut_short_is_carried_to_its_end(
    function, services, messages, event, context
):
    def prepare():
        put(BASE, A, B)
        services.execution(EXECUTION)

    deploy_production(A.model_dump_json())
    killed = []
    for call, _ in kills(services, function, event, context, prepare):
        assert versions() == [BASE, A, B, A], call
        assert services.status[B.model_package] == "Rejected"
        assert len(services.tokens) == 1
        assert messages()
        killed.append(call)
    assert {"UpdateModelPackage", "PutParameter", "StartPipelineExecution", "Publish"} <= set(
        killed
    )


@pytest.mark.slow
def test_a_rollback_that_was_cut_short_is_carried_to_its_end(function, services, messages, context):
    def prepare():
        put(BASE, A, B, C)
        put(BASE, A, B, C, name=PRODUCTION_PARAMETER)
        services.execution(EXECUTION)

    killed = []
    for call, result in kills(services, function, ROLLBACK, context, prepare):
        assert result["from"] == C.model_dump(mode="json"), call
        assert result["to"] == B.model_dump(mode="json")
        assert versions() == [BASE, A, B, C, B]
        assert services.status[C.model_package] == "Rejected"
        assert services.status[B.model_package] == "Approved"
        assert len(services.tokens) == 1
        assert messages()
        killed.append(call)
    assert {"UpdateModelPackage", "PutParameter", "StartPipelineExecution", "Publish"} <= set(
        killed
    )


# What enters


@pytest.mark.parametrize(
    "event",
    [
        {},
        {"source": "quench.models", "action": "promote", "by": "Ada"},
        {"source": "quench.models", "action": "rollback", "by": ""},
        {"source": "aws.codepipeline", "detail-type": "Scheduled Event"},
    ],
)
def test_other_events_are_refused(function, event, context):
    with pytest.raises(ValueError, match="validation error"):
        function.handler(event, context)


def test_a_registry_that_refuses_stops_the_restoration(function, services, event, context):
    put(A, B)
    services.execution(EXECUTION)

    def refuse():
        error = {"Error": {"Code": "AccessDeniedException", "Message": "not you"}}
        raise ClientError(error, "UpdateModelPackage")

    services.meddle["UpdateModelPackage"] = refuse
    with pytest.raises(ClientError, match="AccessDenied"):
        function.handler(event, context)
    assert versions() == [A, B]


# Production in another account


def elsewhere(function, monkeypatch, role):
    access = Access(role=f"arn:aws:iam::222222222222:role/{role}", region="us-west-2")
    changed = function.environment.model_copy(update={"PRODUCTION_ACCESS": access})
    monkeypatch.setattr(function, "environment", changed)
    return access


def test_production_elsewhere_is_asked_there(function, monkeypatch):
    access = elsewhere(function, monkeypatch, "quench-prod-status")
    assert function.read_production(datetime.now(UTC)) == BASE
    deploy_production(B.model_dump_json())
    assert function.read_production(datetime.now(UTC)) == BASE
    deploy_production(A.model_dump_json(), access=access)
    assert function.read_production(datetime.now(UTC)) == A


@set_initial_no_auth_action_count(0)
def test_production_that_cannot_be_asked_is_unknown(function, monkeypatch):
    elsewhere(function, monkeypatch, "quench-not-there")
    with pytest.raises(function.UnusableStackError, match="is it there"):
        function.read_production(datetime.now(UTC))
