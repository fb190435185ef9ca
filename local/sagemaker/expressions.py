"""Values of a pipeline definition that are known only when it runs.

The schema is the one of SageMaker Pipelines' definition (`2020-12-01`), as the `sagemaker` SDK
writes it: `{"Get": …}`, `{"Std:Join": …}`, `{"Std:JsonGet": …}` and the conditions of a
Condition step.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

EXECUTION_VARIABLES = frozenset(
    {
        "StartDateTime",
        "CurrentDateTime",
        "PipelineName",
        "PipelineArn",
        "PipelineExecutionId",
        "PipelineExecutionArn",
    }
)

_COMPARISONS: dict[str, Callable[[Any, Any], bool]] = {
    "Equals": lambda left, right: left == right,
    "GreaterThan": lambda left, right: left > right,
    "GreaterThanOrEqualTo": lambda left, right: left >= right,
    "LessThan": lambda left, right: left < right,
    "LessThanOrEqualTo": lambda left, right: left <= right,
}
_PATH_PART = re.compile(
    r"""\.?(?P<name>[A-Za-z0-9_\-]+)|\[(?P<index>\d+)\]|\['(?P<key>[^']*)'\]|\["(?P<key2>[^"]*)"\]"""
)


class ExpressionError(ValueError):
    """An expression that means nothing, or that has no value in this execution."""


@dataclass(frozen=True)
class Reference:
    """What a `Get` names: a parameter, an execution variable or something of a step."""

    kind: str  # Parameters | Execution | Steps
    name: str
    path: tuple[str | int, ...] = ()

    @property
    def property_file(self) -> str | None:
        """The property file named by `Steps.<step>.PropertyFiles.<name>`."""
        if self.kind == "Steps" and len(self.path) == 2 and self.path[0] == "PropertyFiles":
            return str(self.path[1])
        return None


@dataclass(frozen=True)
class Scope:
    """What an execution's expressions may see.

    `steps` holds the properties of the steps that have succeeded: what `Describe…` answers, with
    named lists (`Outputs`, `ProcessingInputs`, `OutputParameters`) as mappings by name.
    `read_json` gives the document at an S3 URI.
    """

    parameters: Mapping[str, str | int | float | bool]
    execution: Mapping[str, str]
    steps: Mapping[str, Mapping[str, Any]]
    property_file_uri: Callable[[str, str], str]
    read_json: Callable[[str], Any]


def parse_path(path: str) -> tuple[str | int, ...]:
    """The parts of `a.b['c'][0]`, with or without a leading `$.`

    Raises:
        ExpressionError: for anything else, such as a filter or a wildcard.
    """
    text = path.removeprefix("$")
    parts: list[str | int] = []
    position = 0
    while position < len(text):
        match = _PATH_PART.match(text, position)
        if match is None:
            raise ExpressionError(f"The path '{path}' cannot be followed from '{text[position:]}'.")
        if match["index"] is not None:
            parts.append(int(match["index"]))
        else:
            parts.append(next(p for p in match.group("name", "key", "key2") if p is not None))
        position = match.end()
    if not parts:
        raise ExpressionError(f"The path '{path}' names nothing.")
    return tuple(parts)


def parse_reference(text: object) -> Reference:
    """The meaning of the text in `{"Get": text}`.

    Raises:
        ExpressionError: if it names neither a parameter, an execution variable nor a step.
    """
    if not isinstance(text, str):
        raise ExpressionError(f"Get takes a string, not {json.dumps(text)}.")
    kind, _, rest = text.partition(".")
    if kind in ("Parameters", "Execution") and rest:
        if kind == "Execution" and rest not in EXECUTION_VARIABLES:
            known = ", ".join(sorted(EXECUTION_VARIABLES))
            raise ExpressionError(f"Unknown execution variable '{rest}' (known: {known}).")
        return Reference(kind, rest)
    if kind == "Steps":
        step, *path = parse_path(rest)
        if path:
            return Reference(kind, str(step), tuple(path))
    raise ExpressionError(f"'{text}' is not Parameters.…, Execution.… or Steps.<step>.<property>.")


def references(value: Any) -> Iterator[Reference]:
    """Every reference in a value of a definition, checking each function on the way.

    Raises:
        ExpressionError: for an unknown function or a malformed one.
    """
    match value:
        case {"Get": text} if len(value) == 1:
            yield parse_reference(text)
        case {"Std:Join": body} if len(value) == 1:
            _require_keys("Std:Join", body, {"On", "Values"})
            if not isinstance(body["Values"], list):
                raise ExpressionError("The Values of Std:Join must be a list.")
            yield from references(body["Values"])
        case {"Std:JsonGet": body} if len(value) == 1:
            source = "S3Uri" if isinstance(body, dict) and "S3Uri" in body else "PropertyFile"
            _require_keys("Std:JsonGet", body, {source, "Path"})
            parse_path(str(body["Path"]))
            found = list(references(body[source]))
            if source == "PropertyFile" and (len(found) != 1 or not found[0].property_file):
                raise ExpressionError(
                    "The PropertyFile of Std:JsonGet must be "
                    '{"Get": "Steps.<step>.PropertyFiles.<name>"}.'
                )
            yield from found
        case dict():
            for key, item in value.items():
                if key.startswith("Std:") or key == "Get":
                    raise ExpressionError(f"Unknown function '{key}'.")
                yield from references(item)
        case list():
            for item in value:
                yield from references(item)


def evaluate(value: Any, scope: Scope) -> Any:
    """The value with every expression in it replaced by what it stands for.

    Raises:
        ExpressionError: when an expression has no value in this execution.
    """
    match value:
        case {"Get": text} if len(value) == 1:
            return _resolve(parse_reference(text), scope)
        case {"Std:Join": body} if len(value) == 1:
            return str(body["On"]).join(as_text(evaluate(item, scope)) for item in body["Values"])
        case {"Std:JsonGet": body} if len(value) == 1:
            if "S3Uri" in body:
                uri = evaluate(body["S3Uri"], scope)
            else:
                reference = parse_reference(body["PropertyFile"]["Get"])
                uri = scope.property_file_uri(reference.name, str(reference.property_file))
            path = str(body["Path"])
            return _follow(scope.read_json(uri), parse_path(path), f"'{path}' in {uri}")
        case dict():
            return {key: evaluate(item, scope) for key, item in value.items()}
        case list():
            return [evaluate(item, scope) for item in value]
    return value


def condition_references(condition: Any) -> Iterator[Reference]:
    """Every reference in a condition, checking its form on the way.

    Raises:
        ExpressionError: for an unknown kind of condition or a malformed one.
    """
    kind = condition.get("Type") if isinstance(condition, dict) else None
    if kind in _COMPARISONS:
        _require_keys(kind, condition, {"Type", "LeftValue", "RightValue"})
        yield from references([condition["LeftValue"], condition["RightValue"]])
    elif kind == "In":
        _require_keys(kind, condition, {"Type", "QueryValue", "Values"})
        yield from references([condition["QueryValue"], *condition["Values"]])
    elif kind == "Not":
        _require_keys(kind, condition, {"Type", "Condition"})
        yield from condition_references(condition["Condition"])
    elif kind == "Or":
        _require_keys(kind, condition, {"Type", "Conditions"})
        for item in condition["Conditions"]:
            yield from condition_references(item)
    else:
        raise ExpressionError(f"Unknown condition {json.dumps(kind or condition)}.")


def holds(condition: Mapping[str, Any], scope: Scope) -> bool:
    """Whether a condition of a Condition step is true.

    Raises:
        ExpressionError: when a value is missing, or two values cannot be compared.
    """
    kind = condition["Type"]
    if kind == "Not":
        return not holds(condition["Condition"], scope)
    if kind == "Or":
        return any(holds(item, scope) for item in condition["Conditions"])
    if kind == "In":
        query = evaluate(condition["QueryValue"], scope)
        return any(_compare("Equals", query, evaluate(v, scope)) for v in condition["Values"])
    return _compare(
        kind, evaluate(condition["LeftValue"], scope), evaluate(condition["RightValue"], scope)
    )


def timestamp(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds, as execution variables and events carry it."""
    text = moment.astimezone(UTC).isoformat(timespec="milliseconds")
    return text.removesuffix("+00:00") + "Z"


def _compare(kind: str, left: Any, right: Any) -> bool:
    if _kind(left) != _kind(right):
        raise ExpressionError(
            f"{kind} cannot compare {json.dumps(left)} with {json.dumps(right)}: "
            f"{_kind(left)} against {_kind(right)}."
        )
    return _COMPARISONS[kind](left, right)


def _kind(value: Any) -> str:
    match value:
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
    raise ExpressionError(f"A condition cannot compare {json.dumps(value)}.")


def _resolve(reference: Reference, scope: Scope) -> Any:
    if reference.kind == "Parameters":
        if reference.name not in scope.parameters:
            raise ExpressionError(f"The execution has no parameter '{reference.name}'.")
        return scope.parameters[reference.name]
    if reference.kind == "Execution":
        if reference.name == "CurrentDateTime":
            return timestamp(datetime.now(UTC))
        return scope.execution[reference.name]
    if reference.name not in scope.steps:
        raise ExpressionError(f"The step '{reference.name}' has no properties: it has not run.")
    where = f"{'.'.join(map(str, reference.path))} of the step '{reference.name}'"
    return _follow(scope.steps[reference.name], reference.path, where)


def _follow(document: Any, path: tuple[str | int, ...], where: str) -> Any:
    value = document
    for part in path:
        try:
            value = value[part]
        except (KeyError, IndexError, TypeError) as error:
            raise ExpressionError(f"There is no {where} (nothing at {part!r}).") from error
    return value


def as_text(value: Any) -> str:
    """How a value looks inside a string: `true`, `1e-05`, `2`."""
    return value if isinstance(value, str) else json.dumps(value)


def _require_keys(what: str, body: Any, keys: set[str]) -> None:
    if not isinstance(body, dict) or set(body) != keys:
        raise ExpressionError(f"{what} takes exactly {', '.join(sorted(keys))}.")
