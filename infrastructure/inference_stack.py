"""The inference stack of a stage: the APIs that applications call, and their functions."""

import json
from urllib.parse import urlsplit

from aws_cdk import CfnOutput, CfnParameter, RemovalPolicy
from aws_cdk import aws_apigateway as apigateway
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3 as s3
from constructs import Construct

from bedrock.models import find_model
from infrastructure.acknowledged import acknowledge
from infrastructure.assets import Assets
from infrastructure.production_elsewhere import AccessStack, caller_name
from infrastructure.stack import (
    ALARM_PERIOD,
    INDEX_READERS,
    OLD_VERSIONS,
    QuenchStack,
    function_name,
)
from workflows.settings import Settings

STAGE = "v1"
TIMEOUT_SECONDS = 29  # the longest that API Gateway waits
MEMORY_MB = 512
RAG_MEMORY_MB = 1024
TOLERATED_ERRORS = 0.01  # of all requests within five minutes
API_DEVIATIONS = {
    "APIG2": "leaves requests to its functions, which validate each by the schema in /openapi.json "
    "and answer with what is wrong",
    "APIG3": "answers known callers only and is throttled: a web ACL is a monthly price for rules "
    "against strangers",
    "APIG6": "has access logs of every request, but no execution logs, since those hold prompts "
    "(ADR 11)",
    "COG4": "is called by applications, each with an IAM role or a key: there are no users to sign "
    "in (ADR 11)",
    "IAM4[Policy::arn:<AWS::Partition>:iam::aws:policy/service-role/"
    "AmazonAPIGatewayPushToCloudWatchLogs]": "writes logs by a role with AWS's own policy: the "
    "service refuses roles that may do less (ADR 11)",
}
ACCESS_LOG = {
    "requestId": "$context.requestId",
    "time": "$context.requestTime",
    "ip": "$context.identity.sourceIp",
    "caller": "$context.identity.userArn",
    "apiKeyId": "$context.identity.apiKeyId",
    "method": "$context.httpMethod",
    "path": "$context.path",
    "status": "$context.status",
    "error": "$context.error.responseType",
    "milliseconds": "$context.responseLatency",
    "bytes": "$context.responseLength",
}


class InferenceStack(QuenchStack):
    """Questions in, answers out.

    The model is what Parameter Store names when the stack is deployed: the template does not change
    with it, and a stage keeps the model it was deployed with. Models and index are those of home,
    which `access` gives to production that is elsewhere.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        settings: Settings,
        assets: Assets,
        stage: str,
        model_parameter: str,
        access: AccessStack | None = None,
    ) -> None:
        super().__init__(
            scope,
            construct_id,
            settings=settings,
            assets=assets,
            name=f"{stage}-inference",
            description="Quench: answers of the base model, the tuned model and the knowledge",
            place=settings.production if access else settings.home,
        )
        self.access = access
        self.home: QuenchStack = access or self
        self.prefix = f"{settings.name}-{stage}"
        uri = urlsplit(settings.api.personas_uri)
        self.personas = uri.path.lstrip("/")
        self.personas_bucket = self._personas_bucket(uri.netloc)
        self.personas_uri = f"s3://{self.personas_bucket.bucket_name}/{self.personas}"
        self.model = self._parameter_value("Model", model_parameter, "The model in use, as JSON")
        self.environment_of_all = {
            "BASE_MODEL": settings.text_model_id,
            "MODEL": self.model,
            "PERSONAS_URI": self.personas_uri,
            "LOG_PROMPTS": json.dumps(settings.api.log_prompts),
            "VERSION": assets.code_version,
        }
        self.index = self._parameter_value(
            "Index", self.index_parameter, "Where the knowledge is and how to search it, as JSON"
        )
        self.api = self._api()
        self._route("POST", "text", self._text_api())
        self._route("POST", "rag", self._rag_api())
        self._route("POST", "image", self._image_api())
        status = self._status_api()
        self._route("GET", "health", status)
        self._route("GET", "openapi.json", status)
        self._alarms(
            [],
            {
                # The average of ones (server errors) and zeros (all else) is a rate.
                "ServerErrors": self.api.metric_server_error(
                    period=ALARM_PERIOD, statistic="Average"
                )
            },
            threshold=TOLERATED_ERRORS,
        )
        self.url = CfnOutput(self, "ApiUrl", value=self.api.url)
        self.served_model = CfnOutput(self, "ServedModel", value=self.model)
        self._outputs({"ApiId": self.api.rest_api_id, "PersonasUri": self.personas_uri})
        self.key_id = (
            CfnOutput(self, "ApiKeyId", value=self._api_key().key_id)
            if settings.api.authorization == "api-key"
            else None
        )

    def _parameter_value(self, name: str, parameter: str, description: str) -> str:
        """What Parameter Store holds under a name when the stack is deployed."""
        return CfnParameter(
            self,
            name,
            type="AWS::SSM::Parameter::Value<String>",
            default=parameter,
            description=description,
        ).value_as_string

    def _personas_bucket(self, existing: str) -> s3.IBucket:
        if existing:
            return s3.Bucket.from_bucket_name(self, "PersonasBucket", existing)
        return self._bucket("PersonasBucket", [OLD_VERSIONS], versioned=True)

    # The gateway

    def _api(self) -> apigateway.RestApi:
        limits = self.settings.api
        access_log = logs.LogGroup(
            self,
            "AccessLog",
            log_group_name=f"/aws/apigateway/{self.prefix}",
            retention=logs.RetentionDays.SIX_MONTHS,
            removal_policy=RemovalPolicy.DESTROY,
        )
        api = apigateway.RestApi(
            self,
            "Api",
            rest_api_name=f"{self.prefix}-inference",
            description="Base model, tuned model, and model with knowledge, for text and images",
            endpoint_types=[apigateway.EndpointType.REGIONAL],
            cloud_watch_role=True,  # without it, the account's gateway can write no log (ADR 11)
            default_method_options=self._method_options(),
            deploy_options=apigateway.StageOptions(
                stage_name=STAGE,
                access_log_destination=apigateway.LogGroupLogDestination(access_log),
                access_log_format=apigateway.AccessLogFormat.custom(json.dumps(ACCESS_LOG)),
                throttling_rate_limit=limits.rate_limit,
                throttling_burst_limit=limits.burst_limit,
            ),
        )
        for rule, why in API_DEVIATIONS.items():
            acknowledge(api, rule, why)
        if limits.authorization == "api-key":
            acknowledge(api, "APIG4", "asks for API keys, because the settings chose them (ADR 11)")
        api.node.try_remove_child("Endpoint")  # an output of the CDK's own, beside our ApiUrl
        for name, kind in {
            "ClientErrors": apigateway.ResponseType.DEFAULT_4_XX,
            "ServerErrors": apigateway.ResponseType.DEFAULT_5_XX,
        }.items():
            api.add_gateway_response(
                name, type=kind, response_headers={"x-request-id": "context.requestId"}
            )
        return api

    def _method_options(self) -> apigateway.MethodOptions:
        if self.settings.api.authorization == "iam":
            return apigateway.MethodOptions(authorization_type=apigateway.AuthorizationType.IAM)
        return apigateway.MethodOptions(
            authorization_type=apigateway.AuthorizationType.NONE, api_key_required=True
        )

    def _api_key(self) -> apigateway.IApiKey:
        """A first client's key, and the plan that limits each client who gets a key in it."""
        limits = self.settings.api
        plan = self.api.add_usage_plan(
            "UsagePlan",
            name=f"{self.prefix}-inference",
            throttle=apigateway.ThrottleSettings(
                rate_limit=limits.rate_limit, burst_limit=limits.burst_limit
            ),
        )
        plan.add_api_stage(stage=self.api.deployment_stage)
        key = apigateway.ApiKey(self, "ApiKey", api_key_name=f"{self.prefix}-inference")
        plan.add_api_key(key)
        return key

    def _route(self, method: str, path: str, function: lambda_.Function) -> None:
        integration = apigateway.LambdaIntegration(function, allow_test_invoke=False)
        self.api.root.add_resource(path).add_method(method, integration)

    # Functions

    def _text_api(self) -> lambda_.Function:
        function, asker = self._api_function(
            "text_api",
            "POST /text: the base model or the tuned one answers",
            {"GUARDRAIL": self.settings.api.guardrail},
        )
        self._allow_answers(asker)
        self._allow_personas(function)
        return function

    def _rag_api(self) -> lambda_.Function:
        function, asker = self._api_function(
            "rag_api",
            "POST /rag: a model answers from what the index knows",
            {"GUARDRAIL": self.settings.api.guardrail, "INDEX": self.index},
            memory_mb=RAG_MEMORY_MB,
        )
        self._allow_answers(asker)
        self._allow_personas(function)
        embedding = find_model(self.settings.knowledge.embedding_model)
        self._allow(
            asker,
            "bedrock",
            ("InvokeModel",),
            self.home._invocation_arns(embedding.invoke_id),
            why="embeds in whichever region its model's inference profile chooses",
        )
        self._allow_search(asker)
        return function

    def _image_api(self) -> lambda_.Function:
        api = self.settings.api
        function, asker = self._api_function(
            "image_api",
            "POST /image: the image model draws",
            {
                "GUARDRAIL": api.image_guardrail,
                "IMAGE_MODEL": api.image_model,
                "IMAGE_REGION": api.image_region,
            },
        )
        self._allow(
            asker,
            "bedrock",
            ("InvokeModel",),
            self.home._invocation_arns(api.image_model, api.image_region),
            why="draws in whichever region its model's inference profile chooses",
        )
        self._allow_guardrail(asker, api.image_guardrail, api.image_region)
        return function

    def _status_api(self) -> lambda_.Function:
        function, asker = self._api_function(
            "status_api",
            "GET /health and /openapi.json: what answers here, and how to ask",
            {
                "GUARDRAIL": self.settings.api.guardrail,
                "INDEX": self.index,
                "IMAGE_MODEL": self.settings.api.image_model,
                "IMAGE_REGION": self.settings.api.image_region,
            },
        )
        self._allow_search(asker)
        return function

    def _api_function(
        self,
        name: str,
        description: str,
        environment: dict[str, str],
        *,
        memory_mb: int = MEMORY_MB,
    ) -> tuple[lambda_.Function, iam.IGrantable]:
        """A function, and who it asks models and index as: itself, if they are where it is."""
        known_as = function_name(self.prefix, name) if name in INDEX_READERS else None
        if self.access:
            known_as = caller_name(self.prefix, name)
            environment = {**environment, "ACCESS": json.dumps(self.access.access(name))}
        function = self._function(
            name,
            description,
            {**self.environment_of_all, **environment},
            memory_mb=memory_mb,
            timeout_seconds=TIMEOUT_SECONDS,
            role_name=known_as,
        )
        if self.access is None:
            return function, function
        self._allow(function, "sts", ("AssumeRole",), [self.access.access(name)["role"]])
        return function, self.access.role(name)

    # Permissions

    def _allow_answers(self, asker: iam.IGrantable) -> None:
        """To invoke the base model and whichever model is tuned."""
        self._allow(
            asker,
            "bedrock",
            ("InvokeModel",),
            self.home._invocation_arns(self.settings.text_model_id),
            why="asks the base model in whichever region its inference profile chooses",
        )
        self._allow(
            asker,
            "bedrock",
            ("InvokeModel",),
            self.home._tuned_model_arns(),
            why="asks the tuned model, which an approval names after this role is made (ADR 11)",
        )
        self._allow_guardrail(asker, self.settings.api.guardrail, self.home.region)

    def _allow_personas(self, function: lambda_.Function) -> None:
        """To read in whose voice the model answers."""
        bucket = self.personas_bucket
        self._allow(
            function,
            "s3",
            ("GetObject",),
            [bucket.arn_for_objects(f"{self.personas}*")],
            why="reads the persona that a request names, and personas come and go",
        )
        # Without it a persona that is not there would look like one that is forbidden.
        self._allow(function, "s3", ("ListBucket",), [bucket.bucket_arn])

    def _allow_guardrail(self, asker: iam.IGrantable, guardrail: str, region: str) -> None:
        if guardrail:
            resource = f"guardrail/{guardrail.partition(':')[0]}"
            arn = f"arn:{self.partition}:bedrock:{region}:{self.home.account}:{resource}"
            self._allow(asker, "bedrock", ("ApplyGuardrail",), [arn])

    def _allow_search(self, asker: iam.IGrantable) -> None:
        if domain := self.home._domain_arn():
            self._allow(
                asker,
                "es",
                ("ESHttpGet", "ESHttpPost"),
                [f"{domain}/*"],
                why="searches by several paths; a role inside the domain names the index (ADR 10)",
            )
