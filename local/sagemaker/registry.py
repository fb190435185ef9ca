"""The Model Registry: model package groups and the model packages in them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from local.protocol import ServiceError
from local.sagemaker.expressions import timestamp
from local.sagemaker.requests import invalid, is_descending, page, present, refuse, within
from local.sagemaker.resources import Resources

if TYPE_CHECKING:
    from local.cloud import Cloud

# Members of CreateModelPackage that DescribeModelPackage answers as they were given.
_DESCRIBED = (
    "ModelPackageDescription",
    "InferenceSpecification",
    "SourceAlgorithmSpecification",
    "ValidationSpecification",
    "MetadataProperties",
    "ModelMetrics",
    "Domain",
    "Task",
    "SamplePayloadUrl",
    "DriftCheckBaselines",
    "AdditionalInferenceSpecifications",
    "SkipModelValidation",
    "SourceUri",
    "SecurityConfig",
    "ModelCard",
    "ModelLifeCycle",
)
_UPDATED = ("InferenceSpecification", "SourceUri", "ModelCard", "ModelLifeCycle")
_IN_EVENT = (
    "ModelPackageGroupName",
    "ModelPackageVersion",
    "ModelPackageArn",
    "ModelPackageDescription",
    "CreationTime",
    "LastModifiedTime",
    "InferenceSpecification",
    "ModelPackageStatus",
    "ModelPackageStatusDetails",
    "CertifyForMarketplace",
    "ModelApprovalStatus",
    "MetadataProperties",
    "ModelMetrics",
    "ApprovalDescription",
    "CustomerMetadataProperties",
)


@dataclass
class ModelPackage:
    """A version in a group."""

    arn: str
    group_name: str
    version: int
    request: dict[str, Any]
    creation_time: datetime
    approval_status: str
    metadata: dict[str, str]
    approval_description: str | None = None
    last_modified_time: datetime | None = None

    def describe(self) -> dict[str, Any]:
        given = {name: self.request[name] for name in _DESCRIBED if name in self.request}
        return present(
            {
                **given,
                "ModelPackageName": self.group_name,
                "ModelPackageGroupName": self.group_name,
                "ModelPackageVersion": self.version,
                "ModelPackageArn": self.arn,
                "CreationTime": self.creation_time,
                "LastModifiedTime": self.last_modified_time,
                "ModelPackageStatus": "Completed",
                "ModelPackageStatusDetails": {"ValidationStatuses": [], "ImageScanStatuses": []},
                "CertifyForMarketplace": False,
                "ModelApprovalStatus": self.approval_status,
                "ApprovalDescription": self.approval_description,
                "CustomerMetadataProperties": self.metadata or None,
            }
        )

    def summary(self) -> dict[str, Any]:
        return present(
            {
                "ModelPackageGroupName": self.group_name,
                "ModelPackageVersion": self.version,
                "ModelPackageArn": self.arn,
                "ModelPackageDescription": self.request.get("ModelPackageDescription"),
                "CreationTime": self.creation_time,
                "ModelPackageStatus": "Completed",
                "ModelApprovalStatus": self.approval_status,
                "ModelLifeCycle": self.request.get("ModelLifeCycle"),
            }
        )


@dataclass
class ModelPackageGroup:
    name: str
    arn: str
    description: str | None
    creation_time: datetime
    last_version: int = 0
    packages: dict[str, ModelPackage] = field(default_factory=dict)  # by ARN

    def describe(self) -> dict[str, Any]:
        return present(
            {
                "ModelPackageGroupName": self.name,
                "ModelPackageGroupArn": self.arn,
                "ModelPackageGroupDescription": self.description,
                "CreationTime": self.creation_time,
                "ModelPackageGroupStatus": "Completed",
            }
        )


class ModelRegistry(Resources):
    """The operations of the Model Registry, on versioned model packages."""

    def __init__(self, cloud: "Cloud") -> None:
        super().__init__(cloud)
        self._groups: dict[str, ModelPackageGroup] = {}
        self._package_by_token: dict[str, ModelPackage] = {}

    def create_model_package_group(self, request: dict[str, Any]) -> dict[str, Any]:
        refuse(request, "ManagedConfiguration")
        name = request["ModelPackageGroupName"]
        group = ModelPackageGroup(
            name=name,
            arn=self.arn("model-package-group", name),
            description=request.get("ModelPackageGroupDescription"),
            creation_time=datetime.now(UTC),
        )
        with self.lock:
            if name in self._groups:
                raise invalid(f"Model Package Group already exists: {group.arn}")
            self._groups[name] = group
            self.keep_tags(group.arn, request)
        return {"ModelPackageGroupArn": group.arn}

    def describe_model_package_group(self, request: dict[str, Any]) -> dict[str, Any]:
        group = self._group(request["ModelPackageGroupName"])
        return {**group.describe(), "CreatedBy": {}}

    def list_model_package_groups(self, request: dict[str, Any]) -> dict[str, Any]:
        refuse(request, "CrossAccountFilterOption")
        groups = [
            group
            for group in self._groups.values()
            if request.get("NameContains", "").lower() in group.name.lower()
            and within(group.creation_time, request, "CreationTimeAfter", "CreationTimeBefore")
        ]
        by_name = request.get("SortBy") == "Name"
        groups.sort(
            key=lambda group: group.name if by_name else group.creation_time.isoformat(),
            reverse=is_descending(request, "Ascending"),
        )
        return page(groups, request, ModelPackageGroup.describe, "ModelPackageGroupSummaryList")

    def delete_model_package_group(self, request: dict[str, Any]) -> dict[str, Any]:
        group = self._group(request["ModelPackageGroupName"])
        with self.lock:
            if group.packages:
                raise ServiceError(
                    "ConflictException",
                    f"The model package group {group.name} still has {len(group.packages)} "
                    "model packages: delete them first.",
                )
            del self._groups[group.name]
            self.drop_tags(group.arn)
        return {}

    def create_model_package(self, request: dict[str, Any]) -> dict[str, Any]:
        refuse(request, "ModelPackageName", "CertifyForMarketplace", "ManagedStorageType")
        if "ModelPackageGroupName" not in request:
            raise invalid(
                "The embedded cloud keeps versioned packages: give ModelPackageGroupName."
            )
        token = request.get("ClientToken")
        group = self._group(request["ModelPackageGroupName"])
        with self.lock:
            if token in self._package_by_token:
                return {"ModelPackageArn": self._package_by_token[token].arn}
            group.last_version += 1
            package = ModelPackage(
                arn=f"{self.arn('model-package', group.name)}/{group.last_version}",
                group_name=group.name,
                version=group.last_version,
                request=request,
                creation_time=datetime.now(UTC),
                approval_status=request.get("ModelApprovalStatus", "PendingManualApproval"),
                metadata=dict(request.get("CustomerMetadataProperties", {})),
            )
            group.packages[package.arn] = package
            self.keep_tags(package.arn, request)
            if token is not None:
                self._package_by_token[token] = package
        self._publish_package(package)
        return {"ModelPackageArn": package.arn}

    def describe_model_package(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._package(request["ModelPackageName"]).describe()

    def list_model_packages(self, request: dict[str, Any]) -> dict[str, Any]:
        if "ModelPackageGroupName" in request:
            groups = [self._group(request["ModelPackageGroupName"])]
        elif request.get("ModelPackageType", "Unversioned") == "Unversioned":
            groups = []
        else:
            groups = list(self._groups.values())
        packages = [
            package
            for group in groups
            for package in group.packages.values()
            if request.get("NameContains", "").lower() in package.group_name.lower()
            and request.get("ModelApprovalStatus", package.approval_status)
            == package.approval_status
            and within(package.creation_time, request, "CreationTimeAfter", "CreationTimeBefore")
        ]
        by_name = request.get("SortBy") == "Name"
        packages.sort(
            key=lambda p: (p.group_name if by_name else p.creation_time.isoformat(), p.version),
            reverse=is_descending(request, "Ascending"),
        )
        return page(packages, request, ModelPackage.summary, "ModelPackageSummaryList")

    def update_model_package(self, request: dict[str, Any]) -> dict[str, Any]:
        refuse(request, "ModelPackageRegistrationType")
        package = self._package(request["ModelPackageArn"])
        with self.lock:
            package.approval_status = request.get("ModelApprovalStatus", package.approval_status)
            package.approval_description = request.get(
                "ApprovalDescription", package.approval_description
            )
            package.metadata.update(request.get("CustomerMetadataProperties", {}))
            for key in request.get("CustomerMetadataPropertiesToRemove", []):
                package.metadata.pop(key, None)
            package.request.update({name: request[name] for name in _UPDATED if name in request})
            if added := request.get("AdditionalInferenceSpecificationsToAdd"):
                existing = package.request.get("AdditionalInferenceSpecifications", [])
                package.request["AdditionalInferenceSpecifications"] = existing + added
            package.last_modified_time = datetime.now(UTC)
        self._publish_package(package)
        return {"ModelPackageArn": package.arn}

    def delete_model_package(self, request: dict[str, Any]) -> dict[str, Any]:
        package = self._package(request["ModelPackageName"])
        with self.lock:
            del self._groups[package.group_name].packages[package.arn]
            self.drop_tags(package.arn)
        return {}

    def _group(self, name_or_arn: str) -> ModelPackageGroup:
        for group in list(self._groups.values()):
            if name_or_arn in (group.name, group.arn):
                return group
        raise invalid(f"Model Package Group does not exist: {name_or_arn}")

    def _package(self, arn: str) -> ModelPackage:
        for group in list(self._groups.values()):
            if arn in group.packages:
                return group.packages[arn]
        raise invalid(f"ModelPackage {arn} does not exist.")

    def _publish_package(self, package: ModelPackage) -> None:
        described: Mapping[str, Any] = package.describe()
        detail = {
            name: timestamp(value) if isinstance(value, datetime) else value
            for name, value in described.items()
            if name in _IN_EVENT
        }
        self.cloud.publish_event(
            "aws.sagemaker", "SageMaker Model Package State Change", detail, [package.arn]
        )
