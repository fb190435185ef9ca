"""The release stack: a pipeline that builds, tests, updates itself, and deploys stage after stage.

It deploys every other stack. A commit starts it, and an approved model does (`promote_model`).
"""

from typing import cast

import jsii
from aws_cdk import CfnOutput, Duration, Stage, pipelines
from aws_cdk import aws_codebuild as codebuild
from aws_cdk import aws_codecommit as codecommit
from aws_cdk import aws_codepipeline as codepipeline
from aws_cdk import aws_codepipeline_actions as actions
from aws_cdk import aws_iam as iam
from aws_cdk import aws_kms as kms
from aws_cdk import aws_lambda as lambda_
from aws_cdk import aws_s3 as s3
from constructs import Construct

from infrastructure.acknowledged import acknowledge, acknowledge_wildcard
from infrastructure.assets import Assets
from infrastructure.inference_stack import STAGE as API_STAGE
from infrastructure.inference_stack import InferenceStack
from infrastructure.knowledge_stack import KnowledgeStack
from infrastructure.production_elsewhere import AccessStack, ProductionStack
from infrastructure.promotion_stack import PromotionStack
from infrastructure.stack import QuenchStack, environment, function_name
from infrastructure.tuning_stack import TuningStack
from workflows.settings import Settings

ARTIFACTS_KEPT = Duration.days(30)
PYTHON = "3.13"
INSTALL = "pip install --quiet --constraint constraints.txt"
CACHE = ".quench/cache/**/*"
"""Where synthesis keeps the functions' layer: a build finds what the one before has made."""


class DataStage(Stage):
    """What all stages share: tuning, knowledge, and the promotion of models.

    For production elsewhere also what it and the functions here need of each other.
    """

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        settings: Settings,
        assets: Assets,
    ) -> None:
        super().__init__(scope, construct_id, env=environment(settings.home))
        TuningStack(self, "Tuning", settings=settings, assets=assets)
        KnowledgeStack(self, "Knowledge", settings=settings, assets=assets)
        PromotionStack(self, "Promotion", settings=settings, assets=assets)
        self.access: AccessStack | None = None
        if settings.production_elsewhere:
            self.access = AccessStack(self, "Access", settings=settings, assets=assets)
            ProductionStack(self, "Production", settings=settings, assets=assets)


class InferenceStage(Stage):
    """The APIs, with the model that a parameter names; wherever the stage is."""

    def __init__(
        self,
        scope: Construct,
        construct_id: str,
        *,
        settings: Settings,
        assets: Assets,
        model_parameter: str,
        access: AccessStack | None = None,
    ) -> None:
        place = settings.production if access else settings.home
        super().__init__(scope, construct_id, env=environment(place))
        self.inference = InferenceStack(
            self,
            "Inference",
            settings=settings,
            assets=assets,
            stage=construct_id.lower(),
            model_parameter=model_parameter,
            access=access,
        )


@jsii.implements(pipelines.ICodePipelineActionFactory)
class ReleaseModel(pipelines.Step):
    """The pipeline tells `release_model` the model that a stage was deployed with.

    An action's variables are those of one execution: whatever is approved or deployed meanwhile,
    production gets what this execution has tested.
    """

    def __init__(self, step_id: str, function: lambda_.IFunction, served_model: CfnOutput) -> None:
        super().__init__(step_id)
        self._function = function
        self._served_model = pipelines.StackOutputReference.from_cfn_output(served_model)

    @property
    def consumed_stack_outputs(self) -> list[pipelines.StackOutputReference]:
        return [self._served_model]

    def produce_action(
        self, stage: codepipeline.IStage, options: pipelines.ProduceActionOptions
    ) -> pipelines.CodePipelineActionFactoryResult:
        stage.add_action(
            actions.LambdaInvokeAction(
                action_name=options.action_name,
                run_order=options.run_order,
                lambda_=self._function,
                user_parameters_string=options.stack_outputs_map.to_code_pipeline(
                    self._served_model
                ),
            )
        )
        return pipelines.CodePipelineActionFactoryResult(run_orders_consumed=1)


class ReleaseStack(QuenchStack):
    """Source → Build → UpdatePipeline → Assets → DATA → QA and its tests → PROD."""

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
            name="release",
            description="Quench: releases of code and models, through QA to production",
        )
        release = settings.release
        data = DataStage(self, "DATA", settings=settings, assets=assets)
        qa = InferenceStage(
            self, "QA", settings=settings, assets=assets, model_parameter=release.parameter
        )
        prod = InferenceStage(
            self,
            "PROD",
            settings=settings,
            assets=assets,
            model_parameter=release.production_parameter,
            access=data.access,
        )

        source = self._source()
        # Another account cannot read what S3's own key encrypts.
        another_account = settings.production.account != settings.home.account
        key = kms.Key(self, "ArtifactsKey", enable_key_rotation=True) if another_account else None
        artifacts = self._bucket(
            "Artifacts", [s3.LifecycleRule(expiration=ARTIFACTS_KEPT)], key=key
        )
        pipeline = pipelines.CodePipeline(
            self,
            "Pipeline",
            pipeline_name=self.release_pipeline,
            pipeline_type=codepipeline.PipelineType.V2,
            artifact_bucket=artifacts,
            cross_account_keys=another_account,
            enable_key_rotation=another_account or None,
            synth=self._synth(source),
            use_change_sets=False,  # nobody looks at them
            publish_assets_in_parallel=False,
        )
        system_tests = self._system_tests(pipeline, source, qa.inference)
        pipeline.add_stage(data)
        pipeline.add_stage(qa, post=[system_tests])
        pipeline.add_stage(prod, pre=self._before_production(qa.inference))
        pipeline.build_pipeline()
        self._acknowledge_its_own(pipeline, artifacts, system_tests)
        self._outputs({"ReleasePipelineName": self.release_pipeline})

    def _source(self) -> pipelines.CodePipelineSource:
        release = self.settings.release
        if release.connection:
            return pipelines.CodePipelineSource.connection(
                release.repository, release.branch, connection_arn=release.connection
            )
        repository = codecommit.Repository.from_repository_name(
            self, "Repository", release.repository
        )
        return pipelines.CodePipelineSource.code_commit(repository, release.branch)

    def _synth(self, source: pipelines.CodePipelineSource) -> pipelines.CodeBuildStep:
        return pipelines.CodeBuildStep(
            "Synth",
            input=source,
            install_commands=[f"{INSTALL} --editable '.[release]'"],
            commands=["sh tests/fast.sh", "python -m infrastructure.app"],
            primary_output_directory="cdk.out",
            build_environment=_build_environment(codebuild.ComputeType.MEDIUM),
            cache=codebuild.Cache.local(codebuild.LocalCacheMode.CUSTOM),
            partial_build_spec=_build_spec({"cache": {"paths": [CACHE]}}),
            timeout=Duration.minutes(30),
        )

    def _system_tests(
        self,
        pipeline: pipelines.CodePipeline,
        source: pipelines.CodePipelineSource,
        qa: InferenceStack,
    ) -> pipelines.CodeBuildStep:
        """Asks the stage as its users do, signed with the role of this step."""
        outputs = {"API_URL": qa.url}
        role = iam.Role(
            pipeline, "SystemTestsRole", assumed_by=iam.ServicePrincipal("codebuild.amazonaws.com")
        )
        self._allow(
            role,
            "execute-api",
            ("Invoke",),
            [self._arn("execute-api", f"*/{API_STAGE}/*")],
            why="asks an API that has no id yet when the role is made",
        )
        self._allow(
            role,
            "cloudformation",
            ("DescribeStacks",),
            [self._arn("cloudformation", f"stack/{qa.stack_name}/*")],
            why="asks what QA's stack is; CloudFormation ends its ARN with an id",
        )
        if qa.key_id:
            outputs["API_KEY_ID"] = qa.key_id
            self._allow(
                role,
                "apigateway",
                ("GET",),
                [f"arn:{self.partition}:apigateway:{self.region}::/apikeys/*"],
                why="reads the value of an API key that has no id yet when the role is made",
            )
        return pipelines.CodeBuildStep(
            "SystemTests",
            input=source,
            install_commands=[f"{INSTALL} boto3 pytest"],
            commands=["python -m pytest --config-file tests/system/pytest.ini tests/system"],
            env={"STACK_NAME": qa.stack_name, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            env_from_cfn_outputs=outputs,
            role=role,
            build_environment=_build_environment(codebuild.ComputeType.SMALL),
            partial_build_spec=_build_spec({}),
            timeout=Duration.minutes(15),
        )

    def _before_production(self, qa: InferenceStack) -> list[pipelines.Step]:
        function = lambda_.Function.from_function_name(
            self, "ReleaseModelFunction", function_name(self.prefix, "release_model")
        )
        release_model = cast(
            pipelines.Step, ReleaseModel("ReleaseModel", function, qa.served_model)
        )
        if not self.settings.release.production_approval:
            return [release_model]
        approval = pipelines.ManualApprovalStep(
            "ApproveProduction",
            comment="QA's system tests passed. Deploy to production?",
            notification_topic=self.alarm_topic,
        )
        release_model.add_step_dependency(approval)
        return [approval, release_model]

    def _acknowledge_its_own(
        self,
        pipeline: pipelines.CodePipeline,
        artifacts: s3.Bucket,
        system_tests: pipelines.CodeBuildStep,
    ) -> None:
        """What CDK Pipelines gives the roles and builds that it makes: it takes no others."""
        artifacts_only = "passes artifacts on: CDK Pipelines gives its roles this one bucket"
        if artifacts.encryption_key:
            for action in ("ReEncrypt*", "GenerateDataKey*"):
                acknowledge(pipeline, f"IAM5[Action::kms:{action}]", artifacts_only)
        else:
            acknowledge(
                pipeline,
                "CB4",
                "encrypts what it builds with S3's own key: its artifacts are code, for 30 days, "
                "and a key of ours would cost by the month",
            )
        for support in pipeline.pipeline.cross_region_support.values():
            copies = support.replication_bucket
            acknowledge_wildcard(pipeline, copies.arn_for_objects("*"), artifacts_only)
            acknowledge(
                cast(Construct, copies),
                "S1",
                "has copies of artifacts only: who reads the originals is logged",
            )
            if artifacts.encryption_key:
                acknowledge_wildcard(
                    pipeline.pipeline.role,
                    "*",
                    "encrypts copies with a key in another region, whose id is not known here",
                )
        for action in ("GetObject*", "GetBucket*", "List*", "DeleteObject*", "Abort*"):
            acknowledge(pipeline, f"IAM5[Action::s3:{action}]", artifacts_only)
        acknowledge_wildcard(pipeline, artifacts.arn_for_objects("*"), artifacts_only)
        for project in (
            pipeline.synth_project,
            pipeline.self_mutation_project,
            system_tests.project,
        ):
            name = project.project_name
            for resource in (
                self._arn("logs", f"log-group:/aws/codebuild/{name}:*"),
                self._arn("codebuild", f"report-group/{name}-*"),
            ):
                acknowledge_wildcard(
                    pipeline, resource, "lets each build write its own logs and reports"
                )
        update = pipeline.self_mutation_project
        acknowledge_wildcard(
            update,
            f"arn:*:iam::{self.account}:role/*",
            "assumes the roles of the CDK's bootstrap, which it knows by their tags",
        )
        acknowledge_wildcard(
            update, "*", "looks for the CDK's bootstrap stack and bucket, which have any name"
        )
        assets = cast(Construct, pipeline.node.find_child("Assets"))
        for resource in (
            self._arn("logs", "log-group:/aws/codebuild/*"),
            self._arn("codebuild", "report-group/*"),
        ):
            acknowledge_wildcard(
                assets, resource, "shares a role among the builds that publish one kind of asset"
            )
        acknowledge_wildcard(assets, "*", "starts builds that get their names later")
        release_model = cast(
            Construct, pipeline.pipeline.node.find_child("PROD").node.find_child("ReleaseModel")
        )
        acknowledge_wildcard(
            release_model,
            self._arn("lambda", f"function:{function_name(self.prefix, 'release_model')}:*"),
            "invokes release_model, which CDK Pipelines allows in every version",
        )
        acknowledge_wildcard(
            release_model,
            "*",
            "lists functions, as CodePipeline asks; Lambda cannot narrow it",
        )


def _build_environment(compute: codebuild.ComputeType) -> codebuild.BuildEnvironment:
    return codebuild.BuildEnvironment(
        build_image=codebuild.LinuxBuildImage.STANDARD_7_0, compute_type=compute
    )


def _build_spec(more: dict[str, object]) -> codebuild.BuildSpec:
    python = {"phases": {"install": {"runtime-versions": {"python": PYTHON}}}}
    return codebuild.BuildSpec.from_object({**python, **more})
