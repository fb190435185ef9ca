"""The resource types that moto lacks, each made by calls of its service's own API."""

from __future__ import annotations

import json
import uuid
from typing import TYPE_CHECKING, Any, ClassVar

from moto.cloudformation.exceptions import UnformattedGetAttTemplateException

from local.protocol import ServiceError

if TYPE_CHECKING:
    from local.cloud import Cloud


class Resource:
    """A resource made by calls of its service's API. `put` both creates and updates.

    To moto it is a `CloudFormationModel`, though not one by inheritance: moto would list this base.
    """

    type: ClassVar[str]
    name_property: ClassVar[str] = ""
    cloud: ClassVar[Cloud]

    def __init__(self, physical_id: str, attributes: dict[str, str]) -> None:
        self.physical_resource_id = physical_id
        self.attributes = attributes
        self.properties: dict[str, Any] = {}

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        raise NotImplementedError

    def remove(self) -> None:
        """Undo `put`."""

    @classmethod
    def client(cls, service: str) -> Any:
        return cls.cloud.client(service)

    # moto's side

    @classmethod
    def cloudformation_type(cls) -> str:
        return cls.type

    @classmethod
    def cloudformation_name_type(cls) -> str:
        return cls.name_property

    @classmethod
    def has_cfn_attr(cls, attr: str) -> bool:
        return True  # asked of the class; a wrong one is refused below

    def get_cfn_attribute(self, attribute_name: str) -> str:
        if attribute_name not in self.attributes:
            raise UnformattedGetAttTemplateException
        return self.attributes[attribute_name]

    @classmethod
    def create_from_cloudformation_json(
        cls,
        resource_name: str,
        cloudformation_json: dict[str, Any],
        account_id: str,
        region_name: str,
        **_more: Any,
    ) -> Resource:
        properties = cloudformation_json["Properties"]
        resource = cls.put(resource_name, properties)
        resource.properties = properties
        return resource

    @classmethod
    def update_from_cloudformation_json(
        cls,
        original_resource: Resource,
        new_resource_name: str,
        cloudformation_json: dict[str, Any],
        account_id: str,
        region_name: str,
    ) -> Resource:
        properties = cloudformation_json["Properties"]
        name = original_resource.physical_resource_id
        if cls.name_property in properties:
            name = properties[cls.name_property]
        resource = cls.put(name, properties)
        resource.properties = properties
        if resource.physical_resource_id != original_resource.physical_resource_id:
            original_resource.remove()
        return resource

    def delete(self, account_id: str, region: str) -> None:
        self.remove()

    def is_created(self) -> bool:
        return True


def request_of(shape: Any, value: Any, where: str) -> Any:
    """A template's value as an API takes it, for services whose members begin in lower case.

    `shape` is botocore's. Raises `ServiceError` naming a property that the API does not have;
    `where` says of what.
    """
    if shape.type_name == "structure":
        members = {name.lower(): name for name in shape.members}
        if unknown := [key for key in value if key.lower() not in members]:
            raise ServiceError(
                "ValidationError",
                f"{where}: the embedded cloud does not support {', '.join(sorted(unknown))}.",
            )
        return {
            members[key.lower()]: request_of(
                shape.members[members[key.lower()]], inner, f"{where}: {key}"
            )
            for key, inner in value.items()
        }
    if shape.type_name == "list":
        return [request_of(shape.member, inner, where) for inner in value]
    if shape.type_name == "map":
        return {key: request_of(shape.value, inner, where) for key, inner in value.items()}
    if shape.type_name in ("integer", "long"):
        return int(value)
    if shape.type_name == "boolean":
        return str(value).lower() == "true"
    return value if isinstance(value, str) else json.dumps(value)


class Pipeline(Resource):
    type = "AWS::SageMaker::Pipeline"
    name_property = "PipelineName"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        definition = properties["PipelineDefinition"]
        if "PipelineDefinitionBody" not in definition:
            raise ServiceError(
                "ValidationError", f"Pipeline {name}: give its definition as PipelineDefinitionBody"
            )
        body = definition["PipelineDefinitionBody"]
        arguments = {
            "PipelineName": name,
            "PipelineDefinition": body if isinstance(body, str) else json.dumps(body),
            "RoleArn": properties["RoleArn"],
        }
        for optional in ("PipelineDisplayName", "ParallelismConfiguration"):
            if optional in properties:
                arguments[optional] = properties[optional]
        if description := properties.get("PipelineDescription"):
            arguments["PipelineDescription"] = description
        sagemaker = cls.client("sagemaker")
        known = sagemaker.get_paginator("list_pipelines").paginate(PipelineNamePrefix=name)
        if any(p["PipelineName"] == name for page in known for p in page["PipelineSummaries"]):
            sagemaker.update_pipeline(**arguments)
        else:
            token = str(uuid.uuid4())
            tags = properties.get("Tags", [])
            sagemaker.create_pipeline(ClientRequestToken=token, Tags=tags, **arguments)
        return cls(name, {})

    def remove(self) -> None:
        self.client("sagemaker").delete_pipeline(
            PipelineName=self.physical_resource_id, ClientRequestToken=str(uuid.uuid4())
        )


class ModelPackageGroup(Resource):
    type = "AWS::SageMaker::ModelPackageGroup"
    name_property = "ModelPackageGroupName"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        sagemaker = cls.client("sagemaker")
        known = sagemaker.list_model_package_groups(NameContains=name)
        for group in known["ModelPackageGroupSummaryList"]:
            if group["ModelPackageGroupName"] == name:
                arn = group["ModelPackageGroupArn"]
                break
        else:
            arguments = {"ModelPackageGroupName": name, "Tags": properties.get("Tags", [])}
            if description := properties.get("ModelPackageGroupDescription"):
                arguments["ModelPackageGroupDescription"] = description
            arn = sagemaker.create_model_package_group(**arguments)["ModelPackageGroupArn"]
        return cls(arn, {"ModelPackageGroupArn": arn})

    def remove(self) -> None:
        name = self.physical_resource_id.rpartition("/")[2]
        self.client("sagemaker").delete_model_package_group(ModelPackageGroupName=name)


class BucketPolicy(Resource):
    type = "AWS::S3::BucketPolicy"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        bucket = properties["Bucket"]
        policy = json.dumps(properties["PolicyDocument"])
        cls.client("s3").put_bucket_policy(Bucket=bucket, Policy=policy)
        return cls(bucket, {})

    def remove(self) -> None:
        self.client("s3").delete_bucket_policy(Bucket=self.physical_resource_id)


class QueuePolicy(Resource):
    type = "AWS::SQS::QueuePolicy"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        policy = json.dumps(properties["PolicyDocument"])
        for url in properties["Queues"]:
            cls.client("sqs").set_queue_attributes(QueueUrl=url, Attributes={"Policy": policy})
        return cls(name, {"Id": name})


class TopicPolicy(Resource):
    type = "AWS::SNS::TopicPolicy"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        policy = json.dumps(properties["PolicyDocument"])
        for arn in properties["Topics"]:
            cls.client("sns").set_topic_attributes(
                TopicArn=arn, AttributeName="Policy", AttributeValue=policy
            )
        return cls(name, {"Id": name})


class Subscription(Resource):
    type = "AWS::SNS::Subscription"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        arn = cls.client("sns").subscribe(
            TopicArn=properties["TopicArn"],
            Protocol=properties["Protocol"],
            Endpoint=properties["Endpoint"],
            ReturnSubscriptionArn=True,
        )["SubscriptionArn"]
        return cls(arn, {"Arn": arn})

    def remove(self) -> None:
        self.client("sns").unsubscribe(SubscriptionArn=self.physical_resource_id)


class EventInvokeConfig(Resource):
    type = "AWS::Lambda::EventInvokeConfig"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        function = properties["FunctionName"]
        if (qualifier := properties["Qualifier"]) != "$LATEST":
            raise ServiceError(
                "ValidationError",
                f"EventInvokeConfig of {function}: the embedded cloud runs $LATEST only, "
                f"not {qualifier}.",
            )
        destinations = properties.get("DestinationConfig", {})
        for on, destination in destinations.items():
            if ":sqs:" not in destination["Destination"]:
                raise ServiceError(
                    "ValidationError",
                    f"EventInvokeConfig of {function}: the embedded cloud sends to SQS queues "
                    f"only, not {on} to {destination['Destination']}.",
                )
        arguments = {
            key: int(properties[key])
            for key in ("MaximumRetryAttempts", "MaximumEventAgeInSeconds")
            if key in properties
        }
        client = cls.client("lambda")
        found = client.list_function_event_invoke_configs(FunctionName=function)
        if found["FunctionEventInvokeConfigs"]:  # moto would keep the first for ever
            client.delete_function_event_invoke_config(FunctionName=function)
        client.put_function_event_invoke_config(
            FunctionName=function, DestinationConfig=destinations, **arguments
        )
        return cls(function, {})

    def remove(self) -> None:
        self.client("lambda").delete_function_event_invoke_config(
            FunctionName=self.physical_resource_id
        )


class Alarm(Resource):
    type = "AWS::CloudWatch::Alarm"
    name_property = "AlarmName"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        numbers = {"EvaluationPeriods": int, "DatapointsToAlarm": int, "Period": int}
        arguments: dict[str, Any] = {
            key: numbers.get(key, lambda value: value)(value) for key, value in properties.items()
        }
        if "Threshold" in arguments:
            arguments["Threshold"] = float(arguments["Threshold"])
        cloudwatch = cls.client("cloudwatch")
        cloudwatch.put_metric_alarm(**{**arguments, "AlarmName": name})
        cloudwatch.set_alarm_state(  # moto would call it OK, whatever happens
            AlarmName=name,
            StateValue="INSUFFICIENT_DATA",
            StateReason="The embedded cloud keeps alarms, and evaluates none.",
        )
        found = cloudwatch.describe_alarms(AlarmNames=[name])["MetricAlarms"][0]
        return cls(name, {"Arn": found["AlarmArn"]})

    def remove(self) -> None:
        self.client("cloudwatch").delete_alarms(AlarmNames=[self.physical_resource_id])


class Schedule(Resource):
    type = "AWS::Scheduler::Schedule"
    name_property = "Name"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        scheduler = cls.client("scheduler")
        arguments = {**properties, "Name": name}
        known = scheduler.get_paginator("list_schedules").paginate(NamePrefix=name)
        if any(found["Name"] == name for page in known for found in page["Schedules"]):
            arn = scheduler.update_schedule(**arguments)["ScheduleArn"]
        else:
            arn = scheduler.create_schedule(**arguments)["ScheduleArn"]
        return cls(name, {"Arn": arn})

    def remove(self) -> None:
        self.client("scheduler").delete_schedule(Name=self.physical_resource_id)


class OpenSearchDomain(Resource):
    """A domain as moto records it. Nothing listens at its endpoint."""

    type = "AWS::OpenSearchService::Domain"
    name_property = "DomainName"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        name = domain_name(name)
        if unknown := set(properties) - DOMAIN_OPTIONS - {"DomainName", "EngineVersion", "Tags"}:
            raise ServiceError(
                "ValidationError",
                f"Domain {name}: the embedded cloud does not support {', '.join(sorted(unknown))}.",
            )
        options = {key: properties[key] for key in DOMAIN_OPTIONS if key in properties}
        if "AccessPolicies" in options:
            options["AccessPolicies"] = json.dumps(options["AccessPolicies"])
        version = properties.get("EngineVersion", "OpenSearch_2.19")
        opensearch = cls.client("opensearch")
        known = opensearch.list_domain_names()["DomainNames"]
        if any(domain["DomainName"] == name for domain in known):
            domain = opensearch.describe_domain(DomainName=name)["DomainStatus"]
            if version != domain["EngineVersion"]:
                raise ServiceError(
                    "ValidationError",
                    f"Domain {name}: the embedded cloud cannot upgrade it from "
                    f"{domain['EngineVersion']} to {version}; start it anew.",
                )
            opensearch.update_domain_config(DomainName=name, **options)
        else:
            domain = opensearch.create_domain(
                DomainName=name,
                EngineVersion=version,
                TagList=properties.get("Tags", []),
                **options,
            )["DomainStatus"]
        return cls(
            name,
            {
                "Arn": domain["ARN"],
                "DomainArn": domain["ARN"],
                "DomainEndpoint": domain["Endpoint"],
                "Id": domain["DomainId"],
            },
        )

    def remove(self) -> None:
        self.client("opensearch").delete_domain(DomainName=self.physical_resource_id)


# Those that moto keeps, but for VPCs and Cognito.
DOMAIN_OPTIONS = {
    "AccessPolicies",
    "AdvancedOptions",
    "AdvancedSecurityOptions",
    "ClusterConfig",
    "DomainEndpointOptions",
    "EBSOptions",
    "EncryptionAtRestOptions",
    "LogPublishingOptions",
    "NodeToNodeEncryptionOptions",
    "OffPeakWindowOptions",
    "SnapshotOptions",
    "SoftwareUpdateOptions",
}


def domain_name(name: str) -> str:
    """A resource's generated name as a domain may have it: 28 lower-case characters at most."""
    name = name.lower()
    return name if len(name) <= 28 else f"{name[:15]}-{name[-12:]}"


class Metadata(Resource):
    """What the CDK notes about itself: nothing to create, in AWS neither."""

    type = "AWS::CDK::Metadata"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        return cls(name, {})


RESOURCES: tuple[type[Resource], ...] = (
    Pipeline,
    ModelPackageGroup,
    BucketPolicy,
    QueuePolicy,
    TopicPolicy,
    Subscription,
    EventInvokeConfig,
    Alarm,
    Schedule,
    OpenSearchDomain,
    Metadata,
)
