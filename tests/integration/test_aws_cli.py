"""The real AWS CLI drives the loop end to end, as a person would with `quench up`."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from stack import ROOT, Tuning, dialogues, small, until

SETTINGS = small()
CLI = os.environ.get("TEST_AWS_CLI")

pytestmark = pytest.mark.skipif(
    CLI is None, reason="TEST_AWS_CLI names no AWS CLI; `make test` installs one"
)


def test_a_person_with_the_aws_cli_takes_a_dataset_to_an_approved_model(
    tuning: Tuning, tmp_path: Path
) -> None:
    def aws(*words: str) -> Any:
        run = subprocess.run(
            [str(ROOT / str(CLI)), *words, "--output", "json"],
            env={**tuning.cloud.environment(), "PATH": os.environ["PATH"], "HOME": str(tmp_path)},
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert run.returncode == 0, run.stderr
        return json.loads(run.stdout) if run.stdout.lstrip().startswith("{") else run.stdout

    dataset = tmp_path / "tales.jsonl"
    dataset.write_text(dialogues(60))
    aws("s3", "cp", str(dataset), f"s3://{tuning.bucket}/datasets/tales.jsonl")
    pipeline = ("--pipeline-name", tuning.outputs["PipelineName"])

    def ended() -> Any:
        executions = aws("sagemaker", "list-pipeline-executions", *pipeline)
        for summary in executions["PipelineExecutionSummaries"]:
            if summary["PipelineExecutionStatus"] not in ("Executing", "Stopping"):
                return summary
        return None

    summary = until(ended, "the execution's end", pause=2)
    assert summary["PipelineExecutionStatus"] == "Succeeded"
    steps = aws(
        *("sagemaker", "list-pipeline-execution-steps"),
        *("--pipeline-execution-arn", summary["PipelineExecutionArn"]),
    )["PipelineExecutionSteps"]
    assert {step["StepStatus"] for step in steps} == {"Succeeded"}
    assert len(steps) == 5

    machine = tuning.machine(summary["PipelineExecutionArn"])["executionArn"]
    history = aws("stepfunctions", "get-execution-history", "--execution-arn", machine)["events"]
    assert history[0]["type"] == "ExecutionStarted"
    assert history[-1]["type"] == "ExecutionSucceeded"

    (package,) = aws(
        *("sagemaker", "list-model-packages"),
        *("--model-package-group-name", tuning.outputs["ModelPackageGroupName"]),
    )["ModelPackageSummaryList"]
    aws(
        *("sagemaker", "update-model-package"),
        *("--model-package-arn", package["ModelPackageArn"]),
        *("--model-approval-status", "Approved"),
    )

    def promoted() -> Any:
        parameter = aws("ssm", "get-parameter", "--name", tuning.outputs["ModelParameterName"])
        value = json.loads(parameter["Parameter"]["Value"])
        return value if value["model_package"] == package["ModelPackageArn"] else None

    model = until(promoted, "the parameter to name the model", pause=1)
    question, answer = tmp_path / "question.json", tmp_path / "answer.json"
    question.write_text('{"messages": [{"role": "user", "content": [{"text": "Who are you?"}]}]}')
    aws(
        *("bedrock-runtime", "invoke-model", "--model-id", model["model_id"]),
        *("--body", f"fileb://{question}", str(answer)),
    )
    assert json.loads(answer.read_text())["output"]["message"]["role"] == "assistant"
