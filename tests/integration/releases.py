"""Models to approve and source trees to release, both small."""

import json
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from stack import ROOT, Tuning, until

PIPELINE = "quench-release"
GROUP = "quench-models"
BASE = "amazon.nova-micro-v1:0:128k"
ROLE = "arn:aws:iam::123456789012:role/tuning"
FAST_TESTS = ("tests/unit", "tests/infrastructure")
ONE_TEST = "def test_two_and_two() -> None:\n    assert 2 + 2 == 4\n"
COPY_ASSEMBLY = """
import shutil
shutil.copytree("assembly", "cdk.out")
"""


def whole_tree(folder: Path) -> Path:
    """What git knows of this checkout, with one fast test: the others would not be fast enough."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if not name.startswith(FAST_TESTS) and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / ".quench").mkdir()
    (folder / ".quench" / "cache").symlink_to(ROOT / ".quench" / "cache")
    return _with_fast_tests(folder)


def small_tree(folder: Path, assembly: Path) -> Path:
    """A tree whose synthesis copies an assembly that is made already."""
    shutil.copytree(ROOT / "tests" / "system", folder / "tests" / "system")
    for file in ("pyproject.toml", "tests/conftest.py", "tests/fast.sh"):
        shutil.copy(ROOT / file, folder / file)
    shutil.copytree(assembly, folder / "assembly")
    (folder / "infrastructure").mkdir()
    (folder / "infrastructure" / "__init__.py").touch()
    (folder / "infrastructure" / "app.py").write_text(COPY_ASSEMBLY)
    return _with_fast_tests(folder)


def _with_fast_tests(folder: Path) -> Path:
    for place in FAST_TESTS:
        (folder / place).mkdir(parents=True)
        (folder / place / f"test_{Path(place).name}_only.py").write_text(ONE_TEST)
    return folder


@dataclass(frozen=True)
class Release:
    id: str
    status: str
    started: datetime


class Releases:
    """The release pipeline of deployed stacks, and who has models approved."""

    def __init__(self, stack: Tuning) -> None:
        self.stack = stack
        self.pipeline = stack.client("codepipeline")
        self._models = 0

    # Models

    def register(self) -> str:
        """Tune a model, deploy it on demand and register it; the model package's ARN."""
        self._models += 1
        name = f"model-{self._models}"
        bedrock, s3 = self.stack.client("bedrock"), self.stack.client("s3")
        bucket = self.stack.bucket
        s3.put_object(Bucket=bucket, Key=f"{name}.jsonl", Body=_conversations(name))
        bedrock.create_model_customization_job(
            jobName=name,
            customModelName=name,
            roleArn=ROLE,
            baseModelIdentifier=BASE,
            hyperParameters={"epochCount": "1"},
            trainingDataConfig={"s3Uri": f"s3://{bucket}/{name}.jsonl"},
            outputDataConfig={"s3Uri": f"s3://{bucket}/{name}/"},
        )
        job = until(
            lambda: (
                found
                if (found := bedrock.get_model_customization_job(jobIdentifier=name))["status"]
                != "InProgress"
                else None
            ),
            f"the end of {name}",
        )
        assert job["status"] == "Completed", job
        deployment = bedrock.create_custom_model_deployment(
            modelDeploymentName=name, modelArn=job["outputModelArn"]
        )["customModelDeploymentArn"]
        until(
            lambda: (
                bedrock.get_custom_model_deployment(customModelDeploymentIdentifier=deployment)[
                    "status"
                ]
                == "Active"
            ),
            f"the deployment of {name}",
        )
        package: str = self.stack.client("sagemaker").create_model_package(
            ModelPackageGroupName=GROUP,
            ModelApprovalStatus="PendingManualApproval",
            CustomerMetadataProperties={
                "custom_model": job["outputModelArn"],
                "base_model": BASE,
            },
        )["ModelPackageArn"]
        return package

    def package(self, arn: str) -> dict[str, Any]:
        described: dict[str, Any] = self.stack.client("sagemaker").describe_model_package(
            ModelPackageName=arn
        )
        return described

    def approve(self, package: str) -> None:
        """Approve a package and wait until it is the one to be released."""
        self.stack.decide(package, "Approved")
        until(lambda: self.approved() == package, f"{package} to be promoted", patience=200)

    def approved(self) -> str | None:
        package: str | None = self.stack.parameter()["model_package"]
        return package

    def served(self, stage: str) -> str | None:
        """The package whose model a stage was deployed with."""
        stacks = self.stack.client("cloudformation").describe_stacks(
            StackName=f"quench-{stage}-inference"
        )["Stacks"]
        outputs = {o["OutputKey"]: o["OutputValue"] for o in stacks[0]["Outputs"]}
        package: str | None = json.loads(outputs["ServedModel"])["model_package"]
        return package

    def everywhere(self) -> set[str | None]:
        """What is approved and what the stages serve: one model, once all has settled."""
        return {self.approved(), self.served("qa"), self.served("prod")}

    # Executions

    def all(self) -> list[Release]:
        """Newest first."""
        listed = self.pipeline.list_pipeline_executions(pipelineName=PIPELINE)
        return [
            Release(e["pipelineExecutionId"], e["status"], e["startTime"])
            for e in listed["pipelineExecutionSummaries"]
        ]

    def newer_than(self, before: Iterable[Release]) -> list[Release]:
        known = {release.id for release in before}
        return [release for release in self.all() if release.id not in known]

    def settled(self) -> list[Release]:
        """Wait until no execution runs and no approval waits; all executions, newest first."""
        queue = self.stack.outputs["ApprovalQueueUrl"]
        sqs = self.stack.client("sqs")
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]

        def look() -> list[Release] | None:
            counts = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"]
            releases = self.all()
            quiet = all(release.status not in ("InProgress", "Stopping") for release in releases)
            return releases if quiet and not any(int(counts[name]) for name in names) else None

        found: list[Release] = until(look, "the releases to end", patience=400)
        return found

    def actions(self, execution: str) -> dict[str, dict[str, Any]]:
        """What ListActionExecutions says of an execution, by `stage/action`."""
        listed = self.pipeline.list_action_executions(
            pipelineName=PIPELINE, filter={"pipelineExecutionId": execution}
        )["actionExecutionDetails"]
        return {f"{d['stageName']}/{d['actionName']}": d for d in reversed(listed)}

    def waiting_approval(self) -> dict[str, Any] | None:
        """The action state of the manual approval, if a release waits there."""
        for stage in self.pipeline.get_pipeline_state(name=PIPELINE)["stageStates"]:
            for action in stage.get("actionStates", []):
                latest = action.get("latestExecution", {})
                if latest.get("token") and latest["status"] == "InProgress":
                    return {"stage": stage["stageName"], "action": action["actionName"], **latest}
        return None


def _conversations(salt: str) -> bytes:
    return b"".join(
        json.dumps(
            {
                "schemaVersion": "bedrock-conversation-2024",
                "messages": [
                    {"role": "user", "content": [{"text": f"{salt}: what is {number}?"}]},
                    {"role": "assistant", "content": [{"text": "A number of the ember road."}]},
                ],
            }
        ).encode()
        + b"\n"
        for number in range(16)
    )
