"""What the stacks have in common: how a bucket, a queue, a function, an alarm is made here."""

import json
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from aws_cdk import CfnOutput, Duration, Environment, Fn, RemovalPolicy, Stack
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as cloudwatch_actions
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_lambda_destinations as destinations
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from aws_cdk import aws_sqs as sqs
from constructs import Construct

from bedrock.models import find_model
from infrastructure.acknowledged import acknowledge, acknowledge_wildcard
from infrastructure.assets import Assets
from workflows.placeholders import placeholders
from workflows.settings import Place, Settings

ALARM_PERIOD = Duration.minutes(5)
RUNTIME = lambda_.Runtime.PYTHON_3_14
"""The one that the layer is made for."""
ACCESS_LOGS_KEPT = Duration.days(180)
FUNCTION_TIMEOUT_SECONDS = 60
STAGES = ("qa", "prod")
"""Of the APIs, in the order of a release."""
INDEX_READERS = ("rag_api", "status_api")
"""Functions that search: their roles have names of their own, which the domain is told of."""
OLD_VERSIONS = s3.LifecycleRule(
    noncurrent_version_expiration=Duration.days(365),
    abort_incomplete_multipart_upload_after=Duration.days(7),
)
DOMAIN_ENDPOINT = re.compile(
    r"search-(?P<domain>[a-z][a-z0-9-]+)-[a-z0-9]+"
    r"(\.(?P<region>[a-z0-9-]+)\.es\.amazonaws\.com(\.cn)?|\.aos\.(?P<aos_region>[a-z0-9-]+)\.on\.aws)"
)


class QuenchStack(Stack):
    """A stack named `<settings.name>-<name>`; its parts that need names are named like it."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        settings: Settings,
        assets: Assets,
        name: str,
        description: str,
        place: Place | None = None,
    ) -> None:
        super().__init__(
            scope,
            construct_id,
            # The models are offered only in some regions: a stack elsewhere would never work.
            env=environment(place or settings.home),
            stack_name=f"{settings.name}-{name}",
            description=description,
        )
        # S3 is let into a bucket of logs by a policy: the CDK's old way, an ACL, is refused today.
        self.node.set_context("@aws-cdk/aws-s3:serverAccessLogsUseBucketPolicy", True)
        self.settings = settings
        self.prefix = settings.name
        self.assets = assets

    # Resources

    @cached_property
    def code(self) -> lambda_.Code:
        """Of every function."""
        return lambda_.Code.from_asset(str(self.assets.functions))

    @cached_property
    def layer(self) -> lambda_.LayerVersion:
        return lambda_.LayerVersion(
            self,
            "FunctionLayer",
            code=lambda_.Code.from_asset(str(self.assets.layer)),
            compatible_runtimes=[RUNTIME],
            compatible_architectures=[lambda_.Architecture.X86_64],
            description="What lambdas/requirements.txt names",
        )

    @cached_property
    def failed_events(self) -> sqs.Queue:
        """Of events that could not be delivered or handled."""
        queue = self._queue("FailedEvents", Duration.seconds(30))
        acknowledge(queue, "SQS3", "is itself where events end that rules and functions fail on")
        return queue

    @cached_property
    def access_logs(self) -> s3.Bucket:
        """Who read and wrote what in the stack's other buckets."""
        return self._bucket(
            "AccessLogs", [s3.LifecycleRule(expiration=ACCESS_LOGS_KEPT)], logged=False
        )

    @cached_property
    def image(self) -> ecr_assets.DockerImageAsset:
        """Of the processing jobs."""
        return ecr_assets.DockerImageAsset(
            self,
            "ProcessingImage",
            directory=str(self.assets.processing_image),
            platform=ecr_assets.Platform.LINUX_AMD64,
        )

    @cached_property
    def alarm_topic(self) -> sns.Topic:
        """What the address in `alarms.email` hears."""
        topic = sns.Topic(self, "Alarms", enforce_ssl=True)
        # A policy of its own replaces the default one, which lets alarms of the account publish.
        topic.add_to_resource_policy(
            iam.PolicyStatement(
                actions=["sns:Publish"],
                principals=[iam.ServicePrincipal("cloudwatch.amazonaws.com")],
                resources=[topic.topic_arn],
                conditions={
                    "StringEquals": {"aws:SourceAccount": self.account},
                    "ArnLike": {"aws:SourceArn": self._arn("cloudwatch", "alarm:*")},
                },
            )
        )
        if self.settings.alarms.email:
            topic.add_subscription(subscriptions.EmailSubscription(self.settings.alarms.email))
        return topic

    def _bucket(
        self,
        name: str,
        lifecycle_rules: list[s3.LifecycleRule],
        *,
        versioned: bool = False,
        logged: bool = True,
        key: kms.IKey | None = None,
    ) -> s3.Bucket:
        return s3.Bucket(
            self,
            name,
            encryption=s3.BucketEncryption.KMS if key else s3.BucketEncryption.S3_MANAGED,
            encryption_key=key,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            enforce_ssl=True,
            server_access_logs_bucket=self.access_logs if logged else None,
            server_access_logs_prefix=f"{name}/" if logged else None,
            versioned=versioned,
            removal_policy=RemovalPolicy.RETAIN,
            lifecycle_rules=lifecycle_rules,
        )

    def _source_bucket(self, name: str) -> s3.Bucket:
        """What people upload to: old versions are kept for a year, each change is an event."""
        bucket = self._bucket(name, [OLD_VERSIONS], versioned=True)
        # The CDK's own switch deploys a custom resource; CloudFormation has a plain property.
        resource = bucket.node.default_child
        assert isinstance(resource, s3.CfnBucket)  # noqa: S101
        resource.add_property_override(
            "NotificationConfiguration.EventBridgeConfiguration.EventBridgeEnabled", True
        )
        return bucket

    def _queue(
        self,
        name: str,
        visibility: Duration,
        dead_letters: sqs.Queue | None = None,
        receives: int = 0,
    ) -> sqs.Queue:
        return sqs.Queue(
            self,
            name,
            encryption=sqs.QueueEncryption.SQS_MANAGED,
            enforce_ssl=True,
            visibility_timeout=visibility,
            retention_period=Duration.days(14),
            dead_letter_queue=sqs.DeadLetterQueue(queue=dead_letters, max_receive_count=receives)
            if dead_letters
            else None,
        )

    def _event_function(
        self,
        name: str,
        description: str,
        environment: dict[str, str],
        *,
        role_name: str | None = None,
    ) -> lambda_.Function:
        """`lambdas/<name>.py` as a function; an event it fails on ends in a queue, never lost."""
        function = self._function(name, description, environment, role_name=role_name)
        function.configure_async_invoke(
            retry_attempts=2, on_failure=destinations.SqsDestination(self.failed_events)
        )
        return function

    def _function(
        self,
        name: str,
        description: str,
        environment: dict[str, str],
        *,
        memory_mb: int = 256,
        timeout_seconds: int = FUNCTION_TIMEOUT_SECONDS,
        role_name: str | None = None,
    ) -> lambda_.Function:
        """`lambdas/<name>.py` as a function, with a role and a log group of its own; the role has
        a name if others must know it."""
        physical_name = function_name(self.prefix, name)
        role = iam.Role(
            self,
            f"{camel(name)}Role",
            role_name=role_name,
            assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"),
        )
        log_group = logs.LogGroup(
            self,
            f"{camel(name)}Logs",
            log_group_name=f"/aws/lambda/{physical_name}",
            retention=logs.RetentionDays.SIX_MONTHS,
            removal_policy=RemovalPolicy.DESTROY,
        )
        log_group.grant_write(role)
        return lambda_.Function(
            self,
            camel(name),
            function_name=physical_name,
            description=description,
            runtime=RUNTIME,
            architecture=lambda_.Architecture.X86_64,
            handler=f"lambdas.{name}.handler",
            code=self.code,
            layers=[self.layer],
            role=role,
            log_group=log_group,
            memory_size=memory_mb,
            timeout=Duration.seconds(timeout_seconds),
            environment={"POWERTOOLS_SERVICE_NAME": name, **environment},
        )

    def _alarms(
        self,
        dead_letters: Iterable[sqs.Queue],
        metrics: Mapping[str, cloudwatch.IMetric],
        threshold: float = 1,
    ) -> None:
        """Alarms on every message that nobody could handle, and on metrics that should stay below
        a threshold."""
        watched: dict[str, cloudwatch.IMetric] = {
            queue.node.id: queue.metric_approximate_number_of_messages_visible(
                period=ALARM_PERIOD, statistic="Maximum"
            )
            for queue in dead_letters
        }
        for name, metric in {**watched, **metrics}.items():
            cloudwatch.Alarm(
                self,
                f"{name}Alarm",
                metric=metric,
                threshold=threshold,
                evaluation_periods=1,
                comparison_operator=(
                    cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD
                ),
                treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
            ).add_alarm_action(cloudwatch_actions.SnsAction(self.alarm_topic))

    def _outputs(self, values: Mapping[str, str]) -> None:
        for name, value in values.items():
            CfnOutput(self, name, value=value)

    # The search domain and its index

    @property
    def index_parameter(self) -> str:
        return f"/{self.settings.name}/index"

    @property
    def model_package_group(self) -> str:
        return f"{self.settings.name}-models"

    @property
    def release_pipeline(self) -> str:
        return f"{self.settings.name}-release"

    @property
    def domain_name(self) -> str:
        return f"{self.settings.name}-search"

    def _domain_arn(self) -> str | None:
        """Of the domain that requests are signed for; those to others than AWS's are not signed."""
        endpoint = self.settings.knowledge.opensearch.endpoint
        if not endpoint:
            return self._arn("es", f"domain/{self.domain_name}")
        known = DOMAIN_ENDPOINT.fullmatch(urlsplit(endpoint).hostname or "")
        if known is None:
            return None
        region = known["region"] or known["aos_region"]
        return f"arn:{self.partition}:es:{region}:{self.account}:domain/{known['domain']}"

    # Definitions

    def _resolved(self, definition: Mapping[str, Any], values: Mapping[str, str]) -> str:
        """A definition as text, its placeholders left to CloudFormation to fill with the values.

        Raises ValueError if a placeholder has no value, or a value no placeholder.
        """
        text = json.dumps(definition)
        if differing := placeholders(text) ^ set(values):
            raise ValueError(
                f"Placeholders and their values differ: {', '.join(sorted(differing))}"
            )
        return Fn.sub(text, dict(values))

    # Permissions

    def _allow(
        self,
        grantee: iam.IGrantable,
        service: str,
        actions: tuple[str, ...],
        resources: list[str],
        *,
        why: str = "",
        conditions: Mapping[str, Any] | None = None,
    ) -> None:
        """Let a role do something; why its resources have wildcards, if they have, goes on from
        the role's name to a sentence."""
        role = grantee.grant_principal
        role.add_to_principal_policy(
            iam.PolicyStatement(
                actions=[f"{service}:{action}" for action in actions],
                resources=resources,
                conditions=conditions,
            )
        )
        assert isinstance(role, iam.Role)  # noqa: S101
        for resource in resources:
            if why and "*" in resource:
                acknowledge_wildcard(role, resource, why)

    def _allow_pass(self, grantee: iam.IGrantable, role: iam.Role) -> None:
        """To start jobs of SageMaker that act as a role."""
        service = {"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}}
        self._allow(grantee, "iam", ("PassRole",), [role.role_arn], conditions=service)

    def _allow_job_logs(self, role: iam.Role) -> None:
        """What SageMaker writes of a processing job, in the name of the job's role."""
        self._allow(
            role,
            "logs",
            ("CreateLogGroup", "CreateLogStream", "PutLogEvents", "DescribeLogStreams"),
            [self._arn("logs", "log-group:/aws/sagemaker/ProcessingJobs*")],
            why="writes the logs of processing jobs, to streams that SageMaker names",
        )
        self._allow(
            role,
            "cloudwatch",
            ("PutMetricData",),
            ["*"],
            why="writes metrics and logs in to ECR to pull its image, both of which have no ARN",
            conditions={"StringEquals": {"cloudwatch:namespace": "/aws/sagemaker/ProcessingJobs"}},
        )

    def _registry_arns(self) -> list[str]:
        return [
            self._arn("sagemaker", f"model-package-group/{self.model_package_group}"),
            self._arn("sagemaker", f"model-package/{self.model_package_group}/*"),
        ]

    def _arn(self, service: str, resource: str) -> str:
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{resource}"

    def _invocation_arns(self, model_id: str, region: str | None = None) -> list[str]:
        """A model by the id that is invoked; behind an inference profile, in whichever region."""
        plain_id = find_model(model_id).id
        if model_id == plain_id:
            return [self._foundation_model_arn(plain_id, region or self.region)]
        return [
            self._foundation_model_arn(plain_id, "*"),
            self._arn("bedrock", f"inference-profile/{model_id}"),
        ]

    def _tuned_model_arns(self) -> list[str]:
        """Of whatever can serve a tuned model; which one that is, an approval decides."""
        return [
            self._arn("bedrock", f"{kind}/*")
            for kind in ("custom-model-deployment", "provisioned-model")
        ]

    def _foundation_model_arn(self, model_id: str, region: str) -> str:
        return f"arn:{self.partition}:bedrock:{region}::foundation-model/{model_id}"


def environment(place: Place) -> Environment:
    return Environment(account=place.account or None, region=place.region)


def function_name(prefix: str, name: str) -> str:
    """What the function of `lambdas/<name>.py` is called."""
    return f"{prefix}-{name.replace('_', '-')}"


def camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
