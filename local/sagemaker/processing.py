"""Processing jobs: the container's entry point, run as processes of this machine.

The image is not opened: it carries this project's code, so its entry point runs here, with this
interpreter, in the project's root. A job's folder, `<state_dir>/processing/<job name>`, stands for
`/opt/ml`: the process finds it in `ML_ROOT`, and `/opt/ml` is rewritten to it in arguments and
environment. With several instances, each has a folder `algo-<n>` in it. A module (`python3 -m …`)
runs through `local/child.py`: it ends even when the cloud is killed.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from botocore.exceptions import BotoCoreError, ClientError

from local.protocol import ServiceError
from local.sagemaker.requests import (
    invalid,
    is_descending,
    not_found,
    page,
    present,
    refuse,
    within,
)
from local.sagemaker.resources import Resources

if TYPE_CHECKING:
    from local.cloud import Cloud

PROJECT_ROOT = Path(__file__).parents[2]
CHILD = PROJECT_ROOT / "local" / "child.py"
LOG_GROUP = "/aws/sagemaker/ProcessingJobs"
MAX_MESSAGE = 1024
SECONDS_TO_STOP = 5.0  # between SIGTERM and SIGKILL
LOG_BATCH = 1000  # events in one PutLogEvents; the service allows 10,000
DEFAULT_MAX_RUNTIME = 86_400  # seconds
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "LD_LIBRARY_PATH", "VIRTUAL_ENV")
_ML_ROOT = re.compile(r"(?<![\w.\-])/opt/ml(?![\w\-])")


class JobFailed(Exception):
    """Why a job failed, in SageMaker's form `<kind>: <reason>`."""


class JobStopped(Exception):
    """A job that was stopped, or ran out of its time; the message says so."""


@dataclass
class Job:
    """A processing job. `request` is what it was created with."""

    arn: str
    request: Mapping[str, Any]
    folder: Path
    log_file: Path
    creation_time: datetime
    last_modified_time: datetime
    status: str = "InProgress"
    start_time: datetime | None = None
    end_time: datetime | None = None
    exit_message: str | None = None
    failure_reason: str | None = None
    stop_requested: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    @property
    def name(self) -> str:
        return str(self.request["ProcessingJobName"])

    @property
    def instance_count(self) -> int:
        return int(self.request["ProcessingResources"]["ClusterConfig"].get("InstanceCount", 1))

    @property
    def outputs(self) -> list[Mapping[str, Any]]:
        return list(self.request.get("ProcessingOutputConfig", {}).get("Outputs", []))

    def root(self, host: int) -> Path:
        """The folder that stands for `/opt/ml` on one instance, counted from 0."""
        return self.folder if self.instance_count == 1 else self.folder / f"algo-{host + 1}"

    def local_path(self, path: str, host: int) -> Path:
        return Path(at_root(path, self.root(host)))

    def summary(self) -> dict[str, Any]:
        return present(
            {
                "ProcessingJobName": self.name,
                "ProcessingJobArn": self.arn,
                "ProcessingJobStatus": self.status,
                "CreationTime": self.creation_time,
                "LastModifiedTime": self.last_modified_time,
                "ProcessingEndTime": self.end_time,
                "ExitMessage": self.exit_message,
                "FailureReason": self.failure_reason,
            }
        )


class ProcessingJobs(Resources):
    """The operations on processing jobs."""

    def __init__(self, cloud: "Cloud") -> None:
        super().__init__(cloud)
        self._jobs: dict[str, Job] = {}

    def stop(self) -> None:
        """End every job and its processes."""
        jobs = list(self._jobs.values())
        for job in jobs:
            job.stop_requested.set()
        for job in jobs:
            if job.thread is not None:
                job.thread.join()

    def ended(self, name: str) -> threading.Event:
        """Set when the job of this name has ended."""
        return self._jobs[name].ended

    def create_processing_job(self, request: dict[str, Any]) -> dict[str, Any]:
        _check(request)
        name = request["ProcessingJobName"]
        now = datetime.now(UTC)
        state_dir = self.cloud.config.state_dir.resolve()
        job = Job(
            arn=self.arn("processing-job", name),
            request=request,
            folder=state_dir / "processing" / name,
            log_file=state_dir / "logs" / "processing" / f"{name}.log",
            creation_time=now,
            last_modified_time=now,
        )
        with self.lock:
            if name in self._jobs:
                raise ServiceError(
                    "ResourceInUse",
                    "Job name must be unique within an AWS account and region, and a job with "
                    f"this name already exists ({job.arn})",
                )
            self._jobs[name] = job
            self.keep_tags(job.arn, request)
            job.thread = threading.Thread(target=self._run, args=(job,), name=job.arn, daemon=True)
            job.thread.start()
        return {"ProcessingJobArn": job.arn}

    def describe_processing_job(self, request: dict[str, Any]) -> dict[str, Any]:
        job = self._job(request["ProcessingJobName"])
        created_with = {name: value for name, value in job.request.items() if name != "Tags"}
        with self.lock:  # an end is told whole: status, reason and time
            return present({**created_with, **job.summary(), "ProcessingStartTime": job.start_time})

    def list_processing_jobs(self, request: dict[str, Any]) -> dict[str, Any]:
        jobs = [
            job
            for job in list(self._jobs.values())
            if request.get("NameContains", "").lower() in job.name.lower()
            and request.get("StatusEquals", job.status) == job.status
            and within(job.creation_time, request, "CreationTimeAfter", "CreationTimeBefore")
            and within(
                job.last_modified_time, request, "LastModifiedTimeAfter", "LastModifiedTimeBefore"
            )
        ]
        keys = {"Name": lambda job: job.name, "Status": lambda job: job.status}
        jobs.sort(
            key=keys.get(request.get("SortBy", ""), lambda job: job.creation_time.isoformat()),
            reverse=is_descending(request, "Ascending"),
        )
        with self.lock:  # as above
            return page(jobs, request, Job.summary, "ProcessingJobSummaries")

    def stop_processing_job(self, request: dict[str, Any]) -> dict[str, Any]:
        job = self._job(request["ProcessingJobName"])
        with self.lock:
            if job.status != "InProgress":
                raise invalid(
                    "The request was rejected because the processing job is in status "
                    f"{job.status}: {job.arn}"
                )
            job.status = "Stopping"
            job.last_modified_time = datetime.now(UTC)
        self._publish(job)
        job.stop_requested.set()
        return {}

    def _job(self, name: str) -> Job:
        if name not in self._jobs:
            raise not_found(f"Could not find requested job with name: {name}")
        return self._jobs[name]

    def _run(self, job: Job) -> None:
        self._publish(job)
        status, reason = "Completed", None
        try:
            if job.folder.exists():  # of a job in an earlier cloud's life
                shutil.rmtree(job.folder)
            for host in range(job.instance_count):
                self._prepare(job, host)
            job.start_time = datetime.now(UTC)
            try:
                self._run_processes(job)
            except JobFailed:
                self._upload(job, [output for output in job.outputs if is_continuous(output)])
                raise
            self._upload(job, job.outputs)
        except JobStopped as stopped:
            status, reason = "Stopped", str(stopped) or None
        except JobFailed as failed:
            status, reason = "Failed", str(failed)
        except (ClientError, BotoCoreError) as error:
            status, reason = "Failed", f"ClientError: {error}"
        except Exception as error:
            status, reason = "Failed", f"InternalServerError: {error!r}"
            raise
        finally:
            self._end(job, status, reason)

    def _end(self, job: Job, status: str, reason: str | None) -> None:
        try:
            if job.log_file.exists():
                self._publish_log(job)
        finally:
            with self.lock:
                job.status = status
                job.failure_reason = reason[:MAX_MESSAGE] if reason else None
                job.end_time = job.last_modified_time = datetime.now(UTC)
            job.ended.set()
        self._publish(job)

    def _prepare(self, job: Job, host: int) -> None:
        """Lay out one instance's `/opt/ml`: configuration, inputs, and folders for outputs."""
        root = job.root(host)
        hosts = [f"algo-{number + 1}" for number in range(job.instance_count)]
        config = root / "config"
        config.mkdir(parents=True)
        (root / "output").mkdir()
        job_config = {"ProcessingJobArn": job.arn, **job.request}
        (config / "processingjobconfig.json").write_text(json.dumps(job_config), "utf-8")
        resource_config = {"current_host": hosts[host], "hosts": hosts}
        (config / "resourceconfig.json").write_text(json.dumps(resource_config), "utf-8")
        for item in job.request.get("ProcessingInputs", []):
            self._download(job, item["S3Input"], host)
        for output in job.outputs:
            job.local_path(output["S3Output"]["LocalPath"], host).mkdir(parents=True, exist_ok=True)

    def _download(self, job: Job, s3_input: Mapping[str, Any], host: int) -> None:
        s3 = self.cloud.client("s3")
        bucket, prefix = split_uri(s3_input["S3Uri"])
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        found = (item["Key"] for listing in pages for item in listing.get("Contents", []))
        keys = sorted(key for key in found if not key.endswith("/"))
        if not keys:
            raise JobFailed(
                f'ClientError: No S3 objects found under S3 URL "{s3_input["S3Uri"]}" given in '
                "input data source."
            )
        if s3_input.get("S3DataDistributionType") == "ShardedByS3Key":
            keys = keys[host :: job.instance_count]
        folder = job.local_path(s3_input["LocalPath"], host)
        folder.mkdir(parents=True, exist_ok=True)
        for key in keys:
            target = (folder / relative_key(prefix, key)).resolve()
            if not target.is_relative_to(folder.resolve()):
                raise JobFailed(f"ClientError: The S3 key '{key}' leads out of the input's folder.")
            target.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file(bucket, key, str(target))
            if job.stop_requested.is_set():
                raise JobStopped

    def _run_processes(self, job: Job) -> None:
        limit = job.request.get("StoppingCondition", {}).get(
            "MaxRuntimeInSeconds", DEFAULT_MAX_RUNTIME
        )
        deadline = time.monotonic() + limit
        job.log_file.parent.mkdir(parents=True, exist_ok=True)
        processes: list[subprocess.Popen[bytes]] = []
        with job.log_file.open("wb") as log:
            try:
                for host in range(job.instance_count):
                    processes.append(self._start_process(job, host, log))
                codes = [process.poll() for process in processes]
                # When one instance fails, the job has failed: the others need not finish.
                while None in codes and not any(codes):
                    if job.stop_requested.wait(0.02):
                        raise JobStopped
                    if time.monotonic() > deadline:
                        raise JobStopped(f"MaxRuntimeExceeded: ran longer than {limit} seconds.")
                    codes = [process.poll() for process in processes]
            finally:
                _end_processes(processes)
        messages = [_read_message(job.root(host)) for host in range(job.instance_count)]
        for code, message in zip(codes, messages, strict=True):
            if code:
                job.exit_message = message
                why = message or "See job logs for more information"
                raise JobFailed(f"AlgorithmError: {why}, exit code: {code}")
        job.exit_message = next(filter(None, messages), None)

    def _start_process(self, job: Job, host: int, log: BinaryIO) -> "subprocess.Popen[bytes]":
        root = job.root(host)
        application = job.request["AppSpecification"]
        command = [
            at_root(part, root)
            for part in (
                *application["ContainerEntrypoint"],
                *application.get("ContainerArguments", []),
            )
        ]
        if command[0] in ("python", "python3"):
            command[0] = sys.executable
            if command[1:2] == ["-m"]:
                command[1] = str(CHILD)
        inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
        given = job.request.get("Environment", {})
        environment = {
            **inherited,
            "PYTHONPATH": str(PROJECT_ROOT),
            "PYTHONUNBUFFERED": "1",
            **{name: at_root(value, root) for name, value in given.items()},
            **self.cloud.runtime_environment(),
            "ML_ROOT": str(root),
        }
        try:
            return subprocess.Popen(
                command,
                cwd=PROJECT_ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            raise JobFailed(f"AlgorithmError: Cannot run {command[0]}: {error}") from error

    def _upload(self, job: Job, outputs: Iterable[Mapping[str, Any]]) -> None:
        s3 = self.cloud.client("s3")
        for output in outputs:
            bucket, prefix = split_uri(output["S3Output"]["S3Uri"])
            for host in range(job.instance_count):
                folder = job.local_path(output["S3Output"]["LocalPath"], host)
                for file in sorted(path for path in folder.rglob("*") if path.is_file()):
                    key = "/".join((prefix.rstrip("/"), file.relative_to(folder).as_posix()))
                    s3.upload_file(str(file), bucket, key.lstrip("/"))

    def _publish_log(self, job: Job) -> None:
        """Copy the job's log to CloudWatch Logs, where SageMaker keeps it."""
        logs = self.cloud.client("logs")
        stream = f"{job.name}/algo-1-{int(job.creation_time.timestamp())}"
        with suppress(logs.exceptions.ResourceAlreadyExistsException):  # another job made it
            logs.create_log_group(logGroupName=LOG_GROUP)
        logs.create_log_stream(logGroupName=LOG_GROUP, logStreamName=stream)
        lines = job.log_file.read_text("utf-8", errors="replace").splitlines()
        now = int(time.time() * 1000)
        events = [{"timestamp": now, "message": line} for line in lines if line.strip()]
        for start in range(0, len(events), LOG_BATCH):
            logs.put_log_events(
                logGroupName=LOG_GROUP,
                logStreamName=stream,
                logEvents=events[start : start + LOG_BATCH],
            )

    def _publish(self, job: Job) -> None:
        # https://docs.aws.amazon.com/sagemaker/latest/dg/automating-sagemaker-with-eventbridge.html
        moments = ("CreationTime", "LastModifiedTime", "ProcessingStartTime", "ProcessingEndTime")
        described = self.describe_processing_job({"ProcessingJobName": job.name})
        detail = {
            name: int(value.timestamp()) * 1000 if name in moments else value
            for name, value in described.items()
        }
        self.cloud.publish_event(
            "aws.sagemaker", "SageMaker Processing Job State Change", detail, [job.arn]
        )


def is_continuous(output: Mapping[str, Any]) -> bool:
    """Whether an output is uploaded even if the job fails; here, too, only when the job ends."""
    return bool(output["S3Output"]["S3UploadMode"] == "Continuous")


def at_root(text: str, root: Path) -> str:
    """The text with `/opt/ml`, as a path of its own, replaced by the root's path."""
    return _ML_ROOT.sub(lambda _: str(root), text)


def split_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/some/key` → `("bucket", "some/key")`."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def relative_key(prefix: str, key: str) -> str:
    """Where an object found under a prefix lies, relative to the input's folder.

    A folder's name is left out, with or without a slash at the prefix's end; an object named in
    full, and one whose name merely starts like the prefix, keep their own name.
    """
    rest = key[len(prefix) :]
    if rest.startswith("/") or (rest and (not prefix or prefix.endswith("/"))):
        return rest.lstrip("/")
    return key[prefix.rfind("/") + 1 :]


def _check(request: Mapping[str, Any]) -> None:
    """Refuse what a job cannot be given here, or on SageMaker."""
    application = request["AppSpecification"]
    if not application.get("ContainerEntrypoint"):
        raise invalid(
            "The embedded cloud runs no images: give the entry point in "
            "AppSpecification.ContainerEntrypoint."
        )
    refuse(request.get("NetworkConfig", {}), "EnableNetworkIsolation")
    refuse(request["ProcessingResources"]["ClusterConfig"], "InstancePreferences")
    names: set[str] = set()
    for item in request.get("ProcessingInputs", []):
        refuse(item, "DatasetDefinition", "AppManaged")
        _check_channel(item["InputName"], item.get("S3Input"), names)
        s3_input = item["S3Input"]
        for member, supported in {
            "S3DataType": "S3Prefix",
            "S3InputMode": "File",
            "S3CompressionType": "None",
        }.items():
            if s3_input.get(member, supported) != supported:
                raise invalid(
                    f"The input '{item['InputName']}' has {member} {s3_input[member]}: "
                    f"the embedded cloud supports {supported} only."
                )
    for item in request.get("ProcessingOutputConfig", {}).get("Outputs", []):
        refuse(item, "FeatureStoreOutput", "AppManaged")
        _check_channel(item["OutputName"], item.get("S3Output"), names)


def _check_channel(name: str, s3: Mapping[str, Any] | None, names: set[str]) -> None:
    if name in names:
        raise invalid(f"Two inputs or outputs are named '{name}'.")
    names.add(name)
    if s3 is None or not s3["S3Uri"].startswith("s3://"):
        raise invalid(f"The input or output '{name}' needs an S3 URI (s3://…).")
    path = s3.get("LocalPath", "")
    if not path.startswith("/opt/ml/processing/") or ".." in Path(path).parts:
        raise invalid(
            f"The LocalPath of '{name}' must lie under /opt/ml/processing/, not {path!r}."
        )


def _end_processes(processes: "list[subprocess.Popen[bytes]]") -> None:
    """End the processes' groups, children included: first asked, then killed."""
    running = [process for process in processes if process.poll() is None]
    for process in running:
        _signal_group(process, signal.SIGTERM)
    deadline = time.monotonic() + SECONDS_TO_STOP
    for process in running:
        try:
            process.wait(max(0.0, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            continue
    for process in processes:
        _signal_group(process, signal.SIGKILL)
        process.communicate()


def _signal_group(process: "subprocess.Popen[bytes]", number: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # nothing of the group is left
        os.killpg(process.pid, number)


def _read_message(root: Path) -> str | None:
    """What the process left in `/opt/ml/output/message`: the first KB."""
    file = root / "output" / "message"
    if not file.is_file():
        return None
    with file.open("rb") as stream:
        return stream.read(MAX_MESSAGE).decode("utf-8", errors="ignore").strip() or None
