"""Lambda: functions run as warm processes under AWS's own runtime client.

moto keeps the functions; an invocation, which moto would send to Docker, comes here. The
function's zip is unpacked to `<state_dir>/functions/<name>/` and run by `awslambdaric` against a
Runtime API of ours, with the environment and the time-out of its configuration.

Layers are recorded but not mounted: a layer holds packages built for Lambda's own Python, and a
function here runs under this Python, with the packages installed beside Quench. Memory is not
limited, and time-outs are real seconds: what is waited for is real work.

https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html
"""

from __future__ import annotations

import base64
import contextlib
import io
import json
import logging
import os
import queue
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
import zipfile
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from dataclasses import dataclass
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moto.awslambda.models import LambdaBackend, LambdaFunction, lambda_backends
from moto.logs.models import logs_backends

from local.patches import Patches
from local.protocol import ServiceError

if TYPE_CHECKING:
    from local.cloud import Cloud

log = logging.getLogger(__name__)

INIT_SECONDS = 60  # Lambda gives 10; this machine may be tuning a model meanwhile
DEFAULT_CONCURRENCY = 4
RETRY_SECONDS = (60, 120)  # between the attempts of an asynchronous invocation
LOG_TAIL_BYTES = 4096
CHILD = Path(__file__).with_name("child.py")


@dataclass(frozen=True)
class Invocation:
    """What an invocation came to: the payload is the error's JSON if `failed`."""

    request_id: str
    payload: bytes
    failed: bool
    log_tail: str = ""


class Functions:
    """Invokes functions, synchronously and asynchronously, and owns their processes."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._patches = Patches()
        self._pools: dict[str, _Pool] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._pending = 0

    def start(self) -> None:
        self._patches.replace(LambdaBackend, "invoke", self._invoke_from_api())
        self._patches.wrap(LambdaFunction, "__init__", _keeping_dead_letter_queue)
        self._patches.wrap(LambdaFunction, "update_configuration", _updating_dead_letter_queue)
        self._patches.wrap(LambdaFunction, "get_configuration", _showing_dead_letter_queue)

    def stop(self) -> None:
        """Kill every process. Asynchronous invocations still waiting for a retry are given up."""
        self._stopped.set()
        with self._lock:
            pools = list(self._pools.values())
            self._pools.clear()
            if self._pending:
                log.warning("%d asynchronous invocations end unfinished", self._pending)
        for pool in pools:
            pool.stop()
        self._patches.restore()

    def find(self, name_or_arn: str, qualifier: str | None = None) -> Any:
        """moto's record of a function. Raises moto's `ResourceNotFoundException`."""
        config = self._cloud.config
        return lambda_backends[config.account_id][config.region].get_function(
            name_or_arn, qualifier
        )

    def invoke(self, function: Any, payload: bytes, request_id: str | None = None) -> Invocation:
        """Run a function and wait for its answer."""
        if self._stopped.is_set():
            raise ServiceError("ServiceException", "The cloud is stopping.", 500)
        with self._lock:
            pool = self._pools.get(function.function_name)
            if pool is None:
                pool = self._pools[function.function_name] = _Pool(self._cloud, function)
        return pool.invoke(function, payload, request_id or str(uuid.uuid4()))

    def invoke_async(self, name_or_arn: str, payload: bytes) -> None:
        """Accept an event. It is retried, then sent to where the function's failures go."""
        function = self.find(name_or_arn)
        with self._lock:
            self._pending += 1
        threading.Thread(
            target=self._run_async, args=(function, payload), name="async-invoke", daemon=True
        ).start()

    def _run_async(self, function: Any, payload: bytes) -> None:
        settings = function.event_invoke_config[-1].config if function.event_invoke_config else {}
        attempts = 1 + int(settings.get("MaximumRetryAttempts", 2))
        maximum_age = settings.get("MaximumEventAgeInSeconds", 21_600)
        request_id = str(uuid.uuid4())
        age, count, condition = 0, 0, "RetriesExhausted"
        try:
            while True:
                outcome = self.invoke(function, payload, request_id)
                count += 1
                if not outcome.failed or count == attempts:
                    break
                wait = RETRY_SECONDS[count - 1]
                age += wait
                if age > maximum_age:
                    condition = "EventAgeExceeded"
                    break
                if self._stopped.wait(self._cloud.config.scaled(wait)):
                    return
            destinations = settings.get("DestinationConfig", {})
            if outcome.failed:
                log.error(
                    "%s failed on an event %d times: %s",
                    function.function_name,
                    count,
                    outcome.payload.decode(errors="replace"),
                )
                self._dead_letter(function, payload, outcome)
                target = destinations.get("OnFailure", {}).get("Destination")
            else:
                condition = "Success"
                target = destinations.get("OnSuccess", {}).get("Destination")
            if target:
                record = _destination_record(function, payload, outcome, condition, count)
                self._send(target, json.dumps(record))
        except Exception:
            if not self._stopped.is_set():
                log.exception("An event for %s was lost: %r", function.function_name, payload)
        finally:
            with self._lock:
                self._pending -= 1

    def _dead_letter(self, function: Any, payload: bytes, outcome: Invocation) -> None:
        target = (getattr(function, "dead_letter_config", None) or {}).get("TargetArn")
        if not target:
            return
        message = json.loads(outcome.payload).get("errorMessage", "")
        self._send(
            target,
            payload.decode(),
            RequestID=outcome.request_id,
            ErrorCode="200",
            ErrorMessage=str(message)[:1024] or "-",
        )

    def _send(self, queue_arn: str, body: str, **attributes: str) -> None:
        sqs = self._cloud.client("sqs")
        url = sqs.get_queue_url(QueueName=queue_arn.rpartition(":")[2])["QueueUrl"]
        sqs.send_message(
            QueueUrl=url,
            MessageBody=body,
            MessageAttributes={
                name: {"DataType": "String", "StringValue": value}
                for name, value in attributes.items()
            },
        )

    def _invoke_from_api(self) -> Callable[..., Any]:
        """The Invoke operation, in the place of moto's `LambdaBackend.invoke`."""

        def invoke(
            _backend: LambdaBackend,
            function_name: str,
            qualifier: str | None,
            body: Any,
            headers: Any,
            response_headers: dict[str, str],
        ) -> bytes:
            function = self.find(function_name, qualifier)
            payload = body.encode() if isinstance(body, str) else bytes(body or b"")
            payload = payload or b"{}"
            try:
                json.loads(payload)
            except ValueError as error:
                raise ServiceError(
                    "InvalidRequestContentException",
                    f"Could not parse request body into json: {error}",
                ) from error
            kind = headers.get("X-Amz-Invocation-Type", "RequestResponse")
            if kind == "Event":
                self.invoke_async(function_name, payload)
                return b""
            if kind == "DryRun":
                return b""
            outcome = self.invoke(function, payload)
            if outcome.failed:
                response_headers["x-amz-function-error"] = "Unhandled"
            tail = outcome.log_tail.encode()[-LOG_TAIL_BYTES:]
            response_headers["x-amz-log-result"] = base64.b64encode(tail).decode()
            response_headers["x-amz-executed-version"] = str(function.version)
            response_headers["Content-Length"] = str(len(outcome.payload))
            return outcome.payload

        return invoke


class _Pool:
    """The processes of one function: an idle one is used again, as Lambda's warm ones are."""

    def __init__(self, cloud: Cloud, function: Any) -> None:
        self._cloud = cloud
        self._idle: list[_Process] = []
        self._all: set[_Process] = set()
        self._lock = threading.Lock()
        self._slots = threading.Semaphore(int(function.reserved_concurrency or DEFAULT_CONCURRENCY))

    def invoke(self, function: Any, payload: bytes, request_id: str) -> Invocation:
        with self._slots:
            process = self._take(function)
            try:
                outcome = process.invoke(payload, request_id)
            except BaseException:
                self._end(process)
                raise
            if process.ended:
                self._end(process)
            else:
                with self._lock:
                    self._idle.append(process)
            return outcome

    def _take(self, function: Any) -> _Process:
        code = _unpack(function, self._cloud.config.state_dir / "functions")
        environment = _environment(function, self._cloud.runtime_environment(), code)
        outdated = []
        with self._lock:
            while self._idle:
                process = self._idle.pop()
                if process.environment == environment and not process.ended:
                    return process
                outdated.append(process)
        for process in outdated:
            self._end(process)
        process = _Process(self._cloud, function, code, environment)
        with self._lock:
            self._all.add(process)
        return process

    def _end(self, process: _Process) -> None:
        with self._lock:
            self._all.discard(process)
        process.stop()

    def stop(self) -> None:
        with self._lock:
            processes = list(self._all)
        for process in processes:
            process.stop()


class _Process:
    """One execution environment: a process, its Runtime API, its log stream."""

    def __init__(
        self, cloud: Cloud, function: Any, code: Path, environment: dict[str, str]
    ) -> None:
        self.environment = environment
        self.ended = False
        self._function = function
        self._timeout = float(function.timeout)
        self._started = False
        self._current: tuple[str, Future[tuple[bytes, bool]]] | None = None
        self._invocations: queue.SimpleQueue[tuple[str, bytes] | None] = queue.SimpleQueue()
        self._ready = threading.Event()
        self._init_error: bytes | None = None
        self._lock = threading.Lock()
        self._log = _Log(cloud, function)

        self._api = _RuntimeApi(("127.0.0.1", 0), _RuntimeApiHandler)
        self._api.process = self
        threading.Thread(
            target=self._api.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        ).start()
        self._child = subprocess.Popen(
            [sys.executable, str(CHILD), "awslambdaric", function.handler],
            cwd=code,
            env=environment
            | {
                "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{self._api.server_port}",
                "AWS_LAMBDA_LOG_STREAM_NAME": self._log.stream,
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        threading.Thread(target=self._watch, daemon=True).start()

    def invoke(self, payload: bytes, request_id: str) -> Invocation:
        result: Future[tuple[bytes, bool]] = Future()
        with self._lock:
            self._current = (request_id, result)
        # Lambda does not count the start of a process against the function's time-out.
        ready = self._ready.wait(INIT_SECONDS)
        begun = time.monotonic()
        self._log.write(f"START RequestId: {request_id} Version: {self._function.version}\n")
        if self._init_error is not None:
            body, failed = self._init_error, True
            self.ended = True
        elif not ready:
            body, failed = _error("Sandbox.Timedout", f"Init did not end in {INIT_SECONDS} s"), True
            self.ended = True
        else:
            if not result.done():
                self._invocations.put((request_id, payload))
            try:
                body, failed = result.result(self._timeout)
            except FutureTimeoutError:
                message = f"RequestId: {request_id} Error: Task timed out after "
                message += f"{self._timeout:.2f} seconds"
                body, failed = _error("Sandbox.Timedout", message), True
                self.ended = True
                self._log.write(f"{_now()} {request_id} Task timed out after ")
                self._log.write(f"{self._timeout:.2f} seconds\n")
        duration = (time.monotonic() - begun) * 1000
        if self._child.stdout is not None and not self.ended:
            self._log.catch_up(self._child.stdout.fileno())
        self._log.write(
            f"END RequestId: {request_id}\nREPORT RequestId: {request_id}\t"
            f"Duration: {duration:.2f} ms\tMemory Size: {self._function.memory_size} MB\n"
        )
        with self._lock:
            self._current = None
        return Invocation(request_id, body, failed, self._log.publish())

    def next_invocation(self) -> tuple[str, bytes, dict[str, str]] | None:
        """For the runtime: wait for the next event; None if there will be none."""
        self._ready.set()
        invocation = self._invocations.get()
        if invocation is None:
            return None
        request_id, payload = invocation
        headers = {
            "Lambda-Runtime-Aws-Request-Id": request_id,
            "Lambda-Runtime-Deadline-Ms": str(int((time.time() + self._timeout) * 1000)),
            "Lambda-Runtime-Invoked-Function-Arn": self._function.function_arn,
            "Lambda-Runtime-Trace-Id": f"Root=1-{int(time.time()):08x}-{uuid.uuid4().hex[:24]}",
        }
        return request_id, payload, headers

    def finish(self, request_id: str, body: bytes, *, failed: bool) -> None:
        """For the runtime: an invocation's answer or error."""
        with self._lock:
            if self._current and self._current[0] == request_id and not self._current[1].done():
                self._current[1].set_result((body, failed))

    def fail_init(self, body: bytes) -> None:
        """For the runtime: the handler could not be loaded."""
        self._init_error = body
        self._ready.set()

    def _watch(self) -> None:
        """Read the log until the process ends; an invocation it was busy with then fails."""
        assert self._child.stdout is not None  # noqa: S101
        self._log.read_from(self._child.stdout.fileno())
        code = self._child.wait()
        self.ended = True
        with self._lock:
            current = self._current
        if current is not None:
            status = f"signal: {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
            message = f"RequestId: {current[0]} Error: Runtime exited with error: {status}"
            self.finish(current[0], _error("Runtime.ExitError", message), failed=True)
        self._ready.set()

    def stop(self) -> None:
        self.ended = True
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._invocations.put(None)
        self._child.wait()
        if self._child.stdin is not None:
            self._child.stdin.close()
        self._api.shutdown()
        self._api.server_close()


class _RuntimeApi(ThreadingHTTPServer):
    process: _Process
    daemon_threads = True
    block_on_close = False


class _RuntimeApiHandler(BaseHTTPRequestHandler):
    """The four endpoints of Lambda's Runtime API, version 2018-06-01."""

    protocol_version = "HTTP/1.1"
    # Headers and body leave in one write, or at least at once: else each call costs 40 ms more.
    wbufsize = -1
    disable_nagle_algorithm = True
    server: _RuntimeApi

    def do_GET(self) -> None:
        if not self.path.endswith("/runtime/invocation/next"):
            self._answer(404, b"{}")
            return
        invocation = self.server.process.next_invocation()
        if invocation is None:
            self.close_connection = True
            return
        _, payload, headers = invocation
        self._answer(200, payload, headers)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = self.path.strip("/").split("/")
        process = self.server.process
        if parts[-2:] == ["init", "error"]:
            process.fail_init(body)
        elif parts[-3:-2] == ["invocation"] and parts[-1] in ("response", "error"):
            process.finish(parts[-2], body, failed=parts[-1] == "error")
        else:
            self._answer(404, b"{}")
            return
        self._answer(202, b'{"status":"OK"}')

    def _answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


class _Log:
    """A process's log: to `<state_dir>/logs/<function>.log` and to a CloudWatch log stream."""

    def __init__(self, cloud: Cloud, function: Any) -> None:
        self._backend = logs_backends[cloud.config.account_id][cloud.config.region]
        self._group = function.logs_group_name
        self.stream = f"{datetime.now(UTC):%Y/%m/%d}/[{function.version}]{uuid.uuid4().hex}"
        directory = cloud.config.state_dir / "logs"
        directory.mkdir(parents=True, exist_ok=True)
        self._path = directory / f"{function.function_name}.log"
        self._unpublished: list[bytes] = []
        self._lock = threading.Lock()

    def write(self, text: str) -> None:
        self._add(text.encode())

    def _add(self, data: bytes) -> None:
        with self._lock:
            self._unpublished.append(data)
            with self._path.open("ab") as file:
                file.write(data)

    def read_from(self, descriptor: int) -> None:
        """Take what a process prints, until it ends."""
        while True:
            select.select([descriptor], [], [])
            with self._lock:
                data = os.read(descriptor, 65_536)
                if not data:
                    return
                self._unpublished.append(data)
                with self._path.open("ab") as file:
                    file.write(data)

    def catch_up(self, descriptor: int) -> None:
        """Wait until what has been printed so far is taken."""
        while select.select([descriptor], [], [], 0)[0]:
            time.sleep(0.001)

    def publish(self) -> str:
        """Hand what was logged since last time to CloudWatch Logs, and return it."""
        with self._lock:
            text = b"".join(self._unpublished).decode(errors="replace")
            self._unpublished.clear()
        now = int(time.time() * 1000)
        events = [{"timestamp": now, "message": line} for line in text.splitlines() if line]
        if events:
            self._backend.ensure_log_group(self._group)
            if self.stream not in self._backend.groups[self._group].streams:
                self._backend.create_log_stream(self._group, self.stream)
            self._backend.put_log_events(self._group, self.stream, events)
        return text


def _unpack(function: Any, directory: Path) -> Path:
    """The folder of a function's code; unpacked once for each version of the code."""
    target: Path = directory / function.function_name / function.code_sha_256[:12].replace("/", "_")
    with _unpacking:
        if not target.exists():
            partial = target.with_name(f"{target.name}.partial")
            with zipfile.ZipFile(io.BytesIO(function.code_bytes)) as archive:
                archive.extractall(partial)
            partial.rename(target)
    return target.resolve()


_unpacking = threading.Lock()


def _environment(function: Any, cloud: dict[str, str], code: Path) -> dict[str, str]:
    """The variables a function sees: its own, the cloud's, and those Lambda itself sets."""
    machine = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    own = {name: str(value) for name, value in function.environment_vars.items()}
    lambdas = {
        "_HANDLER": function.handler,
        "LAMBDA_TASK_ROOT": str(code),
        "AWS_EXECUTION_ENV": f"AWS_Lambda_{function.run_time}",
        "AWS_LAMBDA_FUNCTION_NAME": function.function_name,
        "AWS_LAMBDA_FUNCTION_VERSION": str(function.version),
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": str(function.memory_size),
        "AWS_LAMBDA_FUNCTION_TIMEOUT": str(function.timeout),
        "AWS_LAMBDA_LOG_GROUP_NAME": function.logs_group_name,
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "TZ": ":UTC",
        "LANG": "C.UTF-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return machine | own | cloud | lambdas


def _destination_record(
    function: Any, payload: bytes, outcome: Invocation, condition: str, count: int
) -> dict[str, Any]:
    """https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html"""
    response: dict[str, Any] = {"statusCode": 200, "executedVersion": str(function.version)}
    if outcome.failed:
        response["functionError"] = "Unhandled"
    return {
        "version": "1.0",
        "timestamp": _now(),
        "requestContext": {
            "requestId": outcome.request_id,
            "functionArn": f"{function.function_arn}:{function.version}",
            "condition": condition,
            "approximateInvokeCount": count,
        },
        "requestPayload": json.loads(payload),
        "responseContext": response,
        "responsePayload": json.loads(outcome.payload),
    }


def _error(kind: str, message: str) -> bytes:
    return json.dumps({"errorType": kind, "errorMessage": message}).encode()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# moto forgets a function's dead-letter queue.


def _keeping_dead_letter_queue(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, account_id: str, spec: dict[str, Any], *args: Any, **kw: Any) -> None:
        original(self, account_id, spec, *args, **kw)
        runtime = spec.get("Runtime")
        if spec.get("PackageType") == "Image" or not str(runtime).startswith("python"):
            raise ServiceError(
                "InvalidParameterValueException",
                f"{self.function_name}: the embedded cloud runs Python functions from zip files, "
                f"not runtime {runtime}, package type {self.package_type}.",
            )
        self.logs_group_name = (spec.get("LoggingConfig") or {}).get(
            "LogGroup", self.logs_group_name
        )
        _set_dead_letter_queue(self, spec)

    return __init__


def _updating_dead_letter_queue(original: Callable[..., Any]) -> Callable[..., Any]:
    def update_configuration(self: Any, config_updates: dict[str, Any]) -> Any:
        _set_dead_letter_queue(self, config_updates)
        original(self, config_updates)
        return self.get_configuration()

    return update_configuration


def _showing_dead_letter_queue(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_configuration(self: Any, on_create: bool = False) -> Any:
        configuration = original(self, on_create)
        if self.dead_letter_config:
            configuration["DeadLetterConfig"] = self.dead_letter_config
        configuration["LoggingConfig"] = {"LogFormat": "Text", "LogGroup": self.logs_group_name}
        return configuration

    return get_configuration


def _set_dead_letter_queue(function: Any, spec: dict[str, Any]) -> None:
    if "DeadLetterConfig" in spec or not hasattr(function, "dead_letter_config"):
        function.dead_letter_config = spec.get("DeadLetterConfig")
    target = (function.dead_letter_config or {}).get("TargetArn", "")
    if target and ":sqs:" not in target:
        raise ServiceError(
            "InvalidParameterValueException",
            f"{function.function_name}: the embedded cloud keeps failed events in SQS queues only, "
            f"not in {target}.",
        )
