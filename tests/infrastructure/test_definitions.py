"""What the SDKs make of our definitions is pinned in golden files.

After a wanted change: `GOLDEN=write pytest tests/infrastructure`, then review the diff.
"""

import json
import os
import socket
from pathlib import Path
from typing import Any

import botocore.session
import pytest
from botocore.validate import ParamValidator
from statelint.linter import Linter

from workflows.hydration_job import HydrationResources, hydration_job
from workflows.placeholders import placeholders
from workflows.settings import Settings
from workflows.tuning_pipeline import TuningResources, tuning_pipeline
from workflows.tuning_state_machine import StateMachineResources, tuning_state_machine

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object) -> None:
        raise AssertionError(f"A definition tried to reach the network: {arguments}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def matches_golden(name: str, definition: dict[str, Any]) -> bool:
    path = GOLDEN / name
    text = json.dumps(definition, indent=2, sort_keys=True) + "\n"
    if os.environ.get("GOLDEN") == "write":
        path.write_text(text, encoding="utf-8")
    return json.loads(path.read_text(encoding="utf-8")) == json.loads(text)


def settings(**tuning: Any) -> Settings:
    return Settings(tuning=tuning, quality_gate={"metric": "validation.last_perplexity"})


def test_pipeline_is_the_golden_one() -> None:
    definition = tuning_pipeline(Settings(), TuningResources(), code_version="golden")
    assert matches_golden("tuning_pipeline.json", definition)


@pytest.mark.parametrize("serving", ["on-demand", "provisioned"])
def test_state_machine_is_the_golden_one(serving: str) -> None:
    definition = tuning_state_machine(settings(serving=serving), StateMachineResources())
    assert matches_golden(f"tuning_state_machine_{serving}.json", definition)


@pytest.mark.parametrize("serving", ["on-demand", "provisioned"])
def test_state_machine_has_no_lint(serving: str) -> None:
    definition = tuning_state_machine(settings(serving=serving), StateMachineResources())
    definition = json.loads(json.dumps(definition).replace("${TuningJobFunction}", "arn:f"))
    assert Linter.validate(definition) == []


@pytest.mark.parametrize("serving", ["on-demand", "provisioned"])
def test_every_task_that_raises_ends_in_a_failure_callback(serving: str) -> None:
    states = tuning_state_machine(settings(serving=serving), StateMachineResources())["States"]
    tasks = {name: state for name, state in states.items() if state["Type"] == "Task"}
    report = tasks.pop("ReportFailure")
    assert report["Parameters"]["Payload"]["action"] == "fail"
    for state in tasks.values():
        assert [catch["Next"] for catch in state["Catch"]] == ["ReportFailure"]
    assert {state["Default"] for state in states.values() if state["Type"] == "Choice"} == {
        "ReportFailure"
    }


def test_hyperparameters_of_the_base_model_become_parameters_and_arguments() -> None:
    definition = tuning_pipeline(
        settings(hyperparameters={"epochCount": 3}), TuningResources(), code_version="1"
    )
    defaults = {p["Name"]: p.get("DefaultValue") for p in definition["Parameters"]}
    assert defaults["EpochCount"] == "3"
    assert defaults["LearningRate"] == "0.00001"
    fine_tune = next(step for step in definition["Steps"] if step["Name"] == "FineTune")
    assert fine_tune["Arguments"]["hyperparameter_epochCount"] == {"Get": "Parameters.EpochCount"}


def test_a_model_registers_whatever_instance_it_was_processed_on() -> None:
    # ml.t3 is known to processing jobs alone: CreateModelPackage refuses it.
    definition = tuning_pipeline(
        settings(instance_type="ml.t3.large"), TuningResources(), code_version="1"
    )
    gate = next(step for step in definition["Steps"] if step["Name"] == "QualityGate")
    (register,) = gate["Arguments"]["IfSteps"]
    assert "ml.t3.large" not in json.dumps(register)


def test_only_known_placeholders_are_left_to_cloudformation() -> None:
    definition = json.dumps(tuning_pipeline(settings(), TuningResources(), code_version="1"))
    assert placeholders(definition) == {
        "DataBucket",
        "CallbackQueueUrl",
        "ProcessingImage",
        "PipelineRole",
        "ModelPackageGroup",
    }


def test_hydration_job_is_the_golden_one() -> None:
    assert matches_golden("hydration_job.json", hydration_job(Settings()))


def test_hydration_job_is_what_the_service_takes() -> None:
    settings = Settings(knowledge={"timeout_hours": 0.5, "requests_per_second": 2.5})
    role = "arn:aws:iam::123456789012:role/hydration"
    names = HydrationResources(role_arn=role, reader_roles=f"{role},{role}")
    request = {**hydration_job(settings, names), "ProcessingJobName": "quench-hydration-000001"}
    sagemaker = botocore.session.get_session().get_service_model("sagemaker")
    shape = sagemaker.operation_model("CreateProcessingJob").input_shape
    assert ParamValidator().validate(request, shape).generate_report() == ""
    assert request["StoppingCondition"] == {"MaxRuntimeInSeconds": 1800}
    arguments = request["AppSpecification"]["ContainerArguments"]
    assert arguments[arguments.index("--requests-per-second") + 1] == "2.5"


def test_hydration_job_leaves_only_known_placeholders_to_cloudformation() -> None:
    assert placeholders(json.dumps(hydration_job(Settings()))) == {
        "DocumentsBucket",
        "HydrationBucket",
        "IndexLocation",
        "ImageUri",
        "RoleArn",
        "ReaderRoles",
    }
