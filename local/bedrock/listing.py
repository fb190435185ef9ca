"""What the List operations of Bedrock have in common."""

from collections.abc import Callable, Mapping
from typing import Any

from local.bedrock.refusals import invalid


def page_of(
    request: Mapping[str, Any],
    member: str,
    items: list[dict[str, Any]],
    name: str,
    created: str,
    equals: Mapping[str, str],
) -> dict[str, Any]:
    """A List operation's answer: filtered, sorted by creation, a page at a time.

    `name` and `created` are the members that the filters of these operations look at; `equals`
    gives the member for each filter that asks for equality.
    """
    after = request.get("creationTimeAfter") or request.get("createdAfter")
    before = request.get("creationTimeBefore") or request.get("createdBefore")
    tests: list[Callable[[dict[str, Any]], bool]] = [
        lambda item: request.get("nameContains", "") in item[name],
        lambda item: after is None or item[created] > after,
        lambda item: before is None or item[created] < before,
        *(
            lambda item, wanted=request[asked], of=of: item.get(of) == wanted
            for asked, of in equals.items()
            if asked in request
        ),
    ]
    found = [item for item in items if all(test(item) for test in tests)]
    found.sort(key=lambda item: item[created], reverse=request.get("sortOrder") != "Ascending")
    start = request.get("nextToken", "0")
    if not start.isdigit():
        raise invalid("nextToken is not one of this operation's.")
    end = int(start) + request.get("maxResults", 100)
    page: dict[str, Any] = {member: found[int(start) : end]}
    if end < len(found):
        page["nextToken"] = str(end)
    return page
