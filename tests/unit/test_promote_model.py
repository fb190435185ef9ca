"""promote_model: the parameter names a model only once it is approved and can be invoked."""

import copy
import json
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lambdas import clients, served_model

PARAMETER = "/quench/model"
BASE = "amazon.nova-micro-v1:0:128k"
PACKAGE = "arn:aws:sagemaker:us-east-1:123456789012:model-package/quench-models/3"
OTHER = PACKAGE[:-1] + "4"
MODEL = f"arn:aws:bedrock:us-east-1:123456789012:custom-model/{BASE}/abcdef123456"
THROUGHPUT = "arn:aws:bedrock:us-east-1:123456789012:provisioned-model/111111111111"
DEPLOYMENT = "arn:aws:bedrock:us-east-1:123456789012:custom-model-deployment/222222222222"
AT_FIRST = dict.fromkeys(("model_id", "base_model", "custom_model", "model_package", "approved_at"))
PROMOTED = {
    "model_id": DEPLOYMENT,
    "base_model": BASE,
    "custom_model": MODEL,
    "model_package": PACKAGE,
    "approved_at": "2026-11-20T12:30:00Z",
}
ENVIRONMENT = {
    "MODEL_PARAMETER": PARAMETER,
    "MODEL_PACKAGE_GROUP": "quench-models",
    "RELEASE_PIPELINE": "quench-release",
}


@pytest.fixture
def function(load_function):
    return load_function("promote_model", **ENVIRONMENT)


@pytest.fixture
def sagemaker(function, stub):
    return stub("sagemaker")


@pytest.fixture
def bedrock(function, stub):
    return stub("bedrock")


@pytest.fixture
def expect_release(function, stub):
    """The pipeline is to be started once more; answers the tokens of all starts."""
    tokens = []

    class Token:
        def __eq__(self, other):
            tokens.append(other)
            return True

        __hash__ = None

    def expect():
        stub("codepipeline").add_response(
            "start_pipeline_execution",
            {"pipelineExecutionId": "12345678-1234-1234-1234-123456789012"},
            {"name": "quench-release", "clientRequestToken": Token()},
        )
        return tokens

    return expect


@pytest.fixture
def ssm(moto_aws):
    ssm = clients.client("ssm")
    ssm.put_parameter(Name=PARAMETER, Value=json.dumps(AT_FIRST), Type="String")
    return ssm


def parameter(ssm):
    return json.loads(ssm.get_parameter(Name=PARAMETER)["Parameter"]["Value"])


def version(ssm):
    return ssm.get_parameter(Name=PARAMETER)["Parameter"]["Version"]


def failed(response):
    return [failure["itemIdentifier"] for failure in response["batchItemFailures"]]


def edit(event, **changes):
    """The event with another time or other details."""
    event = copy.deepcopy(event)
    body = json.loads(event["Records"][0]["body"])
    body["time"] = changes.pop("time", body["time"])
    body["detail"] |= changes
    event["Records"][0]["body"] = json.dumps(body)
    return event


def expect_package(sagemaker, status="Approved", metadata=None, arn=PACKAGE):
    sagemaker.add_response(
        "describe_model_package",
        {
            "ModelPackageName": "quench-models",
            "ModelPackageArn": arn,
            "CreationTime": 1795172553,
            "ModelPackageStatus": "Completed",
            "ModelPackageStatusDetails": {"ValidationStatuses": []},
            "ModelApprovalStatus": status,
            "CustomerMetadataProperties": (
                {"custom_model": MODEL, "base_model": BASE} if metadata is None else metadata
            ),
        },
        {"ModelPackageName": arn},
    )


def expect_throughputs(bedrock, *arns):
    summaries = [
        {
            "provisionedModelName": "players",
            "provisionedModelArn": arn,
            "modelArn": MODEL,
            "desiredModelArn": MODEL,
            "foundationModelArn": f"arn:aws:bedrock:us-east-1::foundation-model/{BASE}",
            "modelUnits": 1,
            "desiredModelUnits": 1,
            "status": "InService",
            "creationTime": 1795172553,
            "lastModifiedTime": 1795172553,
        }
        for arn in arns
    ]
    bedrock.add_response(
        "list_provisioned_model_throughputs",
        {"provisionedModelSummaries": summaries},
        {"modelArnEquals": MODEL, "statusEquals": "InService"},
    )


def expect_deployments(bedrock, *arns):
    expect_throughputs(bedrock)
    summaries = [
        {
            "customModelDeploymentArn": arn,
            "customModelDeploymentName": "quench-7pinimwddh3a-26vcYbeWsZ",
            "modelArn": MODEL,
            "createdAt": 1795172553,
            "status": "Active",
        }
        for arn in arns
    ]
    bedrock.add_response(
        "list_custom_model_deployments",
        {"modelDeploymentSummaries": summaries},
        {"modelArnEquals": MODEL, "statusEquals": "Active"},
    )


def test_an_approval_puts_the_deployment_into_the_parameter(
    function, sagemaker, bedrock, ssm, expect_release, read_event, context
):
    expect_package(sagemaker)
    expect_deployments(bedrock, DEPLOYMENT)
    expect_release()
    assert failed(function.handler(read_event("sqs_model_approved"), context)) == []
    assert parameter(ssm) == PROMOTED


def test_provisioned_throughput_comes_first(
    function, sagemaker, bedrock, ssm, expect_release, read_event, context
):
    expect_package(sagemaker)
    expect_throughputs(bedrock, THROUGHPUT)
    expect_release()
    function.handler(read_event("sqs_model_approved"), context)
    assert parameter(ssm)["model_id"] == THROUGHPUT


def test_the_first_promotion_creates_the_parameter(
    function, moto_aws, sagemaker, bedrock, expect_release, read_event, context
):
    expect_package(sagemaker)
    expect_deployments(bedrock, DEPLOYMENT)
    expect_release()
    assert failed(function.handler(read_event("sqs_model_approved"), context)) == []
    assert parameter(clients.client("ssm")) == PROMOTED


def test_an_approval_before_there_is_capacity_is_tried_again(
    function, sagemaker, bedrock, ssm, expect_release, read_event, context, caplog
):
    event = read_event("sqs_model_approved")
    expect_package(sagemaker)
    expect_deployments(bedrock)
    assert failed(function.handler(event, context)) == [event["Records"][0]["messageId"]]
    assert parameter(ssm) == AT_FIRST
    log = caplog.text
    assert "NoServingCapacity" in log
    assert f"{MODEL} is approved but has no provisioned throughput in service" in log

    expect_package(sagemaker)
    expect_deployments(bedrock, DEPLOYMENT)
    expect_release()
    assert failed(function.handler(event, context)) == []
    assert parameter(ssm) == PROMOTED


def test_one_approval_that_waits_does_not_keep_another_one(
    function, sagemaker, bedrock, ssm, expect_release, read_event, context
):
    waiting = read_event("sqs_model_approved")["Records"][0]
    garbled = waiting | {"messageId": "garbled", "body": '{"detail-type": "Scheduled Event"}'}
    ready = waiting | {"messageId": "ready"}
    expect_package(sagemaker)
    expect_deployments(bedrock)
    expect_package(sagemaker)
    expect_deployments(bedrock, DEPLOYMENT)
    expect_release()
    response = function.handler({"Records": [waiting, garbled, ready]}, context)
    assert failed(response) == [waiting["messageId"], "garbled"]
    assert parameter(ssm) == PROMOTED


def test_a_rejection_changes_nothing(function, sagemaker, bedrock, ssm, read_event, context):
    assert failed(function.handler(read_event("sqs_model_rejected"), context)) == []
    assert parameter(ssm) == AT_FIRST


@pytest.mark.parametrize(
    "changes",
    [
        {"ModelPackageGroupName": "another-group"},
        {"ModelApprovalStatus": "PendingManualApproval"},
        {"UpdatedModelPackageFields": ["CustomerMetadataProperties"]},
    ],
)
def test_other_changes_of_packages_change_nothing(
    function, sagemaker, bedrock, ssm, read_event, context, changes
):
    event = edit(read_event("sqs_model_approved"), **changes)
    assert failed(function.handler(event, context)) == []
    assert parameter(ssm) == AT_FIRST


def test_an_event_that_does_not_say_what_changed_counts_as_an_approval(
    function, sagemaker, bedrock, ssm, expect_release, read_event, context
):
    expect_package(sagemaker)
    expect_deployments(bedrock, DEPLOYMENT)
    event = edit(read_event("sqs_model_approved"), UpdatedModelPackageFields=None)
    expect_release()
    assert failed(function.handler(event, context)) == []
    assert parameter(ssm) == PROMOTED


def test_a_package_rejected_since_its_approval_is_not_promoted(
    function, sagemaker, bedrock, ssm, read_event, context
):
    expect_package(sagemaker, "Rejected")
    assert failed(function.handler(read_event("sqs_model_approved"), context)) == []
    assert parameter(ssm) == AT_FIRST


def test_an_approval_older_than_the_promoted_one_is_skipped(
    function, sagemaker, bedrock, ssm, expect_release, read_event, context
):
    newer = PROMOTED | {"model_package": OTHER, "approved_at": "2026-11-20T12:30:01Z"}
    ssm.put_parameter(Name=PARAMETER, Value=json.dumps(newer), Overwrite=True)
    expect_package(sagemaker)
    expect_release()
    assert failed(function.handler(read_event("sqs_model_approved"), context)) == []
    assert parameter(ssm) == newer


def test_a_package_without_its_metadata_is_named(
    function, sagemaker, bedrock, ssm, read_event, context, caplog
):
    expect_package(sagemaker, metadata={"base_model": BASE})
    assert failed(function.handler(read_event("sqs_model_approved"), context))
    assert f"customer metadata of {PACKAGE}: custom_model: Field required" in caplog.text
    assert parameter(ssm) == AT_FIRST


def test_a_parameter_that_somebody_else_filled_is_left_alone(
    function, ssm, read_event, context, caplog
):
    ssm.put_parameter(Name=PARAMETER, Value="precious", Overwrite=True)
    assert failed(function.handler(read_event("sqs_model_approved"), context))
    assert "/quench/model does not hold a served model" in caplog.text
    assert ssm.get_parameter(Name=PARAMETER)["Parameter"]["Value"] == "precious"


def test_an_event_delivered_again_asks_for_the_same_release(
    function, sagemaker, bedrock, ssm, stub, expect_release, read_event, context
):
    event = read_event("sqs_model_approved")
    # The parameter is written, but the release does not start: the event comes again.
    expect_package(sagemaker)
    expect_deployments(bedrock, DEPLOYMENT)
    stub("codepipeline").add_client_error("start_pipeline_execution", "ConflictException", "busy")
    assert failed(function.handler(event, context))
    assert parameter(ssm) == PROMOTED

    for _ in range(2):
        expect_package(sagemaker)
        expect_deployments(bedrock, DEPLOYMENT)
        tokens = expect_release()
        assert failed(function.handler(event, context)) == []
    assert len(tokens) == 2
    assert len(set(tokens)) == 1
    assert version(ssm) == 2


def test_an_older_version_approved_after_a_newer_one_wins(
    function, sagemaker, bedrock, ssm, expect_release, read_event, context
):
    newer = PROMOTED | {"model_package": OTHER, "approved_at": "2026-11-20T12:29:59Z"}
    ssm.put_parameter(Name=PARAMETER, Value=json.dumps(newer), Overwrite=True)
    expect_package(sagemaker)
    expect_deployments(bedrock, DEPLOYMENT)
    expect_release()
    function.handler(read_event("sqs_model_approved"), context)
    assert parameter(ssm) == PROMOTED


def test_what_a_killed_writer_overwrote_comes_back_when_its_event_does(
    function, sagemaker, bedrock, ssm, expect_release, read_event, context
):
    """Killed between writing and settling: in between a later approval had been written."""
    later = PROMOTED | {"model_package": OTHER, "approved_at": "2026-11-20T12:30:01Z"}
    for value in (later, PROMOTED):
        ssm.put_parameter(Name=PARAMETER, Value=json.dumps(value), Overwrite=True)
    for _ in range(2):
        expect_package(sagemaker, arn=OTHER)
        expect_deployments(bedrock, DEPLOYMENT)
    expect_package(sagemaker)
    tokens = expect_release()
    assert failed(function.handler(read_event("sqs_model_approved"), context)) == []
    assert parameter(ssm) == later
    assert version(ssm) == 4
    assert len(tokens) == 1


def test_a_model_that_was_rolled_back_and_lost_its_capacity_waits_for_it_when_approved_again(
    function, sagemaker, bedrock, ssm, read_event, context
):
    rolled_back = PROMOTED | {"approved_at": "2026-11-20T12:10:00Z"}
    before = PROMOTED | {"model_package": OTHER, "approved_at": "2026-11-20T12:00:00Z"}
    for value in (before, rolled_back, before):
        ssm.put_parameter(Name=PARAMETER, Value=json.dumps(value), Overwrite=True)
    event = read_event("sqs_model_approved")
    for _ in range(2):
        expect_package(sagemaker)
        expect_deployments(bedrock)
    assert failed(function.handler(event, context)) == [event["Records"][0]["messageId"]]
    assert parameter(ssm) == before
    assert version(ssm) == 4


def test_a_copy_of_the_approval_after_a_restoration_is_ignored(
    function, sagemaker, ssm, expect_release, read_event, context
):
    before = PROMOTED | {"model_package": OTHER, "approved_at": "2026-11-20T12:00:00Z"}
    for value in (before, PROMOTED, before):
        ssm.put_parameter(Name=PARAMETER, Value=json.dumps(value), Overwrite=True)
    expect_package(sagemaker, "Rejected")
    expect_package(sagemaker, "Rejected")
    expect_release()  # the one that the restoration started
    assert failed(function.handler(read_event("sqs_model_approved"), context)) == []
    assert parameter(ssm) == before
    assert version(ssm) == 4


def test_an_approval_of_a_package_that_was_deleted_is_ignored(
    function, sagemaker, ssm, read_event, context, caplog
):
    sagemaker.add_client_error(
        "describe_model_package",
        "ValidationException",
        f"ModelPackage {PACKAGE} does not exist.",
        expected_params={"ModelPackageName": PACKAGE},
    )
    assert failed(function.handler(read_event("sqs_model_approved"), context)) == []
    assert parameter(ssm) == AT_FIRST
    assert "the package is deleted by now" in caplog.text


class Killed(Exception):
    """A function's time was up."""


class Invocation(threading.Thread):
    """Runs a function from call to call, when it is told to."""

    def __init__(self, function, event):
        super().__init__(daemon=True)
        self.function, self.event = function, event
        self.ended = self.killed = False
        self.error = None
        self._go, self._back = threading.Semaphore(0), threading.Semaphore(0)
        self.start()

    def run(self):
        self._go.acquire()
        try:
            self.function(self.event)
        except Exception as error:  # noqa: BLE001
            self.error = error
        self.ended = True
        self._back.release()

    def pause(self):
        self._back.release()
        self._go.acquire()
        if self.killed:
            raise Killed

    def step(self, kill):
        """Let the function go on to its next call, or kill it instead."""
        self.killed = kill
        self._go.release()
        self._back.acquire()
        if self.error and not self.killed:
            raise self.error


class SimulatedCloud:
    """The services as promote_model calls them, with a pause before each call."""

    class exceptions:
        class ParameterNotFound(Exception):
            pass

    def __init__(self):
        self.versions = []
        self.released = {}

    def pause(self):
        threading.current_thread().pause()

    def client(self, service, access=None):
        return self

    def get_paginator(self, operation):
        return SimpleNamespace(paginate=getattr(self, operation))

    def get_parameter_history(self, Name):
        self.pause()
        if not self.versions:
            raise self.exceptions.ParameterNotFound
        yield {"Parameters": list(self.versions)}

    def put_parameter(self, Name, Value, Type, Overwrite):
        self.pause()
        version = len(self.versions) + 1
        self.versions.append(
            {"Name": Name, "Value": Value, "Version": version, "LastModifiedDate": version}
        )

    def describe_model_package(self, ModelPackageName):
        self.pause()
        return {
            "ModelPackageArn": ModelPackageName,
            "ModelApprovalStatus": "Approved",
            "CustomerMetadataProperties": {"custom_model": MODEL, "base_model": BASE},
        }

    def list_provisioned_model_throughputs(self, **_):
        self.pause()
        yield {"provisionedModelSummaries": [{"provisionedModelArn": THROUGHPUT}]}

    def start_pipeline_execution(self, name, clientRequestToken):
        self.pause()
        # What a release carries is what the parameter holds when it starts, or later.
        self.released.setdefault(clientRequestToken, len(self.versions))
        return {"pipelineExecutionId": clientRequestToken}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    approvals=st.integers(2, 4),
    order=st.lists(st.integers(0, 99), min_size=20, max_size=60),
)
def test_whatever_the_order_of_calls_and_kills_the_latest_approval_is_in_force(
    function, read_event, monkeypatch, approvals, order
):
    cloud = SimulatedCloud()
    monkeypatch.setattr(served_model, "client", cloud.client)
    approval = json.loads(read_event("sqs_model_approved")["Records"][0]["body"])
    events = []
    for number in range(approvals):
        detail = approval["detail"] | {"ModelPackageArn": f"{PACKAGE[:-1]}{number}"}
        timed = approval | {"time": f"2026-11-20T12:0{number}:00Z", "detail": detail}
        events.append(function.PackageEvent.model_validate(timed))

    # What was killed is delivered again, until all is handled.
    steps = iter(order)
    unhandled = events
    while unhandled:
        invocations = [Invocation(function.promote, event) for event in unhandled]
        while running := [invocation for invocation in invocations if not invocation.ended]:
            step = next(steps, 0)
            running[step % len(running)].step(kill=step >= 90)
        unhandled = [invocation.event for invocation in invocations if invocation.killed]

    latest = json.loads(cloud.versions[-1]["Value"])
    assert latest["model_package"] == events[-1].detail.ModelPackageArn
    assert max(cloud.released.values()) == len(cloud.versions)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["promote_model", "release_model", "restore_model"])
def test_functions_import_little(name):
    """A function starts fast: nothing of the build-time libraries comes with it."""
    environment = ENVIRONMENT | {
        "PRODUCTION_PARAMETER": "/quench/model-prod",
        "QA_STAGE": "QA",
        "PRODUCTION_STAGE": "PROD",
        "PRODUCTION_STACK": "quench-prod-inference",
        "TOPIC_ARN": "arn:aws:sns:us-east-1:123456789012:quench-operators",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    code = f"import sys, lambdas.{name}; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert f"lambdas.{name}" in modules
    heavy = {"pandas", "numpy", "sagemaker", "stepfunctions", "aws_cdk", "moto", "torch"}
    assert heavy.isdisjoint(modules)
