"""What the settings of a release make of promotion, and who may change which model is used."""

import json
from pathlib import Path
from typing import Any

import pytest
from templates import Template, allowed, functions, load, of_type, resources_of

NAMES = {"promote_model", "release_model", "restore_model"}


@pytest.fixture(scope="module")
def templates(assembly: Path) -> dict[str, Template]:
    return load(assembly)


@pytest.fixture(scope="module")
def template(templates: dict[str, Template]) -> Template:
    return templates["quench-promotion"]


@pytest.fixture(scope="module")
def other(other_assembly: Path) -> Template:
    return load(other_assembly)["quench-promotion"]


def rule(template: Template, event: str) -> dict[str, Any]:
    (found,) = [
        rule
        for rule in of_type(template, "AWS::Events::Rule")
        if rule["EventPattern"]["detail-type"] == [event]
    ]
    return found


def parameters(template: Template) -> dict[str, str]:
    """Logical ids of the parameters, by their names."""
    return {
        resource["Properties"]["Name"]: name
        for name, resource in template["Resources"].items()
        if resource["Type"] == "AWS::SSM::Parameter"
    }


def pipeline_name(templates: dict[str, Template]) -> str:
    (pipeline,) = of_type(templates["quench-release"], "AWS::CodePipeline::Pipeline")
    name: str = pipeline["Name"]
    return name


def test_each_stage_has_the_parameter_that_it_is_deployed_with(
    template: Template, other: Template
) -> None:
    assert set(parameters(template)) == {"/quench/model", "/quench/model-prod"}
    assert set(parameters(other)) == {"/lore/model", "/lore/model-prod"}


def test_a_deployment_takes_no_model_back(template: Template, other: Template) -> None:
    values = {
        parameter["Value"]
        for made in (template, other)
        for parameter in of_type(made, "AWS::SSM::Parameter")
    }
    (value,) = values  # CloudFormation writes a parameter again only when its value changes
    assert set(json.loads(value).values()) == {None}


def test_an_approval_waits_until_its_model_is_served(template: Template, other: Template) -> None:
    for made, seconds in ((template, 300), (other, 3600)):
        (mapping,) = of_type(made, "AWS::Lambda::EventSourceMapping")
        queue = made["Resources"][mapping["EventSourceArn"]["Fn::GetAtt"][0]]["Properties"]
        assert queue["VisibilityTimeout"] == seconds
        assert queue["VisibilityTimeout"] * queue["RedrivePolicy"]["maxReceiveCount"] == 12 * 3600


def test_only_approvals_of_our_models_are_promoted(template: Template) -> None:
    assert rule(template, "SageMaker Model Package State Change")["EventPattern"]["detail"] == {
        "ModelPackageGroupName": ["quench-models"],
        "ModelApprovalStatus": ["Approved"],
    }


def test_every_failed_stage_of_the_release_and_no_other_is_told_to_restore_model(
    templates: dict[str, Template], template: Template
) -> None:
    failed = rule(template, "CodePipeline Stage Execution State Change")
    assert failed["EventPattern"]["source"] == ["aws.codepipeline"]
    assert failed["EventPattern"]["detail"] == {
        "pipeline": [pipeline_name(templates)],
        "state": ["FAILED"],
    }
    (target,) = failed["Targets"]
    function = template["Resources"][target["Arn"]["Fn::GetAtt"][0]]["Properties"]
    assert function["Handler"] == "lambdas.restore_model.handler"


def test_a_new_model_starts_the_release_and_no_other_pipeline(
    templates: dict[str, Template], template: Template
) -> None:
    for name in NAMES:
        may_start = allowed(template, name).get("codepipeline:StartPipelineExecution", "[]")
        if name == "release_model":  # part of an execution itself
            assert may_start == "[]"
        else:
            ((arn,),) = json.loads(may_start)
            assert arn["Fn::Join"][1][-1] == f":{pipeline_name(templates)}"
    told = functions(template)["promote_model"]["Environment"]["Variables"]
    assert told["RELEASE_PIPELINE"] == pipeline_name(templates)


def test_only_release_model_changes_what_production_has(
    templates: dict[str, Template], template: Template
) -> None:
    ids = parameters(template)
    writers = {
        name: allowed(template, name).get("ssm:PutParameter", "[]") for name in functions(template)
    }
    assert set(writers) == NAMES
    for parameter, expected in (
        ("/quench/model", {"promote_model", "restore_model"}),
        ("/quench/model-prod", {"release_model"}),
    ):
        reference = f'"{ids[parameter]}"'
        assert {name for name, arns in writers.items() if reference in arns} == expected
    for resources in writers.values():
        ((arn,),) = json.loads(resources)
        assert arn["Fn::Join"][1][-2] == ":parameter"
        assert set(arn["Fn::Join"][1][-1]) == {"Ref"}
    for name, made in templates.items():
        if name != "quench-promotion":
            assert resources_of(made, "ssm:PutParameter") == "[]"


def test_the_pipeline_invokes_release_model_and_no_other_function(
    templates: dict[str, Template], template: Template
) -> None:
    name = functions(template)["release_model"]["FunctionName"]
    invoked = json.loads(resources_of(templates["quench-release"], "lambda:InvokeFunction"))
    arns = [json.dumps(arn) for resources in invoked for arn in resources]
    assert arns
    assert all(f":function:{name}" in arn for arn in arns)
