"""Production in another account and region: who may do what on the other side."""

import json
from pathlib import Path
from typing import Any

import pytest
from templates import (
    Template,
    allowed,
    functions,
    lint,
    load,
    of_type,
    statements,
    synthesize,
)
from test_release_stack import kinds, one_after_another, stages

from infrastructure.assets import Assets
from workflows.settings import Settings

pytestmark = pytest.mark.slow
HOME, THERE = "111111111111", "222222222222"
ASKERS = {"text_api", "rag_api", "image_api", "status_api"}


def made_with(folder: Path, assets: Assets, **release: str) -> Path:
    settings = Settings(
        account=HOME,
        region="us-east-1",
        release={"production_approval": True, **release},
        api={"guardrail": "abc1:2"},
    )
    return synthesize(settings, folder, assets)


@pytest.fixture(scope="module")
def assembly(tmp_path_factory: pytest.TempPathFactory, assets: Assets) -> Path:
    folder = tmp_path_factory.mktemp("cdk.out")
    return made_with(folder, assets, production_account=THERE, production_region="us-west-2")


@pytest.fixture(scope="module")
def templates(assembly: Path) -> dict[str, Template]:
    return load(assembly)


def roles(template: Template) -> dict[str, dict[str, Any]]:
    """The roles that have names, by them."""
    found = of_type(template, "AWS::IAM::Role")
    return {role["RoleName"]: role for role in found if "RoleName" in role}


def trusted(role: dict[str, Any]) -> tuple[str, str]:
    """The account that a role trusts, and which of its roles: all that may, if none is named."""
    (statement,) = role["AssumeRolePolicyDocument"]["Statement"]
    who = json.dumps(statement["Principal"])
    which = statement.get("Condition", {}).get("ArnEquals", {}).get("aws:PrincipalArn", "")
    account = next(account for account in (HOME, THERE) if account in who)
    return account, joined(which)


def joined(value: Any) -> str:
    """What CloudFormation joins, with the partition for `Ref`s: nothing else is left open here."""
    if isinstance(value, dict):
        ((kind, content),) = value.items()
        if kind == "Fn::Join":
            return "".join(map(joined, content[1]))
        return {"AWS::Partition": "aws"}[content]
    return str(value)


def permissions(template: Template, role: dict[str, str]) -> dict[str, list[str]]:
    """What a role may do, and to what."""
    policies = [p for p in of_type(template, "AWS::IAM::Policy") if role in p["Roles"]]
    own = {
        "Resources": {
            str(n): {"Type": "AWS::IAM::Policy", "Properties": p} for n, p in enumerate(policies)
        }
    }
    found: dict[str, list[str]] = {}
    for actions, resources in statements(own):
        for action in actions:
            found.setdefault(action, []).extend(map(json.dumps, resources))
    return {action: sorted(resources) for action, resources in found.items()}


def role_of(template: Template, name: str) -> dict[str, str]:
    """A reference to the role of a name."""
    (found,) = [
        logical_id
        for logical_id, resource in template["Resources"].items()
        if resource["Type"] == "AWS::IAM::Role" and resource["Properties"].get("RoleName") == name
    ]
    return {"Ref": found}


def variable(template: Template, function: str, name: str) -> dict[str, str]:
    text = joined(functions(template)[function]["Environment"]["Variables"][name])
    value: dict[str, str] = json.loads(text)
    return value


def test_every_stack_is_where_it_belongs(assembly: Path) -> None:
    artifacts = [
        (artifact["properties"].get("stackName", name), artifact["environment"])
        for manifest in assembly.rglob("manifest.json")
        for name, artifact in json.loads(manifest.read_text())["artifacts"].items()
        if artifact["type"] == "aws:cloudformation:stack"
    ]
    places = dict(artifacts)
    home, there = f"aws://{HOME}/us-east-1", f"aws://{THERE}/us-west-2"
    assert places.pop("quench-prod-inference") == there
    assert places.pop("quench-prod-parameters") == there
    assert places.pop("quench-release-support-us-west-2") == f"aws://{HOME}/us-west-2"
    assert set(places.values()) == {home}
    assert set(places) == {
        *("quench-release", "quench-tuning", "quench-knowledge", "quench-promotion"),
        *("quench-qa-inference", "quench-prod-access"),
    }


def test_what_each_side_needs_of_the_other_is_there_before_any_stage(
    templates: dict[str, Template],
) -> None:
    before = stages(templates)["DATA"]
    named = {action["Configuration"]["StackName"] for action in before}
    assert {"quench-prod-access", "quench-prod-parameters"} < named
    actions = stages(templates)["PROD"]
    assert kinds(actions) == ["Approval", "Invoke", "Deploy"]
    assert one_after_another(actions)
    assert actions[-1]["Region"] == "us-west-2"
    assert f"::{THERE}:role/" in json.dumps(actions[-1]["RoleArn"])


def test_each_function_there_may_only_assume_its_role_here(
    templates: dict[str, Template],
) -> None:
    there, here = templates["quench-prod-inference"], templates["quench-prod-access"]
    assert set(functions(there)) == ASKERS
    for function in ASKERS:
        name = f"quench-prod-{function.replace('_', '-')}"
        access = variable(there, function, "ACCESS")
        assert access == {"role": f"arn:aws:iam::{HOME}:role/{name}", "region": "us-east-1"}
        own = f"arn:aws:iam::{THERE}:role/{name}-function"
        assert trusted(roles(here)[name]) == (THERE, own)
        assert f"{name}-function" in roles(there)
        may = allowed(there, function)
        assert access["role"].removeprefix("arn:aws") in may["sts:AssumeRole"]
        assert {action.partition(":")[0] for action in may} <= {"sts", "s3", "logs"}


@pytest.mark.parametrize("function", sorted(ASKERS))
def test_its_role_here_may_what_the_function_of_qa_may(
    function: str, templates: dict[str, Template]
) -> None:
    qa, here = templates["quench-qa-inference"], templates["quench-prod-access"]
    own = {"Ref": functions(qa)[function]["Role"]["Fn::GetAtt"][0]}
    role = role_of(here, f"quench-prod-{function.replace('_', '-')}")
    assert permissions(here, role) == {
        action: resources
        for action, resources in permissions(qa, own).items()
        if action.partition(":")[0] in ("bedrock", "es")
    }


def test_a_release_writes_there_and_everybody_here_may_look(
    templates: dict[str, Template],
) -> None:
    there, here = templates["quench-prod-parameters"], templates["quench-promotion"]
    release, status = "quench-prod-release", "quench-prod-status"
    assert trusted(roles(there)[release]) == (
        HOME,
        f"arn:aws:iam::{HOME}:role/quench-release-model",
    )
    assert "quench-release-model" in roles(here)
    assert trusted(roles(there)[status]) == (HOME, "")
    assert set(permissions(there, role_of(there, release))) == {"ssm:PutParameter"}
    assert set(permissions(there, role_of(there, status))) == {"cloudformation:DescribeStacks"}
    for function, role in (("release_model", release), ("restore_model", status)):
        access = variable(here, function, "PRODUCTION_ACCESS")
        assert access == {"role": f"arn:aws:iam::{THERE}:role/{role}", "region": "us-west-2"}
        assert f"::{THERE}:role/{role}" in allowed(here, function)["sts:AssumeRole"]
    assert "stack/quench-prod-inference" not in json.dumps(allowed(here, "restore_model"))
    names = {parameter["Name"] for parameter in of_type(there, "AWS::SSM::Parameter")}
    deployed_with = templates["quench-prod-inference"]["Parameters"]
    assert names == {deployed_with[name]["Default"] for name in ("Model", "Index")}


def test_another_account_can_read_what_is_to_be_deployed(
    templates: dict[str, Template], tmp_path: Path, assets: Assets
) -> None:
    """In another region it reads a copy, which CodePipeline makes."""
    here = load(made_with(tmp_path, assets, production_account=THERE))["quench-release"]
    for template in (here, templates["quench-release-support-us-west-2"]):
        (key,) = of_type(template, "AWS::KMS::Key")
        assert key["EnableKeyRotation"] is True
        assert f"::{THERE}:role/" in json.dumps(key["KeyPolicy"])
        (policy,) = [
            json.dumps(policy)
            for policy in of_type(template, "AWS::S3::BucketPolicy")
            if f"::{THERE}:role/" in json.dumps(policy)
        ]
        assert "s3:GetObject*" in policy


def test_another_region_alone_needs_no_key(tmp_path: Path, assets: Assets) -> None:
    templates = load(made_with(tmp_path, assets, production_region="us-west-2"))
    assert not of_type(templates["quench-release"], "AWS::KMS::Key")
    assert trusted(roles(templates["quench-prod-access"])["quench-prod-text-api"])[0] == HOME
    named = [name for template in templates.values() for name in roles(template)]
    assert len(named) == len(set(named))  # an account has its roles in every region


def test_templates_have_no_lint(assembly: Path) -> None:
    assert lint(assembly) == (0, "")
