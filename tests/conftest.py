"""What all tests share."""

import gc
import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from botocore.loaders import create_loader
from hypothesis import HealthCheck, settings

# Tests have settings and a cloud of their own, also in the build of a release, which is told of the
# deployed ones.
for name in [name for name in os.environ if name.startswith(("QUENCH_", "AWS_ENDPOINT_URL"))]:
    del os.environ[name]

# A slow machine is no failure.
settings.register_profile(
    "any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any machine")

# For `make fast`: few examples, and always the same ones, so that it never fails by chance.
settings.register_profile("fast", max_examples=10, derandomize=True)

# Tests of what runs in containers, and of the local model: importing what they need takes longer
# than many other tests together.
SLOW_TO_IMPORT = {
    "test_chunking.py",
    "test_documents.py",
    "test_evaluation.py",
    "test_evaluation_metrics.py",
    "test_local_training.py",
    "test_nag.py",
    "test_preprocess.py",
    "test_retrieval.py",
}


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    if config.option.markexpr == "not slow" and collection_path.name in SLOW_TO_IMPORT:
        return True
    return None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest modules first: of two workers, none should begin one when the other is done."""
    items.sort(key=lambda item: item.get_closest_marker("timeout") is None)


def pytest_collection_finish() -> None:
    """What is imported stays: searching it for garbage, again and again, takes seconds."""
    gc.freeze()


@pytest.fixture
def slow_to_import() -> set[str]:
    return SLOW_TO_IMPORT


@pytest.fixture(scope="session", autouse=True)
def _models_of_services_are_read_once() -> Iterator[None]:
    """Every boto3 session would parse them anew, and moto gives every test a session of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("botocore.session.create_loader", cache(create_loader))
        yield
