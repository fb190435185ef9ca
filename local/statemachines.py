"""Step Functions: moto's interpreter, made to behave as AWS's.

moto runs definitions, keeps histories and calls functions through the cloud's endpoint. Here its
waits and retry intervals are scaled by `wait_scale`, and where it differs from AWS it is mended.
`TimeoutSeconds` is not scaled: it bounds functions and jobs that really run, and take as long here
as they take.
"""

from __future__ import annotations

import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import boto3
from moto.core.config import default_user_config
from moto.core.exceptions import AWSError
from moto.core.responses import ActionResult
from moto.stepfunctions import models
from moto.stepfunctions.exceptions import InvalidName
from moto.stepfunctions.parser.api import ExecutionStatus
from moto.stepfunctions.parser.asl.component.common.retry import retrier_decl
from moto.stepfunctions.parser.asl.component.state.wait.wait_function.wait_function import (
    WaitFunction,
)
from moto.stepfunctions.parser.asl.eval.environment import Environment
from moto.stepfunctions.parser.asl.parse.asl_parser import AmazonStateLanguageParser
from moto.stepfunctions.parser.asl.parse.preprocessor import Preprocessor
from moto.stepfunctions.parser.asl.utils import boto_client
from moto.stepfunctions.parser.backend.execution import (
    BaseExecutionWorkerCommunication,
    Execution,
)
from moto.stepfunctions.parser.backend.execution_worker import ExecutionWorker
from moto.stepfunctions.parser.models import (
    StepFunctionsParserBackend,
    stepfunctions_parser_backends,
)
from moto.stepfunctions.responses import StepFunctionResponse

from local.patches import Patches

if TYPE_CHECKING:
    from local.cloud import Cloud

log = logging.getLogger(__name__)

WAKE_SECONDS = 0.5  # how long a stopped execution's wait may go on
START_SECONDS = 30  # how long the parser may take before an execution can be stopped
HISTORY_PAGE = 100  # events, where GetExecutionHistory's maxResults is not given


class StateMachines:
    """Owns the patches of moto's interpreter and publishes what becomes of executions."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._patches = Patches()
        self._starting = threading.Lock()
        self._parsing = threading.Lock()
        self._ending = threading.Lock()
        self._clients: dict[tuple[str, str], Any] = {}
        self._clients_lock = threading.Lock()

    def start(self) -> None:
        default_user_config["stepfunctions"] = {"execute_state_machine": True}
        patches = self._patches
        patches.wrap(AWSError, "__init__", _with_code)
        # One store for machines that CloudFormation makes and those the API makes.
        patches.replace(models, "stepfunctions_backends", stepfunctions_parser_backends)
        patches.wrap(AmazonStateLanguageParser, "parse", self._parse)
        patches.replace(WaitFunction, "_wait_interval", self._wait())
        patches.replace(retrier_decl, "time", SimpleNamespace(sleep=self._sleep))
        patches.replace(boto_client, "boto3", SimpleNamespace(client=self._client))
        patches.wrap(StepFunctionsParserBackend, "start_execution", self._start_execution)
        patches.wrap(ExecutionWorker, "_execution_logic", self._execution_logic)
        patches.wrap(
            BaseExecutionWorkerCommunication, "_reflect_execution_status", self._reflect_status
        )
        patches.wrap(Execution, "get_start_execution_details", _start_time_as_text)
        patches.replace(StepFunctionResponse, "stop_execution", self._stop_execution())
        patches.wrap(StepFunctionResponse, "describe_execution", _with_stop_date)
        patches.replace(StepFunctionResponse, "get_execution_history", _get_execution_history)

    def stop(self) -> None:
        for backends in list(stepfunctions_parser_backends.values()):
            for backend in list(backends.values()):
                for machine in backend.state_machines:
                    for execution in machine.executions:
                        if execution.exec_worker and execution.exec_worker.env:
                            execution.stop(datetime.now(UTC), None, "The cloud stopped.")
        self._patches.restore()
        default_user_config["stepfunctions"] = {"execute_state_machine": False}

    def _parse(self, original: Callable[..., Any]) -> Any:
        def parse(definition: str) -> Any:
            # The parser keeps a stack in its class, on which a rejected definition leaves its own.
            with self._parsing:
                Preprocessor._query_language_per_scope.clear()
                return original(definition)

        return staticmethod(parse)

    def _wait(self) -> Callable[..., None]:
        def _wait_interval(_function: WaitFunction, env: Environment, wait_seconds: float) -> None:
            deadline = time.monotonic() + self._cloud.config.scaled(wait_seconds)
            while env.is_running() and (left := deadline - time.monotonic()) > 0:
                env.program_state_event.wait(min(left, WAKE_SECONDS))

        return _wait_interval

    def _sleep(self, seconds: float) -> None:
        time.sleep(self._cloud.config.scaled(seconds))

    def _client(self, **arguments: Any) -> Any:
        """A client for a task, made once: making one takes longer than most tasks."""
        key = (arguments["service_name"], arguments["region_name"])
        with self._clients_lock:
            if key not in self._clients:
                arguments["endpoint_url"] = self._cloud.endpoint
                self._clients[key] = boto3.client(**arguments)
            return self._clients[key]

    def _start_execution(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def start_execution(
            backend: StepFunctionsParserBackend,
            state_machine_arn: str,
            name: str | None = None,
            execution_input: str | None = None,
            trace_header: str | None = None,
        ) -> Any:
            if name is not None:
                backend._validate_name(name)
                if len(name) > 80:
                    raise InvalidName(f"Invalid Name: '{name}' is longer than 80 characters")
            name = name or str(uuid.uuid4())
            with self._starting:
                known = {
                    id(e) for e in backend.describe_state_machine(state_machine_arn).executions
                }
                execution = original(
                    backend, state_machine_arn, name, execution_input or "{}", trace_header
                )
                if id(execution) not in known:
                    self._publish(execution, "RUNNING")
            return execution

        return start_execution

    def _execution_logic(self, original: Callable[..., None]) -> Callable[..., None]:
        def _execution_logic(worker: ExecutionWorker) -> None:
            try:
                original(worker)
            except Exception as error:  # in a thread of its own, where nobody would hear of it
                log.exception("An execution ended with an error of the interpreter")
                execution = worker._execution_communication.execution
                self._end(execution, ExecutionStatus.FAILED, "States.Runtime", str(error))

        return _execution_logic

    def _reflect_status(self, original: Callable[..., None]) -> Callable[..., None]:
        def _reflect_execution_status(communication: BaseExecutionWorkerCommunication) -> None:
            execution = communication.execution
            with self._ending:
                if execution.exec_status != ExecutionStatus.RUNNING:
                    return  # stopped while a task was running
                original(communication)
                status = execution.exec_status.value
            self._publish(execution, status)

        return _reflect_execution_status

    def _stop_execution(self) -> Callable[..., ActionResult]:
        def stop_execution(response: StepFunctionResponse) -> ActionResult:
            backend = response.stepfunction_backend
            execution = backend.describe_execution(response._get_param("executionArn"))
            error, cause = response._get_param("error"), response._get_param("cause")
            deadline = time.monotonic() + START_SECONDS
            while execution.exec_worker.env is None and time.monotonic() < deadline:
                time.sleep(0.01)
            if self._end(execution, ExecutionStatus.ABORTED, error, cause):
                execution.stop(execution.stop_date, error, cause)
            return ActionResult({"stopDate": execution.stop_date})

        return stop_execution

    def _end(
        self, execution: Any, status: ExecutionStatus, error: str | None, cause: str | None
    ) -> bool:
        """End an execution by force. False if it had ended by itself."""
        with self._ending:
            if execution.exec_status != ExecutionStatus.RUNNING:
                return False
            execution.stop_date = datetime.now(UTC)
            execution.error, execution.cause = error, cause
            execution.exec_status = status
        self._publish(execution, status.value)
        return True

    def _publish(self, execution: Any, status: str) -> None:
        """https://docs.aws.amazon.com/step-functions/latest/dg/eventbridge-integration.html"""
        output = json.dumps(execution.output) if status == "SUCCEEDED" else None
        ended = status != "RUNNING"
        detail = {
            "executionArn": execution.exec_arn,
            "stateMachineArn": execution.state_machine_arn,
            "name": execution.name,
            "status": status,
            "startDate": _milliseconds(execution.start_date),
            "stopDate": _milliseconds(execution.stop_date) if ended else None,
            "input": execution.execution_input,
            "output": output,
            "inputDetails": {"included": True},
            "outputDetails": {"included": True} if output is not None else None,
            "error": execution.error if ended else None,
            "cause": execution.cause if ended else None,
        }
        self._cloud.publish_event(
            "aws.states",
            "Step Functions Execution Status Change",
            detail,
            [execution.exec_arn],
        )


def _with_code(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(
        error: AWSError,
        message: str = "",
        exception_type: str | None = None,
        status: int | None = None,
    ) -> None:
        # The interpreter's errors have a class for each code, and no `TYPE`, which moto answers.
        name = exception_type or error.TYPE or type(error).__name__
        original(error, message or name, name, status)

    return __init__


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)


def _start_time_as_text(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_start_execution_details(execution: Execution) -> Any:
        # `$$.Execution.StartTime` is a date in moto; in AWS it is text, in milliseconds, with a Z.
        details = original(execution)
        start: datetime = execution.start_date
        details.start_time = (
            start.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        )
        return details

    return get_start_execution_details


def _with_stop_date(original: Callable[..., ActionResult]) -> Callable[..., ActionResult]:
    def describe_execution(response: StepFunctionResponse) -> ActionResult:
        # moto leaves the date out where an execution timed out.
        answer = original(response)
        execution = response.stepfunction_backend.describe_execution(
            response._get_param("executionArn")
        )
        if execution.stop_date is not None:
            answer.result["stopDate"] = execution.stop_date
        return answer

    return describe_execution


def _get_execution_history(response: StepFunctionResponse) -> ActionResult:
    """The events in the order, in the pages and as fully as asked for; moto gives all at once."""
    history = response.stepfunction_backend.get_execution_history(
        response._get_param("executionArn")
    )
    events = history["events"]
    if response._get_param("reverseOrder"):
        events = events[::-1]
    start = int(response._get_param("nextToken") or 0)
    end = start + int(response._get_param("maxResults") or HISTORY_PAGE)
    page = events[start:end]
    if response._get_param("includeExecutionData") is False:
        page = [_without_data(event) for event in page]
    return ActionResult(
        {"events": page, "nextToken": str(end)} if end < len(events) else {"events": page}
    )


def _without_data(event: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: {key: value for key, value in detail.items() if key not in ("input", "output")}
        if isinstance(detail, Mapping)
        else detail
        for name, detail in event.items()
    }
