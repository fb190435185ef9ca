"""What `quench models` and `quench release` say before all is deployed, and of many releases."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from moto import mock_aws
from typer.testing import CliRunner

from cli.main import app
from cli.pipeline import ReleasePipeline

PACKAGE = "arn:aws:sagemaker:us-east-1:123456789012:model-package/quench-models/3"
WRITTEN = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)


@pytest.fixture(autouse=True)
def account(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("COLUMNS", "200")
    with mock_aws():
        yield


def models_list() -> tuple[int, str]:
    result = CliRunner().invoke(app, ["models", "list"])
    return result.exit_code, " ".join(result.output.split())


def deploy(stage: str) -> None:
    template = {
        "Resources": {"Queue": {"Type": "AWS::SQS::Queue"}},
        "Outputs": {"ServedModel": {"Value": json.dumps({"model_package": PACKAGE})}},
    }
    boto3.client("cloudformation").create_stack(
        StackName=f"quench-{stage}-inference", TemplateBody=json.dumps(template)
    )


def approve_nothing() -> None:
    value = json.dumps({"model_package": None})
    boto3.client("ssm").put_parameter(Name="/quench/model", Value=value, Type="String")


def test_before_the_first_release_models_say_what_makes_the_parameter() -> None:
    code, shown = models_list()
    assert code == 1
    assert "There is no parameter /quench/model in us-east-1" in shown
    assert "quench release status" in shown


def test_models_are_listed_while_a_stage_is_missing() -> None:
    approve_nothing()
    deploy("qa")
    code, shown = models_list()
    assert code == 0, shown
    assert "PROD serves nothing yet. There is no stack quench-prod-inference" in shown


def test_models_are_listed_though_a_stage_could_not_be_made() -> None:
    approve_nothing()
    deploy("qa")
    cloudformation = boto3.client("cloudformation")
    cloudformation.create_change_set(
        StackName="quench-prod-inference",
        ChangeSetName="first",
        ChangeSetType="CREATE",
        TemplateBody=json.dumps({"Resources": {"Queue": {"Type": "AWS::SQS::Queue"}}}),
    )
    code, shown = models_list()
    assert code == 0, shown
    assert "quench-prod-inference was not made yet: it is REVIEW_IN_PROGRESS" in shown


@pytest.mark.parametrize(
    ("listed", "expected"),  # the newest first, with minutes after the parameter was written
    [
        ([], None),
        ([("before", "Succeeded", -5)], None),
        ([("released", "InProgress", 1), ("before", "Succeeded", -5)], "released"),
        # one that failed decides, though the model before it is on its way by then
        ([("restoring", "InProgress", 3), ("released", "Failed", 1)], "released"),
        # the pipeline has updated itself
        ([("released", "InProgress", 2), ("updating", "Cancelled", 1)], "released"),
        ([("updating", "Cancelled", 1)], "updating"),
    ],
)
def test_the_release_of_a_model_is_the_first_that_is_not_given_up(
    listed: list[tuple[str, str, int]], expected: str | None
) -> None:
    codepipeline: Any = boto3.client("codepipeline")
    summaries = [
        {
            "pipelineExecutionId": name,
            "status": status,
            "startTime": WRITTEN + timedelta(minutes=minutes),
        }
        for name, status, minutes in listed
    ]
    with Stubber(codepipeline) as stubber:
        stubber.add_response(
            "list_pipeline_executions",
            {"pipelineExecutionSummaries": summaries},
            {"pipelineName": "quench-release"},
        )
        pipeline = ReleasePipeline("quench-release", lambda service: codepipeline)
        found = pipeline.release_since(WRITTEN)
    assert (found and found.id) == expected
