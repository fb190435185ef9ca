from collections.abc import Iterator

import pytest
from stack import Tuning, deployed

from workflows.settings import Settings


@pytest.fixture(scope="module")
def tuning(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Tuning]:
    """The stack with the settings that the module names as `SETTINGS`."""
    settings: Settings = request.module.SETTINGS
    with deployed(tmp_path_factory.mktemp("quench"), settings) as stack:
        yield stack
