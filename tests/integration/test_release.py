"""The release pipeline as deployed: an approved model goes through QA to production."""

import json

import pytest
from releases import PIPELINE, Releases
from stack import Tuning, small, until
from typer.testing import CliRunner

from cli.api import Api
from cli.main import app

QA_DEPLOY = "QA/quench-qa-inference.Deploy"
PROD_DEPLOY = "PROD/quench-prod-inference.Deploy"
pytestmark = pytest.mark.timeout(900)  # a test waits for several releases
SETTINGS = small(alarms={"email": "ops@example.com"})


@pytest.fixture(scope="module")
def stack(releasing: Tuning) -> Tuning:
    return releasing


def api(stack: Tuning, stage: str) -> Api:
    return Api(stack.stacks[f"quench-{stage}-inference"]["ApiUrl"], stack.cloud.session)


def answering_model(stack: Tuning, stage: str) -> str:
    """What really answers at a stage."""
    reply = api(stack, stage).ask("tuned", "Who keeps the gate?", 4)
    assert reply.status == 200, reply.body
    return str(reply.body["model_id"])


def test_an_approved_model_goes_through_qa_to_production(
    stack: Tuning, releases: Releases, released: str, terminal: CliRunner
) -> None:
    assert releases.everywhere() == {released}
    promoted = stack.parameter()
    assert stack.parameter("/quench/model-prod") == promoted
    assert answering_model(stack, "qa") == answering_model(stack, "prod") == promoted["model_id"]
    actions = releases.actions(releases.all()[0].id)
    assert {action["status"] for action in actions.values()} == {"Succeeded"}
    order = list(actions)
    for before, after in (
        ("Build/Synth", "UpdatePipeline/SelfMutate"),
        (QA_DEPLOY, "QA/SystemTests"),
        ("QA/SystemTests", "PROD/ReleaseModel"),
        ("PROD/ReleaseModel", PROD_DEPLOY),
    ):
        assert order.index(before) < order.index(after)
    history = stack.client("ssm").get_parameter_history(Name="/quench/model")["Parameters"]
    assert [json.loads(h["Value"])["model_package"] for h in history][-1] == released

    listed = terminal.invoke(app, ["models", "list"])
    assert "QA, PROD" in listed.output, listed.output
    status = terminal.invoke(app, ["release", "status"])
    assert status.output.count("Succeeded") == len(actions) + 1, status.output


def test_an_approval_whose_release_does_not_start_is_delivered_again(
    stack: Tuning, releases: Releases, released: str
) -> None:
    """promote_model ends between writing the parameter and starting the pipeline."""
    known = releases.all()
    package = releases.register()
    stack.cloud.faults.add(
        "codepipeline", "StartPipelineExecution", "ConflictException", "Not now.", times=2
    )
    releases.approve(package)
    until(lambda: releases.newer_than(known), "the release")
    releases.settled()
    assert [r.status for r in releases.newer_than(known)] == ["Succeeded"]
    assert releases.everywhere() == {package}

    # The event of an approval comes twice: it is released already.
    stack.client("sqs").send_message(
        QueueUrl=stack.outputs["ApprovalQueueUrl"],
        MessageBody=json.dumps(
            {
                "version": "0",
                "id": "7a9b3c7e-0000-0000-0000-000000000000",
                "detail-type": "SageMaker Model Package State Change",
                "source": "aws.sagemaker",
                "account": "123456789012",
                "time": stack.parameter()["approved_at"],
                "region": "us-east-1",
                "resources": [package],
                "detail": {
                    "ModelPackageGroupName": "quench-models",
                    "ModelPackageArn": package,
                    "ModelApprovalStatus": "Approved",
                },
            }
        ),
    )
    releases.settled()
    assert len(releases.newer_than(known)) == 1


def test_of_approvals_close_together_the_later_one_wins(
    stack: Tuning, releases: Releases, released: str
) -> None:
    """The newer version first, the older one after it; a commit's release runs meanwhile."""
    known = releases.all()
    older, newer = releases.register(), releases.register()
    releases.pipeline.start_pipeline_execution(name=PIPELINE)
    releases.approve(newer)
    releases.approve(older)
    releases.settled()
    assert releases.everywhere() == {older}
    statuses = [r.status for r in releases.newer_than(known)]
    assert statuses[0] == "Succeeded"
    assert set(statuses) <= {"Succeeded", "Superseded"}
    history = stack.client("ssm").get_parameter_history(Name="/quench/model")["Parameters"]
    assert [json.loads(h["Value"])["model_package"] for h in history][-2:] == [newer, older]
