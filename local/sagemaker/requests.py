"""What several operations share: pages, time filters, and refusing what is not there."""

import base64
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar

from local.protocol import ServiceError

Item = TypeVar("Item")


def invalid(message: str) -> ServiceError:
    return ServiceError("ValidationException", message)


def not_found(message: str) -> ServiceError:
    return ServiceError("ResourceNotFound", message)


def refuse(request: Mapping[str, Any], *members: str) -> None:
    """Raise for members of a request that the embedded cloud would have to ignore."""
    given = [member for member in members if request.get(member)]
    if given:
        raise invalid(f"The embedded cloud does not support {', '.join(given)}.")


def page(
    items: Sequence[Item],
    request: Mapping[str, Any],
    show: Callable[[Item], dict[str, Any]],
    key: str,
) -> dict[str, Any]:
    """One page of a listing under `key`, with the `NextToken` of the following one."""
    try:
        start = int(base64.b64decode(request.get("NextToken", "")) or 0)
    except ValueError as error:
        raise invalid(f"Invalid NextToken '{request['NextToken']}'.") from error
    end = start + request.get("MaxResults", 100)
    answer: dict[str, Any] = {key: [show(item) for item in items[start:end]]}
    if end < len(items):
        answer["NextToken"] = base64.b64encode(str(end).encode()).decode()
    return answer


def within(moment: datetime, request: Mapping[str, Any], after: str, before: str) -> bool:
    """Whether a moment passes a request's time filters, both exclusive."""
    return not (
        (after in request and moment <= request[after])
        or (before in request and moment >= request[before])
    )


def is_descending(request: Mapping[str, Any], default: str) -> bool:
    return bool(request.get("SortOrder", default) == "Descending")


def present(values: Mapping[str, Any]) -> dict[str, Any]:
    """A response without the members that have no value."""
    return {name: value for name, value in values.items() if value is not None}
