"""The embedded cloud: moto's record of AWS, and the engines that make it run."""

import os
import threading
from collections.abc import Iterable
from types import TracebackType
from typing import Any, ClassVar

import boto3
from botocore.config import Config

from local.config import LocalConfig
from local.faults import Faults
from local.protocol import Service
from local.server import Gateway, Server

ACCESS_KEY = "quench"
SECRET_KEY = "quench"  # noqa: S105 - any key does: the cloud checks no signature


class Cloud:
    """One cloud, on one port, for as long as this process lives.

    moto keeps its state for a whole process, so only one cloud can run in a process at a time.
    """

    _running: ClassVar["Cloud | None"] = None

    def __init__(self, config: LocalConfig | None = None) -> None:
        self.config = config or LocalConfig()
        self.faults = Faults()
        self.services: dict[str, Service] = {}
        self._server: Server | None = None
        self._clients: dict[str, Any] = {}
        self._clients_lock = threading.Lock()

    def register(self, services: Iterable[Service]) -> None:
        """Let these services answer before moto does."""
        for service in services:
            self.services[service.name] = service

    def start(self) -> None:
        """Listen. Raises `RuntimeError` if another cloud runs in this process."""
        if Cloud._running is not None:
            raise RuntimeError(
                f"A cloud already runs in this process, at {Cloud._running.endpoint}: "
                "stop it first, or start this one in a process of its own."
            )
        self.config.state_dir.mkdir(parents=True, exist_ok=True)
        self._server = Server(Gateway(self.services, self.faults), self.config.port)
        Cloud._running = self
        os.environ["MOTO_PORT"] = str(self._server.port)
        self._server.start()
        self.register(_services(self))
        for service in self.services.values():
            service.start()

    def stop(self) -> None:
        """End everything the cloud runs, and forget moto's state."""
        if self._server is None:
            return
        for service in self.services.values():
            service.stop()
        self._server.stop()
        self._server = None
        Cloud._running = None

    def __enter__(self) -> "Cloud":
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()

    @property
    def endpoint(self) -> str:
        """The URL that answers for every service. Raises `RuntimeError` before `start`."""
        if self._server is None:
            raise RuntimeError("The cloud is not running: call start() first.")
        return f"http://127.0.0.1:{self._server.port}"

    def environment(self) -> dict[str, str]:
        """The variables that point AWS's SDKs and command line at this cloud."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_DEFAULT_REGION": self.config.region,
            "AWS_REGION": self.config.region,
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self, service: str) -> Any:
        """A real boto3 client of this cloud."""
        with self._clients_lock:
            if service not in self._clients:
                session: Any = boto3.Session(
                    aws_access_key_id=ACCESS_KEY,
                    aws_secret_access_key=SECRET_KEY,
                    region_name=self.config.region,
                )
                self._clients[service] = session.client(
                    service,
                    endpoint_url=self.endpoint,
                    config=Config(max_pool_connections=50, s3={"addressing_style": "path"}),
                )
            return self._clients[service]


def _services(cloud: Cloud) -> list[Service]:
    """Every engine of ours that answers API calls."""
    services: list[Service] = []
    try:
        from local.sagemaker.service import SageMakerService

        services.append(SageMakerService(cloud))
    except ModuleNotFoundError:
        pass
    try:
        from local.bedrock.service import BedrockRuntimeService, BedrockService

        services += [BedrockService(cloud), BedrockRuntimeService(cloud)]
    except ModuleNotFoundError:
        pass
    return services
