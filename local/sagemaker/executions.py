"""One execution of a pipeline: its steps, each in a thread of its own, from start to end."""

import json
import secrets
import string
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

from botocore.exceptions import BotoCoreError, ClientError

from local.sagemaker.definition import Definition, DefinitionError, ParameterValue, Step, convert
from local.sagemaker.expressions import ExpressionError, Scope, evaluate, holds, timestamp
from local.sagemaker.processing import ProcessingJobs
from local.sagemaker.requests import present
from local.sagemaker.retries import exception_type_of_error, exception_type_of_job

if TYPE_CHECKING:
    from local.cloud import Cloud

ALPHANUMERIC = string.ascii_lowercase + string.digits
MAX_STEP_REASON = 1024
MAX_EXECUTION_REASON = 1300
MAX_JOB_NAME = 63


class StepFailed(Exception):
    """A step's failure; `exception_type` is the retry policies' name for it, if they have one."""

    def __init__(self, reason: str, exception_type: str | None = None) -> None:
        super().__init__(reason)
        self.exception_type = exception_type


class StepStopped(Exception):
    """A step that ended because the execution was stopped."""


@dataclass
class Callback:
    """A waiting Callback step; answered once, with outputs or with a reason for its failure."""

    outputs: dict[str, str] | None = None
    failure_reason: str | None = None
    is_answered: bool = False


@dataclass
class StepRun:
    """How a step goes in one execution."""

    step: Step
    start_time: datetime
    status: str = "Starting"
    end_time: datetime | None = None
    failure_reason: str | None = None
    attempts: int = 1
    metadata: dict[str, dict[str, Any]] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """An item of `ListPipelineExecutionSteps`."""
        return present(
            {
                "StepName": self.step.name,
                "StepDisplayName": self.step.display_name,
                "StepDescription": self.step.description,
                "StartTime": self.start_time,
                "EndTime": self.end_time,
                "StepStatus": self.status,
                "FailureReason": self.failure_reason,
                "Metadata": self.metadata,
                "AttemptCount": self.attempts,
            }
        )


class Execution:
    """A running or ended execution. `start` it once; `stop` asks it to end, `close` abandons it."""

    def __init__(
        self,
        cloud: "Cloud",
        jobs: ProcessingJobs,
        pipeline_arn: str,
        pipeline_name: str,
        definition: Definition,
        definition_text: str,
        given_parameters: Mapping[str, str],
        display_name: str | None,
        description: str | None,
        max_parallel_steps: int | None,
    ) -> None:
        self.id = _random(12)
        self.arn = f"{pipeline_arn}/execution/{self.id}"
        self.pipeline_arn = pipeline_arn
        self.definition = definition
        self.definition_text = definition_text
        self.parameters: dict[str, ParameterValue] = definition.bind(given_parameters)
        self.description = description
        self.max_parallel_steps = max_parallel_steps
        self.creation_time = self.last_modified_time = datetime.now(UTC)
        self.display_name = (
            display_name or f"execution-{int(self.creation_time.timestamp() * 1000)}"
        )
        self.status = "Executing"
        self.failure_reason: str | None = None

        self._cloud = cloud
        self._jobs = jobs
        self._runs: dict[str, StepRun] = {}
        self._properties: dict[str, Mapping[str, Any]] = {}
        self._callbacks: dict[str, Callback] = {}
        # Guards all of the above; notified when a callback is answered, on stop and on close.
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name=self.arn, daemon=True)
        self._scope = Scope(
            parameters=self.parameters,
            execution={
                "StartDateTime": timestamp(self.creation_time),
                "PipelineName": pipeline_name,
                "PipelineArn": pipeline_arn,
                "PipelineExecutionId": self.id,
                "PipelineExecutionArn": self.arn,
            },
            steps=self._properties,
            property_file_uri=self._property_file_uri,
            read_json=self._read_json,
        )
        self._runners: dict[str, Callable[[StepRun], Mapping[str, Any]]] = {
            "Processing": self._process,
            "Callback": self._call_back,
            "Condition": self._decide,
            "RegisterModel": self._register_model,
            "Fail": self._fail,
        }

    @property
    def is_active(self) -> bool:
        return self.status in ("Executing", "Stopping")

    def steps(self) -> list[dict[str, Any]]:
        """The steps started so far, in that order, as `ListPipelineExecutionSteps` has them."""
        with self._changed:
            return [run.describe() for run in self._runs.values()]

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Start nothing more and end what runs; a waiting callback is told, and still awaited."""
        with self._changed:
            if self.status != "Executing":
                return
            self._set_status("Stopping")
            self._changed.notify_all()
        self._publish_execution("Executing")

    def close(self) -> None:
        """The cloud ends: wait for nothing any more."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()

    def join(self) -> None:
        self._thread.join()

    def answer(
        self, token: str, outputs: dict[str, str] | None, failure_reason: str | None
    ) -> bool:
        """Answer the callback with this token; False if none of this execution waits for it."""
        with self._changed:
            callback = self._callbacks.get(token)
            if callback is None or callback.is_answered or not self.is_active:
                return False
            callback.outputs, callback.failure_reason = outputs, failure_reason
            callback.is_answered = True
            self._changed.notify_all()
            return True

    def _run(self) -> None:
        self._publish_execution(None)
        ended: SimpleQueue[str] = SimpleQueue()
        running = 0
        while True:
            for run in self._start_ready(running):
                running += 1
                name = f"{self.arn}/{run.step.name}"
                threading.Thread(
                    target=self._run_step, args=(run, ended), name=name, daemon=True
                ).start()
            if not running:
                break
            ended.get()
            running -= 1
        with self._changed:
            if self._is_closed:
                return
            previous = self.status
            failed = [run for run in self._runs.values() if run.status == "Failed"]
            if previous == "Stopping":
                self._set_status("Stopped")
            elif failed:
                reasons = "; ".join(f"{run.step.name}: {run.failure_reason}" for run in failed)
                self.failure_reason = f"Step failure: {reasons}"[:MAX_EXECUTION_REASON]
                self._set_status("Failed")
            else:
                self._set_status("Succeeded")
        self._publish_execution(previous)

    def _start_ready(self, running: int) -> list[StepRun]:
        with self._changed:
            if self._is_closed or self.status != "Executing":
                return []
            if any(run.status == "Failed" for run in self._runs.values()):
                return []
            ready = [step for step in self.definition.steps.values() if self._is_ready(step)]
            if self.max_parallel_steps is not None:
                ready = ready[: max(self.max_parallel_steps - running, 0)]
            runs = [StepRun(step, datetime.now(UTC)) for step in ready]
            self._runs.update({run.step.name: run for run in runs})
        for run in runs:
            self._publish_step(run, None)
        return runs

    def _is_ready(self, step: Step) -> bool:
        if step.name in self._runs or not step.depends_on <= self._properties.keys():
            return False
        if step.branch is None:
            return True
        condition, taken = step.branch
        return bool(self._properties[condition]["Outcome"] == taken)

    def _run_step(self, run: StepRun, ended: "SimpleQueue[str]") -> None:
        try:
            self._set_step_status(run, "Executing")
            properties = self._with_retries(run)
            with self._changed:
                self._properties[run.step.name] = properties
            self._set_step_status(run, "Succeeded")
        except StepStopped as error:
            self._set_step_status(run, "Stopped", str(error) or None)
        except (StepFailed, ExpressionError) as error:
            self._set_step_status(run, "Failed", str(error))
        except (ClientError, BotoCoreError) as error:
            self._set_step_status(run, "Failed", f"ClientError: {error}")
        except Exception as error:
            # Whatever goes wrong, no execution may be left executing for ever.
            self._set_step_status(run, "Failed", f"InternalServerError: {error!r}")
            raise
        finally:
            ended.put(run.step.name)

    def _with_retries(self, run: StepRun) -> Mapping[str, Any]:
        retries: Counter[int] = Counter()
        waited = 0.0
        while True:
            try:
                return self._runners[run.step.type](run)
            except (StepFailed, ClientError) as error:
                if isinstance(error, StepFailed):
                    kind = error.exception_type
                else:
                    kind = exception_type_of_error(error)
                policies = enumerate(run.step.retry_policies)
                index, policy = next(
                    ((i, p) for i, p in policies if kind in p.exception_types), (0, None)
                )
                delay = policy.delay(retries[index], waited) if policy else None
                if delay is None:
                    raise
            retries[index] += 1
            waited += delay
            with self._changed:
                self._changed.wait_for(self._is_interrupted, self._cloud.config.scaled(delay))
                if self._is_interrupted():
                    raise StepStopped
                run.attempts += 1

    def _is_interrupted(self) -> bool:
        return self._is_closed or self.status != "Executing"

    def _process(self, run: StepRun) -> Mapping[str, Any]:
        prefix, suffix = f"pipelines-{self.id}-", f"-{_random(10)}"
        room = MAX_JOB_NAME - len(prefix) - len(suffix)
        name = prefix + run.step.name.replace("_", "-")[:room] + suffix
        sagemaker = self._cloud.client("sagemaker")
        created = sagemaker.create_processing_job(
            ProcessingJobName=name, **evaluate(run.step.arguments, self._scope)
        )
        with self._changed:
            run.metadata = {"ProcessingJob": {"Arn": created["ProcessingJobArn"]}}
        ended = self._jobs.ended(name)
        while not ended.wait(0.1):
            if self.status == "Stopping" and run.status == "Executing":
                self._set_step_status(run, "Stopping")
                sagemaker.stop_processing_job(ProcessingJobName=name)
        job = self._jobs.describe_processing_job({"ProcessingJobName": name})
        if job["ProcessingJobStatus"] == "Completed":
            return _processing_properties(job)
        if run.status == "Stopping" or self._is_closed:
            raise StepStopped
        reason = job.get("FailureReason") or f"The processing job {name} was stopped."
        raise StepFailed(reason, exception_type_of_job(reason))

    def _call_back(self, run: StepRun) -> Mapping[str, Any]:
        token = _random(10)
        queue_url = evaluate(run.step.queue_url, self._scope)
        arguments = evaluate(run.step.arguments, self._scope)
        callback = Callback()
        with self._changed:
            run.metadata = {"Callback": {"CallbackToken": token, "SqsQueueUrl": queue_url}}
            self._callbacks[token] = callback

        def send(status: str) -> None:
            message = {
                "token": token,
                "pipelineExecutionArn": self.arn,
                "status": status,
                "arguments": arguments,
            }
            self._cloud.client("sqs").send_message(
                QueueUrl=queue_url, MessageBody=json.dumps(message)
            )

        send("Executing")
        with self._changed:
            self._changed.wait_for(lambda: callback.is_answered or self._is_interrupted())
        if not callback.is_answered and not self._is_closed:
            self._set_step_status(run, "Stopping")
            send("Stopping")
            with self._changed:
                self._changed.wait_for(lambda: callback.is_answered or self._is_closed)
        if not callback.is_answered:
            raise StepStopped
        if callback.outputs is None:
            if run.status == "Stopping":
                raise StepStopped(callback.failure_reason)
            raise StepFailed(callback.failure_reason or "The callback reported a failure.")
        outputs = callback.outputs
        with self._changed:
            run.metadata["Callback"]["OutputParameters"] = [
                {"Name": name, "Value": value} for name, value in outputs.items()
            ]
        missing = sorted(set(run.step.output_types) - set(outputs))
        if missing:
            raise StepFailed(f"The callback came without its outputs {', '.join(missing)}.")
        try:
            typed = {
                name: convert(kind, outputs[name], f"The callback's output '{name}'")
                for name, kind in run.step.output_types.items()
            }
        except DefinitionError as error:
            raise StepFailed(str(error)) from error
        return {"OutputParameters": typed}

    def _decide(self, run: StepRun) -> Mapping[str, Any]:
        conditions = run.step.arguments["Conditions"]
        outcome = all(holds(condition, self._scope) for condition in conditions)
        with self._changed:
            run.metadata = {"Condition": {"Outcome": str(outcome)}}
        return {"Outcome": outcome}

    def _register_model(self, run: StepRun) -> Mapping[str, Any]:
        sagemaker = self._cloud.client("sagemaker")
        arguments = evaluate(run.step.arguments, self._scope)
        arn = sagemaker.create_model_package(**arguments)["ModelPackageArn"]
        with self._changed:
            run.metadata = {"RegisterModel": {"Arn": arn}}
        properties: Mapping[str, Any] = sagemaker.describe_model_package(ModelPackageName=arn)
        return properties

    def _fail(self, run: StepRun) -> Mapping[str, Any]:
        message = str(evaluate(run.step.arguments.get("ErrorMessage", ""), self._scope))
        with self._changed:
            run.metadata = {"Fail": {"ErrorMessage": message}}
        raise StepFailed(message or "The pipeline reached a Fail step.")

    def _property_file_uri(self, step_name: str, file_name: str) -> str:
        output, path = self.definition.steps[step_name].property_files[file_name]
        if step_name not in self._properties:
            raise ExpressionError(f"The step '{step_name}' has not run: no '{file_name}' to read.")
        outputs = self._properties[step_name]["ProcessingOutputConfig"]["Outputs"]
        if output not in outputs:
            raise ExpressionError(f"The step '{step_name}' has no output '{output}'.")
        return f"{outputs[output]['S3Output']['S3Uri'].rstrip('/')}/{path}"

    def _read_json(self, uri: str) -> Any:
        bucket, _, key = uri.removeprefix("s3://").partition("/")
        try:
            body = self._cloud.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
        except ClientError as error:
            raise ExpressionError(f"Cannot read {uri}: {error}") from error
        try:
            return json.loads(body)
        except ValueError as error:
            raise ExpressionError(f"{uri} is not JSON: {error}") from error

    def _set_status(self, status: str) -> None:
        self.status = status
        self.last_modified_time = datetime.now(UTC)

    def _set_step_status(self, run: StepRun, status: str, reason: str | None = None) -> None:
        with self._changed:
            previous, run.status = run.status, status
            if status in ("Succeeded", "Failed", "Stopped"):
                run.end_time = datetime.now(UTC)
                run.failure_reason = reason[:MAX_STEP_REASON] if reason else None
        self._publish_step(run, previous)

    def _publish_execution(self, previous: str | None) -> None:
        if self._is_closed:
            return
        detail = {
            "pipelineArn": self.pipeline_arn,
            "pipelineExecutionArn": self.arn,
            "pipelineExecutionDisplayName": self.display_name,
            "pipelineExecutionDescription": self.description,
            "currentPipelineExecutionStatus": self.status,
            "previousPipelineExecutionStatus": previous,
            "executionStartTime": timestamp(self.creation_time),
            "executionEndTime": None if self.is_active else timestamp(self.last_modified_time),
            "failureReason": self.failure_reason,
        }
        self._cloud.publish_event(
            "aws.sagemaker",
            "SageMaker Model Building Pipeline Execution Status Change",
            present(detail),
            [self.pipeline_arn, self.arn],
        )

    def _publish_step(self, run: StepRun, previous: str | None) -> None:
        if self._is_closed:
            return
        detail = {
            "pipelineArn": self.pipeline_arn,
            "pipelineExecutionArn": self.arn,
            "stepName": run.step.name,
            "stepType": run.step.type,
            "currentStepStatus": run.status,
            "previousStepStatus": previous,
            "stepStartTime": timestamp(run.start_time),
            "stepEndTime": timestamp(run.end_time) if run.end_time else None,
            "failureReason": run.failure_reason,
            "metadata": _camel_case(run.metadata),
        }
        self._cloud.publish_event(
            "aws.sagemaker",
            "SageMaker Model Building Pipeline Execution Step Status Change",
            present(detail),
            [self.pipeline_arn, self.arn],
        )


def _processing_properties(job: Mapping[str, Any]) -> dict[str, Any]:
    """A processing job's description, with inputs and outputs reachable by their names."""
    properties = dict(job)
    inputs = job.get("ProcessingInputs", [])
    outputs = job.get("ProcessingOutputConfig", {}).get("Outputs", [])
    properties["ProcessingInputs"] = {item["InputName"]: item for item in inputs}
    properties["ProcessingOutputConfig"] = {
        **job.get("ProcessingOutputConfig", {}),
        "Outputs": {item["OutputName"]: item for item in outputs},
    }
    return properties


def _camel_case(value: Any) -> Any:
    if isinstance(value, dict):
        return {key[:1].lower() + key[1:]: _camel_case(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_camel_case(item) for item in value]
    return value


def _random(length: int) -> str:
    return "".join(secrets.choice(ALPHANUMERIC) for _ in range(length))
