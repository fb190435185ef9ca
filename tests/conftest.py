"""What all tests share."""

from collections.abc import Iterator
from functools import cache

import pytest
from botocore.loaders import create_loader
from hypothesis import settings

# For `make fast`: few examples, and always the same ones, so that it never fails by chance.
settings.register_profile("fast", max_examples=10, derandomize=True, deadline=None)


@pytest.fixture(scope="session", autouse=True)
def _models_of_services_are_read_once() -> Iterator[None]:
    """Every boto3 session would parse them anew, and moto gives every test a session of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("botocore.session.create_loader", cache(create_loader))
        yield
