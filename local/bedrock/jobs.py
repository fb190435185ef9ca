"""Model customization jobs: what is known of each, and the process that runs it."""

import csv
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from bedrock.models import FoundationModel
from local.bedrock.text_model import ENVIRONMENT, PROJECT_ROOT
from local.bedrock.training import (
    ADAPTER,
    MESSAGE,
    TRAINING_METRICS,
    VALIDATION_METRICS,
    TrainingJob,
)

CHILD = PROJECT_ROOT / "local" / "child.py"
LOG = "training.log"
MAX_MESSAGE = 2_048  # characters of a failureMessage

Status = Literal["InProgress", "Completed", "Failed", "Stopping", "Stopped"]


@dataclass
class Job:
    """A customization job. `request` is CreateModelCustomizationJob's, `folder` holds its files."""

    arn: str
    request: Mapping[str, Any]
    base_model: FoundationModel
    hyperparameters: dict[str, str]
    folder: Path
    created: datetime
    status: Status = "InProgress"
    changed: datetime = field(init=False)
    ended: datetime | None = None
    failure: str | None = None
    model_arn: str | None = None

    def __post_init__(self) -> None:
        self.changed = self.created

    @property
    def name(self) -> str:
        return str(self.request["jobName"])

    @property
    def model_name(self) -> str:
        return str(self.request["customModelName"])

    @property
    def adapter(self) -> Path:
        return self.folder / ADAPTER

    @property
    def runs(self) -> bool:
        return self.status in ("InProgress", "Stopping")

    def metrics(self) -> dict[str, Any]:
        """`trainingMetrics` and `validationMetrics` as far as the job got."""
        training = _last(self.folder / TRAINING_METRICS, "training_loss")
        validation = _last(self.folder / VALIDATION_METRICS, "validation_loss")
        metrics: dict[str, Any] = {}
        if training is not None:
            metrics["trainingMetrics"] = {"trainingLoss": training}
        if validation is not None:
            metrics["validationMetrics"] = [{"validationLoss": validation}]
        return metrics


class Runner:
    """Runs jobs, each in a process group of its own, and keeps their status true.

    `on_completed` is called with a job whose training is done, before its status says so.
    """

    def __init__(self, on_completed: Callable[[Job], None]) -> None:
        self._on_completed = on_completed
        self._lock = threading.Lock()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._watchers: list[threading.Thread] = []

    def start(self, job: Job, training: TrainingJob, environment: Mapping[str, str]) -> None:
        """Start the job's process."""
        path = training.save(job.folder)
        with (job.folder / LOG).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, str(CHILD), "local.bedrock.training", str(path.resolve())],
                cwd=PROJECT_ROOT,
                env={**os.environ, **ENVIRONMENT, **environment},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        watcher = threading.Thread(target=self._watch, args=(job, process), daemon=True)
        with self._lock:
            self._processes[job.arn] = process
            self._watchers.append(watcher)
        watcher.start()

    def stop_job(self, job: Job) -> bool:
        """Stop a job that is InProgress; whether it was."""
        with self._lock:
            if job.status != "InProgress":
                return False
            _change(job, "Stopping")
            _kill(self._processes[job.arn])
            return True

    def stop(self) -> None:
        """End all processes."""
        with self._lock:
            for process in self._processes.values():
                _kill(process)
            watchers = list(self._watchers)
        for watcher in watchers:
            watcher.join()

    def _watch(self, job: Job, process: "subprocess.Popen[bytes]") -> None:
        code = process.wait()
        if process.stdin is not None:
            process.stdin.close()
        with self._lock:
            del self._processes[job.arn]
            if job.status == "Stopping":
                _change(job, "Stopped")
            elif code == 0:
                self._on_completed(job)
                _change(job, "Completed")
            else:
                job.failure = _failure(job, code)
                _change(job, "Failed")


def _change(job: Job, status: Status) -> None:
    job.changed = datetime.now(UTC)
    if status != "Stopping":
        job.ended = job.changed
    job.status = status


def _kill(process: "subprocess.Popen[bytes]") -> None:
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _failure(job: Job, code: int) -> str:
    message = job.folder / MESSAGE
    if message.is_file():
        return message.read_text(encoding="utf-8")[:MAX_MESSAGE]
    how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
    return f"The job's process {how}. Its log is {job.folder / LOG}"


def _last(path: Path, column: str) -> float | None:
    """The last whole row's value; the job may be writing the next one."""
    if not path.is_file():
        return None
    text = path.read_text(encoding="utf-8")
    rows = list(csv.DictReader(text[: text.rfind("\n") + 1].splitlines()))
    return float(rows[-1][column]) if rows else None
