"""A pipeline that asks a person before production, which it begins to by updating itself."""

from collections.abc import Iterator

import pytest
from releases import PIPELINE, Releases, small_tree
from stack import ROOT, Tuning, deployed, small, until
from typer.testing import CliRunner

from cli.main import app
from infrastructure.app import synthesize

pytestmark = pytest.mark.timeout(900)  # a test waits for several releases
SETTINGS = small()
ASKING = small(release={"production_approval": True})


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tuning]:
    """Deployed without approval; the source has it."""
    folder = tmp_path_factory.mktemp("quench")
    cache = ROOT / ".quench" / "cache"
    small_tree(folder / "source", synthesize(ASKING, folder / "asking", cache=cache))
    with deployed(folder, SETTINGS, folder / "source") as running:
        yield running


def test_a_pipeline_updates_itself_and_asks_before_production(
    releases: Releases, terminal: CliRunner
) -> None:
    unused = terminal.invoke(app, ["release", "status"])
    assert (unused.exit_code, unused.output) == (0, f"{PIPELINE} has not run yet.\n")
    assert terminal.invoke(app, ["release", "retry"]).exit_code == 1
    nothing = terminal.invoke(app, ["models", "rollback"])
    assert nothing.exit_code == 1
    assert "nothing to roll the base model back to" in nothing.output
    assert "quench models list" in nothing.output
    qa, later = releases.register(), releases.register()
    releases.pipeline.start_pipeline_execution(name=PIPELINE)
    until(releases.waiting_approval, "production's approval", patience=400)

    # The first execution ended where it updated the pipeline, before any stage was deployed.
    waiting, updating = releases.all()
    assert updating.status == "Cancelled"
    assert {place.partition("/")[0] for place in releases.actions(updating.id)} == {
        "Source",
        "Build",
        "UpdatePipeline",
    }
    status = terminal.invoke(app, ["release", "status"]).output
    assert "ApproveProduction waits" in status, status
    rejected = terminal.invoke(app, ["release", "approve", "--reject", "--comment", "Not now."])
    assert rejected.exit_code == 0, rejected.output
    until(lambda: releases.all()[0].status == "Failed", "the end")
    assert releases.served("prod") is None
    del waiting

    # A model passes QA and waits; another one is approved, and passes QA meanwhile.
    releases.approve(qa)
    first = until(releases.waiting_approval, "the first model's approval", patience=400)
    releases.approve(later)
    until(lambda: releases.served("qa") == later, "QA to get the later one", patience=400)
    assert releases.served("prod") is None
    newest, oldest = [release.id for release in releases.all()[:2]]
    status = terminal.invoke(app, ["release", "status"]).output
    assert f"ApproveProduction waits in {oldest}, before this" in status, status
    approved = terminal.invoke(app, ["release", "approve"])
    assert approved.exit_code == 0, approved.output
    assert f"with model version 1 ({oldest})" in approved.output
    assert f"A newer release comes after it: {newest}" in approved.output
    until(lambda: releases.served("prod") == qa, "production to get the first", patience=400)
    second = until(
        lambda: (
            found
            if (found := releases.waiting_approval()) and found["token"] != first["token"]
            else None
        ),
        "the later model's approval",
        patience=400,
    )
    assert second["action"] == "ApproveProduction"
    assert terminal.invoke(app, ["release", "approve"]).exit_code == 0
    releases.settled()
    assert releases.everywhere() == {later}
