"""Reads a customization job's data from S3 as Bedrock does: one bad line fails the job."""

import json
from collections.abc import Sequence
from typing import Any

from botocore.exceptions import ClientError

from bedrock.conversations import Conversation, RecordError, from_record, problem
from bedrock.models import TuningRules


class JobError(Exception):
    """Fails a customization job; the message is for whoever started it."""


def read_conversations(s3: Any, uri: str, rules: TuningRules) -> list[Conversation]:
    """The conversations of a JSON Lines object. Raises JobError naming the line at fault."""
    bucket, key = split_uri(uri)
    try:
        content: bytes = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
    except ClientError as error:
        raise JobError(f"{uri} cannot be read: {error.response['Error']['Message']}") from error
    # Split at line feeds only: JSON text may hold Unicode's other line separators.
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    return [
        _conversation(line, f"line {number} of {uri}", rules)
        for number, line in enumerate(lines, 1)
    ]


def check_count(
    rules: TuningRules, training: Sequence[Conversation], validation: Sequence[Conversation]
) -> None:
    """Raises JobError if there are fewer or more records than the base model's tuning takes."""
    count = len(training) + len(validation)
    if not training:
        raise JobError("The training data holds no records.")
    if not rules.minimum_records <= count <= rules.maximum_records:
        raise JobError(
            f"The base model is tuned on {rules.minimum_records:,} to {rules.maximum_records:,} "
            f"records, training and validation together, not on {count:,}."
        )


def split_uri(uri: str) -> tuple[str, str]:
    """`s3://bucket/some/key` as `("bucket", "some/key")`."""
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _conversation(line: bytes, where: str, rules: TuningRules) -> Conversation:
    try:
        conversation = from_record(rules.data_format, json.loads(line))
    except RecordError as error:
        raise JobError(f"The record in {where} is invalid: {error.reason}.") from error
    except ValueError as error:
        raise JobError(f"The record in {where} is not JSON: {error}.") from error
    if reason := problem(rules, conversation):
        raise JobError(f"The record in {where} is invalid: {reason}.")
    return conversation
