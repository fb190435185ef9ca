"""The tuning stack: what the tuning loop needs in an account, from data bucket to alarms."""

import json
from pathlib import Path

from aws_cdk import (
    CfnOutput,
    Duration,
    Environment,
    Fn,
    RemovalPolicy,
    Stack,
)
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_cloudwatch_actions as cloudwatch_actions
from aws_cdk import aws_ecr_assets as ecr_assets
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_lambda_destinations as destinations
from aws_cdk import aws_lambda_event_sources as event_sources
from aws_cdk import aws_logs as logs
from aws_cdk import aws_s3 as s3
from aws_cdk import aws_sagemaker as sagemaker
from aws_cdk import aws_scheduler as scheduler
from aws_cdk import aws_sns as sns
from aws_cdk import aws_sns_subscriptions as subscriptions
from aws_cdk import aws_sqs as sqs
from aws_cdk import aws_ssm as ssm
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from bedrock.models import FoundationModel, all_models, find_model
from infrastructure.assets import function_layer, stage_rooms
from workflows.settings import Settings
from workflows.tuning_pipeline import TuningResources, placeholders, tuning_pipeline
from workflows.tuning_state_machine import StateMachineResources, tuning_state_machine

CALLBACK_RECEIVES = 5
APPROVAL_HOURS = 12
NO_MODEL = dict.fromkeys(("model_id", "base_model", "custom_model", "model_package", "approved_at"))
"""The parameter before any approval. A constant, so that no redeployment takes a model back."""


class TuningStack(Stack):
    """Dataset in, approved model out."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        settings: Settings,
        cache: Path,
        staging: Path,
        code_version: str,
        stack_name: str,
        description: str,
    ) -> None:
        super().__init__(
            scope,
            construct_id,
            # The base model is tuned only in some regions: a stack elsewhere would never work.
            env=Environment(region=settings.region),
            stack_name=stack_name,
            description=description,
        )
        self.settings = settings
        self.prefix = settings.name
        self.pipeline_name = f"{settings.name}-tuning"
        self.group_name = f"{settings.name}-models"
        self.base_models = _base_models(settings)

        self.data_bucket = self._data_bucket()
        self.failed_events = self._queue("FailedEvents", visibility=Duration.seconds(30))
        self.callback_dead_letters = self._queue("CallbackDeadLetters", Duration.seconds(30))
        self.unanswered_callbacks = self._queue(
            "UnansweredCallbacks",
            Duration.minutes(6),
            self.callback_dead_letters,
            2 * CALLBACK_RECEIVES,  # a message may bring its count along from the queue before
        )
        self.callback_queue = self._queue(
            "Callbacks", Duration.minutes(6), self.unanswered_callbacks, CALLBACK_RECEIVES
        )
        self.approval_dead_letters = self._queue("ApprovalDeadLetters", Duration.seconds(30))
        retry_seconds = settings.release.approval_retry_seconds
        self.approval_queue = self._queue(
            "Approvals",
            Duration.seconds(retry_seconds),
            self.approval_dead_letters,
            min(1000, max(5, APPROVAL_HOURS * 3600 // retry_seconds)),
        )
        self.group = sagemaker.CfnModelPackageGroup(
            self,
            "ModelPackageGroup",
            model_package_group_name=self.group_name,
            model_package_group_description="Tuned models, each waiting for or after approval",
        )
        self.parameter = ssm.StringParameter(
            self,
            "ModelParameter",
            parameter_name=settings.release.parameter,
            string_value=json.dumps(NO_MODEL),
            description="The model in use; written by promote_model after an approval",
        )

        self.code = lambda_.Code.from_asset(
            str(stage_rooms(("lambdas", "bedrock"), staging / "functions"))
        )
        self.layer = lambda_.LayerVersion(
            self,
            "FunctionLayer",
            code=lambda_.Code.from_asset(str(function_layer(cache))),
            compatible_runtimes=[lambda_.Runtime.PYTHON_3_13],
            compatible_architectures=[lambda_.Architecture.X86_64],
            description="What lambdas/requirements.txt names",
        )
        self.image = ecr_assets.DockerImageAsset(
            self,
            "ProcessingImage",
            directory=str(
                stage_rooms(
                    ("bedrock", "evaluation", "processing"),
                    staging / "processing-image",
                    extra=("processing/Dockerfile",),
                )
            ),
            platform=ecr_assets.Platform.LINUX_AMD64,
        )

        self.pipeline_role = self._pipeline_role()
        self.pipeline = self._pipeline(code_version)
        self.tuning_job = self._tuning_job()
        self.state_machine = self._state_machine()
        self.start_tuning = self._start_tuning()
        self.tuning_callback = self._tuning_callback()
        self.unanswered_callback = self._unanswered_callback()
        self.promote_model = self._promote_model()
        if settings.tuning.schedule:
            self._schedule(settings.tuning.schedule)
        self._alarms()
        for name, value in {
            "DataBucketName": self.data_bucket.bucket_name,
            "PipelineName": self.pipeline_name,
            "ModelPackageGroupName": self.group_name,
            "ModelParameterName": settings.release.parameter,
            "StateMachineArn": self.state_machine.state_machine_arn,
            "CallbackQueueUrl": self.callback_queue.queue_url,
            "ApprovalQueueUrl": self.approval_queue.queue_url,
        }.items():
            CfnOutput(self, name, value=value)

    # Storage and queues

    def _data_bucket(self) -> s3.Bucket:
        bucket = s3.Bucket(
            self,
            "DataBucket",
            encryption=s3.BucketEncryption.S3_MANAGED,
            block_public_access=s3.BlockPublicAccess.BLOCK_ALL,
            object_ownership=s3.ObjectOwnership.BUCKET_OWNER_ENFORCED,
            enforce_ssl=True,
            versioned=True,
            removal_policy=RemovalPolicy.RETAIN,
            lifecycle_rules=[
                s3.LifecycleRule(
                    noncurrent_version_expiration=Duration.days(365),
                    abort_incomplete_multipart_upload_after=Duration.days(7),
                )
            ],
        )
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

    # The pipeline and the state machine

    def _pipeline_role(self) -> iam.Role:
        """Of pipeline executions, their processing jobs and the registered packages."""
        role = iam.Role(
            self, "PipelineRole", assumed_by=iam.ServicePrincipal("sagemaker.amazonaws.com")
        )
        self.data_bucket.grant_read_write(role)
        self.callback_queue.grant_send_messages(role)
        self.image.repository.grant_pull(role)
        self._allow(
            role,
            "sagemaker",
            ("CreateProcessingJob", "DescribeProcessingJob", "StopProcessingJob", "AddTags"),
            [self._arn("sagemaker", "processing-job/*")],
        )
        self._allow(
            role,
            "sagemaker",
            ("CreateModelPackage", "DescribeModelPackage", "DescribeModelPackageGroup", "AddTags"),
            self._registry_arns(),
        )
        role.add_to_policy(
            iam.PolicyStatement(
                actions=["iam:PassRole"],
                resources=[role.role_arn],
                conditions={"StringEquals": {"iam:PassedToService": "sagemaker.amazonaws.com"}},
            )
        )
        self._allow(
            role,
            "logs",
            ("CreateLogGroup", "CreateLogStream", "PutLogEvents", "DescribeLogStreams"),
            [self._arn("logs", "log-group:/aws/sagemaker/ProcessingJobs*")],
        )
        role.add_to_policy(
            iam.PolicyStatement(
                actions=["cloudwatch:PutMetricData"],
                resources=["*"],  # metrics have no ARN
                conditions={
                    "StringEquals": {"cloudwatch:namespace": "/aws/sagemaker/ProcessingJobs"}
                },
            )
        )
        embedding = find_model(self.settings.evaluation.embedding_model)
        self._allow(
            role,
            "bedrock",
            ("InvokeModel",),
            [
                *(arn for model in self.base_models for arn in self._invocation_arns(model)),
                *self._invocation_arns(embedding),
                self._arn("bedrock", "custom-model-deployment/*"),
                self._arn("bedrock", "provisioned-model/*"),
            ],
        )
        return role

    def _pipeline(self, code_version: str) -> sagemaker.CfnPipeline:
        definition = json.dumps(tuning_pipeline(self.settings, TuningResources(), code_version))
        values = {
            "DataBucket": self.data_bucket.bucket_name,
            "CallbackQueueUrl": self.callback_queue.queue_url,
            "ProcessingImage": self.image.image_uri,
            "PipelineRole": self.pipeline_role.role_name,
            "ModelPackageGroup": self.group_name,
        }
        missing = placeholders(definition) ^ set(values)
        if missing:
            raise ValueError(f"Placeholders of the pipeline and their values differ: {missing}")
        pipeline = sagemaker.CfnPipeline(
            self,
            "Pipeline",
            pipeline_name=self.pipeline_name,
            pipeline_definition={"PipelineDefinitionBody": Fn.sub(definition, values)},
            role_arn=self.pipeline_role.role_arn,
        )
        pipeline.node.add_dependency(self.group)
        return pipeline

    def _state_machine(self) -> sfn.StateMachine:
        definition = tuning_state_machine(self.settings, StateMachineResources())
        role = iam.Role(
            self, "StateMachineRole", assumed_by=iam.ServicePrincipal("states.amazonaws.com")
        )
        self.tuning_job.grant_invoke(role)
        machine = sfn.StateMachine(
            self,
            "TuningStateMachine",
            state_machine_name=f"{self.prefix}-tuning-job",
            definition_body=sfn.DefinitionBody.from_string(
                Fn.sub(json.dumps(definition), {"TuningJobFunction": self.tuning_job.function_arn})
            ),
            role=role,
        )
        # An execution that ends without its own report (aborted, say) is reported all the same.
        events.Rule(
            self,
            "TuningJobEnded",
            description="Tells the pipeline of a state machine that could not tell it itself",
            event_pattern=events.EventPattern(
                source=["aws.states"],
                detail_type=["Step Functions Execution Status Change"],
                detail={
                    "stateMachineArn": [machine.state_machine_arn],
                    "status": ["FAILED", "TIMED_OUT", "ABORTED"],
                },
            ),
            targets=[targets.LambdaFunction(self.tuning_job, dead_letter_queue=self.failed_events)],
        )
        return machine

    # Functions

    def _function(
        self, name: str, description: str, environment: dict[str, str]
    ) -> lambda_.Function:
        """`lambdas/<name>.py` as a function; an event it fails on ends in a queue, never lost."""
        function_name = f"{self.prefix}-{name.replace('_', '-')}"
        role = iam.Role(
            self,
            f"{_camel(name)}Role",
            assumed_by=iam.ServicePrincipal("lambda.amazonaws.com"),
        )
        log_group = logs.LogGroup(
            self,
            f"{_camel(name)}Logs",
            log_group_name=f"/aws/lambda/{function_name}",
            retention=logs.RetentionDays.SIX_MONTHS,
            removal_policy=RemovalPolicy.DESTROY,
        )
        log_group.grant_write(role)
        return lambda_.Function(
            self,
            _camel(name),
            function_name=function_name,
            description=description,
            runtime=lambda_.Runtime.PYTHON_3_13,
            architecture=lambda_.Architecture.X86_64,
            handler=f"lambdas.{name}.handler",
            code=self.code,
            layers=[self.layer],
            role=role,
            log_group=log_group,
            memory_size=256,
            timeout=Duration.seconds(60),
            environment={"POWERTOOLS_SERVICE_NAME": name, **environment},
            retry_attempts=2,
            on_failure=destinations.SqsDestination(self.failed_events),
        )

    def _start_tuning(self) -> lambda_.Function:
        prefix = self.settings.dataset.prefix
        function = self._function(
            "start_tuning",
            "An uploaded dataset, or the schedule, starts the tuning pipeline",
            {
                "PIPELINE_NAME": self.pipeline_name,
                "DATA_BUCKET": self.data_bucket.bucket_name,
                "DATASET_PREFIX": prefix,
            },
        )
        self.data_bucket.grant_read(function, f"{prefix}*")
        self._allow(
            function,
            "sagemaker",
            ("StartPipelineExecution", "ListPipelineExecutions", "DescribePipelineExecution"),
            self._pipeline_arns(),
        )
        events.Rule(
            self,
            "DatasetUploaded",
            description="Starts a tuning run for what is uploaded as a dataset",
            event_pattern=events.EventPattern(
                source=["aws.s3"],
                detail_type=["Object Created"],
                detail={
                    "bucket": {"name": [self.data_bucket.bucket_name]},
                    "object": {"key": [{"prefix": prefix}]},
                },
            ),
            targets=[targets.LambdaFunction(function, dead_letter_queue=self.failed_events)],
        )
        return function

    def _tuning_callback(self) -> lambda_.Function:
        function = self._function(
            "tuning_callback",
            "The pipeline's FineTune step starts, or stops, the state machine",
            {
                "STATE_MACHINE_ARN": self.state_machine.state_machine_arn,
                "MAX_RECEIVE_COUNT": str(CALLBACK_RECEIVES),
                "NAME_PREFIX": self.prefix,
            },
        )
        self.state_machine.grant_start_execution(function)
        self.state_machine.grant_execution(function, "states:DescribeExecution")
        self._allow_callbacks(function)
        self._allow(
            function,
            "bedrock",
            ("GetModelCustomizationJob", "StopModelCustomizationJob"),
            self._customization_arns(),
        )
        function.add_event_source(
            event_sources.SqsEventSource(
                self.callback_queue, batch_size=10, report_batch_item_failures=True
            )
        )
        return function

    def _unanswered_callback(self) -> lambda_.Function:
        function = self._function(
            "unanswered_callback",
            "Fails the FineTune steps whose messages tuning_callback never handled",
            {},
        )
        self._allow_callbacks(function)
        function.add_event_source(
            event_sources.SqsEventSource(
                self.unanswered_callbacks, batch_size=10, report_batch_item_failures=True
            )
        )
        return function

    def _tuning_job(self) -> lambda_.Function:
        bedrock_role = self._bedrock_role()
        function = self._function(
            "tuning_job",
            "The tasks of the state machine: start, check, deploy, report",
            {
                "BEDROCK_ROLE_ARN": bedrock_role.role_arn,
                "TIMEOUT_SECONDS": str(int(self.settings.tuning.timeout_hours * 3600)),
                "NAME_PREFIX": self.prefix,
            },
        )
        bedrock_role.grant_pass_role(function.grant_principal)
        self._allow(
            function,
            "bedrock",
            ("CreateModelCustomizationJob", "TagResource"),
            [
                *(
                    self._foundation_model_arn(model_id)
                    for model in self.base_models
                    for model_id in (model.id, find_model(model.invoke_id).id)
                ),
                *self._customization_arns(),
            ],
        )
        self._allow(
            function,
            "bedrock",
            (
                "GetModelCustomizationJob",
                "StopModelCustomizationJob",
                "CreateCustomModelDeployment",
                "GetCustomModelDeployment",
            ),
            self._customization_arns(),
        )
        self._allow_callbacks(function)
        return function

    def _promote_model(self) -> lambda_.Function:
        release = self.settings.release
        function = self._function(
            "promote_model",
            "An approved model becomes the one in use",
            {
                "MODEL_PARAMETER": release.parameter,
                "MODEL_PACKAGE_GROUP": self.group_name,
                **({"RELEASE_PIPELINE": release.pipeline} if release.pipeline else {}),
            },
        )
        self.parameter.grant_read(function)
        self.parameter.grant_write(function)
        self._allow(function, "sagemaker", ("DescribeModelPackage",), self._registry_arns())
        # These two list; Bedrock knows no narrower resource for listing.
        self._allow(
            function,
            "bedrock",
            ("ListProvisionedModelThroughputs", "ListCustomModelDeployments"),
            ["*"],
        )
        if release.pipeline:
            self._allow(
                function,
                "codepipeline",
                ("StartPipelineExecution",),
                [self._arn("codepipeline", release.pipeline)],
            )
        function.add_event_source(
            event_sources.SqsEventSource(
                self.approval_queue, batch_size=10, report_batch_item_failures=True
            )
        )
        events.Rule(
            self,
            "ModelApproved",
            description="An approval in the Model Registry goes to promote_model",
            event_pattern=events.EventPattern(
                source=["aws.sagemaker"],
                detail_type=["SageMaker Model Package State Change"],
                detail={
                    "ModelPackageGroupName": [self.group_name],
                    "ModelApprovalStatus": ["Approved"],
                },
            ),
            targets=[targets.SqsQueue(self.approval_queue, dead_letter_queue=self.failed_events)],
        )
        return function

    def _bedrock_role(self) -> iam.Role:
        """What a customization job may do: read the splits, write what it learnt from them."""
        role = iam.Role(
            self,
            "BedrockRole",
            assumed_by=iam.ServicePrincipal(
                "bedrock.amazonaws.com",
                conditions={
                    "StringEquals": {"aws:SourceAccount": self.account},
                    "ArnLike": {"aws:SourceArn": self._arn("bedrock", "model-customization-job/*")},
                },
            ),
        )
        for split in ("train", "validation"):
            self.data_bucket.grant_read(role, f"runs/*/{split}/*")
        self.data_bucket.grant_read_write(role, "runs/*/training/*")
        return role

    def _schedule(self, expression: str) -> None:
        role = iam.Role(
            self, "ScheduleRole", assumed_by=iam.ServicePrincipal("scheduler.amazonaws.com")
        )
        self.start_tuning.grant_invoke(role)
        scheduler.CfnSchedule(
            self,
            "Retraining",
            description="Starts a tuning run when the data has changed since the last one",
            schedule_expression=expression,
            flexible_time_window={"mode": "OFF"},
            target={
                "arn": self.start_tuning.function_arn,
                "roleArn": role.role_arn,
                "input": json.dumps(
                    {"source": "quench.schedule", "time": "<aws.scheduler.scheduled-time>"}
                ),
            },
        )

    # Watching

    def _alarms(self) -> None:
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
        every = Duration.minutes(5)
        watched = {
            queue.node.id: queue.metric_approximate_number_of_messages_visible(
                period=every, statistic="Maximum"
            )
            for queue in (
                self.failed_events,
                self.callback_dead_letters,
                self.approval_dead_letters,
            )
        }
        watched["TuningJobFailed"] = self.state_machine.metric_failed(period=every)
        watched["TuningPipelineFailed"] = cloudwatch.Metric(
            namespace="AWS/Sagemaker/ModelBuildingPipeline",
            metric_name="ExecutionFailed",
            dimensions_map={"PipelineName": self.pipeline_name},
            period=every,
            statistic="Sum",
        )
        for name, metric in watched.items():
            cloudwatch.Alarm(
                self,
                f"{name}Alarm",
                metric=metric,
                threshold=1,
                evaluation_periods=1,
                comparison_operator=(
                    cloudwatch.ComparisonOperator.GREATER_THAN_OR_EQUAL_TO_THRESHOLD
                ),
                treat_missing_data=cloudwatch.TreatMissingData.NOT_BREACHING,
            ).add_alarm_action(cloudwatch_actions.SnsAction(topic))

    # Permissions

    def _allow(
        self,
        grantee: iam.IGrantable,
        service: str,
        actions: tuple[str, ...],
        resources: list[str],
    ) -> None:
        grantee.grant_principal.add_to_principal_policy(
            iam.PolicyStatement(
                actions=[f"{service}:{action}" for action in actions], resources=resources
            )
        )

    def _allow_callbacks(self, function: lambda_.Function) -> None:
        self._allow(
            function,
            "sagemaker",
            (
                "SendPipelineExecutionStepSuccess",
                "SendPipelineExecutionStepFailure",
                "DescribePipelineExecution",
                "ListPipelineExecutionSteps",
            ),
            self._pipeline_arns(),
        )

    def _arn(self, service: str, resource: str) -> str:
        return f"arn:{self.partition}:{service}:{self.region}:{self.account}:{resource}"

    def _pipeline_arns(self) -> list[str]:
        pipeline = self._arn("sagemaker", f"pipeline/{self.pipeline_name}")
        return [pipeline, f"{pipeline}/execution/*"]

    def _registry_arns(self) -> list[str]:
        return [
            self._arn("sagemaker", f"model-package-group/{self.group_name}"),
            self._arn("sagemaker", f"model-package/{self.group_name}/*"),
        ]

    def _customization_arns(self) -> list[str]:
        return [
            self._arn("bedrock", f"{kind}/*")
            for kind in ("model-customization-job", "custom-model", "custom-model-deployment")
        ]

    def _invocation_arns(self, model: FoundationModel) -> list[str]:
        """A model, and where it is invoked by one, its inference profile."""
        plain_id = find_model(model.invoke_id).id
        arns = [self._foundation_model_arn(plain_id)]
        if model.invoke_id != plain_id:
            arns.append(self._arn("bedrock", f"inference-profile/{model.invoke_id}"))
        return arns

    def _foundation_model_arn(self, model_id: str) -> str:
        return f"arn:{self.partition}:bedrock:*::foundation-model/{model_id}"


def _base_models(settings: Settings) -> list[FoundationModel]:
    """What the pipeline's parameter BaseModel can name: models that take the same parameters."""
    hyperparameters = settings.tuning.rules.hyperparameters.keys()
    return [
        model
        for model in all_models()
        if model.tuning
        and settings.region in model.tuning.regions
        and model.tuning.hyperparameters.keys() == hyperparameters
    ]


def _camel(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))
