"""Ways to make templates, and to look into them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aws_cdk as cdk

from infrastructure.assets import Assets
from infrastructure.inference_stack import InferenceStack
from infrastructure.knowledge_stack import KnowledgeStack
from infrastructure.tuning_stack import TuningStack
from workflows.settings import Settings

ROOT = Path(__file__).resolve().parents[2]

Template = dict[str, Any]


def tuning_template(settings: Settings, assets: Assets) -> Template:
    app = cdk.App(analytics_reporting=False)
    names = {"stack_name": "test", "description": "", "code_version": "test"}
    stack = TuningStack(app, "Test", settings=settings, assets=assets, **names)
    return _template(app, stack)


def knowledge_template(settings: Settings, assets: Assets) -> Template:
    app = cdk.App(analytics_reporting=False)
    names = {"stack_name": "test", "description": ""}
    stack = KnowledgeStack(app, "Test", settings=settings, assets=assets, **names)
    return _template(app, stack)


def inference_template(settings: Settings, assets: Assets) -> Template:
    app = cdk.App(analytics_reporting=False)
    names = {"stack_name": "test", "description": "", "code_version": "test"}
    stack = InferenceStack(app, "Test", settings=settings, assets=assets, **names)
    return _template(app, stack)


def _template(app: cdk.App, stack: cdk.Stack) -> Template:
    artifact = app.synth().get_stack_by_name(stack.stack_name)
    loaded: Template = json.loads(Path(artifact.template_full_path).read_text(encoding="utf-8"))
    return loaded


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
