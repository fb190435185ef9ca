"""CloudFormation actions: stacks and change sets, made by CloudFormation's own API.

https://docs.aws.amazon.com/codepipeline/latest/userguide/action-reference-CloudFormation.html
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from botocore.exceptions import ClientError

from local.codepipeline.executions import Outcome

if TYPE_CHECKING:
    from local.cloud import Cloud

NOTHING_TO_DO = "No updates are to be performed"
NO_CHANGES = "didn't contain changes"


class Stacks:
    """What one action does to its stack. Its template goes through S3: CloudFormation takes no
    more than 51,200 bytes in a call."""

    def __init__(self, cloud: Cloud, bucket: str, key: str) -> None:
        self._cloud = cloud
        self._bucket = bucket
        self._key = key
        self._client: Any = cloud.client("cloudformation")

    def perform(
        self,
        configuration: Mapping[str, str],
        template: str | None,
        parameters: Mapping[str, str],
        tags: Mapping[str, str],
    ) -> Outcome:
        """Do what the configuration's `ActionMode` says. Raises `ClientError`."""
        name, mode = configuration["StackName"], configuration["ActionMode"]
        if mode == "CHANGE_SET_EXECUTE":
            return self._execute_change_set(name, configuration["ChangeSetName"])
        arguments: dict[str, Any] = {
            "StackName": name,
            "TemplateURL": self._upload(template or ""),
            "Parameters": [
                {"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()
            ],
            "Tags": [{"Key": key, "Value": value} for key, value in tags.items()],
        }
        if "Capabilities" in configuration:
            arguments["Capabilities"] = configuration["Capabilities"].split(",")
        if "RoleArn" in configuration:
            arguments["RoleARN"] = configuration["RoleArn"]
        if mode == "CHANGE_SET_REPLACE":
            return self._replace_change_set(configuration["ChangeSetName"], arguments)
        return self._create_or_update(arguments)

    def _upload(self, template: str) -> str:
        key = f"{self._key}.template"
        body = template.encode()
        self._cloud.client("s3").put_object(Bucket=self._bucket, Key=key, Body=body)
        return f"https://s3.{self._cloud.config.region}.amazonaws.com/{self._bucket}/{key}"

    def _create_or_update(self, arguments: dict[str, Any]) -> Outcome:
        name = arguments["StackName"]
        if self._find(name) is None:
            self._client.create_stack(**arguments)
        else:
            try:
                self._client.update_stack(**arguments)
            except ClientError as error:
                if NOTHING_TO_DO not in error.response["Error"]["Message"]:
                    raise
                return _deployed(self._stack(name), "Nothing has changed")
        return _judged(self._stack(name))

    def _replace_change_set(self, change_set: str, arguments: dict[str, Any]) -> Outcome:
        name = arguments["StackName"]
        if (old := self._find_change_set(name, change_set)) is not None:
            self._client.delete_change_set(ChangeSetName=old["ChangeSetId"])
        stack = self._find(name)
        is_new = stack is None or stack["StackStatus"] == "REVIEW_IN_PROGRESS"
        kind = "CREATE" if is_new else "UPDATE"
        created = self._client.create_change_set(
            ChangeSetName=change_set, ChangeSetType=kind, **arguments
        )
        described = self._client.describe_change_set(ChangeSetName=created["Id"])
        summary = f"Change set {change_set} of the stack {name}: {described['Status']}"
        if described["Status"] == "FAILED":
            reason = described.get("StatusReason", "no reason given")
            code = None if NO_CHANGES in reason else "JobFailed"
            return Outcome(f"{summary}: {reason}", error_code=code, external_id=created["Id"])
        return Outcome(summary, external_id=created["Id"])

    def _execute_change_set(self, name: str, change_set: str) -> Outcome:
        found = self._find_change_set(name, change_set)
        if found is None:
            return Outcome(
                f"The stack {name} has no change set {change_set}.", error_code="JobFailed"
            )
        if found["Status"] == "FAILED" and NO_CHANGES in found.get("StatusReason", ""):
            return _deployed(self._stack(name), "Nothing has changed")
        self._client.execute_change_set(ChangeSetName=found["ChangeSetId"])
        return _judged(self._stack(name))

    def _find(self, name: str) -> dict[str, Any] | None:
        pages = self._client.get_paginator("describe_stacks").paginate()
        stacks = (stack for page in pages for stack in page["Stacks"])
        return next((stack for stack in stacks if stack["StackName"] == name), None)

    def _stack(self, name: str) -> dict[str, Any]:
        stack: dict[str, Any] = self._client.describe_stacks(StackName=name)["Stacks"][0]
        return stack

    def _find_change_set(self, stack: str, name: str) -> dict[str, Any] | None:
        # Neither every stack exists, nor are change sets found by a stack's name only.
        pages = self._client.get_paginator("list_change_sets").paginate(StackName=stack)
        found = (summary for page in pages for summary in page["Summaries"])
        wanted = (stack, name)
        return next((s for s in found if (s["StackName"], s["ChangeSetName"]) == wanted), None)


def _judged(stack: Mapping[str, Any]) -> Outcome:
    """The outcome of a change that CloudFormation has made, or taken back."""
    status = stack["StackStatus"]
    if status.endswith("_COMPLETE") and "ROLLBACK" not in status:
        return _deployed(stack, status)
    reason = stack.get("StackStatusReason", "no reason given")
    return Outcome(
        f"Stack {stack['StackName']} ended {status}: {reason}",
        error_code="JobFailed",
        external_id=stack["StackId"],
    )


def _deployed(stack: Mapping[str, Any], status: str) -> Outcome:
    return Outcome(
        f"Stack {stack['StackName']}: {status}",
        external_id=stack["StackId"],
        variables={
            output["OutputKey"]: output["OutputValue"] for output in stack.get("Outputs", [])
        },
    )
