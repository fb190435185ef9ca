"""Fixtures for the functions: each is imported anew, with its environment.

``moto_aws`` stands in for the services it behaves like. For the others botocore's Stubber answers,
which checks every request against the service model, and that all expected calls were made.
"""

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from botocore.stub import Stubber
from moto import mock_aws

from lambdas import clients

EVENTS = Path(__file__).parents[1] / "events"


@pytest.fixture
def load_function(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ModuleType]]:
    """Import ``lambdas/<name>.py`` with these environment variables.

    Functions share their clients, which take long to make, unless they are to reach an endpoint.
    """
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")

    reached: list[str] = []

    def load(name: str, **environment: str) -> ModuleType:
        if "AWS_ENDPOINT_URL" in environment and not reached:
            clients.cached_client.cache_clear()
            reached.append(environment["AWS_ENDPOINT_URL"])
        for variable, value in environment.items():
            monkeypatch.setenv(variable, value)
        sys.modules.pop(f"lambdas.{name}", None)
        return importlib.import_module(f"lambdas.{name}")

    yield load
    if reached:
        clients.cached_client.cache_clear()


@pytest.fixture
def moto_aws(load_function: Callable[..., ModuleType]) -> Iterator[None]:
    """An empty AWS account."""
    with mock_aws():
        yield


@pytest.fixture
def stub() -> Iterator[Callable[[str], Stubber]]:
    """A Stubber on the functions' client of a service; all its answers must be asked for."""
    stubbers: dict[str, Stubber] = {}

    def stub_service(service: str) -> Stubber:
        if service not in stubbers:
            stubbers[service] = Stubber(clients.client(service))
            stubbers[service].activate()
        return stubbers[service]

    yield stub_service
    for stubber in stubbers.values():
        stubber.deactivate()
        stubber.assert_no_pending_responses()


@pytest.fixture
def read_event() -> Callable[[str], Any]:
    """An event as the service sends it, from ``tests/events``."""
    return lambda name: json.loads((EVENTS / f"{name}.json").read_text())


@pytest.fixture
def context() -> SimpleNamespace:
    """What a function is told of its invocation."""
    return SimpleNamespace(
        function_name="quench-function",
        memory_limit_in_mb=128,
        invoked_function_arn="arn:aws:lambda:us-east-1:123456789012:function:quench-function",
        aws_request_id="52fdfc07-2182-454f-963f-5f0f9a621d72",
    )
