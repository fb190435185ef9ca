"""promote_model: the parameter names a model only once it is approved and can be invoked."""

import copy
import json
import subprocess
import sys

import boto3
import pytest

PARAMETER = "/quench/model"
BASE = "amazon.nova-micro-v1:0:128k"
PACKAGE = "arn:aws:sagemaker:us-east-1:123456789012:model-package/quench-models/3"
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
ENVIRONMENT = {"MODEL_PARAMETER": PARAMETER, "MODEL_PACKAGE_GROUP": "quench-models"}


@pytest.fixture
def function(load_function, monkeypatch):
    monkeypatch.delenv("RELEASE_PIPELINE", raising=False)
    return load_function("promote_model", **ENVIRONMENT)


@pytest.fixture
def sagemaker(function, stub):
    return stub("sagemaker")


@pytest.fixture
def bedrock(function, stub):
    return stub("bedrock")


@pytest.fixture
def ssm(moto_aws):
    ssm = boto3.client("ssm")
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


def expect_package(sagemaker, status="Approved", metadata=None):
    sagemaker.add_response(
        "describe_model_package",
        {
            "ModelPackageName": "quench-models",
            "ModelPackageArn": PACKAGE,
            "CreationTime": 1795172553,
            "ModelPackageStatus": "Completed",
            "ModelPackageStatusDetails": {"ValidationStatuses": []},
            "ModelApprovalStatus": status,
            "CustomerMetadataProperties": (
                {"custom_model": MODEL, "base_model": BASE} if metadata is None else metadata
            ),
        },
        {"ModelPackageName": PACKAGE},
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
    function, sagemaker, bedrock, ssm, read_event, context
):
    expect_package(sagemaker)
    expect_deployments(bedrock, DEPLOYMENT)
    assert failed(function.handler(read_event("sqs_model_approved"), context)) == []
    assert parameter(ssm) == PROMOTED


def test_provisioned_throughput_comes_first(function, sagemaker, bedrock, ssm, read_event, context):
    expect_package(sagemaker)
    expect_throughputs(bedrock, THROUGHPUT)
    function.handler(read_event("sqs_model_approved"), context)
    assert parameter(ssm)["model_id"] == THROUGHPUT


def test_the_first_promotion_creates_the_parameter(
    function, moto_aws, sagemaker, bedrock, read_event, context
):
    expect_package(sagemaker)
    expect_deployments(bedrock, DEPLOYMENT)
    assert failed(function.handler(read_event("sqs_model_approved"), context)) == []
    assert parameter(boto3.client("ssm")) == PROMOTED


def test_an_approval_before_there_is_capacity_is_tried_again(
    function, sagemaker, bedrock, ssm, read_event, context, caplog
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
    assert failed(function.handler(event, context)) == []
    assert parameter(ssm) == PROMOTED


def test_one_approval_that_waits_does_not_keep_another_one(
    function, sagemaker, bedrock, ssm, read_event, context
):
    waiting = read_event("sqs_model_approved")["Records"][0]
    garbled = waiting | {"messageId": "garbled", "body": '{"detail-type": "Scheduled Event"}'}
    ready = waiting | {"messageId": "ready"}
    expect_package(sagemaker)
    expect_deployments(bedrock)
    expect_package(sagemaker)
    expect_deployments(bedrock, DEPLOYMENT)
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
    function, sagemaker, bedrock, ssm, read_event, context
):
    expect_package(sagemaker)
    expect_deployments(bedrock, DEPLOYMENT)
    event = edit(read_event("sqs_model_approved"), UpdatedModelPackageFields=None)
    assert failed(function.handler(event, context)) == []
    assert parameter(ssm) == PROMOTED


def test_a_package_rejected_since_its_approval_is_not_promoted(
    function, sagemaker, bedrock, ssm, read_event, context
):
    expect_package(sagemaker, "Rejected")
    assert failed(function.handler(read_event("sqs_model_approved"), context)) == []
    assert parameter(ssm) == AT_FIRST


def test_an_approval_older_than_the_promoted_one_is_skipped(
    function, sagemaker, bedrock, ssm, read_event, context
):
    newer = PROMOTED | {"model_package": PACKAGE[:-1] + "4", "approved_at": "2026-11-20T12:30:01Z"}
    ssm.put_parameter(Name=PARAMETER, Value=json.dumps(newer), Overwrite=True)
    expect_package(sagemaker)
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
    function, sagemaker, bedrock, ssm, read_event, context, caplog
):
    ssm.put_parameter(Name=PARAMETER, Value="precious", Overwrite=True)
    expect_package(sagemaker)
    assert failed(function.handler(read_event("sqs_model_approved"), context))
    assert "/quench/model does not hold a served model" in caplog.text
    assert ssm.get_parameter(Name=PARAMETER)["Parameter"]["Value"] == "precious"


class ReleaseToken:
    """Equal to every clientRequestToken that CodePipeline accepts, and remembers them."""

    def __init__(self):
        self.met = set()

    def __eq__(self, other):
        self.met.add(other)
        return other.replace("-", "").isalnum() and len(other) <= 128

    __hash__ = None


def test_an_approval_delivered_again_asks_for_the_same_release(
    load_function, moto_aws, stub, read_event, context
):
    function = load_function("promote_model", **ENVIRONMENT, RELEASE_PIPELINE="quench-release")
    sagemaker, bedrock, codepipeline = stub("sagemaker"), stub("bedrock"), stub("codepipeline")
    event = read_event("sqs_model_approved")
    token = ReleaseToken()
    ssm = boto3.client("ssm")

    # The parameter is written, but the release does not start: the event comes again.
    expect_package(sagemaker)
    expect_deployments(bedrock, DEPLOYMENT)
    codepipeline.add_client_error("start_pipeline_execution", "ConflictException", "busy")
    assert failed(function.handler(event, context))
    assert parameter(ssm) == PROMOTED

    for _ in range(2):
        expect_package(sagemaker)
        expect_deployments(bedrock, DEPLOYMENT)
        codepipeline.add_response(
            "start_pipeline_execution",
            {"pipelineExecutionId": "12345678-1234-1234-1234-123456789012"},
            {"name": "quench-release", "clientRequestToken": token},
        )
        assert failed(function.handler(event, context)) == []
    assert len(token.met) == 1
    assert version(ssm) == 1


def test_functions_import_little():
    """A function starts fast: nothing of the build-time libraries comes with it."""
    environment = ENVIRONMENT | {"AWS_DEFAULT_REGION": "us-east-1"}
    code = "import sys, lambdas.promote_model; print(*sys.modules)"
    modules = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout.split()
    assert "lambdas.promote_model" in modules
    heavy = {"pandas", "numpy", "sagemaker", "stepfunctions", "aws_cdk", "moto", "torch"}
    assert heavy.isdisjoint(modules)
