"""How a stack is updated: what differs once everything in it is resolved, in dependency order.

moto compares templates as they are written, so that a parameter whose value lies in Parameter
Store, or a condition, could change without anything being updated; it deletes before it knows that
the rest will do; and a failure leaves the stack half updated.

Here as on AWS, what is no longer wanted is deleted last, when everything else is done. Until then
a failure takes the stack back: to its template, with the values that its parameters had. Other than
on AWS, where UpdateStack and ExecuteChangeSet only begin the work, the call itself answers what
failed.

https://docs.aws.amazon.com/AWSCloudFormation/latest/UserGuide/view-stack-events.html
"""

from __future__ import annotations

import copy
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

from moto.cloudformation import parsing
from moto.cloudformation.models import ChangeSet, Stack
from moto.cloudformation.parsing import ResourceMap

from local.patches import Patches
from local.protocol import ServiceError

log = logging.getLogger(__name__)


def patch(patches: Patches) -> None:
    """Let moto update stacks so."""
    patches.wrap(parsing, "parse_resource_and_generate_name", _keeping_resolved)
    patches.replace(ResourceMap, "parse_ssm_parameter", _parameter_value)
    patches.replace(Stack, "has_parameters", _has_parameters)
    patches.replace(Stack, "update", _update)
    patches.replace(ChangeSet, "apply", _apply)


class ResourceFailed(ServiceError):
    """A resource of a stack could not be created or updated; the message names it."""

    def __init__(self, logical_id: str, resource_type: str, error: Exception) -> None:
        super().__init__("ValidationError", f"{logical_id} ({resource_type}) failed: {why(error)}")


def why(error: Exception) -> str:
    """What an error says to people."""
    return getattr(error, "message", None) or str(error) or repr(error)


@contextmanager
def naming_what_failed(logical_id: str, resource_type: str) -> Iterator[None]:
    """Raise `ResourceFailed` for whatever is raised within."""
    try:
        yield
    except ResourceFailed:
        raise
    except Exception as error:
        raise ResourceFailed(logical_id, resource_type, error) from error


# Stacks and change sets


@dataclass(frozen=True)
class _Source:
    """What a stack's resources are made from."""

    text: str
    template: dict[str, Any]
    given: dict[str, Any]
    values: dict[str, Any]
    """Of all parameters; what lies in Parameter Store is not looked up again."""


def _source_of(stack: Stack) -> _Source:
    values = copy.deepcopy(stack.resource_map.resolved_parameters)
    return _Source(stack.template, stack.template_dict, stack.parameters, values)


def _new_source(stack: Stack, text: str, given: dict[str, Any]) -> _Source:
    template = Stack.parse_template(text)
    return _Source(text, template, given, _values(stack, template, given))


def _update(
    stack: Stack,
    template: str,
    role_arn: str | None = None,
    parameters: dict[str, Any] | None = None,
    tags: dict[str, str] | None = None,
) -> None:
    """UpdateStack. Raises `ServiceError` for what failed, when the stack is as it was before."""
    given = parameters or stack.parameters
    if (
        stack.status != "UPDATE_ROLLBACK_FAILED"  # whose resources may be anything
        and tags in (None, stack.tags)
        and stack.has_template(template)
        and stack.has_parameters(given)
    ):
        raise ServiceError("ValidationError", "No updates are to be performed.")
    source = _new_source(stack, template, given)
    _note(stack, "UPDATE_IN_PROGRESS", "User Initiated")
    left = _deploy_or_go_back(stack, source)
    _note(stack, "UPDATE_COMPLETE", left)
    stack.role_arn = role_arn
    if tags is not None:
        stack.tags = tags


def _apply(change_set: ChangeSet) -> None:
    """ExecuteChangeSet, but for the status of its end, which moto sets."""
    stack = change_set.stack
    source = _new_source(stack, change_set.template, change_set.parameters)
    stack.status = f"{change_set.change_set_type}_IN_PROGRESS"
    try:
        stack.status_reason = _deploy_or_go_back(stack, source)
    except Exception:
        change_set.execution_status = "EXECUTE_FAILED"
        raise


def _deploy_or_go_back(stack: Stack, source: _Source) -> str | None:
    """Make a stack what its new source says, or leave it as it was and raise what failed.

    Returns what people should know of a success.
    """
    before = _source_of(stack)
    try:
        return _deploy(stack, source)
    except Exception as error:
        _go_back(stack, before, why(error))
        raise


def _go_back(stack: Stack, before: _Source, reason: str) -> None:
    rollback = "UPDATE_ROLLBACK" if before.template else "ROLLBACK"
    _note(stack, f"{rollback}_IN_PROGRESS", reason)
    try:
        left = _deploy(stack, before)
    except Exception as error:
        log.exception("Stack %s could not be rolled back", stack.name)
        _note(stack, f"{rollback}_FAILED", f"{reason}; the rollback failed too: {why(error)}")
    else:
        _note(stack, f"{rollback}_COMPLETE", f"{reason}. {left}" if left else reason)


def _note(stack: Stack, status: str, reason: str | None) -> None:
    stack.status, stack.status_reason = status, reason
    stack._add_stack_event(status, resource_status_reason=reason)


def _deploy(stack: Stack, source: _Source) -> str | None:
    """Make a stack's resources and outputs what its source says, and then delete the others.

    Returns which of those could not be deleted: this does not undo what was done, as on AWS.
    https://repost.aws/knowledge-center/cloudformation-stack-cleanup-stuck
    """
    resources = stack.resource_map
    before = resources._resource_json_map
    _take(resources, source)
    stack.template, stack.template_dict, stack.parameters = (
        source.text,
        source.template,
        source.given,
    )
    stack.description = source.template.get("Description")
    wanted = {
        logical_id: definition
        for logical_id, definition in resources._resource_json_map.items()
        if "Condition" not in definition or resources.lazy_condition_map[definition["Condition"]]
    }
    for logical_id in _in_dependency_order(wanted):
        _put(resources, logical_id, wanted[logical_id])
    stack.output_map = stack._create_output_map()
    for name in stack.output_map:
        _ = stack.output_map[name]  # resolves it
    known = {**_resolved(resources), **before}
    left = _delete(resources, {name: known[name] for name in known if name not in wanted})
    return f"Resources that could not be deleted: {'; '.join(left)}." if left else None


# Resources


def _take(resources: ResourceMap, source: _Source) -> None:
    """Let names resolve to what they are in this source."""
    for name in (*resources.resolved_parameters, *resources._template.get("Mappings", {})):
        resources._parsed_resources.pop(name, None)
    resources._template = source.template
    resources._resource_json_map = source.template.get("Resources", {})
    resources.input_parameters = source.given
    resources.resolved_parameters = dict(source.values)
    resources.no_echo_parameter_keys = [
        name for name, slot in source.template.get("Parameters", {}).items() if slot.get("NoEcho")
    ]
    resources._parsed_resources.update(source.values)
    resources.load_mapping()
    resources.load_conditions()


def _put(resources: ResourceMap, logical_id: str, definition: dict[str, Any]) -> None:
    """Create a resource, or update it if it is to differ from what it is."""
    made = resources._parsed_resources
    if logical_id not in made:
        _create(resources, logical_id, definition["Type"])
        return
    with naming_what_failed(logical_id, definition["Type"]):
        wanted = parsing.parse_resource(definition, resources)[1]
    if wanted != _resolved(resources).get(logical_id):
        made[logical_id] = parsing.parse_and_update_resource(
            logical_id,
            definition,
            resources,
            account_id=resources._account_id,
            region_name=resources._region_name,
        )


def _create(resources: ResourceMap, logical_id: str, kind: str) -> None:
    """Raises `ResourceFailed` if the new resource proves to be one that the stack has already.

    Many a service's call to create has then changed that one, and its deletion would delete both.
    """
    made, resolved = resources._parsed_resources, _resolved(resources)
    others = {_physical_id(made[name]): name for name in _of_type(resources, kind)}
    new = resources[logical_id]  # makes it
    if new is not None and (other := others.get(_physical_id(new))):
        del made[logical_id], resolved[logical_id], resolved[other]
        reason = f"{_physical_id(new)} already exists in the stack as {other}"
        raise ResourceFailed(logical_id, kind, RuntimeError(reason))


def _of_type(resources: ResourceMap, kind: str) -> list[str]:
    return [
        name
        for name, definition in _resolved(resources).items()
        if definition["Type"] == kind and _physical_id(resources._parsed_resources.get(name))
    ]


def _physical_id(resource: Any) -> str | None:
    return getattr(resource, "physical_resource_id", None)


def _delete(resources: ResourceMap, unwanted: Mapping[str, Any]) -> list[str]:
    """Delete resources, each before those that it refers to; what is left is told, with why."""
    made = resources._parsed_resources
    left = []
    for logical_id in reversed(_in_dependency_order(unwanted)):
        if logical_id not in made:
            continue
        definition = _resolved(resources).pop(logical_id, unwanted[logical_id])
        try:
            resources._delete_resource(made.pop(logical_id), definition)
        except Exception as error:
            log.exception("%s could not be deleted", logical_id)
            left.append(f"{logical_id} ({definition['Type']}): {why(error)}")
    return left


def _keeping_resolved(original: Callable[..., Any]) -> Callable[..., Any]:
    def parse_resource_and_generate_name(
        logical_id: str, definition: dict[str, Any], resources: ResourceMap
    ) -> Any:
        parsed = original(logical_id, definition, resources)
        if parsed:
            _resolved(resources)[logical_id] = copy.deepcopy(parsed[1])
        return parsed

    return parse_resource_and_generate_name


def _resolved(resources: ResourceMap) -> dict[str, Any]:
    """The definitions, as they were when each resource was made or last updated."""
    kept: dict[str, Any] = vars(resources).setdefault("resolved_definitions", {})
    return kept


def _in_dependency_order(definitions: Mapping[str, Any]) -> list[str]:
    """The logical ids, each after those that its resource refers to or depends on."""
    return list(
        TopologicalSorter(
            {
                logical_id: {name for name in _references(definition) if name in definitions}
                for logical_id, definition in definitions.items()
            }
        ).static_order()
    )


def _references(value: Any) -> Iterator[str]:
    """Every name that a part of a template refers to: resources, parameters and their like."""
    if isinstance(value, list):
        for item in value:
            yield from _references(item)
    elif isinstance(value, dict):
        for key, inner in value.items():
            if key in ("Ref", "DependsOn") and isinstance(inner, str):
                yield inner
            elif key == "DependsOn" and isinstance(inner, list):
                yield from inner
            elif key == "Fn::GetAtt":
                yield inner.split(".")[0] if isinstance(inner, str) else inner[0]
            elif key == "Fn::Sub":
                text = inner if isinstance(inner, str) else inner[0]
                yield from re.findall(r"\$\{([^!}.]+)", text)
                yield from _references([] if isinstance(inner, str) else inner[1])
            else:
                yield from _references(inner)


# Parameters


def _parameter_value(resources: ResourceMap, name: str, kind: str) -> str | list[str]:
    """The value in Parameter Store of a template's parameter."""
    backend = parsing.ssm_backends[resources._account_id][resources._region_name]
    parameter = backend.get_parameter(name)
    if parameter is None:
        raise ServiceError(
            "ValidationError",
            f"Unable to fetch parameters [{name}] from parameter store for this account.",
        )
    value: str = parameter.value
    return value.split(",") if "List" in kind else value


def _values(stack: Stack, template: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """All parameters' values: given, by default or in Parameter Store now."""
    resources = ResourceMap(
        stack.stack_id,
        stack.name,
        given,
        {},
        region_name=stack.region_name,
        account_id=stack.account_id,
        template=template,
        cross_stack_resources={},
    )
    resources.load_parameters()
    values: dict[str, Any] = resources.resolved_parameters
    return values


def _has_parameters(stack: Stack, given: dict[str, Any]) -> bool:
    """Whether the values are those deployed, which another value in Parameter Store is not."""
    deployed: dict[str, Any] = stack.resource_map.resolved_parameters
    return deployed == _values(stack, stack.template_dict, given)
