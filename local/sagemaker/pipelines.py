"""Pipelines and their executions: the operations of SageMaker Pipelines."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from local.protocol import ServiceError
from local.sagemaker.definition import Definition, DefinitionError, parse_definition
from local.sagemaker.executions import Execution
from local.sagemaker.expressions import as_text
from local.sagemaker.processing import ProcessingJobs
from local.sagemaker.requests import (
    invalid,
    is_descending,
    not_found,
    page,
    present,
    refuse,
    within,
)

if TYPE_CHECKING:
    from local.cloud import Cloud


@dataclass
class Pipeline:
    name: str
    arn: str
    definition: Definition
    definition_text: str
    role_arn: str
    display_name: str | None
    description: str | None
    max_parallel_steps: int | None
    creation_time: datetime
    last_modified_time: datetime
    executions: dict[str, Execution] = field(default_factory=dict)  # by ARN
    execution_by_token: dict[str, Execution] = field(default_factory=dict)

    @property
    def last_run_time(self) -> datetime | None:
        return max((e.creation_time for e in self.executions.values()), default=None)


class Pipelines(ProcessingJobs):
    """The operations on pipelines and executions. Executions run processing jobs: see the base."""

    def __init__(self, cloud: "Cloud") -> None:
        super().__init__(cloud)
        self._pipelines: dict[str, Pipeline] = {}

    def stop(self) -> None:
        """End every execution and every processing job."""
        executions = [e for p in self._pipelines.values() for e in p.executions.values()]
        for execution in executions:
            execution.close()
        super().stop()
        for execution in executions:
            execution.join()

    def create_pipeline(self, request: dict[str, Any]) -> dict[str, Any]:
        refuse(request, "PipelineVersionAliases")
        name = request["PipelineName"]
        definition, text = self._definition(request)
        now = datetime.now(UTC)
        pipeline = Pipeline(
            name=name,
            arn=self.arn("pipeline", name),
            definition=definition,
            definition_text=text,
            role_arn=request["RoleArn"],
            display_name=request.get("PipelineDisplayName"),
            description=request.get("PipelineDescription"),
            max_parallel_steps=_max_parallel_steps(request),
            creation_time=now,
            last_modified_time=now,
        )
        with self.lock:
            if name in self._pipelines:
                raise invalid(
                    "Pipeline names must be unique within an AWS account and region. "
                    f"Pipeline with name ({name}) already exists."
                )
            self._pipelines[name] = pipeline
            self.keep_tags(pipeline.arn, request)
        return {"PipelineArn": pipeline.arn}

    def update_pipeline(self, request: dict[str, Any]) -> dict[str, Any]:
        refuse(request, "PipelineVersionAliases")
        pipeline = self._pipeline(request["PipelineName"])
        if "PipelineDefinition" in request or "PipelineDefinitionS3Location" in request:
            pipeline.definition, pipeline.definition_text = self._definition(request)
        pipeline.display_name = request.get("PipelineDisplayName", pipeline.display_name)
        pipeline.description = request.get("PipelineDescription", pipeline.description)
        pipeline.role_arn = request.get("RoleArn", pipeline.role_arn)
        pipeline.max_parallel_steps = _max_parallel_steps(request) or pipeline.max_parallel_steps
        pipeline.last_modified_time = datetime.now(UTC)
        return {"PipelineArn": pipeline.arn}

    def describe_pipeline(self, request: dict[str, Any]) -> dict[str, Any]:
        refuse(request, "PipelineVersionId", "PipelineVersionAlias")
        pipeline = self._pipeline(request["PipelineName"])
        return present(
            {
                "PipelineArn": pipeline.arn,
                "PipelineName": pipeline.name,
                "PipelineDisplayName": pipeline.display_name,
                "PipelineDefinition": pipeline.definition_text,
                "PipelineDescription": pipeline.description,
                "RoleArn": pipeline.role_arn,
                "PipelineStatus": "Active",
                "CreationTime": pipeline.creation_time,
                "LastModifiedTime": pipeline.last_modified_time,
                "LastRunTime": pipeline.last_run_time,
                "ParallelismConfiguration": _parallelism(pipeline.max_parallel_steps),
            }
        )

    def list_pipelines(self, request: dict[str, Any]) -> dict[str, Any]:
        prefix = request.get("PipelineNamePrefix", "")
        pipelines = [
            p
            for p in self._pipelines.values()
            if p.name.startswith(prefix)
            and within(p.creation_time, request, "CreatedAfter", "CreatedBefore")
        ]
        by_name = request.get("SortBy") == "Name"
        pipelines.sort(
            key=lambda p: p.name if by_name else p.creation_time.isoformat(),
            reverse=is_descending(request, "Descending"),
        )
        return page(
            pipelines,
            request,
            lambda p: present(
                {
                    "PipelineArn": p.arn,
                    "PipelineName": p.name,
                    "PipelineDisplayName": p.display_name,
                    "PipelineDescription": p.description,
                    "RoleArn": p.role_arn,
                    "CreationTime": p.creation_time,
                    "LastModifiedTime": p.last_modified_time,
                    "LastExecutionTime": p.last_run_time,
                }
            ),
            "PipelineSummaries",
        )

    def delete_pipeline(self, request: dict[str, Any]) -> dict[str, Any]:
        pipeline = self._pipeline(request["PipelineName"])
        with self.lock:
            active = [e.arn for e in pipeline.executions.values() if e.is_active]
            if active:
                raise ServiceError(
                    "ConflictException",
                    f"The pipeline {pipeline.name} has running executions: {', '.join(active)}.",
                )
            del self._pipelines[pipeline.name]
            self.drop_tags(pipeline.arn)
        return {"PipelineArn": pipeline.arn}

    def start_pipeline_execution(self, request: dict[str, Any]) -> dict[str, Any]:
        refuse(
            request,
            "SelectiveExecutionConfig",
            "PipelineVersionId",
            "PipelineVersionAlias",
            "MlflowExperimentName",
        )
        pipeline = self._pipeline(request["PipelineName"])
        token = request["ClientRequestToken"]
        with self.lock:
            if token not in pipeline.execution_by_token:
                try:
                    execution = Execution(
                        self.cloud,
                        self,
                        pipeline.arn,
                        pipeline.name,
                        pipeline.definition,
                        pipeline.definition_text,
                        {p["Name"]: p["Value"] for p in request.get("PipelineParameters", [])},
                        request.get("PipelineExecutionDisplayName"),
                        request.get("PipelineExecutionDescription"),
                        _max_parallel_steps(request) or pipeline.max_parallel_steps,
                    )
                except DefinitionError as error:
                    raise invalid(str(error)) from error
                pipeline.executions[execution.arn] = execution
                pipeline.execution_by_token[token] = execution
                execution.start()
            return {"PipelineExecutionArn": pipeline.execution_by_token[token].arn}

    def describe_pipeline_execution(self, request: dict[str, Any]) -> dict[str, Any]:
        execution = self._execution(request["PipelineExecutionArn"])
        return present(
            {
                "PipelineArn": execution.pipeline_arn,
                "PipelineExecutionArn": execution.arn,
                "PipelineExecutionDisplayName": execution.display_name,
                "PipelineExecutionStatus": execution.status,
                "PipelineExecutionDescription": execution.description,
                "FailureReason": execution.failure_reason,
                "CreationTime": execution.creation_time,
                "LastModifiedTime": execution.last_modified_time,
                "ParallelismConfiguration": _parallelism(execution.max_parallel_steps),
            }
        )

    def list_pipeline_executions(self, request: dict[str, Any]) -> dict[str, Any]:
        refuse(request, "PipelineVersionAlias")
        executions = [
            e
            for e in self._pipeline(request["PipelineName"]).executions.values()
            if within(e.creation_time, request, "CreatedAfter", "CreatedBefore")
        ]
        by_arn = request.get("SortBy") == "PipelineExecutionArn"
        executions.sort(
            key=lambda e: e.arn if by_arn else e.creation_time.isoformat(),
            reverse=is_descending(request, "Descending"),
        )
        return page(
            executions,
            request,
            lambda e: present(
                {
                    "PipelineExecutionArn": e.arn,
                    "StartTime": e.creation_time,
                    "PipelineExecutionStatus": e.status,
                    "PipelineExecutionDescription": e.description,
                    "PipelineExecutionDisplayName": e.display_name,
                    "PipelineExecutionFailureReason": e.failure_reason,
                }
            ),
            "PipelineExecutionSummaries",
        )

    def list_pipeline_execution_steps(self, request: dict[str, Any]) -> dict[str, Any]:
        if "PipelineExecutionArn" not in request:
            raise invalid("PipelineExecutionArn is missing.")
        steps = self._execution(request["PipelineExecutionArn"]).steps()
        if is_descending(request, "Descending"):
            steps.reverse()
        return page(steps, request, lambda step: step, "PipelineExecutionSteps")

    def list_pipeline_parameters_for_execution(self, request: dict[str, Any]) -> dict[str, Any]:
        parameters = self._execution(request["PipelineExecutionArn"]).parameters
        return page(
            list(parameters.items()),
            request,
            lambda item: {"Name": item[0], "Value": as_text(item[1])},
            "PipelineParameters",
        )

    def describe_pipeline_definition_for_execution(self, request: dict[str, Any]) -> dict[str, Any]:
        execution = self._execution(request["PipelineExecutionArn"])
        return {
            "PipelineDefinition": execution.definition_text,
            "CreationTime": execution.creation_time,
        }

    def stop_pipeline_execution(self, request: dict[str, Any]) -> dict[str, Any]:
        execution = self._execution(request["PipelineExecutionArn"])
        if not execution.is_active:
            raise ServiceError(
                "ConflictException",
                f"The execution {execution.arn} has ended already ({execution.status}).",
            )
        execution.stop()
        return {"PipelineExecutionArn": execution.arn}

    def send_pipeline_execution_step_success(self, request: dict[str, Any]) -> dict[str, Any]:
        outputs = {o["Name"]: o["Value"] for o in request.get("OutputParameters", [])}
        return self._answer(request["CallbackToken"], outputs, None)

    def send_pipeline_execution_step_failure(self, request: dict[str, Any]) -> dict[str, Any]:
        return self._answer(request["CallbackToken"], None, request.get("FailureReason", ""))

    def _answer(
        self, token: str, outputs: dict[str, str] | None, failure_reason: str | None
    ) -> dict[str, Any]:
        for pipeline in list(self._pipelines.values()):
            for execution in list(pipeline.executions.values()):
                if execution.answer(token, outputs, failure_reason):
                    return {"PipelineExecutionArn": execution.arn}
        raise invalid(
            f"No callback step waits for the token '{token}': unknown or answered already."
        )

    def _definition(self, request: dict[str, Any]) -> tuple[Definition, str]:
        text = request.get("PipelineDefinition")
        location = request.get("PipelineDefinitionS3Location")
        if (text is None) == (location is None):
            raise invalid("Give either PipelineDefinition or PipelineDefinitionS3Location.")
        if location is not None:
            text = self._read_object(location)
        try:
            return parse_definition(str(text)), str(text)
        except DefinitionError as error:
            raise invalid(str(error)) from error

    def _read_object(self, location: dict[str, str]) -> str:
        get: Callable[..., Any] = self.cloud.client("s3").get_object
        version = {"VersionId": location["VersionId"]} if "VersionId" in location else {}
        try:
            answer = get(Bucket=location["Bucket"], Key=location["ObjectKey"], **version)
        except ClientError as error:
            raise invalid(f"Cannot read the pipeline definition in S3: {error}") from error
        return str(answer["Body"].read().decode())

    def _pipeline(self, name_or_arn: str) -> Pipeline:
        for pipeline in list(self._pipelines.values()):
            if name_or_arn in (pipeline.name, pipeline.arn):
                return pipeline
        raise not_found(f"Pipeline '{name_or_arn}' does not exist.")

    def _execution(self, arn: str) -> Execution:
        for pipeline in list(self._pipelines.values()):
            if arn in pipeline.executions:
                return pipeline.executions[arn]
        raise not_found(f"Pipeline execution with ARN '{arn}' does not exist.")


def _max_parallel_steps(request: dict[str, Any]) -> int | None:
    configuration = request.get("ParallelismConfiguration")
    return int(configuration["MaxParallelExecutionSteps"]) if configuration else None


def _parallelism(max_parallel_steps: int | None) -> dict[str, int] | None:
    return {"MaxParallelExecutionSteps": max_parallel_steps} if max_parallel_steps else None
