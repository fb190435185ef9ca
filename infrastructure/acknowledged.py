"""Findings of cdk-nag's AwsSolutions rules that are meant to be: each is answered with a reason.

Synthesis only notes the answers; tests/infrastructure/test_nag.py asks the rules.
"""

from typing import Any

from aws_cdk import Acknowledgment, Stack, Validations
from constructs import IConstruct


def acknowledge(construct: IConstruct, rule: str, why: str) -> None:
    """Answer a rule's finding below a construct. The reason is a sentence on it, by its name."""
    Validations.of(construct).acknowledge(
        Acknowledgment(id=f"AwsSolutions-{rule}", reason=f"{construct.node.id} {why}.")
    )


def acknowledge_wildcard(construct: IConstruct, resource: str, why: str) -> None:
    """Answer the finding of one resource, which has a wildcard, in the policies of a role."""
    acknowledge(construct, f"IAM5[Resource::{_flat(Stack.of(construct).resolve(resource))}]", why)


def _flat(value: Any) -> str:
    """What CloudFormation fills in, as the rules write it: `<Bucket.Arn>/*`."""
    match value:
        case {"Fn::Join": [str(delimiter), [*parts]]}:
            return delimiter.join(map(_flat, parts))
        case {"Fn::GetAtt": [resource, attribute]}:
            return f"<{resource}.{attribute}>"
        case {"Ref": name}:
            return f"<{name}>"
    return str(value)
