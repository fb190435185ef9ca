"""CodePipeline: its operations, and the threads that do the actions' work.

Unlike on AWS, a pipeline does not start when it is created: its source is a working tree, which
nobody pushed. Its artifacts are folders, `<state_dir>/codepipeline/<pipeline>/<execution>/<name>`;
they are not zipped into the artifact bucket, and those of old executions are removed.

One lock guards all pipelines. Whatever the API answers was true at one moment, and an event is
delivered when the API already tells of what has happened.
"""

import logging
import shutil
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from botocore.exceptions import ClientError
from moto.core.model import OperationModel
from moto.core.request import Request
from werkzeug.wrappers import Response

from local.codepipeline.actions import ActionFailed, Actions, Artifact, Job
from local.codepipeline.events import Event
from local.codepipeline.executions import ActionExecution, Execution, Outcome
from local.codepipeline.pipelines import Pipeline
from local.codepipeline.requests import invalid, page
from local.codepipeline.structure import parse_structure
from local.codepipeline.variables import UnknownVariable, fill
from local.protocol import Service, ServiceError

if TYPE_CHECKING:
    from datetime import datetime

    from local.cloud import Cloud

log = logging.getLogger(__name__)

SECONDS_TO_STOP = 5.0  # for what the actions have running


class CodePipelineService(Service):
    """Pipelines and their executions. Nothing of CodePipeline is left to moto."""

    name: ClassVar[str] = "codepipeline"
    refuses: ClassVar[bool] = True

    def __init__(self, cloud: "Cloud") -> None:
        self._cloud = cloud
        self._folder: Path = cloud.config.state_dir.resolve() / "codepipeline"
        self._lock = threading.RLock()
        self._pipelines: dict[str, Pipeline] = {}
        self._tags: dict[str, dict[str, str]] = {}  # by ARN
        self._stopped = threading.Event()
        self._threads: set[threading.Thread] = set()
        self._actions = Actions(cloud, self._stopped)

    def start(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)  # of executions that are forgotten

    def stop(self) -> None:
        """End what the actions run. Executions end where they are, and nobody is told."""
        self._stopped.set()
        with self._lock:
            threads = list(self._threads)
        deadline = time.monotonic() + SECONDS_TO_STOP
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0))
            if thread.is_alive():
                log.warning("%s is left behind", thread.name)

    def answer(
        self, operation: OperationModel, request: Request, labels: dict[str, Any]
    ) -> Response:
        with self._lock:
            return super().answer(operation, request, labels)

    # Pipelines

    def create_pipeline(self, request: dict[str, Any]) -> dict[str, Any]:
        structure = parse_structure(request["pipeline"], self._cloud.config.region)
        name = structure.name
        if name in self._pipelines:
            raise ServiceError(
                "PipelineNameInUseException", f"A pipeline with the name {name} exists already."
            )
        config = self._cloud.config
        arn = f"arn:aws:codepipeline:{config.region}:{config.account_id}:{name}"
        pipeline = Pipeline(arn, structure, self._folder / name, self._begin, self._tell)
        self._pipelines[name] = pipeline
        tags = request.get("tags", [])
        self._tags[arn] = {tag["key"]: tag["value"] for tag in tags}
        return {"pipeline": _declaration(pipeline), "tags": tags}

    def update_pipeline(self, request: dict[str, Any]) -> dict[str, Any]:
        """With another structure, what is in progress is cancelled; with the same, nothing is."""
        structure = parse_structure(request["pipeline"], self._cloud.config.region)
        pipeline = self._pipeline(structure.name)
        pipeline.update(structure)
        return {"pipeline": _declaration(pipeline)}

    def get_pipeline(self, request: dict[str, Any]) -> dict[str, Any]:
        pipeline = self._pipeline(request["name"])
        if (version := request.get("version", pipeline.version)) != pipeline.version:
            raise ServiceError(
                "PipelineVersionNotFoundException",
                f"The embedded cloud keeps the current version of {pipeline.name} only, which is "
                f"{pipeline.version}, not {version}.",
            )
        metadata = {
            "pipelineArn": pipeline.arn,
            "created": pipeline.created,
            "updated": pipeline.updated,
        }
        return {"pipeline": _declaration(pipeline), "metadata": metadata}

    def delete_pipeline(self, request: dict[str, Any]) -> None:
        if pipeline := self._pipelines.pop(request["name"], None):
            pipeline.cancel()
            self._tags.pop(pipeline.arn)

    def list_pipelines(self, request: dict[str, Any]) -> dict[str, Any]:
        pipelines = sorted(self._pipelines.values(), key=lambda pipeline: pipeline.name)
        return page(
            pipelines,
            request,
            lambda pipeline: {
                "name": pipeline.name,
                "version": pipeline.version,
                "pipelineType": pipeline.structure.declaration["pipelineType"],
                "executionMode": "SUPERSEDED",
                "created": pipeline.created,
                "updated": pipeline.updated,
            },
            "pipelines",
        )

    def get_pipeline_state(self, request: dict[str, Any]) -> dict[str, Any]:
        pipeline = self._pipeline(request["name"])
        return {
            "pipelineName": pipeline.name,
            "pipelineVersion": pipeline.version,
            "stageStates": pipeline.describe_stages(),
            "created": pipeline.created,
            "updated": pipeline.updated,
        }

    # Executions

    def start_pipeline_execution(self, request: dict[str, Any]) -> dict[str, Any]:
        _refuse(request, "variables", "sourceRevisions")
        pipeline = self._pipeline(request["name"])
        token = request.get("clientRequestToken")
        return {"pipelineExecutionId": pipeline.start(token, "StartPipelineExecution").id}

    def stop_pipeline_execution(self, request: dict[str, Any]) -> dict[str, Any]:
        pipeline, execution = self._execution(request)
        pipeline.stop(
            execution, request.get("reason", ""), abandon=bool(request.get("abandon", False))
        )
        return {"pipelineExecutionId": execution.id}

    def retry_stage_execution(self, request: dict[str, Any]) -> dict[str, Any]:
        pipeline, execution = self._execution(request)
        stage = _stage(pipeline, request["stageName"])
        pipeline.retry(stage, execution, request["retryMode"])
        return {"pipelineExecutionId": execution.id}

    def get_pipeline_execution(self, request: dict[str, Any]) -> dict[str, Any]:
        return {"pipelineExecution": self._execution(request)[1].describe()}

    def list_pipeline_executions(self, request: dict[str, Any]) -> dict[str, Any]:
        pipeline = self._pipeline(request["pipelineName"])
        executions = list(reversed(pipeline.executions.values()))
        succeeded = request.get("filter", {}).get("succeededInStage", {})
        if stage := succeeded.get("stageName"):
            executions = [
                execution
                for execution in executions
                if execution.version == pipeline.version and stage in execution.succeeded_stages
            ]
        return page(executions, request, Execution.summarize, "pipelineExecutionSummaries")

    def list_action_executions(self, request: dict[str, Any]) -> dict[str, Any]:
        filters = request.get("filter", {})
        _refuse(filters, "latestInPipelineExecution")
        pipeline = self._pipeline(request["pipelineName"])
        if execution_id := filters.get("pipelineExecutionId"):
            runs = list(_execution(pipeline, execution_id).runs)
        else:
            runs = [run for execution in pipeline.executions.values() for run in execution.runs]
        runs.reverse()
        runs.sort(key=_start_time, reverse=True)
        return page(runs, request, ActionExecution.describe, "actionExecutionDetails")

    # What others answer

    def put_approval_result(self, request: dict[str, Any]) -> dict[str, Any]:
        pipeline = self._pipeline(request["pipelineName"])
        stage, name = _stage(pipeline, request["stageName"]), request["actionName"]
        actions = {action.name for s in pipeline.structure.stages for action in s.actions}
        if name not in actions:
            raise ServiceError("ActionNotFoundException", f"No action is named {name}.")
        run = pipeline.places[stage].runs.get(name)
        if run is None or run.id != request["token"] or run.action.provider != "Manual":
            raise ServiceError(
                "InvalidApprovalTokenException",
                f"{name} does not wait for an approval with the token {request['token']}.",
            )
        if run.status != "InProgress":
            raise ServiceError(
                "ApprovalAlreadyCompletedException",
                f"The request for approval of {name} has ended: it is {run.status}.",
            )
        summary, status = request["result"]["summary"], request["result"]["status"]
        if status == "Approved":
            pipeline.finish(run, Outcome(summary))
        else:
            pipeline.finish(run, Outcome(summary or "Rejected.", error_code="JobFailed"))
        return {"approvedAt": run.last_update_time}

    def put_job_success_result(self, request: dict[str, Any]) -> None:
        _refuse(request, "continuationToken")
        pipeline, run = self._job(request["jobId"])
        details = request.get("executionDetails", {})
        outcome = Outcome(
            details.get("summary", ""),
            external_id=details.get("externalExecutionId"),
            variables=request.get("outputVariables", {}),
        )
        pipeline.finish(run, outcome)

    def put_job_failure_result(self, request: dict[str, Any]) -> None:
        pipeline, run = self._job(request["jobId"])
        details = request["failureDetails"]
        outcome = Outcome(
            details["message"],
            error_code=details["type"],
            external_id=details.get("externalExecutionId"),
        )
        pipeline.finish(run, outcome)

    # Tags

    def list_tags_for_resource(self, request: dict[str, Any]) -> dict[str, Any]:
        tags = self._tags_of(request)
        return {"tags": [{"key": key, "value": value} for key, value in tags.items()]}

    def tag_resource(self, request: dict[str, Any]) -> None:
        self._tags_of(request).update({tag["key"]: tag["value"] for tag in request["tags"]})

    def untag_resource(self, request: dict[str, Any]) -> None:
        tags = self._tags_of(request)
        for key in request["tagKeys"]:
            tags.pop(key, None)

    # The actions' work

    def _begin(self, pipeline: Pipeline, run: ActionExecution) -> None:
        name = f"{pipeline.name}/{run.action.stage}/{run.action.name}"
        thread = threading.Thread(target=self._work, args=(pipeline, run), name=name, daemon=True)
        self._threads.add(thread)
        thread.start()

    def _work(self, pipeline: Pipeline, run: ActionExecution) -> None:
        outcome = self._outcome(run)
        with self._lock:
            run.execution.at_work -= 1
            self._threads.discard(threading.current_thread())
            if self._stopped.is_set():
                return
            if outcome is not None:
                pipeline.finish(run, outcome)
            superfluous = pipeline.take_superfluous()
        for folder in superfluous:
            shutil.rmtree(folder, ignore_errors=True)

    def _outcome(self, run: ActionExecution) -> Outcome | None:
        """What an action comes to, whatever goes wrong; None if somebody else will say."""
        try:
            job = self._job_of(run)
            return None if job is None else self._actions.perform(job)
        except ActionFailed as error:
            return error.outcome
        except UnknownVariable as error:
            return Outcome(str(error), error_code="ConfigurationError")
        except ServiceError as error:
            return Outcome(error.message, error_code="JobFailed")
        except ClientError as error:
            return Outcome(error.response["Error"]["Message"], error_code="JobFailed")
        except Exception as error:
            if not self._stopped.is_set():
                log.exception("The action %s failed", threading.current_thread().name)
            return Outcome(repr(error), error_code="JobFailed")

    def _job_of(self, run: ActionExecution) -> Job | None:
        """What an action is to do; nothing, if it was abandoned before it began."""
        action, execution = run.action, run.execution
        with self._lock:
            if run.status != "InProgress":
                return None
            configuration = {
                key: fill(value, execution.variables) for key, value in action.configuration.items()
            }
            run.resolved_configuration = configuration
            inputs = {
                name: Artifact(execution.folder / name, execution.artifacts[name])
                for name in action.inputs
            }
        return Job(
            id=run.id,
            pipeline=execution.pipeline,
            execution_id=execution.id,
            action=action,
            configuration=configuration,
            inputs=inputs,
            outputs={name: execution.folder / name for name in action.outputs},
            bucket=execution.structure.bucket,
        )

    def _tell(self, event: Event) -> None:
        # Under the lock, so that events are published in the order of what they tell.
        if not self._stopped.is_set():
            self._cloud.publish_event("aws.codepipeline", *event)

    # Finding

    def _pipeline(self, name: str) -> Pipeline:
        if name not in self._pipelines:
            raise ServiceError(
                "PipelineNotFoundException", f"There is no pipeline with the name {name}."
            )
        return self._pipelines[name]

    def _execution(self, request: dict[str, Any]) -> tuple[Pipeline, Execution]:
        pipeline = self._pipeline(request["pipelineName"])
        return pipeline, _execution(pipeline, request["pipelineExecutionId"])

    def _job(self, job_id: str) -> tuple[Pipeline, ActionExecution]:
        """The action that waits for a job's result."""
        for pipeline in self._pipelines.values():
            for execution in pipeline.executions.values():
                for run in execution.runs:
                    if run.id != job_id or run.action.provider != "Lambda":
                        continue
                    if run.status != "InProgress":
                        raise ServiceError(
                            "InvalidJobStateException",
                            f"The job {job_id} has ended already: it is {run.status}.",
                        )
                    return pipeline, run
        raise ServiceError("JobNotFoundException", f"There is no job {job_id}.")

    def _tags_of(self, request: dict[str, Any]) -> dict[str, str]:
        arn = request["resourceArn"]
        if arn not in self._tags:
            raise ServiceError("ResourceNotFoundException", f"There is no resource {arn}.")
        return self._tags[arn]


def _declaration(pipeline: Pipeline) -> dict[str, Any]:
    return {**pipeline.structure.declaration, "version": pipeline.version}


def _execution(pipeline: Pipeline, execution_id: str) -> Execution:
    if execution_id not in pipeline.executions:
        raise ServiceError(
            "PipelineExecutionNotFoundException",
            f"The pipeline {pipeline.name} has no execution {execution_id}.",
        )
    return pipeline.executions[execution_id]


def _stage(pipeline: Pipeline, name: str) -> str:
    if name not in pipeline.places:
        raise ServiceError(
            "StageNotFoundException", f"The pipeline {pipeline.name} has no stage {name}."
        )
    return name


def _refuse(request: dict[str, Any], *members: str) -> None:
    if given := [member for member in members if request.get(member)]:
        raise invalid(f"The embedded cloud does not support {', '.join(given)}.")


def _start_time(run: ActionExecution) -> "datetime":
    return run.start_time
