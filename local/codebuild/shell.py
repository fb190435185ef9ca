"""The shell that all commands of a build run in: `bash` if there is one, else `sh`.

It takes lines from the cloud, one for each command, and runs them in itself: variables and the
working directory carry over. A command's exit code comes back in a file, as the command may
leave processes behind that hold every descriptor open.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

# The first line ends the whole process group when the cloud does: it alone holds the other end of
# the descriptor. The process is nobody's child, or a command's `wait` would wait for it.
SESSION = """
( ( cat "/dev/fd/$1" > /dev/null; kill -KILL 0 ) & )
shift
while read -r line; do eval "$line"; done
"""


class Shell:
    """One shell and whatever is started from it: a process group, which cannot outlive the cloud.

    Commands have no standard input; what they print goes to the log.
    """

    def __init__(self, cwd: Path, environment: Mapping[str, str], log: BinaryIO) -> None:
        shell = shutil.which("bash") or "sh"
        held_by_us, self._alive = os.pipe()
        try:
            self._process = subprocess.Popen(
                [shell, "-c", SESSION, shell, str(held_by_us)],
                cwd=cwd,
                env=dict(environment),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                pass_fds=(held_by_us,),
                start_new_session=True,
            )
        except BaseException:
            os.close(self._alive)
            raise
        finally:
            os.close(held_by_us)

    @property
    def ended(self) -> bool:
        """Whether a command ended the shell itself, as `exit` does."""
        return self._process.poll() is not None

    def run(self, script: Path, wait: Callable[[], None]) -> int:
        """Run a script in the shell; its exit code, or the shell's if that ends with it.

        `wait` is called again and again meanwhile. What it raises, this raises.
        """
        result = script.with_suffix(".exit")
        line = f". {shlex.quote(str(script))} < /dev/null; echo $? > {shlex.quote(str(result))}\n"
        assert self._process.stdin is not None  # noqa: S101
        with suppress(BrokenPipeError):  # it has just ended: so it is found below
            self._process.stdin.write(line.encode())
            self._process.stdin.flush()
        while True:
            ended = self.ended
            if result.exists() and (code := result.read_text()).endswith("\n"):
                return int(code)
            if ended:
                status = self._process.returncode
                return status if status >= 0 else 128 - status  # killed: as a shell tells it
            wait()

    def end(self) -> None:
        """Kill the shell and all that it started."""
        with suppress(ProcessLookupError, PermissionError):  # nothing of the group is left
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        assert self._process.stdin is not None  # noqa: S101
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        os.close(self._alive)
