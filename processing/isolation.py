"""Reads documents in a process apart, which has limits and is replaced when it breaks them.

The process is this module, run by `DocumentReader`.
"""

import math
import os
import resource
import signal
import subprocess
import sys
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Self

from processing.documents import Document, DocumentError, is_streamed, read_document

SECONDS = 120
MEMORY_BYTES = 2 * 2**30


class DocumentReader:
    """Reads one document after the other; not for several threads at once."""

    def __init__(self, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES) -> None:
        self._seconds, self._memory_bytes = seconds, memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._connection: Connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()

    def read(self, path: Path, name: str) -> Document:
        """As `read_document`; a file that takes too long or too much is an error too."""
        if is_streamed(name):
            return read_document(path, name)
        if self._process is None:
            self._begin()
        try:
            self._connection.send((path, name))
            if not self._connection.poll(self._seconds):
                self._end()
                raise DocumentError(f"reading it took longer than {self._seconds:g} seconds")
            answer: Document | DocumentError = self._connection.recv()
        except (EOFError, OSError) as error:
            self._end()
            raise DocumentError("reading it crashed the reader") from error
        if isinstance(answer, DocumentError):
            raise answer
        return answer

    def _begin(self) -> None:
        self._connection, other = Pipe()
        limits = [str(math.ceil(self._seconds)), str(self._memory_bytes)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "processing.isolation", str(other.fileno()), *limits],
            stdin=subprocess.DEVNULL,
            pass_fds=[other.fileno()],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        other.close()

    def _end(self) -> None:
        if self._process is not None:
            self._connection.close()
            self._process.kill()
            self._process.wait()
            self._process = None


def _serve(connection: Connection, seconds: int, memory_bytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    while True:
        try:
            path, name = connection.recv()
        except EOFError:
            return
        answer: Document | DocumentError
        signal.alarm(seconds + 10)  # ends this process even if nobody is left to do so
        try:
            answer = read_document(path, name)
        except DocumentError as error:
            answer = error
        signal.alarm(0)
        connection.send(answer)


if __name__ == "__main__":
    descriptor, *limits = map(int, sys.argv[1:])
    _serve(Connection(descriptor), *limits)
