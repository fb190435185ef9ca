"""Ways to make templates, and to look into them."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aws_cdk as cdk

from infrastructure.assets import Assets
from infrastructure.inference_stack import InferenceStack
from infrastructure.knowledge_stack import KnowledgeStack
from infrastructure.release_stack import ReleaseStack
from infrastructure.tuning_stack import TuningStack
from workflows.settings import Settings

ROOT = Path(__file__).resolve().parents[2]

Template = dict[str, Any]


def tuning_template(settings: Settings, assets: Assets) -> Template:
    app = cdk.App(analytics_reporting=False, builtin_cloud_formation_validation=False)
    return _template(app, TuningStack(app, "Test", settings=settings, assets=assets))


def knowledge_template(settings: Settings, assets: Assets) -> Template:
    app = cdk.App(analytics_reporting=False, builtin_cloud_formation_validation=False)
    return _template(app, KnowledgeStack(app, "Test", settings=settings, assets=assets))


def inference_template(settings: Settings, assets: Assets, stage: str = "qa") -> Template:
    app = cdk.App(analytics_reporting=False, builtin_cloud_formation_validation=False)
    names = {"stage": stage, "model_parameter": "/quench/model"}
    return _template(app, InferenceStack(app, "Test", settings=settings, assets=assets, **names))


def synthesize(settings: Settings, folder: Path, assets: Assets) -> Path:
    """The assembly of every stack."""
    app = cdk.App(
        outdir=str(folder), analytics_reporting=False, builtin_cloud_formation_validation=False
    )
    ReleaseStack(app, "QuenchRelease", settings=settings, assets=assets)
    return Path(app.synth().directory)


def lint(assembly: Path) -> tuple[int, str]:
    """Exit status and output of cfn-lint over all templates."""
    done = subprocess.run(
        [
            *(Path(sys.executable).with_name("cfn-lint"), "--config-file", ROOT / ".cfnlintrc"),
            *("--template", *assembly.rglob("*.template.json")),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def _template(app: cdk.App, stack: cdk.Stack) -> Template:
    artifact = app.synth().get_stack_by_name(stack.stack_name)
    loaded: Template = json.loads(Path(artifact.template_full_path).read_text(encoding="utf-8"))
    return loaded


def template_files(assembly: Path) -> dict[str, Path]:
    """The templates of an assembly and those nested in it, by their stacks' names."""
    found: dict[str, Path] = {}
    artifacts = json.loads((assembly / "manifest.json").read_text(encoding="utf-8"))["artifacts"]
    for name, artifact in artifacts.items():
        properties = artifact.get("properties", {})
        if artifact["type"] == "aws:cloudformation:stack":
            found[properties.get("stackName", name)] = assembly / properties["templateFile"]
        elif artifact["type"] == "cdk:cloud-assembly":
            found |= template_files(assembly / properties["directoryName"])
    return found


def load(assembly: Path) -> dict[str, Template]:
    """The templates of an assembly, by their stacks' names."""
    return {
        name: json.loads(path.read_text(encoding="utf-8"))
        for name, path in template_files(assembly).items()
    }


def of_type(template: Template, kind: str) -> list[dict[str, Any]]:
    return [r["Properties"] for r in template["Resources"].values() if r["Type"] == kind]


def statements(template: Template) -> Iterator[tuple[set[str], list[Any]]]:
    """Actions and resources of every statement of the roles' policies."""
    for policy in of_type(template, "AWS::IAM::Policy"):
        for statement in policy["PolicyDocument"]["Statement"]:
            actions, resources = statement["Action"], statement["Resource"]
            yield (
                {actions} if isinstance(actions, str) else set(actions),
                resources if isinstance(resources, list) else [resources],
            )


def resources_of(template: Template, action: str) -> str:
    """What the roles may do an action to, as JSON."""
    return json.dumps([found for actions, found in statements(template) if action in actions])


def functions(template: Template) -> dict[str, dict[str, Any]]:
    """Properties of each function, by the name of its file."""
    found = of_type(template, "AWS::Lambda::Function")
    return {function["Handler"].split(".")[1]: function for function in found}


def allowed(template: Template, function: str) -> dict[str, str]:
    """What a function's role may do, and to what, as JSON."""
    role = {"Ref": functions(template)[function]["Role"]["Fn::GetAtt"][0]}
    policies = [p for p in of_type(template, "AWS::IAM::Policy") if role in p["Roles"]]
    own = {
        "Resources": {
            str(n): {"Type": "AWS::IAM::Policy", "Properties": p} for n, p in enumerate(policies)
        }
    }
    actions = {
        action
        for policy in policies
        for statement in policy["PolicyDocument"]["Statement"]
        for action in (
            [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
        )
    }
    return {action: resources_of(own, action) for action in actions}
