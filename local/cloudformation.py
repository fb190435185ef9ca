"""CloudFormation: what moto creates of a template, made whole.

moto creates most of our resources. Registered here are the types it lacks (`local.resources`);
mended are the types it creates in part. A type that nobody creates is refused by name before
anything is made, where moto would report it as created.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from moto.awslambda.models import LambdaFunction, LayerVersion
from moto.awslambda.utils import get_backend as lambda_backend
from moto.cloudformation import parsing
from moto.cloudformation.exceptions import UnformattedGetAttTemplateException
from moto.cloudformation.models import CloudFormationBackend, Stack
from moto.s3.models import FakeBucket
from moto.sqs.models import Queue
from moto.stepfunctions.models import StateMachine
from moto.stepfunctions.parser.models import stepfunctions_parser_backends

from local import updates
from local.apigateway import resources as apigateway
from local.codebuild import resources as codebuild
from local.codepipeline import resources as codepipeline
from local.patches import Patches
from local.protocol import ServiceError
from local.resources import RESOURCES, Resource

if TYPE_CHECKING:
    from local.cloud import Cloud


class CloudFormation:
    """Registers our resource types with moto and mends moto's own."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._patches = Patches()

    def start(self) -> None:
        Resource.cloud = self._cloud
        more = (*apigateway.RESOURCES, *codebuild.RESOURCES, *codepipeline.RESOURCES)
        for resource in (*RESOURCES, *more):
            parsing.get_model_map()[resource.type] = resource
            parsing.get_name_type_map()[resource.type] = resource.name_property
        patches = self._patches
        patches.wrap(Stack, "parse_template", _parsing_json_first)
        patches.wrap(CloudFormationBackend, "create_stack", _creating_whole_stacks)
        patches.wrap(CloudFormationBackend, "update_stack", _updating_known_types)
        patches.wrap(CloudFormationBackend, "create_change_set", _changing_known_types)
        patches.wrap(parsing, "parse_and_create_resource", _naming_what_failed)
        patches.wrap(parsing, "parse_and_update_resource", _updating_for_real)
        patches.wrap(parsing, "clean_json", _resolving_as_cloudformation)
        updates.patch(patches)
        patches.replace(
            LambdaFunction, "create_from_cloudformation_json", classmethod(_create_function)
        )
        patches.replace(
            LambdaFunction, "update_from_cloudformation_json", classmethod(_update_function)
        )
        patches.replace(LayerVersion, "physical_resource_id", property(lambda layer: layer.arn))
        patches.replace(
            LayerVersion, "update_from_cloudformation_json", classmethod(_replace_layer_version)
        )
        patches.replace(
            StateMachine, "create_from_cloudformation_json", classmethod(_create_state_machine)
        )
        patches.replace(
            StateMachine, "update_from_cloudformation_json", classmethod(_update_state_machine)
        )
        patches.wrap(StateMachine, "has_cfn_attr", _with_arn)
        patches.wrap(StateMachine, "get_cfn_attribute", _getting_arn)
        patches.wrap(FakeBucket, "create_from_cloudformation_json", self._with_all_properties)
        patches.wrap(FakeBucket, "update_from_cloudformation_json", self._updating_all_properties)
        patches.wrap(Queue, "update_from_cloudformation_json", self._updating_all_attributes)
        patches.replace(Queue, "physical_resource_id", property(self._queue_url))

    def stop(self) -> None:
        self._patches.restore()
        parsing.get_model_map.cache_clear()
        parsing.get_name_type_map.cache_clear()

    def _queue_url(self, queue: Queue) -> str:
        return f"{self._cloud.endpoint}/{queue.account_id}/{queue.name}"

    def _with_all_properties(self, original: Callable[..., Any]) -> Any:
        def create(
            cls: Any,
            /,
            resource_name: str,
            cloudformation_json: dict[str, Any],
            *args: Any,
            **kw: Any,
        ) -> Any:
            known_bucket_properties(resource_name, cloudformation_json["Properties"])
            bucket = original(resource_name, cloudformation_json, *args, **kw)
            self._configure_bucket(bucket.name, cloudformation_json["Properties"])
            return bucket

        return classmethod(create)

    def _updating_all_properties(self, original: Callable[..., Any]) -> Any:
        def update(cls: Any, /, **kw: Any) -> Any:
            properties = kw["cloudformation_json"]["Properties"]
            known_bucket_properties(kw["new_resource_name"], properties)
            bucket = original(**kw)
            self._configure_bucket(bucket.name, properties)
            return bucket

        return classmethod(update)

    def _configure_bucket(self, name: str, properties: dict[str, Any]) -> None:
        """Set what moto's own creation of a bucket leaves out."""
        s3 = self._cloud.client("s3")
        if versioning := properties.get("VersioningConfiguration"):
            s3.put_bucket_versioning(Bucket=name, VersioningConfiguration=versioning)
        if block := properties.get("PublicAccessBlockConfiguration"):
            s3.put_public_access_block(Bucket=name, PublicAccessBlockConfiguration=block)
        if controls := properties.get("OwnershipControls"):
            s3.put_bucket_ownership_controls(Bucket=name, OwnershipControls=controls)
        events = properties.get("NotificationConfiguration", {}).get("EventBridgeConfiguration")
        enabled = (
            events is not None and str(events.get("EventBridgeEnabled", True)).lower() == "true"
        )
        s3.put_bucket_notification_configuration(
            Bucket=name,
            NotificationConfiguration={"EventBridgeConfiguration": {}} if enabled else {},
        )
        if rules := properties.get("LifecycleConfiguration", {}).get("Rules"):
            s3.put_bucket_lifecycle_configuration(
                Bucket=name,
                LifecycleConfiguration={"Rules": [lifecycle_rule(name, rule) for rule in rules]},
            )

    def _updating_all_attributes(self, original: Callable[..., Any]) -> Any:
        def update(cls: Any, /, **kw: Any) -> Any:
            queue = original(**kw)
            properties = QUEUE_DEFAULTS | kw["cloudformation_json"]["Properties"]
            attributes = {
                key: value if isinstance(value, str) else json.dumps(value)
                for key, value in properties.items()
                if key not in ("QueueName", "Tags")
            }
            sqs = self._cloud.client("sqs")
            sqs.set_queue_attributes(QueueUrl=queue.physical_resource_id, Attributes=attributes)
            return queue

        return classmethod(update)


# Stacks


def _parsing_json_first(original: Callable[..., Any]) -> Any:
    def parse_template(template: str) -> Any:
        try:
            return json.loads(template)
        except ValueError:  # YAML, whose parser takes seconds for a large template
            return original(template)

    return staticmethod(parse_template)


def refuse_unknown_types(template: dict[str, Any]) -> None:
    """Raise `ServiceError` naming every resource of a type that the cloud does not create."""
    known = parsing.get_model_map()
    unknown = [
        f"{resource['Type']} ({logical_id})"
        for logical_id, resource in template.get("Resources", {}).items()
        if resource["Type"] not in known and resource["Type"] not in parsing.NULL_MODELS
    ]
    if unknown:
        raise ServiceError(
            "ValidationError",
            f"The embedded cloud does not create resources of type {', '.join(unknown)}.",
        )


def _creating_whole_stacks(original: Callable[..., Stack]) -> Callable[..., Stack]:
    def create_stack(
        backend: CloudFormationBackend, name: str, template: str, *args: Any, **kw: Any
    ) -> Stack:
        refuse_unknown_types(Stack.parse_template(template))
        before = set(backend.stacks)
        try:
            return original(backend, name, template, *args, **kw)
        except Exception:
            # moto would keep the stack as in progress. Nothing of it stays, as after a rollback.
            for stack_id in set(backend.stacks) - before:
                _remove_all(backend.stacks.pop(stack_id))
            raise

    return create_stack


def _remove_all(stack: Stack) -> None:
    resources = stack.resource_map
    for logical_id in reversed(list(resources._parsed_resources)):
        definition = resources._resource_json_map.get(logical_id)
        resource = resources._parsed_resources[logical_id]
        if definition is None or resource is None or isinstance(resource, str):
            continue
        resources._delete_resource(resource, definition)


def _updating_known_types(original: Callable[..., Stack]) -> Callable[..., Stack]:
    def update_stack(
        backend: CloudFormationBackend, name: str, template: str, *args: Any, **kw: Any
    ) -> Stack:
        refuse_unknown_types(Stack.parse_template(template))
        return original(backend, name, template, *args, **kw)

    return update_stack


def _changing_known_types(original: Callable[..., Any]) -> Callable[..., Any]:
    def create_change_set(
        backend: CloudFormationBackend,
        stack_name: str,
        change_set_name: str,
        template: str,
        *args: Any,
        **kw: Any,
    ) -> Any:
        refuse_unknown_types(Stack.parse_template(template))
        return original(backend, stack_name, change_set_name, template, *args, **kw)

    return create_change_set


def _naming_what_failed(original: Callable[..., Any]) -> Callable[..., Any]:
    def parse_and_create_resource(
        logical_id: str, resource_json: dict[str, Any], *args: Any, **kw: Any
    ) -> Any:
        with updates.naming_what_failed(logical_id, resource_json["Type"]):
            return original(logical_id, resource_json, *args, **kw)

    return parse_and_create_resource


def _updating_for_real(original: Callable[..., Any]) -> Callable[..., Any]:
    def parse_and_update_resource(
        logical_id: str, resource_json: dict[str, Any], *args: Any, **kw: Any
    ) -> Any:
        kind = resource_json["Type"]
        with updates.naming_what_failed(logical_id, kind):
            if not updatable(kind):  # moto would do nothing
                raise RuntimeError(
                    "the embedded cloud cannot update this type; start it anew to deploy the change"
                )
            return original(logical_id, resource_json, *args, **kw)

    return parse_and_update_resource


def updatable(resource_type: str) -> bool:
    """Whether anybody updates resources of this type."""
    update = parsing.resource_class_from_type(resource_type).update_from_cloudformation_json
    return not hasattr(update, "__isabstractmethod__")


# Intrinsic functions


def _resolving_as_cloudformation(original: Callable[..., Any]) -> Callable[..., Any]:
    def clean_json(value: Any, resources: Any) -> Any:
        if isinstance(value, dict) and len(value) == 1:
            if "Fn::Sub" in value:
                return substitute(value["Fn::Sub"], resources)
            if "Fn::GetAtt" in value:
                path = value["Fn::GetAtt"]
                return _attribute(path.split(".", 1) if isinstance(path, str) else path, resources)
            if "Ref" in value:
                _require(value["Ref"], resources)
        return original(value, resources)

    return clean_json


def substitute(value: Any, resources: Any) -> str:
    """`Fn::Sub`. moto's own takes `$$`, which a state machine's paths hold, for one `$`."""
    template, values = (value, {}) if isinstance(value, str) else value

    def replacement(match: re.Match[str]) -> str:
        name = match[1]
        if name.startswith("!"):
            return f"${{{name[1:]}}}"
        if name in values:
            return str(parsing.clean_json(values[name], resources))
        if "." in name:
            return str(_attribute(name.split(".", 1), resources))
        return str(parsing.clean_json({"Ref": name}, resources))

    return re.sub(r"\$\{([^}]+)\}", replacement, template)


def _attribute(path: list[str], resources: Any) -> Any:
    logical_id, attribute = path[0], ".".join(path[1:])
    _require(logical_id, resources)
    resource = resources[logical_id]
    try:
        return resource.get_cfn_attribute(attribute)
    except (UnformattedGetAttTemplateException, NotImplementedError, AttributeError) as error:
        raise ServiceError(
            "ValidationError",
            f"Template error: the embedded cloud's {logical_id} has no attribute {attribute}.",
        ) from error


def _require(logical_id: str, resources: Any) -> None:
    if logical_id not in resources._parsed_resources and (
        logical_id not in resources._resource_json_map
    ):
        raise ServiceError(
            "ValidationError", f"Template format error: Unresolved reference {logical_id}."
        )


# Queues

# What a property goes back to when it goes from the template.
# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SetQueueAttributes.html
QUEUE_DEFAULTS = {
    "DelaySeconds": 0,
    "MessageRetentionPeriod": 345_600,
    "ReceiveMessageWaitTimeSeconds": 0,
    "RedrivePolicy": "",
    "VisibilityTimeout": 30,
}


# Functions and layers


def _create_function(
    cls: Any,
    /,
    resource_name: str,
    cloudformation_json: dict[str, Any],
    account_id: str,
    region_name: str,
    **_more: Any,
) -> Any:
    """With every property, where moto takes seven of them."""
    spec = {**_function_spec(cloudformation_json["Properties"]), "FunctionName": resource_name}
    return lambda_backend(account_id, region_name).create_function(spec)


def _update_function(
    cls: Any,
    /,
    original_resource: LambdaFunction,
    new_resource_name: str,
    cloudformation_json: dict[str, Any],
    account_id: str,
    region_name: str,
) -> Any:
    spec = _function_spec(cloudformation_json["Properties"])
    # A property that went from the template goes back to its default.
    defaults = {"Environment": {"Variables": {}}, "Timeout": 3, "MemorySize": 128, "Layers": []}
    spec = {**defaults, **spec}
    original_resource.update_configuration(spec)
    original_resource.update_function_code(dict(spec["Code"]))
    return original_resource


def _function_spec(properties: dict[str, Any]) -> dict[str, Any]:
    spec = dict(properties)
    for number in ("Timeout", "MemorySize", "ReservedConcurrentExecutions"):
        if number in spec:
            spec[number] = int(spec[number])
    spec["Tags"] = {tag["Key"]: tag["Value"] for tag in spec.get("Tags", [])}
    code = dict(spec["Code"])
    if "ZipFile" in code:  # in a template it is the source itself
        archive = LambdaFunction._create_zipfile_from_plaintext_code(code["ZipFile"])
        code["ZipFile"] = base64.b64encode(archive)
    spec["Code"] = code
    return spec


def _replace_layer_version(
    cls: Any,
    /,
    original_resource: LayerVersion,
    new_resource_name: str,
    cloudformation_json: dict[str, Any],
    account_id: str,
    region_name: str,
) -> Any:
    return cls.create_from_cloudformation_json(
        original_resource.name, cloudformation_json, account_id, region_name
    )


# State machines


def _create_state_machine(
    cls: Any,
    /,
    resource_name: str,
    cloudformation_json: dict[str, Any],
    account_id: str,
    region_name: str,
    **_more: Any,
) -> Any:
    properties = cloudformation_json["Properties"]
    name = properties.get("StateMachineName", resource_name)
    if properties.get("StateMachineType", "STANDARD") != "STANDARD":
        raise ServiceError(
            "ValidationError", f"{name}: the embedded cloud runs standard state machines only."
        )
    return stepfunctions_parser_backends[account_id][region_name].create_state_machine(
        name,
        state_machine_definition(name, properties),
        properties["RoleArn"],
        tags=[{"key": t["Key"], "value": t["Value"]} for t in properties.get("Tags", [])],
    )


def _update_state_machine(
    cls: Any,
    /,
    original_resource: StateMachine,
    new_resource_name: str,
    cloudformation_json: dict[str, Any],
    account_id: str,
    region_name: str,
) -> Any:
    properties = cloudformation_json["Properties"]
    name = properties.get("StateMachineName", original_resource.name)
    if name != original_resource.name:
        raise ServiceError(
            "ValidationError",
            f"The embedded cloud cannot rename {original_resource.name} to {name}: start it anew.",
        )
    return stepfunctions_parser_backends[account_id][region_name].update_state_machine(
        original_resource.arn,
        definition=state_machine_definition(name, properties),
        role_arn=properties["RoleArn"],
    )


def state_machine_definition(name: str, properties: dict[str, Any]) -> str:
    """A machine's definition as text, its substitutions made."""
    if "DefinitionString" in properties:
        definition: str = properties["DefinitionString"]
    elif "Definition" in properties:
        definition = json.dumps(properties["Definition"])
    else:
        raise ServiceError(
            "ValidationError",
            f"{name}: the embedded cloud takes a definition from DefinitionString or Definition.",
        )
    for key, value in properties.get("DefinitionSubstitutions", {}).items():
        definition = definition.replace(f"${{{key}}}", str(value))
    return definition


def _with_arn(original: Callable[..., bool]) -> Any:
    def has_cfn_attr(cls: Any, attr: str) -> bool:
        return attr == "Arn" or original(attr)

    return classmethod(has_cfn_attr)


def _getting_arn(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_cfn_attribute(machine: StateMachine, attribute_name: str) -> Any:
        return machine.arn if attribute_name == "Arn" else original(machine, attribute_name)

    return get_cfn_attribute


# Buckets

BUCKET_PROPERTIES = {
    "BucketName",
    "BucketEncryption",
    "Tags",
    "VersioningConfiguration",
    "NotificationConfiguration",
    "PublicAccessBlockConfiguration",
    "OwnershipControls",
    "LifecycleConfiguration",
    "LoggingConfiguration",  # taken, though nothing is logged: an object for each request
}


def known_bucket_properties(name: str, properties: dict[str, Any]) -> None:
    """Raise `ServiceError` for a property of a bucket that the cloud would ignore."""
    unknown = set(properties) - BUCKET_PROPERTIES
    notifications = set(properties.get("NotificationConfiguration", {}))
    unknown |= {f"NotificationConfiguration.{key}" for key in notifications} - {
        "NotificationConfiguration.EventBridgeConfiguration"
    }
    if unknown:
        raise ServiceError(
            "ValidationError",
            f"Bucket {name}: the embedded cloud does not support {', '.join(sorted(unknown))}.",
        )


def lifecycle_rule(bucket: str, rule: dict[str, Any]) -> dict[str, Any]:
    """A lifecycle rule as S3's API writes it. It is kept, not applied: no object gets old here."""
    converted: dict[str, Any] = {
        "Status": rule["Status"],
        "Filter": {"Prefix": rule.get("Prefix", "")},
    }
    names = {
        "Id": ("ID", None),
        "AbortIncompleteMultipartUpload": ("AbortIncompleteMultipartUpload", None),
        "NoncurrentVersionExpiration": ("NoncurrentVersionExpiration", None),
        "ExpirationInDays": ("Expiration", "Days"),
        "NoncurrentVersionExpirationInDays": ("NoncurrentVersionExpiration", "NoncurrentDays"),
    }
    for key, value in rule.items():
        if key in ("Status", "Prefix"):
            continue
        if key not in names:
            raise ServiceError(
                "ValidationError",
                f"Bucket {bucket}: the embedded cloud does not support a lifecycle rule's {key}.",
            )
        name, inner = names[key]
        converted[name] = {inner: int(value)} if inner else value
    return converted
