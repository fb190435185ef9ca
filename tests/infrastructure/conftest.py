from pathlib import Path

import pytest
from templates import ROOT

from infrastructure.app import synthesize
from infrastructure.assets import Assets
from workflows.settings import Settings

CACHE = ROOT / ".quench" / "cache"


@pytest.fixture(scope="session")
def assembly(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stack, with everything in it that settings can add."""
    settings = Settings(tuning={"schedule": "rate(7 days)"}, release={"production_approval": True})
    return synthesize(settings, tmp_path_factory.mktemp("cdk.out"), cache=CACHE, code="golden")


@pytest.fixture(scope="session")
def other_assembly(tmp_path_factory: pytest.TempPathFactory) -> Path:
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
    return synthesize(settings, tmp_path_factory.mktemp("cdk.out"), cache=CACHE, code="other")


@pytest.fixture(scope="session")
def assets(tmp_path_factory: pytest.TempPathFactory) -> Assets:
    """Stand-ins: a template is made faster than the real ones are copied for it."""
    folder = tmp_path_factory.mktemp("assets")
    (folder / "Dockerfile").touch()
    return Assets(functions=folder, layer=folder, processing_image=folder, code_version="test")
