"""The cloud that a build's environment names, as something to deploy to."""

import logging
import os
import sys
from collections.abc import Callable
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from local.assets import DeploymentError, Target


def target_from_environment() -> Target:
    """The cloud behind `AWS_ENDPOINT_URL`."""

    session: Any = boto3.Session()
    endpoint = os.environ["AWS_ENDPOINT_URL"]

    def client(service: str) -> Any:
        paths = Config(s3={"addressing_style": "path"})
        return session.client(service, endpoint_url=endpoint, config=paths)

    account = client("sts").get_caller_identity()["Account"]
    return Target(client, account, os.environ["AWS_REGION"])


def run(deployment: Callable[[Target], object]) -> None:
    """Deploy, print what is done, and end the process with 1 if it fails."""
    logging.basicConfig(stream=sys.stdout, format="%(message)s")
    logging.getLogger("local").setLevel(logging.INFO)
    try:
        deployment(target_from_environment())
    except (DeploymentError, ClientError, BotoCoreError, OSError) as error:
        sys.exit(str(error))
