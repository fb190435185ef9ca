"""The Model Registry of the embedded cloud, driven with boto3."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from botocore.exceptions import ClientError

from local.cloud import Cloud
from local.config import LocalConfig


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("registry")
    with Cloud(LocalConfig(port=0, state_dir=folder / "cloud")) as cloud:
        yield cloud


@pytest.fixture
def group(cloud: Cloud, request: pytest.FixtureRequest) -> str:
    name = f"group-{abs(hash(request.node.name))}"
    cloud.client("sagemaker").create_model_package_group(ModelPackageGroupName=name)
    return name


def register(cloud: Cloud, group: str, **more: Any) -> str:
    return str(
        cloud.client("sagemaker").create_model_package(
            ModelPackageGroupName=group,
            InferenceSpecification={
                "Containers": [{"Image": "image", "ModelDataUrl": "s3://data/model.tar.gz"}],
                "SupportedContentTypes": ["application/json"],
                "SupportedResponseMIMETypes": ["application/json"],
            },
            **{"ModelApprovalStatus": "PendingManualApproval", **more},
        )["ModelPackageArn"]
    )


def test_versions_count_up_and_are_never_given_twice(cloud: Cloud, group: str) -> None:
    first, second = register(cloud, group), register(cloud, group)
    assert first.endswith(f"model-package/{group}/1")
    assert second.endswith(f"model-package/{group}/2")
    cloud.client("sagemaker").delete_model_package(ModelPackageName=second)
    assert register(cloud, group).endswith("/3")
    token = {"ClientToken": "the-same"}
    assert register(cloud, group, **token) == register(cloud, group, **token)


def test_a_package_is_described_as_it_was_registered(cloud: Cloud, group: str) -> None:
    metrics = {
        "ModelQuality": {
            "Statistics": {"ContentType": "application/json", "S3Uri": "s3://data/e.json"}
        }
    }
    metadata = {"custom_model": "arn:aws:bedrock:us-east-1:123456789012:custom-model/x"}
    arn = register(
        cloud,
        group,
        ModelMetrics=metrics,
        CustomerMetadataProperties=metadata,
        ModelPackageDescription="A model.",
    )
    described = cloud.client("sagemaker").describe_model_package(ModelPackageName=arn)
    assert described["ModelMetrics"] == metrics
    assert described["CustomerMetadataProperties"] == metadata
    assert described["ModelPackageDescription"] == "A model."
    assert described["ModelPackageVersion"] == 1
    assert described["ModelPackageStatus"] == "Completed"


def test_metadata_that_the_registry_would_not_take_is_refused(cloud: Cloud, group: str) -> None:
    with pytest.raises(ClientError) as error:
        register(cloud, group, CustomerMetadataProperties={"hyperparameters": '{"epochs": "2"}'})
    assert error.value.response["Error"]["Code"] == "ValidationException"
    assert "ustomerMetadataProperties.hyperparameters" in str(error.value)


def test_an_approval_changes_nothing_else(cloud: Cloud, group: str) -> None:
    sagemaker = cloud.client("sagemaker")
    arn = register(cloud, group, CustomerMetadataProperties={"a": "1", "b": "2"})
    before = sagemaker.describe_model_package(ModelPackageName=arn)
    sagemaker.update_model_package(
        ModelPackageArn=arn,
        ModelApprovalStatus="Approved",
        ApprovalDescription="Better in every way.",
    )
    after = sagemaker.describe_model_package(ModelPackageName=arn)
    assert after["ModelApprovalStatus"] == "Approved"
    assert after["ApprovalDescription"] == "Better in every way."
    assert after["CustomerMetadataProperties"] == before["CustomerMetadataProperties"]
    assert after["InferenceSpecification"] == before["InferenceSpecification"]

    sagemaker.update_model_package(
        ModelPackageArn=arn,
        CustomerMetadataProperties={"c": "3"},
        CustomerMetadataPropertiesToRemove=["a"],
    )
    changed = sagemaker.describe_model_package(ModelPackageName=arn)
    assert changed["CustomerMetadataProperties"] == {"b": "2", "c": "3"}
    assert changed["ModelApprovalStatus"] == "Approved"
    assert changed["ApprovalDescription"] == "Better in every way."


def test_packages_are_listed_by_group_and_approval(cloud: Cloud, group: str) -> None:
    sagemaker = cloud.client("sagemaker")
    arns = [register(cloud, group) for _ in range(3)]
    sagemaker.update_model_package(ModelPackageArn=arns[1], ModelApprovalStatus="Rejected")
    paginator = sagemaker.get_paginator("list_model_packages")

    def listed(**filters: Any) -> list[str]:
        pages = paginator.paginate(
            ModelPackageGroupName=group, **filters, PaginationConfig={"PageSize": 1}
        )
        found = pages.build_full_result()["ModelPackageSummaryList"]
        return [package["ModelPackageArn"] for package in found]

    assert listed() == arns
    assert listed(SortBy="CreationTime", SortOrder="Descending") == arns[::-1]
    assert listed(ModelApprovalStatus="Rejected") == [arns[1]]
    groups = sagemaker.list_model_package_groups(NameContains=group)
    assert [g["ModelPackageGroupName"] for g in groups["ModelPackageGroupSummaryList"]] == [group]


@pytest.mark.parametrize(
    ("operation", "request_", "complaint"),
    [
        ("create_model_package", {"ModelPackageGroupName": "none"}, "does not exist"),
        ("create_model_package", {"ModelPackageName": "alone"}, "does not support"),
        (
            "update_model_package",
            {"ModelPackageArn": "arn:aws:sagemaker:us-east-1:123456789012:model-package/none/1"},
            "does not exist",
        ),
        ("describe_model_package_group", {"ModelPackageGroupName": "none"}, "does not exist"),
    ],
)
def test_what_does_not_exist_is_named(
    cloud: Cloud, operation: str, request_: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ClientError, match=complaint):
        getattr(cloud.client("sagemaker"), operation)(**request_)


def test_a_group_is_made_once_and_deleted_when_empty(cloud: Cloud, group: str) -> None:
    sagemaker = cloud.client("sagemaker")
    with pytest.raises(ClientError, match="already exists"):
        sagemaker.create_model_package_group(ModelPackageGroupName=group)
    package = register(cloud, group)
    with pytest.raises(sagemaker.exceptions.ConflictException):
        sagemaker.delete_model_package_group(ModelPackageGroupName=group)
    sagemaker.delete_model_package(ModelPackageName=package)
    sagemaker.delete_model_package_group(ModelPackageGroupName=group)
    with pytest.raises(ClientError, match="does not exist"):
        sagemaker.describe_model_package_group(ModelPackageGroupName=group)


def test_registration_and_decision_reach_eventbridge(cloud: Cloud, group: str) -> None:
    sqs, events = cloud.client("sqs"), cloud.client("events")
    queue = sqs.create_queue(QueueName="approvals")["QueueUrl"]
    attributes = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]
    pattern = {
        "source": ["aws.sagemaker"],
        "detail-type": ["SageMaker Model Package State Change"],
        "detail": {"ModelPackageGroupName": [group]},
    }
    events.put_rule(Name="approvals", EventPattern=json.dumps(pattern))
    events.put_targets(Rule="approvals", Targets=[{"Id": "q", "Arn": attributes["QueueArn"]}])

    arn = register(cloud, group, CustomerMetadataProperties={"custom_model": "arn:x"})
    cloud.client("sagemaker").update_model_package(
        ModelPackageArn=arn, ModelApprovalStatus="Approved"
    )
    received: list[dict[str, Any]] = []
    for _ in range(10):
        answer = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=1)
        received += [json.loads(message["Body"]) for message in answer.get("Messages", [])]
        if len(received) == 2:
            break
    details = {event["detail"]["ModelApprovalStatus"]: event["detail"] for event in received}
    assert sorted(details) == ["Approved", "PendingManualApproval"]
    assert details["Approved"]["ModelPackageArn"] == arn
    assert details["Approved"]["ModelPackageVersion"] == 1
    assert details["Approved"]["ModelPackageStatus"] == "Completed"
    assert details["Approved"]["CustomerMetadataProperties"] == {"custom_model": "arn:x"}
    assert "LastModifiedTime" in details["Approved"]
    assert received[0]["resources"] == [arn]


def test_tags_are_kept_and_changed(cloud: Cloud, group: str) -> None:
    sagemaker = cloud.client("sagemaker")
    arn = register(cloud, group, Tags=[{"Key": "game", "Value": "emberfall"}])
    sagemaker.add_tags(ResourceArn=arn, Tags=[{"Key": "team", "Value": "lore"}])
    sagemaker.delete_tags(ResourceArn=arn, TagKeys=["game"])
    assert sagemaker.list_tags(ResourceArn=arn)["Tags"] == [{"Key": "team", "Value": "lore"}]
    sagemaker.delete_model_package(ModelPackageName=arn)
    with pytest.raises(sagemaker.exceptions.ResourceNotFound):
        sagemaker.list_tags(ResourceArn=arn)


def test_operations_that_nothing_runs_are_refused_by_name(cloud: Cloud) -> None:
    with pytest.raises(ClientError, match="sagemaker:CreateEndpoint") as caught:
        cloud.client("sagemaker").create_endpoint(EndpointName="e", EndpointConfigName="c")
    assert caught.value.response["Error"]["Code"] == "NotImplemented"
