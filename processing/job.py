"""What the container's jobs share: how they are started, and how they say why they failed."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

MAXIMUM_MESSAGE_BYTES = 1024  # what SageMaker keeps of output/message

Arguments = TypeVar("Arguments", bound=BaseModel)


class ArgumentsError(Exception):
    """The job was started wrongly; the message says how."""


def parse_arguments(
    model: type[Arguments], program: str, description: str | None, argv: Sequence[str] | None
) -> Arguments:
    """Arguments by the names of a model's fields, checked by it. Raises ArgumentsError."""
    parser = _ArgumentParser(prog=program, description=description)
    for name, field in model.model_fields.items():
        parser.add_argument(f"--{name.replace('_', '-')}", required=field.is_required())
    values = vars(parser.parse_args(argv))
    given = {name: value for name, value in values.items() if value is not None}
    try:
        return model.model_validate(given)
    except ValidationError as error:
        faults = "; ".join(
            f"{'.'.join(map(str, fault['loc'])) or 'arguments'}: {fault['msg']}"
            for fault in error.errors()
        )
        raise ArgumentsError(f"{program} was started wrongly: {faults}.") from error


def leave_message(root: Path, message: str) -> None:
    """Write why the job failed to where SageMaker looks for it, cut to what it keeps."""
    content = message.encode(errors="replace")
    if len(content) > MAXIMUM_MESSAGE_BYTES:
        ellipsis = "…".encode()
        whole = content[: MAXIMUM_MESSAGE_BYTES - len(ellipsis)].decode(errors="ignore")
        content = whole.encode() + ellipsis
    path = root / "output/message"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


class _ArgumentParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ArgumentsError(f"{self.prog} was started wrongly: {message}.")
