"""What a deployment of a REST API holds, and which of its methods answers for a path.

A deployment is a picture of the API's resources and methods: what changes later is not served
until it is deployed, too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

_FUNCTION = re.compile(r":path/2015-03-31/functions/(.+)/invocations$")


@dataclass(frozen=True)
class Route:
    """One method of one resource, and the function behind it."""

    resource_id: str
    resource_path: str  # as in the template: /items/{id}
    method: str  # as in the template: GET, or ANY
    authorization: str
    api_key_required: bool
    function: str  # its ARN
    timeout: float  # seconds until the gateway gives it up


class Routes:
    """The methods of a REST API as they are now. `api` is moto's record of it."""

    def __init__(self, api: Any) -> None:
        self._methods: dict[str, dict[str, Route]] = {}
        for resource in api.resources.values():
            path = resource.get_path()
            self._methods[path] = {
                verb: _route(resource.id, path, method)
                for verb, method in resource.resource_methods.items()
                if method.method_integration is not None
            }

    def find(self, method: str, path: str) -> tuple[Route, dict[str, str]] | None:
        """The route of a request and the path's parameters, as they were encoded.

        The resource with the most specific path answers, whether or not it has the method.
        """
        asked = [part for part in path.strip("/").split("/") if part]
        found = [
            (_specificity(template), template, parameters)
            for template in self._methods
            if (parameters := _match(template, asked)) is not None
        ]
        if not found:
            return None
        _, template, parameters = min(found, key=lambda candidate: candidate[0])
        methods = self._methods[template]
        route = methods.get(method) or methods.get("ANY")
        return None if route is None else (route, parameters)


def _route(resource_id: str, path: str, method: Any) -> Route:
    integration = method.method_integration
    function = _FUNCTION.search(integration.uri)
    if integration.integration_type != "AWS_PROXY" or function is None:
        raise NotImplementedError(
            f"{method.http_method} {path}: it integrates functions as AWS_PROXY only, not "
            f"{integration.integration_type} of {integration.uri}."
        )
    return Route(
        resource_id,
        path,
        method.http_method,
        method.authorization_type or "NONE",
        bool(method.api_key_required),
        function[1],
        int(integration.timeout_in_millis or 29_000) / 1000,
    )


def _parts(template: str) -> list[str]:
    return [part for part in template.split("/") if part]


def _match(template: str, asked: Sequence[str]) -> dict[str, str] | None:
    """The parameters with which a template makes a path; None if it cannot."""
    parts = _parts(template)
    parameters = {}
    for index, part in enumerate(parts):
        if part.endswith("+}"):
            parameters[part[1:-2]] = "/".join(asked[index:])
            return parameters if asked[index:] else None
        if index >= len(asked):
            return None
        if part.startswith("{"):
            parameters[part[1:-1]] = asked[index]
        elif part != unquote(asked[index]):
            return None
    return parameters if len(parts) == len(asked) else None


def _specificity(template: str) -> tuple[int, ...]:
    """Smaller is more specific: a word, then a parameter, then a greedy one."""
    return tuple(
        2 if part.endswith("+}") else 1 if part.startswith("{") else 0 for part in _parts(template)
    )


def method_settings(stage: Any, route: Route) -> Mapping[str, Any]:
    """What a stage sets for a method: of the method itself, or of all."""
    path = route.resource_path.replace("/", "~1")
    settings: Mapping[str, Any] = stage.method_settings
    found: Mapping[str, Any] = settings.get(f"{path}/{route.method}") or settings.get("*/*", {})
    return found
