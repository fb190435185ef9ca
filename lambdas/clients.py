"""AWS clients of the functions: made when first needed, kept while the function stays warm."""

from functools import cache
from typing import Any, Literal

import boto3
from botocore.config import Config

_CONFIG = Config(
    connect_timeout=5, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 3}
)
Service = Literal[
    "bedrock", "cloudformation", "codepipeline", "s3", "sagemaker", "sns", "ssm", "stepfunctions"
]


@cache
def client(service: Service) -> Any:
    """The boto3 client of a service, with bounded time-outs and retries."""
    return boto3.client(service, config=_CONFIG)
