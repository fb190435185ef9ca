"""API Gateway's resource types: made by calls of its API, where moto knows few and forgets much.

What its API of moto's cannot change of a record is changed in the record.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

from botocore.exceptions import ClientError
from moto.apigateway.models import APIGatewayBackend, apigateway_backends

from local.apigateway.templates import check_gateway_response
from local.protocol import ServiceError
from local.resources import Resource


class _ApiGatewayResource(Resource):
    @classmethod
    def records(cls) -> APIGatewayBackend:
        """moto's record of API Gateway."""
        config = cls.cloud.config
        return apigateway_backends[config.account_id][config.region]

    @classmethod
    def api(cls) -> Any:
        return cls.client("apigateway")


class RestApi(_ApiGatewayResource):
    type = "AWS::ApiGateway::RestApi"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        known = "Name, Description, EndpointConfiguration, BinaryMediaTypes, ApiKeySourceType, Tags"
        only("A REST API", properties, known)
        endpoint = properties.get("EndpointConfiguration", {"Types": ["EDGE"]})
        only("A REST API's endpoint", endpoint, "Types")
        if "PRIVATE" in endpoint["Types"]:
            raise refused("A REST API: the embedded cloud has no private endpoints.")
        if properties.get("ApiKeySourceType", "HEADER") != "HEADER":
            raise refused("A REST API: the embedded cloud takes API keys from the header only.")
        if name in cls.records().apis:
            changed = {"/name": properties["Name"], "/description": properties.get("Description")}
            cls.api().update_rest_api(restApiId=name, patchOperations=replacing(changed))
        else:
            name = cls.api().create_rest_api(
                name=properties["Name"],
                description=properties.get("Description", ""),
                tags={tag["Key"]: tag["Value"] for tag in properties.get("Tags", [])},
            )["id"]
        record = cls.records().apis[name]
        record.binaryMediaTypes = list(properties.get("BinaryMediaTypes", []))
        record.endpoint_configuration = {"types": list(endpoint["Types"])}
        return cls(name, {"RestApiId": name, "RootResourceId": record.root_resource_id})

    def remove(self) -> None:
        with _if_there():
            self.api().delete_rest_api(restApiId=self.physical_resource_id)


class ApiResource(_ApiGatewayResource):
    type = "AWS::ApiGateway::Resource"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        only("A resource of a REST API", properties, "RestApiId, ParentId, PathPart")
        api, parent, part = (properties[key] for key in ("RestApiId", "ParentId", "PathPart"))
        record = cls.records().apis[api].resources.get(name)
        if record is None or (record.parent_id, record.path_part) != (parent, part):
            created = cls.api().create_resource(restApiId=api, parentId=parent, pathPart=part)
            name = created["id"]
        return cls(name, {"ResourceId": name})

    def remove(self) -> None:
        with _if_there():
            self.api().delete_resource(
                restApiId=self.properties["RestApiId"], resourceId=self.physical_resource_id
            )


class Method(_ApiGatewayResource):
    type = "AWS::ApiGateway::Method"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        verb = properties["HttpMethod"]
        known = "RestApiId, ResourceId, HttpMethod, AuthorizationType, ApiKeyRequired"
        only(f"Method {verb}", properties, f"{known}, OperationName, MethodResponses, Integration")
        authorization = properties.get("AuthorizationType", "NONE")
        if authorization not in ("NONE", "AWS_IAM"):
            raise refused(f"Method {verb}: the embedded cloud cannot authorize by {authorization}.")
        integration = properties.get("Integration", {})
        known = "Type, IntegrationHttpMethod, Uri, TimeoutInMillis"
        only(f"Method {verb}'s integration", integration, known)
        if integration.get("Type") != "AWS_PROXY" or "/functions/" not in integration["Uri"]:
            raise refused(
                f"Method {verb}: the embedded cloud integrates functions as AWS_PROXY only, not "
                f"{integration.get('Type')} of {integration.get('Uri')}."
            )
        timeout = int(integration.get("TimeoutInMillis", 29_000))
        if not 50 <= timeout <= 29_000:
            raise refused(f"Method {verb}: Timeout should be between 50 ms and 29000 ms")
        where = {
            "restApiId": properties["RestApiId"],
            "resourceId": properties["ResourceId"],
            "httpMethod": verb,
        }
        cls.api().put_method(
            **where,
            authorizationType=authorization,
            apiKeyRequired=truth(properties.get("ApiKeyRequired")),
            operationName=properties.get("OperationName", ""),
        )
        cls.api().put_integration(
            **where,
            type="AWS_PROXY",
            integrationHttpMethod=integration["IntegrationHttpMethod"],
            uri=integration["Uri"],
            timeoutInMillis=timeout,
        )
        return cls("-".join(where.values()), {})

    def remove(self) -> None:
        with _if_there():
            self.api().delete_method(
                restApiId=self.properties["RestApiId"],
                resourceId=self.properties["ResourceId"],
                httpMethod=self.properties["HttpMethod"],
            )


class Deployment(_ApiGatewayResource):
    type = "AWS::ApiGateway::Deployment"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        only("A deployment of a REST API", properties, "RestApiId, Description")
        api = properties["RestApiId"]
        if name not in cls.records().apis[api].deployments:
            description = properties.get("Description", "")
            name = cls.api().create_deployment(restApiId=api, description=description)["id"]
        return cls(name, {"DeploymentId": name})

    def remove(self) -> None:
        with _if_there():
            self.api().delete_deployment(
                restApiId=self.properties["RestApiId"], deploymentId=self.physical_resource_id
            )


# A stage's setting of methods: CloudFormation's name, the API's path of it.
METHOD_SETTINGS = {
    "ThrottlingRateLimit": "throttling/rateLimit",
    "ThrottlingBurstLimit": "throttling/burstLimit",
    "MetricsEnabled": "metrics/enabled",
    "DataTraceEnabled": "logging/dataTrace",
    "LoggingLevel": "logging/loglevel",
}


class Stage(_ApiGatewayResource):
    """A stage. Its execution logs and metrics are settings that are kept, and nothing more."""

    type = "AWS::ApiGateway::Stage"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        name, api = properties["StageName"], properties["RestApiId"]
        known = "StageName, RestApiId, DeploymentId, Description, Variables, MethodSettings"
        only(f"Stage {name}", properties, f"{known}, AccessLogSetting, TracingEnabled, Tags")
        if truth(properties.get("TracingEnabled")):
            raise refused(f"Stage {name}: the embedded cloud does not trace.")
        where = {"restApiId": api, "stageName": name}
        deployment = properties["DeploymentId"]
        description = properties.get("Description", "")
        stages = cls.records().apis[api].stages
        if name in stages:
            changed = {"/deploymentId": deployment, "/description": description}
            cls.api().update_stage(**where, patchOperations=replacing(changed))
        else:
            tags = {tag["Key"]: tag["Value"] for tag in properties.get("Tags", [])}
            cls.api().create_stage(
                **where, deploymentId=deployment, description=description, tags=tags
            )
        stages[name].variables = dict(properties.get("Variables", {}))
        stages[name].method_settings = {}
        stages[name].access_log_settings = None
        settings = _method_settings(name, properties.get("MethodSettings", []))
        if log := properties.get("AccessLogSetting"):
            only(f"Stage {name}'s access log", log, "DestinationArn, Format")
            if ":log-group:" not in log["DestinationArn"]:
                raise refused(f"Stage {name}: the embedded cloud logs accesses to log groups only.")
            settings["/accessLogSettings/destinationArn"] = log["DestinationArn"]
            settings["/accessLogSettings/format"] = log["Format"]
        cls.api().update_stage(**where, patchOperations=replacing(settings))
        return cls(name, {})

    def remove(self) -> None:
        with _if_there():
            self.api().delete_stage(
                restApiId=self.properties["RestApiId"], stageName=self.physical_resource_id
            )


def _method_settings(stage: str, settings: list[dict[str, Any]]) -> dict[str, Any]:
    """The paths and values of the patches that make these settings."""
    paths = {}
    for setting in settings:
        known = ", ".join(METHOD_SETTINGS)
        only(f"Stage {stage}'s method settings", setting, f"ResourcePath, HttpMethod, {known}")
        method = f"{setting['ResourcePath'].removeprefix('/')}/{setting['HttpMethod']}"
        for key, path in METHOD_SETTINGS.items():
            if key in setting:
                paths[f"/{method}/{path}"] = setting[key]
    return paths


class ApiKey(_ApiGatewayResource):
    type = "AWS::ApiGateway::ApiKey"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        known = "Name, Description, Enabled, Value, GenerateDistinctId, StageKeys, Tags"
        only("An API key", properties, known)
        label, enabled = properties.get("Name", name), truth(properties.get("Enabled"))
        record = cls.records().keys.get(name)
        # A key's value cannot change: another value is another key.
        if record is not None and properties.get("Value", record.value) == record.value:
            changed = {
                "/name": properties.get("Name", record.name),
                "/description": properties.get("Description"),
                "/enabled": enabled,
            }
            cls.api().update_api_key(apiKey=name, patchOperations=replacing(changed))
        else:
            optional = {"value": properties["Value"]} if "Value" in properties else {}
            name = cls.api().create_api_key(
                name=label,
                description=properties.get("Description", ""),
                enabled=enabled,
                tags={tag["Key"]: tag["Value"] for tag in properties.get("Tags", [])},
                **optional,
            )["id"]
        return cls(name, {"APIKeyId": name})

    def remove(self) -> None:
        with _if_there():
            self.api().delete_api_key(apiKey=self.physical_resource_id)


class UsagePlan(_ApiGatewayResource):
    type = "AWS::ApiGateway::UsagePlan"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        label = properties.get("UsagePlanName", name)
        only(
            f"Usage plan {label}",
            properties,
            "UsagePlanName, Description, ApiStages, Throttle, Tags",
        )
        throttle = properties.get("Throttle", {})
        only(f"Usage plan {label}'s throttle", throttle, "RateLimit, BurstLimit")
        stages = []
        for stage in properties.get("ApiStages", []):
            only(f"Usage plan {label}'s stage", stage, "ApiId, Stage", "Throttle")
            stages.append({"apiId": stage["ApiId"], "stage": stage["Stage"]})
        if name not in cls.records().usage_plans:
            tags = {tag["Key"]: tag["Value"] for tag in properties.get("Tags", [])}
            name = cls.api().create_usage_plan(name=label, tags=tags)["id"]
        record = cls.records().usage_plans[name]
        record.name = properties.get("UsagePlanName", record.name)
        record.description = properties.get("Description")
        record.api_stages = stages
        numbers = {"RateLimit": ("rateLimit", float), "BurstLimit": ("burstLimit", int)}
        record.throttle = {
            key: number(throttle[given])
            for given, (key, number) in numbers.items()
            if given in throttle
        }
        return cls(name, {"Id": name})

    def remove(self) -> None:
        self.api().delete_usage_plan(usagePlanId=self.physical_resource_id)


class UsagePlanKey(_ApiGatewayResource):
    type = "AWS::ApiGateway::UsagePlanKey"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        only("A usage plan's key", properties, "UsagePlanId, KeyId, KeyType")
        plan, key = properties["UsagePlanId"], properties["KeyId"]
        cls.api().create_usage_plan_key(usagePlanId=plan, keyId=key, keyType=properties["KeyType"])
        return cls(f"{key}:{plan}", {"Id": f"{key}:{plan}"})

    def remove(self) -> None:
        with _if_there():
            self.api().delete_usage_plan_key(
                usagePlanId=self.properties["UsagePlanId"], keyId=self.properties["KeyId"]
            )


class Account(_ApiGatewayResource):
    type = "AWS::ApiGateway::Account"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        only("API Gateway's account", properties, "CloudWatchRoleArn")
        changed = {"/cloudwatchRoleArn": properties.get("CloudWatchRoleArn")}
        cls.api().update_account(patchOperations=replacing(changed))
        return cls(name, {"Id": name})


class GatewayResponse(_ApiGatewayResource):
    type = "AWS::ApiGateway::GatewayResponse"

    @classmethod
    def put(cls, name: str, properties: dict[str, Any]) -> Resource:
        kind = properties["ResponseType"]
        known = "RestApiId, ResponseType, StatusCode, ResponseParameters, ResponseTemplates"
        only(f"Gateway response {kind}", properties, known)
        parameters = properties.get("ResponseParameters", {})
        templates = properties.get("ResponseTemplates", {})
        check_gateway_response(kind, parameters, templates)
        status = {"statusCode": properties["StatusCode"]} if "StatusCode" in properties else {}
        cls.api().put_gateway_response(
            restApiId=properties["RestApiId"],
            responseType=kind,
            responseParameters=parameters,
            responseTemplates=templates,
            **status,
        )
        name = f"{properties['RestApiId']}-{kind}"
        return cls(name, {"Id": name})

    def remove(self) -> None:
        with _if_there():
            self.api().delete_gateway_response(
                restApiId=self.properties["RestApiId"], responseType=self.properties["ResponseType"]
            )


RESOURCES: tuple[type[Resource], ...] = (
    RestApi,
    ApiResource,
    Method,
    Deployment,
    Stage,
    ApiKey,
    UsagePlan,
    UsagePlanKey,
    Account,
    GatewayResponse,
)


def refused(message: str) -> ServiceError:
    return ServiceError("ValidationError", message)


def only(what: str, properties: Mapping[str, Any], known: str, empty: str = "") -> None:
    """Raises ServiceError for properties that are not known; those in `empty` may only be empty."""
    unknown = [
        name
        for name, value in properties.items()
        if name not in known.split(", ") and (value or name not in empty.split(", "))
    ]
    if unknown:
        raise refused(f"{what}: the embedded cloud does not support {', '.join(sorted(unknown))}.")


def truth(value: Any) -> bool:
    """A boolean of a template, which may be written as text."""
    return str(value).lower() == "true"


def replacing(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """The patch operations that set these paths; those of None are left as they are."""
    return [
        {
            "op": "replace",
            "path": path,
            "value": str(value).lower() if isinstance(value, bool) else str(value),
        }
        for path, value in values.items()
        if value is not None
    ]


@contextlib.contextmanager
def _if_there() -> Iterator[None]:
    """For what goes with the API or the plan it is part of, when that went before it."""
    try:
        yield
    except ClientError as error:
        if error.response["Error"]["Code"] != "NotFoundException":
            raise
