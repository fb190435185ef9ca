"""What Bedrock, or the embedded cloud in its place, refuses, and in which words."""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

from bedrock.models import FoundationModel, UnknownModelError, find_model
from local.protocol import ServiceError


def invalid(message: str) -> ServiceError:
    return ServiceError("ValidationException", message)


def not_found(message: str) -> ServiceError:
    return ServiceError("ResourceNotFoundException", message, 404)


def refuse(request: Mapping[str, Any], *members: str) -> None:
    for member in members:
        if request.get(member):
            raise invalid(f"The embedded cloud does not support {member}.")


def known_model(identifier: str) -> FoundationModel:
    try:
        return find_model(identifier)
    except UnknownModelError as error:
        raise not_found(str(error)) from error


def today() -> date:
    return datetime.now(UTC).date()


def is_past(model: FoundationModel) -> bool:
    return model.end_of_life is not None and model.end_of_life <= today()
