"""How a stack is updated: what differs once everything in it is resolved, in dependency order.

moto compares templates as they are written, so that a parameter whose value lies in Parameter
Store, or a condition, could change without anything being updated; and it adds before it changes.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator, Mapping
from graphlib import TopologicalSorter
from typing import Any

from moto.cloudformation import parsing
from moto.cloudformation.models import ChangeSet, Stack
from moto.cloudformation.parsing import ResourceMap

from local.patches import Patches
from local.protocol import ServiceError

_SSM_TYPE = "AWS::SSM::Parameter::"


def patch(patches: Patches) -> None:
    """Let moto update stacks so."""
    patches.wrap(parsing, "parse_resource_and_generate_name", _keeping_resolved)
    patches.replace(ResourceMap, "update", _update)
    patches.replace(ResourceMap, "parse_ssm_parameter", _parameter_value)
    patches.wrap(Stack, "has_parameters", _looking_them_up)
    patches.replace(ChangeSet, "apply", _apply)


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


def _update(
    resources: ResourceMap, template: dict[str, Any], parameters: dict[str, Any] | None = None
) -> None:
    before = resources._resource_json_map
    resources._template = template
    if parameters:
        resources.input_parameters = parameters
    resources.load_mapping()
    resources.load_parameters()
    resources.load_conditions()
    wanted = {
        logical_id: definition
        for logical_id, definition in template["Resources"].items()
        if "Condition" not in definition or resources.lazy_condition_map[definition["Condition"]]
    }
    made = resources._parsed_resources
    for logical_id in reversed(_in_dependency_order(before)):
        if logical_id in made and logical_id not in wanted:
            resources._delete_resource(made[logical_id], before[logical_id])
            del made[logical_id]
    resources._resource_json_map = template["Resources"]
    for logical_id in _in_dependency_order(wanted):
        if logical_id not in made:
            _ = resources[logical_id]  # makes it
            continue
        definition = parsing.parse_resource(wanted[logical_id], resources)[1]
        if definition != _resolved(resources).get(logical_id):
            made[logical_id] = parsing.parse_and_update_resource(
                logical_id,
                wanted[logical_id],
                resources,
                account_id=resources._account_id,
                region_name=resources._region_name,
            )


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


def _looking_them_up(original: Callable[..., bool]) -> Callable[..., bool]:
    """Equal parameters are different ones, if a value in Parameter Store has changed."""

    def has_parameters(stack: Stack, given: Mapping[str, Any]) -> bool:
        resources = stack.resource_map
        slots = stack.template_dict.get("Parameters", {})
        return original(stack, given) and all(
            resources.resolved_parameters.get(name)
            == _parameter_value(resources, given.get(name, slot.get("Default")), slot["Type"])
            for name, slot in slots.items()
            if slot["Type"].startswith(_SSM_TYPE)
        )

    return has_parameters


def _apply(change_set: ChangeSet) -> None:
    """Execute a change set; moto would leave the stack's template and outputs as they were."""
    stack = change_set.stack
    stack.template = change_set.template
    stack.template_dict = change_set.template_dict
    stack.parameters = change_set.parameters
    stack.resource_map.update(change_set.template_dict, change_set.parameters)
    stack.output_map = stack._create_output_map()
