"""The release pipeline as deployed: a model goes through QA to production, or comes back."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from releases import PIPELINE, Releases, small_tree
from stack import Tuning, deployed, small, until
from typer.testing import CliRunner

from cli.api import Api
from cli.main import app

QA_DEPLOY = "QA/quench-qa-inference.Deploy"
PROD_DEPLOY = "PROD/quench-prod-inference.Deploy"
pytestmark = pytest.mark.timeout(900)  # a test waits for several releases
SETTINGS = small(alarms={"email": "ops@example.com"})


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuning]:
    folder = tmp_path_factory.mktemp("quench")
    source = folder / "source"
    with deployed(folder, SETTINGS, source) as running:
        small_tree(source, folder / "cdk.out")
        yield running


@pytest.fixture(scope="module")
def releases(stack: Tuning) -> Releases:
    return Releases(stack)


@pytest.fixture(scope="module")
def released(releases: Releases) -> str:
    """A model that went all the way."""
    package = releases.register()
    releases.approve(package)
    newest = releases.settled()[0]
    assert newest.status == "Succeeded", releases.actions(newest.id)
    return package


@pytest.fixture
def terminal(stack: Tuning, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name, value in stack.cloud.environment().items():
        monkeypatch.setenv(name, value)
    return CliRunner()


def api(stack: Tuning, stage: str) -> Api:
    return Api(stack.stacks[f"quench-{stage}-inference"]["ApiUrl"], stack.cloud.session)


def answering_model(stack: Tuning, stage: str) -> str:
    """What really answers at a stage."""
    reply = api(stack, stage).ask("tuned", "Who keeps the gate?", 4)
    assert reply.status == 200, reply.body
    return str(reply.body["model_id"])


def parameter(stack: Tuning, name: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(
        stack.client("ssm").get_parameter(Name=name)["Parameter"]["Value"]
    )
    return value


@contextmanager
def asked_all_along(stack: Tuning) -> Iterator[list[tuple[int, str]]]:
    """Status and model of requests to production, one after the other, until left."""
    answers: list[tuple[int, str]] = []
    ended = threading.Event()
    production = api(stack, "prod")

    def ask() -> None:
        while not ended.wait(0.25):
            reply = production.ask("tuned", "Who keeps the gate?", 2)
            answers.append((reply.status, str(reply.body.get("model_id"))))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield answers
    finally:
        ended.set()
        thread.join()


def test_an_approved_model_goes_through_qa_to_production(
    stack: Tuning, releases: Releases, released: str, terminal: CliRunner
) -> None:
    assert releases.everywhere() == {released}
    promoted = stack.parameter()
    assert parameter(stack, "/quench/model-prod") == promoted
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


def test_a_model_that_cannot_answer_never_reaches_production(
    stack: Tuning, releases: Releases, released: str, terminal: CliRunner
) -> None:
    before = stack.parameter()
    known = releases.all()
    package = releases.register()
    releases.approve(package)
    stack.client("bedrock").delete_custom_model_deployment(
        customModelDeploymentIdentifier=stack.parameter()["model_id"]
    )
    with asked_all_along(stack) as answers:
        until(lambda: stack.parameter() == before, "the parameter to be back", patience=400)
        restoring, failed = until(
            lambda: new if len(new := releases.newer_than(known)) == 2 else None, "its release"
        )
        until(lambda: releases.served("qa") == released, "QA to be back", patience=400)
        releases.settled()
    assert len(answers) > 5
    assert set(answers) == {(200, before["model_id"])}
    assert releases.actions(failed.id)["QA/SystemTests"]["status"] == "Failed"
    assert PROD_DEPLOY not in releases.actions(failed.id)
    assert {r.id: r.status for r in releases.all()}[restoring.id] == "Succeeded"
    described = releases.package(package)
    assert described["ModelApprovalStatus"] == "Rejected"
    assert failed.id in described["ApprovalDescription"]
    assert "SystemTests in QA failed" in described["ApprovalDescription"]
    assert releases.everywhere() == {released}
    listed = terminal.invoke(app, ["models", "list"]).output
    assert "SystemTests in QA failed" in " ".join(listed.split()), listed


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


def test_rollback_releases_the_model_before(
    stack: Tuning, releases: Releases, released: str, terminal: CliRunner
) -> None:
    package = releases.register()
    before = stack.parameter()
    releases.approve(package)
    releases.settled()
    assert releases.everywhere() == {package}
    done = terminal.invoke(app, ["models", "rollback"])
    assert done.exit_code == 0, done.output
    releases.settled()
    assert stack.parameter() == before
    assert releases.everywhere() == {before["model_package"]}
    described = releases.package(package)
    assert described["ModelApprovalStatus"] == "Rejected"
    assert described["ApprovalDescription"].startswith("Rolled back by ")


def test_a_release_that_fails_without_a_new_model_takes_none_back(
    stack: Tuning, releases: Releases, released: str, terminal: CliRunner
) -> None:
    before = stack.parameter()
    test = stack.cloud.config.source / "tests" / "unit" / "test_unit_only.py"
    good = test.read_text()
    test.write_text("def test_broken() -> None:\n    raise AssertionError('broken')\n")
    try:
        releases.pipeline.start_pipeline_execution(name=PIPELINE)
        newest = releases.settled()[0]
        assert newest.status == "Failed"
        assert "broken" in terminal.invoke(app, ["release", "status"]).output
    finally:
        test.write_text(good)
    assert stack.parameter() == before
    again = terminal.invoke(app, ["release", "retry"])
    assert "Build/Synth runs again" in again.output
    until(lambda: releases.settled()[0].status == "Failed", "the same source to fail again")
    assert terminal.invoke(app, ["release", "approve"]).exit_code == 1


def test_a_production_deployment_that_fails_leaves_production_as_it_was(
    stack: Tuning, releases: Releases, released: str
) -> None:
    """Something in production's template fails once other things of the stack are updated."""
    before = stack.parameter()
    package = releases.register()
    source = stack.cloud.config.source / "assembly" / "assembly-QuenchRelease-PROD"
    (file,) = source.glob("*.template.json")
    good = file.read_text()
    template = json.loads(good)
    (function,) = [
        name
        for name, resource in template["Resources"].items()
        if resource.get("Properties", {}).get("Handler") == "lambdas.text_api.handler"
    ]
    template["Resources"]["Broken"] = {
        "Type": "AWS::Lambda::EventInvokeConfig",
        "Properties": {"FunctionName": {"Ref": function}, "Qualifier": "7"},
    }
    file.write_text(json.dumps(template))
    known = releases.all()
    try:
        with asked_all_along(stack) as answers:
            releases.approve(package)
            until(lambda: releases.approved() != package, "the model to be back", patience=400)
            releases.settled()
    finally:
        file.write_text(good)
    assert set(answers) == {(200, before["model_id"])}
    assert stack.parameter() == before
    assert releases.everywhere() == {before["model_package"]}
    assert parameter(stack, "/quench/model-prod") == before
    assert "in PROD failed" in releases.package(package)["ApprovalDescription"]
    assert [r.status for r in releases.newer_than(known)] == ["Failed", "Failed"]
