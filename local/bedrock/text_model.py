"""The process that answers prompts, as the cloud holds it."""

import itertools
import json
import os
import subprocess
import sys
import threading
from concurrent.futures import Future, TimeoutError
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bedrock.conversations import Message
from bedrock.text import Answer, Limits

if TYPE_CHECKING:
    from local.cloud import Cloud

PROJECT_ROOT = Path(__file__).parents[2]
PATIENCE = 300.0  # seconds until an answer is given up
# Threads that wait do so asleep: spinning, they take the cores from the cloud's other processes.
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "TOKENIZERS_PARALLELISM": "false"}


class RefusedError(Exception):
    """The model cannot answer this prompt."""


class ModelFailedError(Exception):
    """The process that answers failed; its log says more."""


class TextModel:
    """Answers prompts in a process of its own, started by the first one and kept warm.

    `name` is a model of `local.bedrock.weights`; `log` is the file its process writes to.
    """

    def __init__(self, name: str, cache: Path, log: Path) -> None:
        self._arguments = [name, str(cache)]
        self._log = log
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._numbers = itertools.count()
        self._pending: dict[int, Future[dict[str, Any]]] = {}

    def answer(
        self,
        adapter: Path | None,
        system: str | None,
        messages: tuple[Message, ...],
        limits: Limits,
    ) -> Answer:
        """The model's answer, with an adapter or as it is.

        Raises RefusedError, ModelFailedError.
        """
        request = {
            "adapter": None if adapter is None else str(adapter),
            "system": system,
            "messages": [{"role": message.role, "text": message.text} for message in messages],
            "max_tokens": limits.max_tokens,
            "temperature": 0.7 if limits.temperature is None else limits.temperature,
            "top_p": 0.9 if limits.top_p is None else limits.top_p,
        }
        future = self._send(request)
        try:
            result = future.result(PATIENCE)
        except TimeoutError as error:
            raise ModelFailedError(f"No answer within {PATIENCE:.0f} seconds.") from error
        if "refused" in result:
            raise RefusedError(result["refused"])
        if "error" in result:
            raise ModelFailedError(f"{result['error']} (log: {self._log})")
        return Answer(
            text=result["text"],
            stop_reason=result["stop_reason"],
            input_tokens=result["input_tokens"],
            output_tokens=result["output_tokens"],
        )

    def stop(self) -> None:
        """End the process."""
        with self._lock:
            process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()

    def _send(self, request: dict[str, Any]) -> Future[dict[str, Any]]:
        future: Future[dict[str, Any]] = Future()
        with self._lock:
            if self._process is None or self._process.poll() is not None:
                self._process = self._start()
            number, pending = next(self._numbers), self._pending
            pending[number] = future
            assert self._process.stdin is not None  # noqa: S101
            try:
                self._process.stdin.write(json.dumps({"id": number, **request}) + "\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                if pending.pop(number, None):
                    future.set_result({"error": "The process that answers has ended."})
        return future

    def _start(self) -> "subprocess.Popen[str]":
        self._log.parent.mkdir(parents=True, exist_ok=True)
        with self._log.open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "local.bedrock.generation", *self._arguments],
                cwd=PROJECT_ROOT,
                env=os.environ | ENVIRONMENT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                start_new_session=True,
            )
        self._pending = {}
        threading.Thread(target=_read, args=(process, self._pending), daemon=True).start()
        return process


def weights_cache(cloud: "Cloud") -> Path:
    """Where the model's weights are kept once read: beside the state, for clouds to share."""
    return cloud.config.state_dir.resolve().parent / "cache"


def _read(process: "subprocess.Popen[str]", pending: dict[int, Future[dict[str, Any]]]) -> None:
    """Hand answers to those who wait for them, until the process ends."""
    assert process.stdout is not None  # noqa: S101
    for line in process.stdout:
        result = json.loads(line)
        pending.pop(result.pop("id")).set_result(result)
    code = process.wait()
    while pending:
        _, future = pending.popitem()
        future.set_result({"error": f"The process that answers ended with code {code}."})
