"""What several operations share: pages, and leaving out what has no value."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from local.protocol import ServiceError

Item = TypeVar("Item")


def invalid(message: str) -> ServiceError:
    return ServiceError("ValidationException", message)


def page(
    items: Sequence[Item],
    request: Mapping[str, Any],
    show: Callable[[Item], dict[str, Any]],
    key: str,
) -> dict[str, Any]:
    """One page of a listing under `key`, with the `nextToken` of the following one."""
    token = request.get("nextToken", "0")
    if not token.isdecimal():
        raise ServiceError("InvalidNextTokenException", f"Invalid nextToken '{token}'.")
    start = int(token)
    end = start + request.get("maxResults", 100)
    answer: dict[str, Any] = {key: [show(item) for item in items[start:end]]}
    if end < len(items):
        answer["nextToken"] = str(end)
    return answer


def present(values: Mapping[str, Any]) -> dict[str, Any]:
    """A response without the members that have no value."""
    return {name: value for name, value in values.items() if value is not None}
