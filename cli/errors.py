"""Errors of the command, as people read them."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from traceback import format_exception

TRACE_FILE = Path(".quench/error.log")


class CommandError(Exception):
    """What went wrong, with what, and what to do about it.

    Parameters
    ----------
    message
        One sentence or a few lines, shown as they are.
    hint
        What to do next: a command, a file to read.
    """

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Import what only an extra installs; without it, the error says how to get it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise CommandError(
            f"This command needs {error.name}, which is not installed.",
            f"In Quench's checkout: pip install '.[{extra}]'",
        ) from error


def write_trace(error: BaseException) -> Path:
    """Keep the stack trace of an error that nobody expected; returns the file."""
    TRACE_FILE.parent.mkdir(parents=True, exist_ok=True)
    TRACE_FILE.write_text("".join(format_exception(error)), encoding="utf-8")
    return TRACE_FILE.resolve()
