"""The promotion stack: an approval in the Model Registry names the model of each stage."""

import json
from collections.abc import Callable

from aws_cdk import Duration
from aws_cdk import aws_events as events
from aws_cdk import aws_events_targets as targets
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_lambda_event_sources as event_sources
from aws_cdk import aws_ssm as ssm
from constructs import Construct

from infrastructure.assets import Assets
from infrastructure.production_elsewhere import access, release_role, status_role
from infrastructure.stack import QuenchStack, function_name
from workflows.settings import Settings

APPROVAL_HOURS = 12
NO_MODEL = dict.fromkeys(("model_id", "base_model", "custom_model", "model_package", "approved_at"))
"""The parameters before any approval. A constant, so that no redeployment takes a model back."""


class PromotionStack(QuenchStack):
    """Approval in; parameters that name the models, and a release that brings them to the stages.

    QA is deployed with the approved model. Production's parameter is the pipeline's alone: it gets
    there what QA was tested with.
    """

    def __init__(
        self, scope: Construct, construct_id: str, *, settings: Settings, assets: Assets
    ) -> None:
        super().__init__(
            scope,
            construct_id,
            settings=settings,
            assets=assets,
            name="promotion",
            description="Quench: approved models on their way to the stages",
        )
        release = settings.release
        self.elsewhere = settings.production_elsewhere
        self.approval_dead_letters = self._queue("ApprovalDeadLetters", Duration.seconds(30))
        self.approval_queue = self._queue(
            "Approvals",
            Duration.seconds(release.approval_retry_seconds),
            self.approval_dead_letters,
            min(1000, max(5, APPROVAL_HOURS * 3600 // release.approval_retry_seconds)),
        )
        self.approved = self._parameter(
            "ModelParameter", release.parameter, "The approved model; QA is deployed with it"
        )
        self.released = self._parameter(
            "ProductionModelParameter",
            release.production_parameter,
            "The model that passed QA; production is deployed with it",
        )
        self.promote_model = self._promote_model()
        self.release_model = self._release_model()
        self.restore_model = self._restore_model()
        self._alarms([self.failed_events, self.approval_dead_letters], {})
        self._outputs(
            {
                "ModelParameterName": release.parameter,
                "ProductionModelParameterName": release.production_parameter,
                "ApprovalQueueUrl": self.approval_queue.queue_url,
                "RestoreModelFunction": self.restore_model.function_name,
            }
        )
        if self.elsewhere:
            self._outputs({"ProductionStatusRole": self._production_access(status_role)["role"]})

    def _parameter(self, name: str, parameter_name: str, description: str) -> ssm.StringParameter:
        return ssm.StringParameter(
            self,
            name,
            parameter_name=parameter_name,
            string_value=json.dumps(NO_MODEL),
            description=description,
        )

    def _promote_model(self) -> lambda_.Function:
        function = self._event_function(
            "promote_model",
            "An approved model becomes the one to release",
            {
                "MODEL_PARAMETER": self.approved.parameter_name,
                "MODEL_PACKAGE_GROUP": self.model_package_group,
                "RELEASE_PIPELINE": self.release_pipeline,
            },
        )
        self._allow(
            function,
            "sagemaker",
            ("DescribeModelPackage",),
            self._registry_arns(),
            why="reads the package that was approved, whose version the registry counts",
        )
        self._allow_model_parameter(function)
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
                    "ModelPackageGroupName": [self.model_package_group],
                    "ModelApprovalStatus": ["Approved"],
                },
            ),
            targets=[targets.SqsQueue(self.approval_queue, dead_letter_queue=self.failed_events)],
        )
        return function

    def _release_model(self) -> lambda_.Function:
        environment = {
            "MODEL_PARAMETER": self.approved.parameter_name,
            "PRODUCTION_PARAMETER": self.released.parameter_name,
        }
        if self.elsewhere:
            environment["INDEX_PARAMETER"] = self.index_parameter
            environment["PRODUCTION_ACCESS"] = json.dumps(self._production_access(release_role))
        function = self._event_function(
            "release_model",
            "The model that QA was tested with becomes production's",
            environment,
            role_name=function_name(self.prefix, "release_model") if self.elsewhere else None,
        )
        self._allow(function, "ssm", ("GetParameter",), [self.approved.parameter_arn])
        self.released.grant_read(function)
        self.released.grant_write(function)
        if self.elsewhere:
            index = self._arn("ssm", f"parameter{self.index_parameter}")
            self._allow(function, "ssm", ("GetParameter",), [index])
            role = self._production_access(release_role)["role"]
            self._allow(function, "sts", ("AssumeRole",), [role])
        self._allow(
            function,
            "codepipeline",
            ("PutJobSuccessResult", "PutJobFailureResult"),
            ["*"],
            why="reports to the pipeline's job that invoked it, and jobs have no ARN",
        )
        return function

    def _restore_model(self) -> lambda_.Function:
        production = f"{self.prefix}-prod-inference"
        environment = {
            "MODEL_PARAMETER": self.approved.parameter_name,
            "PRODUCTION_PARAMETER": self.released.parameter_name,
            "RELEASE_PIPELINE": self.release_pipeline,
            "QA_STAGE": "QA",
            "PRODUCTION_STAGE": "PROD",
            "PRODUCTION_STACK": production,
            "TOPIC_ARN": self.alarm_topic.topic_arn,
        }
        if self.elsewhere:
            environment["PRODUCTION_ACCESS"] = json.dumps(self._production_access(status_role))
        function = self._event_function(
            "restore_model",
            "A model whose release failed, or that is rolled back, gives way to the one before",
            environment,
        )
        self._allow(
            function,
            "sagemaker",
            ("DescribeModelPackage", "UpdateModelPackage"),
            self._registry_arns(),
            why="rejects the package that failed, whose version the registry counts",
        )
        self._allow_model_parameter(function)
        self._allow(
            function,
            "ssm",
            ("GetParameter", "GetParameterHistory"),
            [self.released.parameter_arn],
        )
        if self.elsewhere:
            role = self._production_access(status_role)["role"]
            self._allow(function, "sts", ("AssumeRole",), [role])
        else:
            self._allow(
                function,
                "cloudformation",
                ("DescribeStacks",),
                [self._arn("cloudformation", f"stack/{production}/*")],
                why="asks which model production has; CloudFormation ends a stack's ARN with an id",
            )
        self._allow(
            function,
            "codepipeline",
            ("ListPipelineExecutions", "ListActionExecutions"),
            [self._arn("codepipeline", self.release_pipeline)],
        )
        self.alarm_topic.grant_publish(function)
        events.Rule(
            self,
            "ReleaseFailed",
            description="A stage of the release pipeline that fails is told to restore_model",
            event_pattern=events.EventPattern(
                source=["aws.codepipeline"],
                detail_type=["CodePipeline Stage Execution State Change"],
                detail={"pipeline": [self.release_pipeline], "state": ["FAILED"]},
            ),
            targets=[targets.LambdaFunction(function, dead_letter_queue=self.failed_events)],
        )
        return function

    def _production_access(self, role: Callable[[str], str]) -> dict[str, str]:
        """How functions here reach production, if it is elsewhere, as one of its roles."""
        return access(self, self.settings.production, role(self.settings.name))

    def _allow_model_parameter(self, function: lambda_.Function) -> None:
        """To change which model is to be released, and to release it."""
        self.approved.grant_read(function)
        self.approved.grant_write(function)
        self._allow(
            function,
            "bedrock",
            ("ListProvisionedModelThroughputs", "ListCustomModelDeployments"),
            ["*"],
            why="lists what serves tuned models, which Bedrock cannot narrow",
        )
        self._allow(
            function,
            "codepipeline",
            ("StartPipelineExecution",),
            [self._arn("codepipeline", self.release_pipeline)],
        )
