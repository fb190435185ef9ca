"""The tuning stack: what the tuning loop needs in an account, from data bucket to registry."""

import json

from aws_cdk import Duration
from aws_cdk import aws_cloudwatch as cloudwatch
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_iam as iam
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_lambda_event_sources as event_sources
from aws_cdk import aws_sagemaker as sagemaker
from aws_cdk import aws_scheduler as scheduler
from aws_cdk import aws_stepfunctions as sfn
from constructs import Construct

from bedrock.models import FoundationModel, all_models, find_model
from infrastructure.acknowledged import acknowledge
from infrastructure.assets import Assets
from infrastructure.stack import ALARM_PERIOD, QuenchStack
from workflows.settings import Settings
from workflows.tuning_pipeline import TuningResources, tuning_pipeline
from workflows.tuning_state_machine import StateMachineResources, tuning_state_machine

CALLBACK_RECEIVES = 5


class TuningStack(QuenchStack):
    """Dataset in, registered model out."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        settings: Settings,
        assets: Assets,
    ) -> None:
        super().__init__(
            scope,
            construct_id,
            settings=settings,
            assets=assets,
            name="tuning",
            description="Quench: continuous fine-tuning on Amazon Bedrock",
        )
        self.pipeline_name = f"{settings.name}-tuning"
        self.state_machine_name = f"{settings.name}-tuning-job"
        self.base_models = _base_models(settings)

        self.data_bucket = self._source_bucket("DataBucket")
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
        self.group = sagemaker.CfnModelPackageGroup(
            self,
            "ModelPackageGroup",
            model_package_group_name=self.model_package_group,
            model_package_group_description="Tuned models, each waiting for or after approval",
        )
        self.pipeline_role = self._pipeline_role()
        self.pipeline = self._pipeline()
        self.tuning_job = self._tuning_job()
        self.state_machine = self._state_machine()
        self.start_tuning = self._start_tuning()
        self.tuning_callback = self._tuning_callback()
        self.unanswered_callback = self._unanswered_callback()
        if settings.tuning.schedule:
            self._schedule(settings.tuning.schedule)
        self._alarms(
            [self.failed_events, self.callback_dead_letters],
            {
                "TuningJobFailed": self.state_machine.metric_failed(period=ALARM_PERIOD),
                "TuningPipelineFailed": cloudwatch.Metric(
                    namespace="AWS/Sagemaker/ModelBuildingPipeline",
                    metric_name="ExecutionFailed",
                    dimensions_map={"PipelineName": self.pipeline_name},
                    period=ALARM_PERIOD,
                    statistic="Sum",
                ),
            },
        )
        self._outputs(
            {
                "DataBucketName": self.data_bucket.bucket_name,
                "PipelineName": self.pipeline_name,
                "ModelPackageGroupName": self.model_package_group,
                "StateMachineArn": self.state_machine.state_machine_arn,
                "CallbackQueueUrl": self.callback_queue.queue_url,
            }
        )

    # The pipeline and the state machine

    def _pipeline_role(self) -> iam.Role:
        """Of pipeline executions, their processing jobs and the registered packages."""
        role = iam.Role(
            self, "PipelineRole", assumed_by=iam.ServicePrincipal("sagemaker.amazonaws.com")
        )
        data = self.data_bucket
        self._allow(role, "s3", ("ListBucket",), [data.bucket_arn])
        self._allow(
            role,
            "s3",
            ("GetObject", "GetObjectVersion"),
            [data.arn_for_objects("*")],
            why="reads the dataset that its execution names, wherever that lies in the bucket",
        )
        self._allow(
            role,
            "s3",
            ("PutObject",),
            [data.arn_for_objects("runs/*")],
            why="writes to a folder that is named after the execution",
        )
        self.callback_queue.grant_send_messages(role)
        self.image.repository.grant_pull(role)
        self._allow(
            role,
            "sagemaker",
            ("CreateProcessingJob", "DescribeProcessingJob", "StopProcessingJob", "AddTags"),
            [self._arn("sagemaker", "processing-job/*")],
            why="starts processing jobs, which SageMaker names after their execution",
        )
        self._allow(
            role,
            "sagemaker",
            ("CreateModelPackage", "DescribeModelPackage", "DescribeModelPackageGroup", "AddTags"),
            self._registry_arns(),
            why="registers model packages, whose versions the registry counts",
        )
        self._allow_pass(role, role)
        self._allow_job_logs(role)
        embedding = find_model(self.settings.evaluation.embedding_model)
        self._allow(
            role,
            "bedrock",
            ("InvokeModel",),
            [
                *(
                    arn
                    for model in self.base_models
                    for arn in self._invocation_arns(model.invoke_id)
                ),
                *self._invocation_arns(embedding.invoke_id),
            ],
            why="asks a base model in whichever region its inference profile chooses",
        )
        self._allow(
            role,
            "bedrock",
            ("InvokeModel",),
            self._tuned_model_arns(),
            why="asks the model that its execution has tuned, which gets its id then",
        )
        return role

    def _pipeline(self) -> sagemaker.CfnPipeline:
        definition = self._resolved(
            tuning_pipeline(self.settings, TuningResources(), self.assets.code_version),
            {
                "DataBucket": self.data_bucket.bucket_name,
                "CallbackQueueUrl": self.callback_queue.queue_url,
                "ProcessingImage": self.image.image_uri,
                "PipelineRole": self.pipeline_role.role_name,
                "ModelPackageGroup": self.model_package_group,
            },
        )
        pipeline = sagemaker.CfnPipeline(
            self,
            "Pipeline",
            pipeline_name=self.pipeline_name,
            pipeline_definition={"PipelineDefinitionBody": definition},
            role_arn=self.pipeline_role.role_arn,
        )
        pipeline.node.add_dependency(self.group)
        return pipeline

    def _state_machine(self) -> sfn.StateMachine:
        definition = tuning_state_machine(self.settings, StateMachineResources())
        role = iam.Role(
            self, "StateMachineRole", assumed_by=iam.ServicePrincipal("states.amazonaws.com")
        )
        self._allow(role, "lambda", ("InvokeFunction",), [self.tuning_job.function_arn])
        machine = sfn.StateMachine(
            self,
            "TuningStateMachine",
            state_machine_name=self.state_machine_name,
            definition_body=sfn.DefinitionBody.from_string(
                self._resolved(definition, {"TuningJobFunction": self.tuning_job.function_arn})
            ),
            role=role,
        )
        acknowledge(
            machine,
            "SF1",
            "keeps each execution's history for 90 days itself; to deliver it to a log, its role "
            "would have to manage every log delivery of the account",
        )
        acknowledge(
            machine,
            "SF2",
            "waits for hours and has a single function: its history shows all that a trace would",
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

    def _start_tuning(self) -> lambda_.Function:
        prefix = self.settings.dataset.prefix
        function = self._event_function(
            "start_tuning",
            "An uploaded dataset, or the schedule, starts the tuning pipeline",
            {
                "PIPELINE_NAME": self.pipeline_name,
                "DATA_BUCKET": self.data_bucket.bucket_name,
                "DATASET_PREFIX": prefix,
            },
        )
        self._allow(function, "s3", ("ListBucket",), [self.data_bucket.bucket_arn])
        self._allow(
            function,
            "s3",
            ("GetObject",),
            [self.data_bucket.arn_for_objects(f"{prefix}*")],
            why="looks at whatever is uploaded as a dataset",
        )
        self._allow(
            function,
            "sagemaker",
            ("StartPipelineExecution", "ListPipelineExecutions", "DescribePipelineExecution"),
            self._pipeline_arns(),
            why="starts executions of the tuning pipeline and looks at earlier ones",
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
        function = self._event_function(
            "tuning_callback",
            "The pipeline's FineTune step starts, or stops, the state machine",
            {
                "STATE_MACHINE_ARN": self.state_machine.state_machine_arn,
                "MAX_RECEIVE_COUNT": str(CALLBACK_RECEIVES),
                "NAME_PREFIX": self.prefix,
            },
        )
        self.state_machine.grant_start_execution(function)
        self._allow(
            function,
            "states",
            ("DescribeExecution",),
            [self._arn("states", f"execution:{self.state_machine_name}:*")],
            why="looks at the execution of the state machine that a message is about",
        )
        self._allow_callbacks(function)
        self._allow(
            function,
            "bedrock",
            ("GetModelCustomizationJob", "StopModelCustomizationJob"),
            self._customization_arns(),
            why="stops a customization job, whose ARN ends with an id of Bedrock's",
        )
        function.add_event_source(
            event_sources.SqsEventSource(
                self.callback_queue, batch_size=10, report_batch_item_failures=True
            )
        )
        return function

    def _unanswered_callback(self) -> lambda_.Function:
        function = self._event_function(
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
        function = self._event_function(
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
                    self._foundation_model_arn(model_id, self.region)
                    for model in self.base_models
                    for model_id in (model.id, find_model(model.invoke_id).id)
                ),
                *self._customization_arns(),
            ],
            why="starts customization jobs, whose ARNs end with an id of Bedrock's",
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
            why="watches jobs and deploys their models, whose ARNs end with an id of Bedrock's",
        )
        self._allow_callbacks(function)
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
        data = self.data_bucket
        self._allow(role, "s3", ("ListBucket",), [data.bucket_arn])
        self._allow(
            role,
            "s3",
            ("GetObject",),
            [data.arn_for_objects(f"runs/*/{split}/*") for split in ("train", "validation")],
            why="reads the splits of any execution, but not its test records",
        )
        self._allow(
            role,
            "s3",
            ("GetObject", "PutObject"),
            [data.arn_for_objects("runs/*/training/*")],
            why="writes what any execution's training yields, and nothing beside it",
        )
        return role

    def _schedule(self, expression: str) -> None:
        role = iam.Role(
            self, "ScheduleRole", assumed_by=iam.ServicePrincipal("scheduler.amazonaws.com")
        )
        self._allow(role, "lambda", ("InvokeFunction",), [self.start_tuning.function_arn])
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

    # Permissions

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
            why="answers the executions of the tuning pipeline that wait for it",
        )

    def _pipeline_arns(self) -> list[str]:
        pipeline = self._arn("sagemaker", f"pipeline/{self.pipeline_name}")
        return [pipeline, f"{pipeline}/execution/*"]

    def _customization_arns(self) -> list[str]:
        return [
            self._arn("bedrock", f"{kind}/*")
            for kind in ("model-customization-job", "custom-model", "custom-model-deployment")
        ]


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
