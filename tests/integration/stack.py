"""The synthesized stacks deployed in an embedded cloud, and hands to work them with."""

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from infrastructure.app import synthesize
from local.cloud import Cloud
from local.config import LocalConfig
from workflows.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 120.0  # seconds until a wait is given up


@dataclass(frozen=True)
class Tuning:
    """The deployed stacks and what their users do with them."""

    cloud: Cloud
    stacks: dict[str, dict[str, str]]

    @property
    def outputs(self) -> dict[str, str]:
        """Of all stacks; of the stages', production's."""
        return {
            key: value
            for name, outputs in self.stacks.items()
            if "-qa-" not in name
            for key, value in outputs.items()
        }

    @property
    def bucket(self) -> str:
        return self.outputs["DataBucketName"]

    def client(self, service: str) -> Any:
        return self.cloud.client(service)

    def load_models(self) -> None:
        """Ask each of the local models once: the first time takes longer than an API may wait."""
        runtime = self.client("bedrock-runtime")
        question = {"role": "user", "content": [{"text": "Who?"}]}
        asked = {
            "amazon.nova-micro-v1:0": {"messages": [question], "inferenceConfig": {"maxTokens": 1}},
            "amazon.titan-embed-text-v2:0": {"inputText": "Who?", "dimensions": 256},
        }
        for model, body in asked.items():
            runtime.invoke_model(modelId=model, body=json.dumps(body))

    def upload(self, key: str, body: bytes | str) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.client("s3").put_object(Bucket=self.bucket, Key=key, Body=data)

    def executions(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.client("sagemaker").list_pipeline_executions(
            PipelineName=self.outputs["PipelineName"], SortOrder="Descending"
        )["PipelineExecutionSummaries"]
        return found

    def executions_of(self, dataset: str) -> list[str]:
        """ARNs of the executions that were started for a dataset's file or folder."""
        sagemaker = self.client("sagemaker")
        uri = f"s3://{self.bucket}/{dataset}"
        return [
            execution["PipelineExecutionArn"]
            for execution in self.executions()
            if {"Name": "DatasetUri", "Value": uri}
            in sagemaker.list_pipeline_parameters_for_execution(
                PipelineExecutionArn=execution["PipelineExecutionArn"]
            )["PipelineParameters"]
        ]

    def execution_of(self, dataset: str) -> str:
        (execution,) = until(lambda: self.executions_of(dataset), f"an execution for {dataset}")
        return str(execution)

    def describe(self, execution: str) -> dict[str, Any]:
        described: dict[str, Any] = self.client("sagemaker").describe_pipeline_execution(
            PipelineExecutionArn=execution
        )
        return described

    def steps(self, execution: str) -> dict[str, dict[str, Any]]:
        answer = self.client("sagemaker").list_pipeline_execution_steps(
            PipelineExecutionArn=execution
        )
        return {step["StepName"]: step for step in answer["PipelineExecutionSteps"]}

    def end_of(self, execution: str) -> dict[str, Any]:
        """Wait for an execution's terminal state."""
        return until(
            lambda: (
                described
                if (described := self.describe(execution))["PipelineExecutionStatus"]
                in ("Succeeded", "Failed", "Stopped")
                else None
            ),
            f"the end of {execution}",
        )

    def tuning_job(self, execution: str) -> dict[str, Any]:
        """Wait until the execution's Bedrock job runs; its description."""
        bedrock = self.client("bedrock")

        def find() -> dict[str, Any] | None:
            for job in bedrock.list_model_customization_jobs()["modelCustomizationJobSummaries"]:
                described: dict[str, Any] = bedrock.get_model_customization_job(
                    jobIdentifier=job["jobArn"]
                )
                if execution.rsplit("/", 1)[-1] in described["jobName"]:
                    return described
            return None

        return until(find, f"the tuning job of {execution}")

    def machine(self, execution: str) -> dict[str, Any]:
        """The state machine execution behind a pipeline execution's FineTune step."""
        states = self.client("stepfunctions")
        (found,) = [
            machine
            for machine in states.list_executions(stateMachineArn=self.outputs["StateMachineArn"])[
                "executions"
            ]
            if machine["name"].startswith(execution.rsplit("/", 1)[-1])
        ]
        described: dict[str, Any] = states.describe_execution(executionArn=found["executionArn"])
        return described

    def package_of(self, execution: str) -> str:
        metadata = self.steps(execution)["Register-RegisterModel"]["Metadata"]
        return str(metadata["RegisterModel"]["Arn"])

    def decide(self, package: str, status: str) -> None:
        self.client("sagemaker").update_model_package(
            ModelPackageArn=package, ModelApprovalStatus=status
        )

    def parameter(self, name: str | None = None) -> dict[str, Any]:
        """The value of a parameter of models; of the approved one, if none is named."""
        name = name or self.outputs["ModelParameterName"]
        value: dict[str, Any] = json.loads(
            self.client("ssm").get_parameter(Name=name)["Parameter"]["Value"]
        )
        return value

    def queued(self, name: str, stack: str = "tuning") -> list[str]:
        """Bodies in a stack's queue of this name; they are taken from it."""
        sqs = self.client("sqs")
        (url,) = [url for url in sqs.list_queues()["QueueUrls"] if f"-{stack}-{name}" in url]
        answer = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10)
        return [message["Body"] for message in answer.get("Messages", [])]


def commands_below(process: int) -> Iterator[tuple[int, str]]:
    """The descendants of a process that still run: their ids and command lines."""
    for child in psutil.Process(process).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # it ended while we looked
            yield child.pid, " ".join(child.cmdline())


def until(
    condition: Callable[[], Any], what: str, patience: float = PATIENCE, pause: float = 0.2
) -> Any:
    """Wait until a condition gives something true, and return that."""
    end = time.monotonic() + patience
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(pause)
    raise AssertionError(f"waited {patience:g} s in vain for {what}")


@contextmanager
def deployed(folder: Path, settings: Settings, source: Path | None = None) -> Iterator[Tuning]:
    """`source` is what releases are made of; without it they fail in their build, at once."""
    if source is None:
        source = folder / "source"
        source.mkdir()
    config = LocalConfig(
        port=0,
        region=settings.region,
        state_dir=folder / "cloud",
        wait_scale=settings.local.wait_scale,
        model="tiny",
        source=source,
    )
    assembly = synthesize(settings, folder / "cdk.out", cache=ROOT / ".quench" / "cache")
    with Cloud(config) as cloud:
        yield Tuning(cloud, cloud.deploy(assembly))


def dialogues(count: int, salt: str = "") -> str:
    """A dataset of prompt/completion records, each prompt its own."""
    return "".join(
        json.dumps(
            {
                "prompt": f"{salt} What lies beyond gate {number}?",
                "completion": f"Beyond gate {number} lies the ember road, friend. Keep warm.",
            }
        )
        + "\n"
        for number in range(count)
    )


def small(**sections: Any) -> Settings:
    """Settings of a stack that a test can wait for."""
    return Settings(
        **{
            "evaluation": {"max_records": 4, "max_tokens": 8, "concurrency": 4},
            "quality_gate": {"metric": "gain.perplexity", "threshold": 0.0},
            "local": {"wait_scale": 0.002, "model": "tiny"},
            **sections,
        }
    )
