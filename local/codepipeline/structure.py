"""A pipeline's structure: read, checked, and refused by name where it cannot run here.

https://docs.aws.amazon.com/codepipeline/latest/userguide/reference-pipeline-structure.html
https://docs.aws.amazon.com/codepipeline/latest/userguide/action-reference.html
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from local.codepipeline.requests import invalid
from local.protocol import ServiceError

RESERVED_NAMESPACE = "codepipeline"


@dataclass(frozen=True)
class Provider:
    """What an action of this provider may be configured with, and how many artifacts it takes."""

    required: set[str] = field(default_factory=set)
    optional: set[str] = field(default_factory=set)
    inputs: range = range(1)
    outputs: range = range(1)


_CODE_BUILD = Provider(
    required={"ProjectName"},
    optional={"PrimarySource", "EnvironmentVariables"},
    inputs=range(1, 6),
    outputs=range(2),
)

PROVIDERS: Mapping[tuple[str, str], Provider] = {
    ("Source", "CodeCommit"): Provider(
        required={"RepositoryName", "BranchName"},
        optional={"PollForSourceChanges", "OutputArtifactFormat"},
        outputs=range(1, 2),
    ),
    ("Source", "CodeStarSourceConnection"): Provider(
        required={"ConnectionArn", "FullRepositoryId", "BranchName"},
        optional={"DetectChanges", "OutputArtifactFormat"},
        outputs=range(1, 2),
    ),
    ("Build", "CodeBuild"): _CODE_BUILD,
    ("Test", "CodeBuild"): _CODE_BUILD,
    ("Deploy", "CloudFormation"): Provider(
        required={"ActionMode", "StackName"},
        optional={
            "Capabilities",
            "ChangeSetName",
            "ParameterOverrides",
            "RoleArn",
            "TemplateConfiguration",
            "TemplatePath",
        },
        inputs=range(11),
    ),
    ("Approval", "Manual"): Provider(
        optional={"CustomData", "ExternalEntityLink", "NotificationArn"}
    ),
    # On AWS it takes artifacts, from S3 and to S3; here they are folders, which it does not see.
    ("Invoke", "Lambda"): Provider(required={"FunctionName"}, optional={"UserParameters"}),
}

ACTION_MODES = {
    "CREATE_UPDATE": {"TemplatePath"},
    "CHANGE_SET_REPLACE": {"TemplatePath", "ChangeSetName"},
    "CHANGE_SET_EXECUTE": {"ChangeSetName"},
}
"""Of CloudFormation actions, with the configuration that each needs."""

# What the embedded cloud would have to ignore.
_UNSUPPORTED_IN_PIPELINE = ("variables", "triggers")
_UNSUPPORTED_IN_STAGE = ("blockers", "beforeEntry", "onSuccess", "onFailure")
_UNSUPPORTED_IN_ACTION = ("commands", "outputVariables", "environmentVariables", "timeoutInMinutes")


@dataclass(frozen=True)
class Action:
    """An action's declaration."""

    name: str
    stage: str
    type_id: Mapping[str, str]
    run_order: int
    configuration: Mapping[str, str]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    namespace: str | None
    role_arn: str | None

    @property
    def provider(self) -> str:
        return self.type_id["provider"]


@dataclass(frozen=True)
class Stage:
    """A stage's declaration."""

    name: str
    actions: tuple[Action, ...]

    def groups(self) -> list[list[Action]]:
        """The actions that run together, in the order of their `runOrder`."""
        in_order = sorted(self.actions, key=_run_order)
        return [list(group) for _, group in groupby(in_order, key=_run_order)]


@dataclass(frozen=True)
class Structure:
    """A pipeline's declaration: as it is given, its defaults filled in, and as it is run."""

    name: str
    bucket: str
    stages: tuple[Stage, ...]
    declaration: Mapping[str, Any]


def parse_structure(given: Mapping[str, Any], region: str) -> Structure:
    """A `PipelineDeclaration`. Raises `ServiceError` for one that is wrong, or cannot run here."""
    name = given["name"]
    declaration = _with_defaults(given)
    _refuse(f"The pipeline {name}", declaration, _UNSUPPORTED_IN_PIPELINE)
    if (mode := declaration["executionMode"]) != "SUPERSEDED":
        raise invalid(
            f"The pipeline {name}: the embedded cloud runs executions in the mode SUPERSEDED, "
            f"not {mode}."
        )
    stages = tuple(_stage(stage, region) for stage in declaration["stages"])
    _check_stages(stages)
    _check_artifacts(stages)
    _check_namespaces(stages)
    return Structure(name, _bucket(name, declaration, region), stages, declaration)


def _with_defaults(given: Mapping[str, Any]) -> dict[str, Any]:
    stages = [
        {
            **stage,
            "actions": [
                {
                    "runOrder": 1,
                    "configuration": {},
                    "inputArtifacts": [],
                    "outputArtifacts": [],
                    **action,
                }
                for action in stage["actions"]
            ],
        }
        for stage in given["stages"]
    ]
    declaration = {"executionMode": "SUPERSEDED", "pipelineType": "V1", **given, "stages": stages}
    declaration.pop("version", None)  # counted by the service, whatever a caller says
    return declaration


def _stage(stage: Mapping[str, Any], region: str) -> Stage:
    name = stage["name"]
    _refuse(f"The stage {name}", stage, _UNSUPPORTED_IN_STAGE)
    actions = tuple(_action(action, name, region) for action in stage["actions"])
    if not actions:
        raise _invalid_stage(f"The stage {name} has no actions.")
    if twice := _twice([action.name for action in actions]):
        raise _invalid_stage(f"The stage {name} has several actions named {twice}.")
    return Stage(name, actions)


def _action(declared: Mapping[str, Any], stage: str, region: str) -> Action:
    what = f"The action {declared['name']} of the stage {stage}"
    _refuse(what, declared, _UNSUPPORTED_IN_ACTION)
    if (elsewhere := declared.get("region", region)) != region:
        raise invalid(f"{what} is for {elsewhere}; the embedded cloud has only {region}.")
    for output in declared["outputArtifacts"]:
        _refuse(f"{what}: its output {output['name']}", output, ("files",))
    action = Action(
        name=declared["name"],
        stage=stage,
        type_id=declared["actionTypeId"],
        run_order=declared["runOrder"],
        configuration=declared["configuration"],
        inputs=tuple(artifact["name"] for artifact in declared["inputArtifacts"]),
        outputs=tuple(artifact["name"] for artifact in declared["outputArtifacts"]),
        namespace=declared.get("namespace"),
        role_arn=declared.get("roleArn"),
    )
    _check_provider(what, action)
    return action


def _check_provider(what: str, action: Action) -> None:
    type_id = action.type_id
    provider = PROVIDERS.get((type_id["category"], type_id["provider"]))
    if provider is None or type_id["owner"] != "AWS" or type_id["version"] != "1":
        known = ", ".join(f"{category} {name}" for category, name in PROVIDERS)
        raise invalid(
            f"{what} is of the type {type_id['category']} {type_id['provider']} (owner "
            f"{type_id['owner']}, version {type_id['version']}), which the embedded cloud does "
            f"not run. Of AWS's, it runs version 1 of {known}."
        )
    if missing := provider.required - set(action.configuration):
        raise _invalid_action(f"{what} lacks the configuration {_listed(missing)}.")
    if unknown := set(action.configuration) - provider.required - provider.optional:
        raise invalid(
            f"{what}: the embedded cloud does not support the configuration {_listed(unknown)}."
        )
    for kind, given, allowed in (
        ("input", action.inputs, provider.inputs),
        ("output", action.outputs, provider.outputs),
    ):
        if len(given) not in allowed:
            bounds = " to ".join(str(n) for n in sorted({allowed[0], allowed[-1]}))
            raise invalid(f"{what} has {len(given)} {kind} artifacts; here it may have {bounds}.")
    if action.provider == "CodeBuild":
        _check_build(what, action)
    elif action.provider == "CloudFormation":
        _check_deployment(what, action)
    elif (form := action.configuration.get("OutputArtifactFormat", "CODE_ZIP")) != "CODE_ZIP":
        raise invalid(f"{what}: the embedded cloud does not make the OutputArtifactFormat {form}.")


def _check_build(what: str, action: Action) -> None:
    primary = action.configuration.get("PrimarySource")
    if primary is None and len(action.inputs) > 1:
        raise _invalid_action(f"{what} has several input artifacts: name one as PrimarySource.")
    if primary is not None and primary not in action.inputs:
        raise _invalid_action(f"{what}: its PrimarySource {primary} is none of its inputs.")


def _check_deployment(what: str, action: Action) -> None:
    mode = action.configuration["ActionMode"]
    if mode not in ACTION_MODES:
        raise invalid(
            f"{what}: the embedded cloud knows the ActionModes {_listed(ACTION_MODES)}, not {mode}."
        )
    if missing := ACTION_MODES[mode] - set(action.configuration):
        raise _invalid_action(f"{what} lacks the configuration {_listed(missing)} of {mode}.")
    for key in ("TemplatePath", "TemplateConfiguration"):
        path = action.configuration.get(key)
        if path is not None and path.partition("::")[0] not in action.inputs:
            raise _invalid_action(
                f"{what}: its {key} {path} is not ARTIFACT::FILE of an input artifact."
            )


def _check_stages(stages: tuple[Stage, ...]) -> None:
    if len(stages) < 2:
        raise _invalid_structure("A pipeline has at least two stages.")
    if twice := _twice([stage.name for stage in stages]):
        raise _invalid_stage(f"Several stages are named {twice}.")
    for number, stage in enumerate(stages):
        for action in stage.actions:
            if (action.type_id["category"] == "Source") != (number == 0):
                raise _invalid_structure(
                    "The first stage holds source actions, and all of them; "
                    f"{action.name} of the stage {stage.name} is out of place."
                )


def _check_artifacts(stages: tuple[Stage, ...]) -> None:
    made: set[str] = set()
    for stage in stages:
        for group in stage.groups():
            for action in group:
                if unmade := [name for name in action.inputs if name not in made]:
                    raise _invalid_action(
                        f"The action {action.name} of the stage {stage.name} takes "
                        f"{_listed(unmade)}, which no action before it puts out."
                    )
            for action in group:
                if again := [name for name in action.outputs if name in made]:
                    raise _invalid_action(
                        f"The action {action.name} of the stage {stage.name} puts out "
                        f"{_listed(again)}, as another action does."
                    )
                made.update(action.outputs)


def _check_namespaces(stages: tuple[Stage, ...]) -> None:
    actions = [action for stage in stages for action in stage.actions]
    namespaces = [action.namespace for action in actions if action.namespace]
    taken = [name for action in actions for name in action.outputs]
    if twice := _twice([*namespaces, RESERVED_NAMESPACE, *taken]):
        raise _invalid_action(
            f"The namespace {twice} is taken: by another action, an artifact or the service."
        )


def _bucket(name: str, declaration: Mapping[str, Any], region: str) -> str:
    stores = declaration.get("artifactStores", {})
    store = declaration.get("artifactStore") or stores.get(region)
    if store is None or (stores and "artifactStore" in declaration):
        raise _invalid_structure(
            f"The pipeline {name} needs an artifactStore, or artifactStores with one in {region}."
        )
    return str(store["location"])


def _refuse(what: str, declaration: Mapping[str, Any], members: tuple[str, ...]) -> None:
    if given := [member for member in members if declaration.get(member)]:
        raise invalid(f"{what}: the embedded cloud does not support {', '.join(given)}.")


def _run_order(action: Action) -> int:
    return action.run_order


def _twice(names: list[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


def _listed(names: Any) -> str:
    return ", ".join(sorted(names))


def _invalid_structure(message: str) -> ServiceError:
    return ServiceError("InvalidStructureException", message)


def _invalid_stage(message: str) -> ServiceError:
    return ServiceError("InvalidStageDeclarationException", message)


def _invalid_action(message: str) -> ServiceError:
    return ServiceError("InvalidActionDeclarationException", message)
