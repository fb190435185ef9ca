"""The release pipeline as deployed: what fails, or is rolled back, comes back."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from releases import PIPELINE, Releases
from stack import Tuning, small, until
from typer.testing import CliRunner

from cli.api import Api
from cli.main import app

PROD_DEPLOY = "PROD/quench-prod-inference.Deploy"
pytestmark = pytest.mark.timeout(900)  # a test waits for several releases
SETTINGS = small(alarms={"email": "ops@example.com"})


@pytest.fixture(scope="module")
def stack(releasing: Tuning) -> Tuning:
    return releasing


@contextmanager
def asked_all_along(stack: Tuning) -> Iterator[list[tuple[int, str]]]:
    """Status and model of requests to production, one after the other, until left."""
    answers: list[tuple[int, str]] = []
    ended = threading.Event()
    production = Api(stack.stacks["quench-prod-inference"]["ApiUrl"], stack.cloud.session)

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
    again = terminal.invoke(app, ["release", "retry"])
    assert again.exit_code == 1
    assert f"{restoring.id}, has not failed: it is Succeeded" in again.output


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
    stack: Tuning, releases: Releases, released: str, terminal: CliRunner
) -> None:
    """Something in production's template fails once other things of the stack are updated.

    Until those are taken back, for a moment, production may answer with the model that QA tested.
    """
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
            tested = stack.parameter()["model_id"]
            until(lambda: releases.approved() != package, "the model to be back", patience=400)
            until(lambda: len(releases.newer_than(known)) == 2, "the release that brings QA back")
            releases.settled()
    finally:
        file.write_text(good)
    assert {status for status, _ in answers} == {200}
    assert {model for _, model in answers} <= {before["model_id"], tested}
    assert answers[0] == answers[-1] == (200, before["model_id"])
    assert stack.parameter() == before
    assert releases.everywhere() == {before["model_package"]}
    assert stack.parameter("/quench/model-prod") == before
    assert "in PROD failed" in releases.package(package)["ApprovalDescription"]
    restoring, failed = releases.newer_than(known)
    assert (restoring.status, failed.status) == ("Failed", "Failed")
    again = terminal.invoke(app, ["release", "retry"])
    assert f"{PROD_DEPLOY} runs again in {restoring.id}" in again.output
    assert releases.settled()[0].status == "Failed"
