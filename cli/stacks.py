"""The deployed stacks, in the account (or the embedded cloud) that the environment names."""

from collections.abc import Iterator
from contextlib import contextmanager

import boto3
from botocore.exceptions import (
    ClientError,
    EndpointConnectionError,
    NoCredentialsError,
    NoRegionError,
)

from cli.errors import CommandError


class NotDeployedError(CommandError):
    """What is asked for comes with a deployment that was not made, or not yet."""


@contextmanager
def aws_errors() -> Iterator[None]:
    """Say what to do where no account, or no cloud, is reached."""
    try:
        yield
    except (NoCredentialsError, NoRegionError) as error:
        raise CommandError(
            f"{error}.",
            "Name an account as for any AWS client; for the embedded cloud, run `quench up` and "
            "export what it prints.",
        ) from error
    except EndpointConnectionError as error:
        raise CommandError(
            f"{error}", "Is it running? `quench up` starts the embedded cloud."
        ) from error


def stack_outputs(name: str, session: boto3.Session | None = None) -> dict[str, str]:
    """The outputs of a stack, by key. Raises NotDeployedError before it was made whole."""
    client = (session or boto3).client("cloudformation")
    try:
        (stack,) = client.describe_stacks(StackName=name)["Stacks"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "ValidationError":
            raise
        raise NotDeployedError(
            f"There is no stack {name} in {client.meta.region_name}.",
            "Deploy it first, or name the settings that it was deployed with (--settings).",
        ) from error
    if "Outputs" not in stack:  # every stack of Quench's has some, once it is made
        raise NotDeployedError(
            f"The stack {name} was not made yet: it is {stack['StackStatus']}.",
            "Wait until it is, or see in CloudFormation why it failed.",
        )
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}
