"""A pipeline definition, read and checked once, when the pipeline is created.

What the embedded cloud cannot run is refused here by name, never skipped later. The one thing
read over is `PipelineExperimentConfig`, which only says where SageMaker Experiments keeps notes.
"""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import CycleError, TopologicalSorter
from typing import Any

from local.sagemaker.expressions import (
    Reference,
    condition_references,
    references,
)
from local.sagemaker.retries import RetryPolicy

ParameterValue = str | int | float | bool
PARAMETER_TYPES = ("String", "Integer", "Float", "Boolean")
_STEP_KEYS = {
    "Processing": {"Arguments", "PropertyFiles", "RetryPolicies", "CacheConfig"},
    "Callback": {"Arguments", "SqsQueueUrl", "OutputParameters", "CacheConfig"},
    "Condition": {"Arguments"},
    "RegisterModel": {"Arguments", "RetryPolicies"},
    "Fail": {"Arguments"},
}
_COMMON_KEYS = {"Name", "Type", "DependsOn", "DisplayName", "Description"}
_TOP_KEYS = {"Version", "Metadata", "Parameters", "PipelineExperimentConfig", "Steps"}
_STEP_NAME = re.compile(r"[A-Za-z0-9\-_]{1,64}")


class DefinitionError(ValueError):
    """A definition that cannot be run, and which part of it is at fault."""


@dataclass(frozen=True)
class Parameter:
    """A pipeline parameter; `default` is None when it has to be given."""

    name: str
    type: str
    default: ParameterValue | None
    allowed: tuple[ParameterValue, ...] = ()

    def parse(self, text: str) -> ParameterValue:
        """The value of a parameter given as text.

        Raises:
            DefinitionError: if the text is not of the parameter's type or not among its values.
        """
        value = convert(self.type, text, f"The parameter '{self.name}'")
        if self.allowed and value not in self.allowed:
            allowed = ", ".join(str(item) for item in self.allowed)
            raise DefinitionError(
                f"The parameter '{self.name}' is {text!r}: allowed are {allowed}."
            )
        return value


@dataclass(frozen=True)
class Step:
    """A step, what it waits for, and the branch of a Condition step it stands in."""

    name: str
    type: str
    arguments: Any
    depends_on: frozenset[str]
    branch: tuple[str, bool] | None
    retry_policies: tuple[RetryPolicy, ...]
    display_name: str | None
    description: str | None
    property_files: Mapping[str, tuple[str, str]]  # name -> (output name, path)
    queue_url: Any = None
    output_types: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Definition:
    """A whole pipeline: its parameters and its steps, branches flattened, by name."""

    parameters: Mapping[str, Parameter]
    steps: Mapping[str, Step]

    def bind(self, given: Mapping[str, str]) -> dict[str, ParameterValue]:
        """The value of every parameter in an execution.

        Raises:
            DefinitionError: for a parameter the pipeline does not have, or one without a value.
        """
        for name in given:
            if name not in self.parameters:
                known = ", ".join(self.parameters) or "none"
                raise DefinitionError(f"Unknown parameter '{name}' (the pipeline has: {known}).")
        values: dict[str, ParameterValue] = {}
        for parameter in self.parameters.values():
            if parameter.name in given:
                values[parameter.name] = parameter.parse(given[parameter.name])
            elif parameter.default is None:
                raise DefinitionError(
                    f"The parameter '{parameter.name}' has no default and no value was given."
                )
            else:
                values[parameter.name] = parameter.default
        return values


def convert(type_name: str, text: str, what: str) -> ParameterValue:
    """Text as a String, Integer, Float or Boolean.

    Raises:
        DefinitionError: saying that `what` is not of that type.
    """
    try:
        match type_name:
            case "Integer":
                return int(text)
            case "Float":
                return float(text)
            case "Boolean":
                return {"true": True, "false": False}[text.lower()]
    except (ValueError, KeyError) as error:
        raise DefinitionError(f"{what} must be of type {type_name}, not {text!r}.") from error
    return text


def parse_definition(text: str) -> Definition:
    """Read and check a definition.

    Raises:
        DefinitionError: naming the first thing in it that is wrong or cannot be run.
    """
    try:
        document = json.loads(text)
    except ValueError as error:
        raise DefinitionError(f"The pipeline definition is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise DefinitionError("The pipeline definition must be a JSON object.")
    _refuse_unknown("The pipeline definition", document, _TOP_KEYS)
    if document.get("Version") != "2020-12-01":
        raise DefinitionError(f"Unknown definition version {document.get('Version')!r}.")

    parameters = {}
    for item in document.get("Parameters", []):
        parameter = _parameter(item)
        if parameter.name in parameters:
            raise DefinitionError(f"Two parameters are named '{parameter.name}'.")
        parameters[parameter.name] = parameter

    steps: dict[str, Step] = {}
    for step in _steps(document.get("Steps", []), None):
        if step.name in steps:
            raise DefinitionError(f"Two steps are named '{step.name}'.")
        steps[step.name] = step
    if not steps:
        raise DefinitionError("The pipeline has no steps.")

    definition = Definition(parameters, steps)
    for step in steps.values():
        _check_references(step, definition)
    try:
        TopologicalSorter({s.name: s.depends_on for s in steps.values()}).prepare()
    except CycleError as error:
        raise DefinitionError(
            f"Steps wait for each other: {' -> '.join(error.args[1])}."
        ) from error
    return definition


def _parameter(item: Any) -> Parameter:
    if not isinstance(item, dict) or not isinstance(item.get("Name"), str):
        raise DefinitionError(f"A parameter without a name: {json.dumps(item)}.")
    what = f"The parameter '{item['Name']}'"
    _refuse_unknown(what, item, {"Name", "Type", "DefaultValue", "EnumValues"})
    if item.get("Type") not in PARAMETER_TYPES:
        known = ", ".join(PARAMETER_TYPES)
        raise DefinitionError(f"{what} has the unknown type {item.get('Type')!r} (known: {known}).")
    default = item.get("DefaultValue")
    if default is not None:
        default = convert(item["Type"], str(default), what)
    return Parameter(item["Name"], item["Type"], default, tuple(item.get("EnumValues", ())))


def _steps(items: Any, branch: tuple[str, bool] | None) -> Iterator[Step]:
    if not isinstance(items, list):
        raise DefinitionError(f"Steps must be a list, not {json.dumps(items)}.")
    for item in items:
        try:
            step = _step(item, branch)
        except (KeyError, TypeError, AttributeError) as error:
            raise DefinitionError(f"Malformed step ({error!r}): {json.dumps(item)}.") from error
        yield step
        if step.type == "Condition":
            yield from _steps(item["Arguments"].get("IfSteps", []), (step.name, True))
            yield from _steps(item["Arguments"].get("ElseSteps", []), (step.name, False))


def _step(item: Any, branch: tuple[str, bool] | None) -> Step:
    name = item.get("Name") if isinstance(item, dict) else None
    if not isinstance(name, str) or not _STEP_NAME.fullmatch(name):
        raise DefinitionError(f"{name!r} is not a step name (1 to 64 of A-Z a-z 0-9 - _).")
    what = f"The step '{name}'"
    kind = item.get("Type")
    if kind not in _STEP_KEYS:
        known = ", ".join(sorted(_STEP_KEYS))
        raise DefinitionError(
            f"{what} has the type {kind!r}, which the embedded cloud cannot run (it runs: {known})."
        )
    _refuse_unknown(what, item, _COMMON_KEYS | _STEP_KEYS[kind])
    if item.get("CacheConfig", {}).get("Enabled"):
        raise DefinitionError(
            f"{what} enables CacheConfig: the embedded cloud keeps no step cache."
        )
    arguments = item.get("Arguments", {})
    if not isinstance(arguments, dict):
        raise DefinitionError(f"The Arguments of the step '{name}' must be an object.")
    if kind == "Condition":
        _refuse_unknown(what, arguments, {"Conditions", "IfSteps", "ElseSteps"})
        if not arguments.get("Conditions"):
            raise DefinitionError(f"{what} has no Conditions.")
    if kind == "Fail":
        _refuse_unknown(what, arguments, {"ErrorMessage"})
    if kind == "Callback" and not item.get("SqsQueueUrl"):
        raise DefinitionError(f"{what} has no SqsQueueUrl.")

    outputs = {o["OutputName"]: o["OutputType"] for o in item.get("OutputParameters", [])}
    for output, output_type in outputs.items():
        if output_type not in PARAMETER_TYPES:
            raise DefinitionError(f"{what}: the output '{output}' has the type {output_type!r}.")
    try:
        found = {r.name for r in _references(kind, item) if r.kind == "Steps"}
        policies = tuple(RetryPolicy.parse(policy) for policy in item.get("RetryPolicies", []))
    except ValueError as error:
        raise DefinitionError(f"{what}: {error}") from error
    return Step(
        name=name,
        type=kind,
        arguments=arguments,
        depends_on=frozenset(
            {*found, *item.get("DependsOn", [])} | ({branch[0]} if branch else set())
        ),
        branch=branch,
        retry_policies=policies,
        display_name=item.get("DisplayName"),
        description=item.get("Description"),
        property_files={
            f["PropertyFileName"]: (f["OutputName"], f["FilePath"])
            for f in item.get("PropertyFiles", [])
        },
        queue_url=item.get("SqsQueueUrl"),
        output_types=outputs,
    )


def _references(kind: str, item: Mapping[str, Any]) -> Iterator[Reference]:
    if kind == "Condition":
        for condition in item["Arguments"]["Conditions"]:
            yield from condition_references(condition)
    else:
        yield from references([item.get("Arguments", {}), item.get("SqsQueueUrl")])


def _check_references(step: Step, definition: Definition) -> None:
    what = f"The step '{step.name}'"
    for name in sorted(step.depends_on):
        if name not in definition.steps:
            raise DefinitionError(f"{what} depends on the step '{name}', which does not exist.")
    item = {"Arguments": step.arguments, "SqsQueueUrl": step.queue_url}
    for reference in _references(step.type, item):
        if reference.kind == "Parameters" and reference.name not in definition.parameters:
            raise DefinitionError(f"{what} reads the parameter '{reference.name}', not declared.")
        if reference.kind != "Steps":
            continue
        source = definition.steps[reference.name]
        file = reference.property_file
        if file is not None and file not in source.property_files:
            raise DefinitionError(
                f"{what} reads the property file '{file}', which '{source.name}' does not declare."
            )
        if source.type == "Callback" and (
            len(reference.path) != 2
            or reference.path[0] != "OutputParameters"
            or reference.path[1] not in source.output_types
        ):
            path = ".".join(map(str, reference.path))
            raise DefinitionError(f"{what} reads {path} of '{source.name}', not among its outputs.")


def _refuse_unknown(what: str, document: Mapping[str, Any], known: set[str]) -> None:
    unknown = sorted(set(document) - known)
    if unknown:
        raise DefinitionError(f"{what} has {', '.join(unknown)}, which cannot be run here.")
