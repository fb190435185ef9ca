"""The SageMaker Pipeline of continuous tuning, as a pure function of settings and resource names.

    Preprocess → FineTune → Evaluate → QualityGate → Register | QualityGateFailed

Nothing here calls AWS: the SDK's steps are built, rendered to JSON and thrown away.
"""

import json
from dataclasses import dataclass
from typing import Any

import boto3
from sagemaker.model import Model
from sagemaker.model_metrics import MetricsSource, ModelMetrics
from sagemaker.processing import ProcessingInput, ProcessingOutput, Processor
from sagemaker.workflow.callback_step import (
    CallbackOutput,
    CallbackOutputTypeEnum,
    CallbackStep,
)
from sagemaker.workflow.condition_step import ConditionStep
from sagemaker.workflow.conditions import (
    ConditionGreaterThanOrEqualTo,
    ConditionLessThanOrEqualTo,
)
from sagemaker.workflow.entities import PipelineVariable
from sagemaker.workflow.execution_variables import ExecutionVariables
from sagemaker.workflow.fail_step import FailStep
from sagemaker.workflow.functions import Join, JsonGet
from sagemaker.workflow.model_step import ModelStep
from sagemaker.workflow.parameters import ParameterString
from sagemaker.workflow.pipeline import Pipeline
from sagemaker.workflow.pipeline_context import PipelineSession
from sagemaker.workflow.properties import PropertyFile
from sagemaker.workflow.retry import (
    RetryPolicy,
    SageMakerJobExceptionTypeEnum,
    SageMakerJobStepRetryPolicy,
    StepExceptionTypeEnum,
    StepRetryPolicy,
)
from sagemaker.workflow.steps import ProcessingStep

from workflows.settings import Settings

INPUT = "/opt/ml/processing/input"
OUTPUT = "/opt/ml/processing/output"
MAX_JOB_SECONDS = 6 * 60 * 60

CALLBACK_OUTPUTS = ("custom_model_arn", "job_arn", "serving_model_id", "hyperparameters")


@dataclass(frozen=True)
class TuningResources:
    """Names of what the pipeline uses; the defaults are placeholders that CloudFormation fills."""

    data_bucket: str = "${DataBucket}"
    callback_queue_url: str = "${CallbackQueueUrl}"
    processing_image: str = "${ProcessingImage}"
    role_arn: str = (
        "arn:${AWS::Partition}:iam::${AWS::AccountId}:role/${PipelineRole}"  # the SDK wants a "/"
    )
    model_package_group: str = "${ModelPackageGroup}"
    region: str = "${AWS::Region}"


def hyperparameter_parameter(name: str) -> str:
    """`epochCount` → `EpochCount`: how a hyperparameter is called among pipeline parameters."""
    return name[0].upper() + name[1:]


def tuning_pipeline(
    settings: Settings, resources: TuningResources, code_version: str
) -> dict[str, Any]:
    """The definition of the pipeline `<name>-tuning`.

    Parameters
    ----------
    settings
        What `quench.toml` says.
    resources
        Names of buckets, queues, roles and images, or placeholders for them.
    code_version
        Goes into each registered model's metadata.
    """
    session = PipelineSession(
        # Nothing is called; without credentials boto3 would look for some on the network.
        boto_session=boto3.Session(
            region_name=settings.region,
            aws_access_key_id="unused",
            aws_secret_access_key="unused",  # noqa: S106
        ),
        default_bucket=resources.data_bucket,
    )
    dataset_uri = ParameterString("DatasetUri")
    dataset_version = ParameterString("DatasetVersion", default_value="latest")
    base_model = ParameterString("BaseModel", default_value=settings.tuning.base_model)
    hyperparameters = {
        name: ParameterString(hyperparameter_parameter(name), default_value=value)
        for name, value in settings.tuning.hyperparameter_defaults().items()
    }

    def run_folder(*path: str) -> Join:
        execution = ExecutionVariables.PIPELINE_EXECUTION_ID
        return Join(on="/", values=["s3:/", resources.data_bucket, "runs", execution, *path])

    def output(name: str, upload_mode: str = "EndOfJob") -> ProcessingOutput:
        return ProcessingOutput(
            output_name=name,
            source=f"{OUTPUT}/{name}",
            destination=run_folder(name),
            s3_upload_mode=upload_mode,
        )

    def processor(module: str) -> Processor:
        return Processor(
            role=resources.role_arn,
            image_uri=resources.processing_image,
            entrypoint=["python3", "-m", module],
            instance_count=1,
            instance_type=settings.tuning.instance_type,
            max_runtime_in_seconds=MAX_JOB_SECONDS,
            env={"AWS_DEFAULT_REGION": resources.region},
            sagemaker_session=session,
        )

    preprocess = ProcessingStep(
        "Preprocess",
        step_args=processor("processing.preprocess").run(
            inputs=[
                ProcessingInput(
                    input_name="dataset", source=dataset_uri, destination=f"{INPUT}/dataset"
                )
            ],
            outputs=[
                *(output(name) for name in ("train", "validation", "test")),
                # These two matter most when the job fails, and then only Continuous ones are kept.
                *(output(name, upload_mode="Continuous") for name in ("rejected", "report")),
            ],
            arguments=_arguments(
                {
                    "base-model": base_model,
                    "dataset-uri": dataset_uri,
                    "dataset-version": dataset_version,
                    "prompt-column": settings.dataset.prompt_column,
                    "completion-column": settings.dataset.completion_column,
                    "system-column": settings.dataset.system_column,
                    "validation-fraction": settings.dataset.validation_fraction,
                    "test-fraction": settings.dataset.test_fraction,
                    "min-records": settings.dataset.min_records,
                    "max-rejected-fraction": settings.dataset.max_rejected_fraction,
                }
            ),
        ),
        retry_policies=_job_retries(),
    )
    splits = preprocess.properties.ProcessingOutputConfig.Outputs

    fine_tune = CallbackStep(
        "FineTune",
        sqs_queue_url=resources.callback_queue_url,
        inputs={
            "execution_id": ExecutionVariables.PIPELINE_EXECUTION_ID,
            "base_model": base_model,
            "training_data": Join("/", [splits["train"].S3Output.S3Uri, "data.jsonl"]),
            "validation_data": Join("/", [splits["validation"].S3Output.S3Uri, "data.jsonl"]),
            "output_data": run_folder("training"),
            **{f"hyperparameter_{name}": value for name, value in hyperparameters.items()},
        },
        outputs=[CallbackOutput(name, CallbackOutputTypeEnum.String) for name in CALLBACK_OUTPUTS],
    )
    tuned = fine_tune.properties.Outputs

    report = PropertyFile(name="EvaluationReport", output_name="evaluation", path="evaluation.json")
    evaluate = ProcessingStep(
        "Evaluate",
        step_args=processor("evaluation.evaluate").run(
            inputs=[
                ProcessingInput(
                    input_name="test",
                    source=splits["test"].S3Output.S3Uri,
                    destination=f"{INPUT}/test",
                ),
                ProcessingInput(
                    input_name="training",
                    source=run_folder("training"),
                    destination=f"{INPUT}/training",
                ),
            ],
            outputs=[output("evaluation", upload_mode="Continuous"), output("model")],
            arguments=_arguments(
                {
                    "base-model": base_model,
                    "serving-model": tuned["serving_model_id"],
                    "custom-model": tuned["custom_model_arn"],
                    "job-arn": tuned["job_arn"],
                    "embedding-model": settings.evaluation.embedding_model,
                    "max-records": settings.evaluation.max_records,
                    "max-tokens": settings.evaluation.max_tokens,
                    "concurrency": settings.evaluation.concurrency,
                    "gate-metric": settings.quality_gate.metric,
                }
            ),
        ),
        property_files=[report],
        retry_policies=_job_retries(),
    )

    register = ModelStep(
        "Register",
        step_args=Model(
            image_uri=resources.processing_image,
            model_data=run_folder("model", "model.tar.gz"),
            role=resources.role_arn,
            sagemaker_session=session,
        ).register(
            content_types=["application/json"],
            response_types=["application/json"],
            model_package_group_name=resources.model_package_group,
            approval_status="PendingManualApproval",
            description="A custom model of Amazon Bedrock; its metadata names it.",
            model_metrics=ModelMetrics(
                model_statistics=MetricsSource(
                    s3_uri=run_folder("evaluation", "evaluation.json"),
                    content_type="application/json",
                )
            ),
            customer_metadata_properties={
                "custom_model": tuned["custom_model_arn"],
                "serving_model": tuned["serving_model_id"],
                "base_model": base_model,
                "job": tuned["job_arn"],
                "hyperparameters": tuned["hyperparameters"],
                "dataset_uri": dataset_uri,
                "dataset_version": dataset_version,
                "execution": ExecutionVariables.PIPELINE_EXECUTION_ID,
                "code_version": code_version,
            },
        ),
        depends_on=[evaluate],
    )

    gate = settings.quality_gate
    condition = {
        "at_least": ConditionGreaterThanOrEqualTo,
        "at_most": ConditionLessThanOrEqualTo,
    }[gate.comparison]
    quality_gate = ConditionStep(
        "QualityGate",
        conditions=[
            condition(
                left=JsonGet(evaluate.name, report, json_path=gate.metric), right=gate.threshold
            )
        ],
        if_steps=[register],
        else_steps=[
            FailStep(
                "QualityGateFailed",
                error_message=Join(
                    "",
                    [
                        f"Quality gate missed: {gate.metric} must be "
                        f"{gate.comparison.replace('_', ' ')} {gate.threshold:g}; see ",
                        run_folder("evaluation", "evaluation.json"),
                    ],
                ),
            )
        ],
    )

    definition: dict[str, Any] = json.loads(
        Pipeline(
            f"{settings.name}-tuning",
            parameters=[dataset_uri, dataset_version, base_model, *hyperparameters.values()],
            steps=[preprocess, fine_tune, evaluate, quality_gate],
            pipeline_experiment_config=None,
            sagemaker_session=session,
        ).definition()
    )
    return definition


def _arguments(values: dict[str, str | float | PipelineVariable]) -> list[str | PipelineVariable]:
    """Command-line arguments: `{"max-records": 40}` → `["--max-records", "40"]`."""
    arguments: list[str | PipelineVariable] = []
    for name, value in values.items():
        is_known = isinstance(value, str | int | float)
        arguments += [f"--{name}", str(value) if is_known else value]
    return arguments


def _job_retries() -> list[RetryPolicy]:
    """Retry what the service may be to blame for, within an hour; never the job's own failure."""
    return [
        StepRetryPolicy(
            exception_types=[StepExceptionTypeEnum.SERVICE_FAULT, StepExceptionTypeEnum.THROTTLING],
            interval_seconds=10,
            backoff_rate=2.0,
            expire_after_mins=60,
        ),
        SageMakerJobStepRetryPolicy(
            exception_types=[
                SageMakerJobExceptionTypeEnum.INTERNAL_ERROR,
                SageMakerJobExceptionTypeEnum.CAPACITY_ERROR,
                SageMakerJobExceptionTypeEnum.RESOURCE_LIMIT,
            ],
            interval_seconds=60,
            backoff_rate=2.0,
            expire_after_mins=60,
        ),
    ]
