"""The embedded cloud: moto's record of AWS, and the engines that make it run."""

import os
import shutil
import threading
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, ClassVar

import boto3
from botocore.config import Config
from moto.core.base_backend import BackendDict
from moto.core.model_instances import reset_model_data
from moto.iam.access_control import PermissionResult
from moto.s3.models import FakeBucket

from local import assets
from local.apigateway.gateway import ApiGateway
from local.assets import Target
from local.cloudformation import CloudFormation
from local.config import LocalConfig
from local.events import Events
from local.faults import Faults
from local.functions import Functions
from local.patches import Patches
from local.protocol import Service
from local.queues import Queues
from local.schedules import Schedules
from local.server import Gateway, Server
from local.statemachines import StateMachines

ACCESS_KEY = "quench"
SECRET_KEY = "quench"  # noqa: S105 - a key of this machine's own cloud


class Cloud:
    """One cloud, on one port, for as long as this process lives.

    It checks no permissions: policies are kept, not enforced. Signatures are checked where API
    Gateway does for a deployed API, and nowhere else.

    moto keeps its state for a whole process, so only one cloud can run in a process at a time. A
    cloud that was stopped does not start again: make another.
    """

    _running: ClassVar["Cloud | None"] = None
    _one_at_a_time: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, config: LocalConfig | None = None) -> None:
        self.config = config or LocalConfig()
        self.faults = Faults()
        self.services: dict[str, Service] = {}
        self.functions = Functions(self)
        self.events = Events(self)
        self._api_gateway = ApiGateway(self)
        self._engines = (
            self.functions,
            self.events,
            Queues(self),
            Schedules(self),
            StateMachines(self),
            CloudFormation(self),
            self._api_gateway,
        )
        self._patches = Patches()
        self._server: Server | None = None
        self.session: Any = boto3.Session(
            aws_access_key_id=ACCESS_KEY,
            aws_secret_access_key=SECRET_KEY,
            region_name=self.config.region,
        )
        self._clients: dict[str, Any] = {}
        self._clients_lock = threading.Lock()

    def register(self, services: Iterable[Service]) -> None:
        """Let these services answer before moto does."""
        for service in services:
            self.services[service.name] = service

    def start(self) -> None:
        """Listen. Raises `RuntimeError` if another cloud runs in this process or has the port."""
        with Cloud._one_at_a_time:
            if Cloud._running is not None:
                raise RuntimeError(
                    f"A cloud already runs in this process, at {Cloud._running.endpoint}: "
                    "stop it first, or start this one in a process of its own."
                )
            self.config.state_dir.mkdir(parents=True, exist_ok=True)
            gateway = Gateway(self.services, self.faults, self._api_gateway)
            self._server = Server(gateway, self.config.port)
            Cloud._running = self
        try:
            self._start_everything(self._server)
        except BaseException:
            self.stop()
            raise

    def _start_everything(self, server: Server) -> None:
        BackendDict.reset()
        reset_model_data()
        os.environ["MOTO_ACCOUNT_ID"] = self.config.account_id
        # Of documents in buckets that are forgotten, too.
        shutil.rmtree(self._vectors, ignore_errors=True)
        # moto would enforce a bucket's policy, leaving out its conditions ("unless over TLS").
        self._patches.replace(
            FakeBucket, "get_permission", lambda *_arguments: PermissionResult.NEUTRAL
        )
        for engine in self._engines:
            engine.start()
        self.register(_services(self))
        server.start()
        for service in self.services.values():
            service.start()

    def stop(self) -> None:
        """End everything the cloud runs, and forget moto's state."""
        if self._server is None:
            return
        for service in reversed(self.services.values()):
            service.stop()
        for engine in reversed(self._engines):
            engine.stop()
        self._patches.restore()
        self._server.stop()
        self._server = None
        os.environ.pop("MOTO_ACCOUNT_ID", None)
        BackendDict.reset()
        reset_model_data()
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

    @property
    def index_location(self) -> str:
        """Where the vector index is, for `vectors.open.open_index`."""
        return self.config.index_location or f"lancedb:{self._vectors}"

    @property
    def _vectors(self) -> Path:
        return self.config.state_dir.resolve() / "vectors"

    def runtime_environment(self) -> dict[str, str]:
        """What functions and processing jobs get: the cloud, and its vector index.

        A template names an OpenSearch domain, and here is none that answers.
        """
        return {**self.environment(), "VECTOR_INDEX_LOCATION": self.index_location}

    def client(self, service: str) -> Any:
        """A real boto3 client of this cloud."""
        with self._clients_lock:
            if service not in self._clients:
                self._clients[service] = self.session.client(
                    service,
                    endpoint_url=self.endpoint,
                    config=Config(max_pool_connections=50, s3={"addressing_style": "path"}),
                )
            return self._clients[service]

    def publish_event(
        self, source: str, detail_type: str, detail: dict[str, Any], resources: list[str]
    ) -> None:
        """Put an event on EventBridge's default bus, as the service `source` does."""
        self.events.publish(source, detail_type, detail, resources)

    def deploy(self, cloud_assembly: Path) -> dict[str, dict[str, str]]:
        """Create, or update, the stacks of a CDK cloud assembly and of the stages in it.

        Returns the outputs of each stack, by its name. Raises `local.assets.DeploymentError`.
        """
        target = Target(self.client, self.config.account_id, self.config.region)
        return assets.deploy(target, cloud_assembly)


def _services(cloud: Cloud) -> list[Service]:
    """Every engine of ours that answers API calls."""
    from local.bedrock.runtime import BedrockRuntimeService
    from local.bedrock.service import BedrockService
    from local.codebuild.service import CodeBuildService
    from local.codepipeline.service import CodePipelineService
    from local.sagemaker.service import SageMakerService

    return [
        SageMakerService(cloud),
        BedrockService(cloud),
        BedrockRuntimeService(cloud),
        CodeBuildService(cloud),
        CodePipelineService(cloud),
    ]
