"""AWS clients of the functions: made when first needed, kept while the function stays warm."""

from functools import cache
from typing import Any, Literal

import boto3
from botocore.config import Config

from lambdas.access import Access, session

_CONFIG = Config(
    connect_timeout=5, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 3}
)
Service = Literal[
    "bedrock", "cloudformation", "codepipeline", "s3", "sagemaker", "sns", "ssm", "stepfunctions"
]


def client(service: Service, access: Access | None = None) -> Any:
    """The client of a service, here or where access leads, with bounded time-outs and retries."""
    return cached_client(service, access)


@cache
def cached_client(service: Service, access: Access | None) -> Any:
    if access is None:
        return boto3.client(service, config=_CONFIG)
    return session(access).create_client(service, config=_CONFIG)
