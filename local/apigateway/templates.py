"""Texts with `$context.…` in them: access logs and gateway responses.

https://docs.aws.amazon.com/apigateway/latest/developerguide/api-gateway-mapping-template-reference.html
"""

import re
from collections.abc import Mapping
from typing import Any

from local.protocol import ServiceError

_VARIABLE = re.compile(r"\$context((?:\.\w+)+)")
_OTHER = re.compile(r"[$#]!?[\w{]+")
_HEADER = "gatewayresponse.header."


def render(template: str, context: Mapping[str, Any], absent: str = "") -> str:
    """The template with the context's values in the places of its variables."""
    return _VARIABLE.sub(lambda found: _value(found[1][1:], context, absent), template)


def render_headers(parameters: Mapping[str, str], context: Mapping[str, Any]) -> dict[str, str]:
    """The headers that a gateway response's parameters make."""
    return {
        name.removeprefix(_HEADER): value[1:-1]
        if value.startswith("'")
        else _value(value.removeprefix("context."), context, "")
        for name, value in parameters.items()
    }


def check_gateway_response(
    kind: str, parameters: Mapping[str, str], templates: Mapping[str, str]
) -> None:
    """Raises ServiceError for what `render` and `render_headers` would not understand."""
    unknown = [
        f"{name} = {value}"
        for name, value in parameters.items()
        if not name.startswith(_HEADER) or not re.fullmatch(r"'[^']*'|context(\.\w+)+", value)
    ]
    for template in templates.values():
        unknown += _OTHER.findall(_VARIABLE.sub("", template))
    if unknown:
        raise ServiceError(
            "ValidationError",
            f"Gateway response {kind}: the embedded cloud understands headers, static or of "
            f"context, and templates with $context variables only, not {', '.join(unknown)}.",
        )


def _value(path: str, context: Mapping[str, Any], absent: str) -> str:
    value: Any = context
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return absent if value is None else str(value)
