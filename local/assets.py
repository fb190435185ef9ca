"""Deploys a CDK cloud assembly: publishes its assets, then creates or updates its stacks.

https://docs.aws.amazon.com/cdk/v2/guide/bootstrapping-contracts.html
"""

from __future__ import annotations

import io
import json
import logging
import os
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from botocore.exceptions import ClientError

log = logging.getLogger(__name__)

BOOTSTRAP_VERSION = "21"
BOOTSTRAP_PARAMETER = "/cdk-bootstrap/hnb659fds/version"
STACK = "aws:cloudformation:stack"
ASSETS = "cdk:asset-manifest"
NESTED_ASSEMBLY = "cdk:cloud-assembly"
IGNORED_ARTIFACTS = ("cdk:tree", "cdk:feature-flag-report")


class DeploymentError(RuntimeError):
    """An assembly that the embedded cloud cannot deploy; the message says what of it, and why."""


@dataclass(frozen=True)
class Target:
    """Where is deployed to: an account and region of a cloud, and clients of its services."""

    client: Callable[[str], Any]
    account_id: str
    region: str

    def resolve(self, text: str) -> str:
        """A manifest's text with its placeholders replaced."""
        values = {
            "${AWS::AccountId}": self.account_id,
            "${AWS::Region}": self.region,
            "${AWS::Partition}": "aws",
        }
        for placeholder, value in values.items():
            text = text.replace(placeholder, value)
        return text

    @property
    def bootstrap_bucket(self) -> str:
        return self.resolve("cdk-hnb659fds-assets-${AWS::AccountId}-${AWS::Region}")


def deploy(target: Target, assembly: Path) -> dict[str, dict[str, str]]:
    """Deploy every stack of an assembly. Returns the outputs of each, by its name.

    The assembly's own stacks come first, then those of its stages, which are assemblies nested in
    it: in the order of the manifest, in which the app made them. Raises `DeploymentError`.

    Docker image assets are not built: a processing job here runs this machine's code.
    """
    artifacts = _artifacts(assembly)
    for name, artifact in artifacts.items():
        if artifact["type"] not in (STACK, ASSETS, NESTED_ASSEMBLY, *IGNORED_ARTIFACTS):
            raise DeploymentError(
                f"{name}: the embedded cloud does not deploy a {artifact['type']}."
            )
    own = [name for name, artifact in artifacts.items() if artifact["type"] == STACK]
    outputs = deploy_stacks(target, assembly, own)
    for artifact in artifacts.values():
        if artifact["type"] == NESTED_ASSEMBLY:
            outputs |= deploy(target, assembly / artifact["properties"]["directoryName"])
    return outputs


def deploy_stacks(
    target: Target, assembly: Path, names: Collection[str]
) -> dict[str, dict[str, str]]:
    """Deploy some of an assembly's own stacks, named by their artifacts, with what they depend on.

    Returns the outputs of each, by the stack's name. Raises `DeploymentError`.
    """
    artifacts = _artifacts(assembly)
    for name in names:
        if artifacts.get(name, {}).get("type") != STACK:
            raise DeploymentError(f"{assembly} holds no stack {name}.")
    _bootstrap(target)
    outputs: dict[str, dict[str, str]] = {}
    for name in _with_dependencies(artifacts, names):
        artifact = artifacts[name]
        if artifact["type"] == ASSETS:
            manifest = assembly / artifact["properties"]["file"]
            for asset in _read(manifest).get("files", {}).values():
                for destination in asset["destinations"].values():
                    _publish_file(target, assembly, asset, destination)
        elif artifact["type"] == STACK:
            stack = artifact["properties"].get("stackName", name)
            outputs[stack] = _deploy_stack(target, assembly, stack, artifact)
    return outputs


def publish(target: Target, manifest_file: Path, asset_id: str, destination_id: str) -> None:
    """Publish one asset of a manifest to one of its destinations. Raises `DeploymentError`."""
    manifest = _read(manifest_file)
    images, files = manifest.get("dockerImages", {}), manifest.get("files", {})
    asset = images.get(asset_id) or files.get(asset_id)
    if asset is None or destination_id not in asset["destinations"]:
        raise DeploymentError(f"{manifest_file} holds no asset {asset_id}:{destination_id}.")
    if asset_id in images:
        log.info("The embedded cloud builds no images: jobs run this machine's code.")
        return
    _publish_file(target, manifest_file.parent, asset, asset["destinations"][destination_id])


def _artifacts(assembly: Path) -> dict[str, Any]:
    manifest = assembly / "manifest.json"
    if not manifest.is_file():
        raise DeploymentError(f"{assembly} holds no manifest.json: it is no cloud assembly.")
    artifacts: dict[str, Any] = _read(manifest)["artifacts"]
    return artifacts


def _read(manifest: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(manifest.read_text("utf-8"))
    return content


def _with_dependencies(artifacts: Mapping[str, Any], names: Collection[str]) -> list[str]:
    """The named artifacts and all that they depend on, each after what it depends on."""
    wanted: dict[str, list[str]] = {}
    following = list(names)
    while following:
        name = following.pop()
        wanted[name] = artifacts[name].get("dependencies", [])
        following += [before for before in wanted[name] if before not in wanted]
    return list(TopologicalSorter(wanted).static_order())


def _bootstrap(target: Target) -> None:
    """What `cdk bootstrap` leaves in an account, as far as a deployment looks at it."""
    s3 = target.client("s3")
    arguments: dict[str, Any] = {"Bucket": target.bootstrap_bucket}
    if target.region != "us-east-1":
        arguments["CreateBucketConfiguration"] = {"LocationConstraint": target.region}
    names = {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}
    if arguments["Bucket"] not in names:
        s3.create_bucket(**arguments)
    target.client("ssm").put_parameter(
        Name=BOOTSTRAP_PARAMETER, Value=BOOTSTRAP_VERSION, Type="String", Overwrite=True
    )


def _publish_file(
    target: Target, folder: Path, asset: Mapping[str, Any], destination: Mapping[str, str]
) -> None:
    """Upload a file asset, unless it is there. Its paths are relative to its manifest's folder."""
    source = asset["source"]
    if "path" not in source:
        raise DeploymentError(
            f"Asset {asset.get('displayName')}: only assets with a path are published."
        )
    s3 = target.client("s3")
    bucket, key = target.resolve(destination["bucketName"]), destination["objectKey"]
    # An asset's key is the hash of its content.
    if s3.list_objects_v2(Bucket=bucket, Prefix=key).get("KeyCount"):
        log.info("s3://%s/%s is there already", bucket, key)
        return
    path = folder / source["path"]
    body = _zipped(path) if source.get("packaging") == "zip" else path.read_bytes()
    s3.put_object(Bucket=bucket, Key=key, Body=body)
    log.info("Published s3://%s/%s", bucket, key)


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
    target: Target, assembly: Path, name: str, artifact: Mapping[str, Any]
) -> dict[str, str]:
    properties = artifact["properties"]
    _require_environment(target, name, artifact.get("environment", ""))
    template = (assembly / properties["templateFile"]).read_text("utf-8")
    key = f"templates/{name}.json"
    bucket = target.bootstrap_bucket
    target.client("s3").put_object(Bucket=bucket, Key=key, Body=template.encode())
    arguments = {
        "StackName": name,
        "TemplateURL": f"https://s3.{target.region}.amazonaws.com/{bucket}/{key}",
        "Capabilities": ["CAPABILITY_NAMED_IAM"],
        "Parameters": [
            {"ParameterKey": key, "ParameterValue": value}
            for key, value in properties.get("parameters", {}).items()
        ],
    }
    cloudformation = target.client("cloudformation")
    stacks = cloudformation.get_paginator("list_stacks").paginate()
    live = {
        summary["StackName"]
        for page in stacks
        for summary in page["StackSummaries"]
        if summary["StackStatus"] != "DELETE_COMPLETE"
    }
    try:
        if name not in live:
            cloudformation.create_stack(**arguments)
            log.info("Created the stack %s", name)
        else:
            cloudformation.update_stack(**arguments)
            log.info("Updated the stack %s", name)
    except ClientError as error:
        message = error.response["Error"]["Message"]
        if message != "No updates are to be performed.":
            raise DeploymentError(f"Stack {name} was not deployed: {message}") from error
        log.info("Nothing to update in the stack %s", name)
    stack = cloudformation.describe_stacks(StackName=name)["Stacks"][0]
    if not stack["StackStatus"].endswith("_COMPLETE"):
        reason = stack.get("StackStatusReason", "no reason given")
        raise DeploymentError(f"Stack {name} ended {stack['StackStatus']}: {reason}")
    return {output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])}


def _require_environment(target: Target, name: str, environment: str) -> None:
    """A stack made for one account and region is not deployed into another."""
    account, _, region = environment.removeprefix("aws://").partition("/")
    here = {"account": target.account_id, "region": target.region}
    for what, wanted in (("account", account), ("region", region)):
        if wanted not in ("", f"unknown-{what}", here[what]):
            raise DeploymentError(
                f"Stack {name} is for {what} {wanted}, this cloud is {what} {here[what]}."
            )
