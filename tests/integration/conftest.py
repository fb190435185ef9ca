from collections.abc import Iterator
from pathlib import Path

import pytest
from releases import Releases, small_tree
from stack import Tuning, deployed
from typer.testing import CliRunner

from workflows.settings import Settings


@pytest.fixture(scope="module")
def tuning(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Tuning]:
    """The stack with the settings that the module names as `SETTINGS`."""
    settings: Settings = request.module.SETTINGS
    with deployed(tmp_path_factory.mktemp("quench"), settings) as stack:
        yield stack


@pytest.fixture(scope="module")
def releasing(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Tuning]:
    """As `tuning`; what is released is a small tree, which deploys the same stacks again."""
    settings: Settings = request.module.SETTINGS
    folder = tmp_path_factory.mktemp("quench")
    source = folder / "source"
    with deployed(folder, settings, source) as stack:
        small_tree(source, folder / "cdk.out")
        yield stack


@pytest.fixture(scope="module")
def releases(stack: Tuning) -> Releases:
    """Of the stacks that the module calls `stack`."""
    stack.load_models()
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
    """A wide one, where `quench` reaches the cloud of what the module calls `stack`."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    for name, value in stack.cloud.environment().items():
        monkeypatch.setenv(name, value)
    return CliRunner()
