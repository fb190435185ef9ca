"""A build's log: a file, written as things happen, and a stream in CloudWatch Logs."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from moto.logs.models import logs_backends

if TYPE_CHECKING:
    from local.cloud import Cloud

LINES = 20  # of a failed command's output that people are shown
TAIL_BYTES = 16_384


class BuildLog:
    """What the cloud says of a build, and what its commands print into `stream`."""

    def __init__(self, cloud: Cloud, file: Path, group: str, stream_name: str) -> None:
        self.file = file
        self.group = group
        self.stream_name = stream_name
        file.parent.mkdir(parents=True, exist_ok=True)
        # Without a buffer, as commands write to the same file.
        self.stream: BinaryIO = file.open("ab", buffering=0)
        self._published = 0
        self._backend = logs_backends[cloud.config.account_id][cloud.config.region]
        self._backend.ensure_log_group(group)
        self._backend.create_log_stream(group, stream_name)

    def write(self, text: str) -> None:
        """Say something of the build, in CodeBuild's form."""
        self.stream.write(f"[Container] {datetime.now(UTC):%Y/%m/%d %H:%M:%S} {text}\n".encode())
        self.publish()

    def size(self) -> int:
        return os.fstat(self.stream.fileno()).st_size

    def last_lines(self, start: int) -> str:
        """The last lines of what was printed since the file had this size."""
        with self.file.open("rb") as file:
            file.seek(max(start, self.size() - TAIL_BYTES))
            text = file.read().decode(errors="replace")
        return "\n".join(text.strip().splitlines()[-LINES:])

    def publish(self, *, all_of_it: bool = False) -> None:
        """Hand whole lines that are new to CloudWatch Logs; with `all_of_it`, the rest too."""
        if self.size() == self._published:
            return
        with self.file.open("rb") as file:
            file.seek(self._published)
            new = file.read()
        if not all_of_it:
            new = new[: new.rfind(b"\n") + 1]
        self._published += len(new)
        now = int(time.time() * 1000)
        lines = new.decode(errors="replace").splitlines()
        if events := [{"timestamp": now, "message": line} for line in lines if line.strip()]:
            self._backend.put_log_events(self.group, self.stream_name, events)

    def close(self) -> None:
        self.publish(all_of_it=True)
        self.stream.close()
