"""Deploys a CDK cloud assembly: publishes its assets, then creates or updates its stacks.

https://docs.aws.amazon.com/cdk/v2/guide/bootstrapping-contracts.html
"""

from __future__ import annotations

import io
import json
import os
import zipfile
from graphlib import TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

if TYPE_CHECKING:
    from local.cloud import Cloud

BOOTSTRAP_VERSION = "21"
BOOTSTRAP_PARAMETER = "/cdk-bootstrap/hnb659fds/version"
IGNORED_ARTIFACTS = ("cdk:tree", "cdk:asset-manifest", "cdk:feature-flag-report")


class DeploymentError(RuntimeError):
    """An assembly that the embedded cloud cannot deploy; the message says what of it, and why."""


def deploy(cloud: Cloud, assembly: Path) -> dict[str, str]:
    """Deploy every stack of an assembly. Returns the outputs of all, by key.

    Raises `DeploymentError`, also if two stacks have an output of the same key.

    Docker image assets are not built: a processing job here runs this machine's code.
    """
    manifest_file = assembly / "manifest.json"
    if not manifest_file.is_file():
        raise DeploymentError(f"{assembly} holds no manifest.json: it is no cloud assembly.")
    artifacts = json.loads(manifest_file.read_text())["artifacts"]
    _bootstrap(cloud)
    outputs: dict[str, str] = {}
    order = TopologicalSorter(
        {name: artifact.get("dependencies", []) for name, artifact in artifacts.items()}
    )
    for name in order.static_order():
        artifact = artifacts[name]
        kind = artifact["type"]
        if kind == "cdk:asset-manifest":
            _publish(
                cloud, assembly, json.loads((assembly / artifact["properties"]["file"]).read_text())
            )
        elif kind == "aws:cloudformation:stack":
            more = _deploy_stack(cloud, assembly, name, artifact)
            if twice := sorted(outputs.keys() & more):
                raise DeploymentError(
                    f"Stack {name} has outputs that another stack has too: {', '.join(twice)}. "
                    "Give each a key of its own."
                )
            outputs |= more
        elif kind not in IGNORED_ARTIFACTS:
            raise DeploymentError(f"{name}: the embedded cloud does not deploy a {kind}.")
    return outputs


def _bootstrap(cloud: Cloud) -> None:
    """What `cdk bootstrap` leaves in an account, as far as a deployment looks at it."""
    s3 = cloud.client("s3")
    arguments: dict[str, Any] = {"Bucket": _bootstrap_bucket(cloud)}
    if cloud.config.region != "us-east-1":
        arguments["CreateBucketConfiguration"] = {"LocationConstraint": cloud.config.region}
    names = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    if arguments["Bucket"] not in names:
        s3.create_bucket(**arguments)
    cloud.client("ssm").put_parameter(
        Name=BOOTSTRAP_PARAMETER, Value=BOOTSTRAP_VERSION, Type="String", Overwrite=True
    )


def _bootstrap_bucket(cloud: Cloud) -> str:
    return _resolve(cloud, "cdk-hnb659fds-assets-${AWS::AccountId}-${AWS::Region}")


def _resolve(cloud: Cloud, text: str) -> str:
    values = {
        "${AWS::AccountId}": cloud.config.account_id,
        "${AWS::Region}": cloud.config.region,
        "${AWS::Partition}": "aws",
    }
    for placeholder, value in values.items():
        text = text.replace(placeholder, value)
    return text


def _publish(cloud: Cloud, assembly: Path, manifest: dict[str, Any]) -> None:
    s3 = cloud.client("s3")
    for asset in manifest.get("files", {}).values():
        source = asset["source"]
        if "path" not in source:
            raise DeploymentError(
                f"Asset {asset.get('displayName')}: only assets with a path are published."
            )
        for destination in asset["destinations"].values():
            bucket, key = _resolve(cloud, destination["bucketName"]), destination["objectKey"]
            # An asset's key is the hash of its content.
            if s3.list_objects_v2(Bucket=bucket, Prefix=key).get("KeyCount"):
                continue
            path = assembly / source["path"]
            body = _zipped(path) if source.get("packaging") == "zip" else path.read_bytes()
            s3.put_object(Bucket=bucket, Key=key, Body=body)


def _zipped(folder: Path) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for parent, folders, files in os.walk(folder):
            folders.sort()
            for file in sorted(files):
                path = Path(parent, file)
                archive.write(path, path.relative_to(folder).as_posix())
    return buffer.getvalue()


def _deploy_stack(
    cloud: Cloud, assembly: Path, artifact_id: str, artifact: dict[str, Any]
) -> dict[str, str]:
    properties = artifact["properties"]
    name = properties.get("stackName", artifact_id)
    _require_environment(cloud, name, artifact.get("environment", ""))
    template = (assembly / properties["templateFile"]).read_text()
    key = f"templates/{name}.json"
    cloud.client("s3").put_object(Bucket=_bootstrap_bucket(cloud), Key=key, Body=template.encode())
    region = cloud.config.region
    arguments = {
        "StackName": name,
        "TemplateURL": f"https://s3.{region}.amazonaws.com/{_bootstrap_bucket(cloud)}/{key}",
        "Capabilities": ["CAPABILITY_NAMED_IAM"],
        "Parameters": [
            {"ParameterKey": key, "ParameterValue": value}
            for key, value in properties.get("parameters", {}).items()
        ],
    }
    cloudformation = cloud.client("cloudformation")
    stacks = cloudformation.get_paginator("list_stacks").paginate()
    live = {
        summary["StackName"]
        for page in stacks
        for summary in page["StackSummaries"]
        if summary["StackStatus"] != "DELETE_COMPLETE"
    }
    try:
        if name in live:
            cloudformation.update_stack(**arguments)
        else:
            cloudformation.create_stack(**arguments)
    except ClientError as error:
        message = error.response["Error"]["Message"]
        if message != "No updates are to be performed.":
            raise DeploymentError(f"Stack {name} was not deployed: {message}") from error
    stack = cloudformation.describe_stacks(StackName=name)["Stacks"][0]
    if not stack["StackStatus"].endswith("_COMPLETE"):
        reason = stack.get("StackStatusReason", "no reason given")
        raise DeploymentError(f"Stack {name} ended {stack['StackStatus']}: {reason}")
    return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}


def _require_environment(cloud: Cloud, name: str, environment: str) -> None:
    """A stack made for one account and region is not deployed into another."""
    account, _, region = environment.removeprefix("aws://").partition("/")
    here = {"account": cloud.config.account_id, "region": cloud.config.region}
    for what, wanted in (("account", account), ("region", region)):
        if wanted not in ("", f"unknown-{what}", here[what]):
            raise DeploymentError(
                f"Stack {name} is for {what} {wanted}, this cloud is {what} {here[what]}."
            )
