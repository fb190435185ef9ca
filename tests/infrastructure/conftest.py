from pathlib import Path

import pytest
from templates import synthesize

from infrastructure.assets import Assets
from workflows.settings import Settings


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    """Stand-ins: a template is made faster than the real ones are copied for it."""
    folder = tmp_path_factory.mktemp("assets")
    (folder / "Dockerfile").touch()
    return Assets(functions=folder, layer=folder, processing_image=folder, code_version="golden")


@pytest.fixture(scope="session")
def assembly(tmp_path_factory: pytest.TempPathFactory, assets: Assets) -> Path:
    """Every stack, with everything in it that settings can add."""
    settings = Settings(tuning={"schedule": "rate(7 days)"}, release={"production_approval": True})
    return synthesize(settings, tmp_path_factory.mktemp("cdk.out"), assets)


@pytest.fixture(scope="session")
def other_assembly(tmp_path_factory: pytest.TempPathFactory, assets: Assets) -> Path:
    """Every stack, as quite other settings of the release make them."""
    settings = Settings(
        api={"authorization": "api-key"},
        release={
            "parameter": "/lore/model",
            "repository": "game/lore",
            "branch": "stable",
            "connection": "arn:aws:codeconnections:us-east-1:123456789012:connection/abc",
            "approval_retry_seconds": 3600,
        },
    )
    return synthesize(settings, tmp_path_factory.mktemp("cdk.out"), assets)
