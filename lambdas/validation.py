"""What enters a function is validated: its environment, and how a violation is told."""

import os
from typing import TypeVar

from pydantic import BaseModel, ValidationError

Model = TypeVar("Model", bound=BaseModel)


class EnvironmentVariableError(Exception):
    """The function was deployed without a variable it needs, or with a bad value."""


def explain(error: ValidationError) -> str:
    """Each violation as ``where: what`` in one line, without the offending value."""
    return "; ".join(
        f"{'.'.join(str(part) for part in violation['loc']) or 'value'}: {violation['msg']}"
        for violation in error.errors(include_url=False, include_input=False)
    )


def read_environment(model: type[Model]) -> Model:
    """Parse the environment variables that the model's fields name; an empty one counts as absent.

    Raises
    ------
    EnvironmentVariableError
        Naming every variable that is missing or has a bad value.
    """
    values = {name: os.environ[name] for name in model.model_fields if os.environ.get(name)}
    try:
        return model.model_validate(values)
    except ValidationError as error:
        raise EnvironmentVariableError(f"environment variables: {explain(error)}") from error
