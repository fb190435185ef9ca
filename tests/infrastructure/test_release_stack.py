"""What the settings of a release make of its pipeline, and what holds for every release."""

import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from templates import Template, load, of_type, resources_of, statements

Action = dict[str, Any]


@pytest.fixture(scope="module")
def templates(assembly: Path) -> dict[str, Template]:
    """With a manual approval, from CodeCommit, and APIs that ask for signatures."""
    return load(assembly)


@pytest.fixture(scope="module")
def others(other_assembly: Path) -> dict[str, Template]:
    """Without an approval, from a connection, and APIs that ask for keys."""
    return load(other_assembly)


def stages(templates: dict[str, Template]) -> dict[str, list[Action]]:
    """The actions of each stage, in the order in which they run."""
    (pipeline,) = of_type(templates["quench-release"], "AWS::CodePipeline::Pipeline")
    return {
        stage["Name"]: sorted(stage["Actions"], key=lambda action: int(action["RunOrder"]))
        for stage in pipeline["Stages"]
    }


def kinds(actions: list[Action]) -> list[str]:
    return [action["ActionTypeId"]["Category"] for action in actions]


def one_after_another(actions: list[Action]) -> bool:
    return all(one["RunOrder"] < next_["RunOrder"] for one, next_ in pairwise(actions))


def variables(templates: dict[str, Template], action: Action) -> dict[str, str]:
    """What a build is told by its action and by its project."""
    configuration = action["Configuration"]
    project = templates["quench-release"]["Resources"][configuration["ProjectName"]["Ref"]]
    set_by_project = project["Properties"]["Environment"].get("EnvironmentVariables", [])
    set_by_action = json.loads(configuration.get("EnvironmentVariables", "[]"))
    return {v["Name"]: v["Value"] for v in set_by_project} | {
        v["name"]: v["value"] for v in set_by_action
    }


def without_names(templates: dict[str, Template], stage: str) -> dict[str, Any]:
    """A stage's template with its own names, and those of its resources, made alike."""
    template = templates[f"quench-{stage}-inference"]
    text = json.dumps(template)
    for number, name in enumerate(template["Resources"]):
        text = text.replace(f'"{name}"', f'"{number}"')
    alike: dict[str, Any] = json.loads(text.replace(f"quench-{stage}", "quench-stage"))
    return alike


def test_stages_come_in_their_order(
    templates: dict[str, Template], others: dict[str, Template]
) -> None:
    expected = ["Source", "Build", "UpdatePipeline", "Assets", "DATA", "QA", "PROD"]
    assert list(stages(templates)) == list(stages(others)) == expected


def test_every_stack_but_its_own_is_deployed_by_the_pipeline(
    templates: dict[str, Template],
) -> None:
    deployed = {
        action["Configuration"]["StackName"]
        for actions in stages(templates).values()
        for action in actions
        if action["ActionTypeId"]["Provider"] == "CloudFormation"
    }
    assert deployed == set(templates) - {"quench-release"}


def test_qa_is_deployed_and_then_asked(
    templates: dict[str, Template], others: dict[str, Template]
) -> None:
    for made, outputs in (
        (templates, {"API_URL": "ApiUrl"}),
        (others, {"API_URL": "ApiUrl", "API_KEY_ID": "ApiKeyId"}),
    ):
        deploy, tests = actions = stages(made)["QA"]
        assert kinds(actions) == ["Deploy", "Build"]
        assert one_after_another(actions)
        told = variables(made, tests)
        assert told.pop("STACK_NAME") == deploy["Configuration"]["StackName"]
        assert told.pop("PYTEST_DISABLE_PLUGIN_AUTOLOAD") == "1"
        assert told == {
            variable: f"#{{{deploy['Namespace']}.{output}}}" for variable, output in outputs.items()
        }
        assert set(outputs.values()) <= set(made["quench-qa-inference"]["Outputs"])


def test_the_value_of_a_key_is_read_only_where_there_is_one(
    templates: dict[str, Template], others: dict[str, Template]
) -> None:
    assert resources_of(templates["quench-release"], "apigateway:GET") == "[]"
    assert "::/apikeys/*" in resources_of(others["quench-release"], "apigateway:GET")


def test_production_gets_what_qa_served_once_somebody_agrees(
    templates: dict[str, Template],
) -> None:
    actions = stages(templates)["PROD"]
    assert kinds(actions) == ["Approval", "Invoke", "Deploy"]
    assert one_after_another(actions)
    approval, release_model, deploy = actions
    assert approval["ActionTypeId"]["Provider"] == "Manual"
    topic = approval["Configuration"]["NotificationArn"]["Ref"]
    release = templates["quench-release"]
    assert release["Resources"][topic]["Type"] == "AWS::SNS::Topic"
    assert topic in resources_of(release, "sns:Publish")
    qa = stages(templates)["QA"][0]
    told = release_model["Configuration"]["UserParameters"]
    assert told == f"#{{{qa['Namespace']}.ServedModel}}"
    assert "function:quench-release-model" in json.dumps(release_model["Configuration"])
    assert deploy["Configuration"]["StackName"] == "quench-prod-inference"


def test_nobody_is_asked_unless_it_is_set(others: dict[str, Template]) -> None:
    actions = stages(others)["PROD"]
    assert kinds(actions) == ["Invoke", "Deploy"]
    assert one_after_another(actions)


def test_code_comes_from_codecommit_or_by_a_connection(
    templates: dict[str, Template], others: dict[str, Template]
) -> None:
    (source,) = stages(templates)["Source"]
    assert source["ActionTypeId"]["Provider"] == "CodeCommit"
    assert source["Configuration"]["RepositoryName"] == "quench"
    assert source["Configuration"]["BranchName"] == "main"
    (source,) = stages(others)["Source"]
    assert source["ActionTypeId"]["Provider"] == "CodeStarSourceConnection"
    assert source["Configuration"]["ConnectionArn"].endswith(":connection/abc")
    assert source["Configuration"]["FullRepositoryId"] == "game/lore"
    assert source["Configuration"]["BranchName"] == "stable"


def test_no_role_may_do_everything(
    templates: dict[str, Template], others: dict[str, Template]
) -> None:
    for template in (*templates.values(), *others.values()):
        assert "AdministratorAccess" not in json.dumps(template)
        assert all("*" not in actions for actions, _ in statements(template))
        assert not [role for role in of_type(template, "AWS::IAM::Role") if "Policies" in role]


def test_a_stage_is_the_other_by_another_name_and_parameter(
    templates: dict[str, Template], others: dict[str, Template]
) -> None:
    for made, parameter in ((templates, "/quench/model"), (others, "/lore/model")):
        qa, production = without_names(made, "qa"), without_names(made, "prod")
        assert qa["Parameters"]["Model"].pop("Default") == parameter
        assert production["Parameters"]["Model"].pop("Default") == f"{parameter}-prod"
        assert qa == production


def test_no_template_of_a_stage_names_a_tuned_model(templates: dict[str, Template]) -> None:
    for stage in ("qa", "prod"):
        template = templates[f"quench-{stage}-inference"]
        model = template["Parameters"]["Model"]
        assert model["Type"] == "AWS::SSM::Parameter::Value<String>"
        assert template["Outputs"]["ServedModel"]["Value"] == {"Ref": "Model"}
        named = re.findall(
            r":(?:custom-model|custom-model-deployment|provisioned-model)/([^\"]*)",
            json.dumps(template),
        )
        assert set(named) == {"*"}
