"""SageMaker pipelines of the embedded cloud, defined by the real SDK and driven with boto3."""

import json
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from sagemaker.model import Model
from sagemaker.model_metrics import MetricsSource, ModelMetrics
from sagemaker.processing import ProcessingInput, ProcessingOutput, Processor
from sagemaker.workflow.callback_step import CallbackOutput, CallbackOutputTypeEnum, CallbackStep
from sagemaker.workflow.condition_step import ConditionStep
from sagemaker.workflow.conditions import ConditionGreaterThanOrEqualTo
from sagemaker.workflow.execution_variables import ExecutionVariables
from sagemaker.workflow.fail_step import FailStep
from sagemaker.workflow.functions import Join, JsonGet
from sagemaker.workflow.model_step import ModelStep
from sagemaker.workflow.parameters import ParameterFloat, ParameterString
from sagemaker.workflow.pipeline import Pipeline
from sagemaker.workflow.pipeline_context import PipelineSession
from sagemaker.workflow.properties import PropertyFile
from sagemaker.workflow.retry import StepExceptionTypeEnum, StepRetryPolicy
from sagemaker.workflow.steps import ProcessingStep, Step

from local.cloud import Cloud
from local.config import LocalConfig

ROLE = "arn:aws:iam::123456789012:role/pipeline"
PATIENCE = 20.0  # seconds until a wait is given up
ENDED = ("Succeeded", "Failed", "Stopped")

SCRIPT = """
import json, os, sys, time
from pathlib import Path

root, command, *rest = Path(os.environ["ML_ROOT"]), *sys.argv[1:]
if command == "score":
    names = sorted(p.name for p in (root / "processing/input/dataset").rglob("*") if p.is_file())
    report = {"gain": {"rouge_l": float(rest[0])}, "files": names, "argument": rest[1]}
    (root / "processing/output/report/evaluation.json").write_text(json.dumps(report))
elif command == "fail":
    (root / "output/message").write_text("Too few records: 3 of 20.")
    sys.exit(1)
elif command == "sleep":
    Path(rest[0]).touch()
    time.sleep(60)
elif command == "meet":
    mine, other = map(Path, rest)
    mine.touch()
    deadline = time.monotonic() + 15
    while not other.exists():
        if time.monotonic() > deadline:
            sys.exit(2)
        time.sleep(0.01)
"""


@dataclass(frozen=True)
class Stage:
    """A running cloud with a bucket, a queue and a model package group, and how to build for it."""

    cloud: Cloud
    session: PipelineSession
    script: Path
    queue_url: str

    @property
    def sagemaker(self) -> Any:
        return self.cloud.client("sagemaker")

    def step(self, name: str, *arguments: Any, **more: Any) -> ProcessingStep:
        """A processing step that runs the script with these arguments."""
        processor = Processor(
            image_uri="image",
            role=ROLE,
            instance_count=1,
            instance_type="ml.m5.large",
            entrypoint=["python3", str(self.script)],
            max_runtime_in_seconds=60,
            sagemaker_session=self.session,
        )
        run = processor.run(
            inputs=more.pop("inputs", None),
            outputs=more.pop("outputs", None),
            arguments=list(arguments),
        )
        return ProcessingStep(name, step_args=run, **more)

    def create(self, *steps: Step, parameters: tuple[Any, ...] = ()) -> str:
        """Create a pipeline of these steps; its name."""
        name = f"pipeline-{uuid.uuid4().hex[:8]}"
        pipeline = Pipeline(
            name, parameters=list(parameters), steps=list(steps), sagemaker_session=self.session
        )
        self.sagemaker.create_pipeline(
            PipelineName=name, PipelineDefinition=pipeline.definition(), RoleArn=ROLE
        )
        return name

    def begin(self, pipeline: str, **parameters: str) -> str:
        """Start an execution; its ARN."""
        return str(
            self.sagemaker.start_pipeline_execution(
                PipelineName=pipeline,
                PipelineParameters=[{"Name": k, "Value": v} for k, v in parameters.items()],
            )["PipelineExecutionArn"]
        )

    def describe(self, execution: str) -> dict[str, Any]:
        answer: dict[str, Any] = self.sagemaker.describe_pipeline_execution(
            PipelineExecutionArn=execution
        )
        return answer

    def end_of(self, execution: str) -> dict[str, Any]:
        def ended() -> dict[str, Any] | None:
            described = self.describe(execution)
            return described if described["PipelineExecutionStatus"] in ENDED else None

        return dict(until(ended))

    def steps(self, execution: str) -> dict[str, dict[str, Any]]:
        answer = self.sagemaker.list_pipeline_execution_steps(
            PipelineExecutionArn=execution, SortOrder="Ascending"
        )
        return {step["StepName"]: step for step in answer["PipelineExecutionSteps"]}

    def message(self) -> dict[str, Any]:
        """The next message of the callback queue."""
        sqs = self.cloud.client("sqs")

        def receive() -> Any:
            answer = sqs.receive_message(QueueUrl=self.queue_url, WaitTimeSeconds=1)
            return answer.get("Messages")

        (received,) = until(receive)
        sqs.delete_message(QueueUrl=self.queue_url, ReceiptHandle=received["ReceiptHandle"])
        return dict(json.loads(received["Body"]))


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("waited in vain")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    folder = tmp_path_factory.mktemp("sagemaker")
    script = folder / "job.py"
    script.write_text(SCRIPT)
    with Cloud(LocalConfig(port=0, state_dir=folder / "cloud")) as cloud:
        cloud.client("s3").create_bucket(Bucket="data")
        cloud.client("s3").put_object(Bucket="data", Key="datasets/talk.jsonl", Body=b"{}")
        cloud.client("s3").put_object(Bucket="data", Key="datasets/more/talk.jsonl", Body=b"{}")
        cloud.client("sagemaker").create_model_package_group(ModelPackageGroupName="models")
        queue = cloud.client("sqs").create_queue(QueueName="callbacks")["QueueUrl"]
        session = PipelineSession(
            boto_session=boto3.Session(region_name="us-east-1"), default_bucket="data"
        )
        yield Stage(cloud, session, script, queue)


@pytest.fixture(scope="module")
def tuning(stage: Stage) -> str:
    """Score (Processing) → FineTune (Callback) → Gate (Condition) → Register | Missed (Fail)."""
    uri = ParameterString("DatasetUri")
    score = ParameterString("Score", default_value="0.7")
    threshold = ParameterFloat("Threshold", default_value=0.5)
    folder = Join("/", ["s3://data/runs", ExecutionVariables.PIPELINE_EXECUTION_ID])
    report = PropertyFile("Report", output_name="report", path="evaluation.json")
    scoring = stage.step(
        "Score",
        "score",
        score,
        "/opt/ml/processing/input/dataset",
        inputs=[ProcessingInput(uri, "/opt/ml/processing/input/dataset", input_name="dataset")],
        outputs=[
            ProcessingOutput(
                output_name="report",
                source="/opt/ml/processing/output/report",
                destination=Join("/", [folder, "report"]),
            )
        ],
        property_files=[report],
    )
    fine_tune = CallbackStep(
        "FineTune",
        sqs_queue_url=stage.queue_url,
        inputs={
            "report": scoring.properties.ProcessingOutputConfig.Outputs["report"].S3Output.S3Uri,
            "threshold": threshold,
        },
        outputs=[
            CallbackOutput("model", CallbackOutputTypeEnum.String),
            CallbackOutput("steps", CallbackOutputTypeEnum.Integer),
        ],
    )
    register = ModelStep(
        "Register",
        step_args=Model(
            image_uri="image",
            model_data=Join("/", [folder, "model.tar.gz"]),
            role=ROLE,
            sagemaker_session=stage.session,
        ).register(
            content_types=["application/json"],
            response_types=["application/json"],
            inference_instances=["ml.m5.large"],
            transform_instances=["ml.m5.large"],
            model_package_group_name="models",
            approval_status="PendingManualApproval",
            customer_metadata_properties={
                "custom_model": fine_tune.properties.Outputs["model"],
                "dataset_uri": uri,
            },
            model_metrics=ModelMetrics(
                model_statistics=MetricsSource(
                    content_type="application/json",
                    s3_uri=Join("/", [folder, "report", "evaluation.json"]),
                )
            ),
        ),
    )
    measured = JsonGet("Score", report, json_path="gain.rouge_l")
    missed = FailStep("Missed", error_message=Join(" ", ["rouge_l", measured, "<", threshold]))
    gate = ConditionStep(
        "Gate",
        conditions=[ConditionGreaterThanOrEqualTo(left=measured, right=threshold)],
        if_steps=[register],
        else_steps=[missed],
        depends_on=[fine_tune],
    )
    return stage.create(scoring, fine_tune, gate, parameters=(uri, score, threshold))


OUTPUTS = [{"Name": "model", "Value": "arn:model"}, {"Name": "steps", "Value": "12"}]
DATASET = "s3://data/datasets/talk.jsonl"


def refusal(call: Callable[..., Any], **arguments: Any) -> str:
    """The message with which a call is refused as invalid."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    assert caught.value.response["Error"]["Code"] == "ValidationException"
    return str(caught.value)


def test_a_pipeline_runs_to_a_registered_model(stage: Stage, tuning: str) -> None:
    request = {
        "PipelineName": tuning,
        "PipelineParameters": [{"Name": "DatasetUri", "Value": DATASET}],
        "ClientRequestToken": "t" * 32,
        "PipelineExecutionDisplayName": "talk-1",
    }
    execution = stage.sagemaker.start_pipeline_execution(**request)["PipelineExecutionArn"]
    again = stage.sagemaker.start_pipeline_execution(**request)["PipelineExecutionArn"]
    assert again == execution

    message = stage.message()
    run = f"s3://data/runs/{execution.rsplit('/', 1)[1]}"
    assert message["status"] == "Executing"
    assert message["pipelineExecutionArn"] == execution
    assert message["arguments"] == {"report": f"{run}/report", "threshold": 0.5}
    answered = stage.sagemaker.send_pipeline_execution_step_success(
        CallbackToken=message["token"], OutputParameters=OUTPUTS
    )
    assert answered["PipelineExecutionArn"] == execution
    twice = stage.sagemaker.send_pipeline_execution_step_success
    assert "answered already" in refusal(twice, CallbackToken=message["token"])

    ended = stage.end_of(execution)
    assert ended["PipelineExecutionStatus"] == "Succeeded", ended
    assert ended["PipelineExecutionDisplayName"] == "talk-1"
    steps = stage.steps(execution)
    assert list(steps) == ["Score", "FineTune", "Gate", "Register-RegisterModel"]
    assert {step["StepStatus"] for step in steps.values()} == {"Succeeded"}
    assert steps["Gate"]["Metadata"] == {"Condition": {"Outcome": "True"}}
    assert steps["FineTune"]["Metadata"]["Callback"] == {
        "CallbackToken": message["token"],
        "SqsQueueUrl": stage.queue_url,
        "OutputParameters": OUTPUTS,
    }

    job_name = steps["Score"]["Metadata"]["ProcessingJob"]["Arn"].rsplit("/", 1)[1]
    (job,) = stage.sagemaker.list_processing_jobs(NameContains=job_name)["ProcessingJobSummaries"]
    folder = stage.cloud.config.state_dir / "processing" / job["ProcessingJobName"]
    body = stage.cloud.client("s3").get_object(
        Bucket="data", Key=f"{run.removeprefix('s3://data/')}/report/evaluation.json"
    )["Body"]
    assert json.load(body) == {
        "gain": {"rouge_l": 0.7},
        "files": ["talk.jsonl"],
        "argument": f"{folder}/processing/input/dataset",
    }

    arn = steps["Register-RegisterModel"]["Metadata"]["RegisterModel"]["Arn"]
    package = stage.sagemaker.describe_model_package(ModelPackageName=arn)
    assert package["ModelApprovalStatus"] == "PendingManualApproval"
    assert package["CustomerMetadataProperties"] == {
        "custom_model": "arn:model",
        "dataset_uri": DATASET,
    }
    statistics = package["ModelMetrics"]["ModelQuality"]["Statistics"]
    assert statistics["S3Uri"] == f"{run}/report/evaluation.json"

    parameters = stage.sagemaker.list_pipeline_parameters_for_execution(
        PipelineExecutionArn=execution
    )["PipelineParameters"]
    assert {p["Name"]: p["Value"] for p in parameters} == {
        "DatasetUri": DATASET,
        "Score": "0.7",
        "Threshold": "0.5",
    }
    definition = stage.sagemaker.describe_pipeline_definition_for_execution(
        PipelineExecutionArn=execution
    )["PipelineDefinition"]
    described = stage.sagemaker.describe_pipeline(PipelineName=tuning)
    assert definition == described["PipelineDefinition"]
    assert described["LastRunTime"] == ended["CreationTime"]


def test_a_missed_gate_fails_the_execution_and_takes_no_other_branch(
    stage: Stage, tuning: str
) -> None:
    execution = stage.begin(tuning, DatasetUri=DATASET, Score="0.25")
    stage.sagemaker.send_pipeline_execution_step_success(
        CallbackToken=stage.message()["token"], OutputParameters=OUTPUTS
    )
    ended = stage.end_of(execution)
    assert ended["PipelineExecutionStatus"] == "Failed"
    assert "Missed: rouge_l 0.25 < 0.5" in ended["FailureReason"]
    steps = stage.steps(execution)
    assert steps["Gate"]["Metadata"] == {"Condition": {"Outcome": "False"}}
    assert steps["Missed"]["Metadata"] == {"Fail": {"ErrorMessage": "rouge_l 0.25 < 0.5"}}
    assert "Register-RegisterModel" not in steps


def test_a_failure_callback_names_its_cause(stage: Stage, tuning: str) -> None:
    execution = stage.begin(tuning, DatasetUri=DATASET)
    token = stage.message()["token"]
    fail = stage.sagemaker.send_pipeline_execution_step_failure
    assert "256" in refusal(fail, CallbackToken=token, FailureReason="x" * 257)
    assert stage.steps(execution)["FineTune"]["StepStatus"] == "Executing"
    assert "unknown" in refusal(fail, CallbackToken="0123456789", FailureReason="x")

    fail(CallbackToken=token, FailureReason="The Bedrock job failed: line 7.")
    ended = stage.end_of(execution)
    assert ended["PipelineExecutionStatus"] == "Failed"
    assert "FineTune: The Bedrock job failed: line 7." in ended["FailureReason"]
    assert "Gate" not in stage.steps(execution)
    assert "answered already" in refusal(fail, CallbackToken=token)


@pytest.mark.parametrize(
    ("outputs", "reason"),
    [
        ([{"Name": "model", "Value": "arn:model"}], "without its outputs steps"),
        (
            [{"Name": "model", "Value": "arn:model"}, {"Name": "steps", "Value": "many"}],
            "'steps' must be of type Integer",
        ),
    ],
)
def test_outputs_that_are_missing_or_mistyped_fail_the_step(
    stage: Stage, tuning: str, outputs: list[dict[str, str]], reason: str
) -> None:
    execution = stage.begin(tuning, DatasetUri=DATASET)
    stage.sagemaker.send_pipeline_execution_step_success(
        CallbackToken=stage.message()["token"], OutputParameters=outputs
    )
    assert reason in stage.end_of(execution)["FailureReason"]


def test_stopping_tells_the_callback_and_waits_for_its_answer(stage: Stage, tuning: str) -> None:
    execution = stage.begin(tuning, DatasetUri=DATASET)
    token = stage.message()["token"]
    stage.sagemaker.stop_pipeline_execution(PipelineExecutionArn=execution)
    stopping = stage.message()
    assert (stopping["token"], stopping["status"]) == (token, "Stopping")
    assert stage.describe(execution)["PipelineExecutionStatus"] == "Stopping"
    assert stage.steps(execution)["FineTune"]["StepStatus"] == "Stopping"

    stage.sagemaker.send_pipeline_execution_step_failure(
        CallbackToken=token, FailureReason="Stopped by request."
    )
    assert stage.end_of(execution)["PipelineExecutionStatus"] == "Stopped"
    assert stage.steps(execution)["FineTune"]["StepStatus"] == "Stopped"
    assert "Gate" not in stage.steps(execution)
    with pytest.raises(stage.sagemaker.exceptions.ConflictException):
        stage.sagemaker.stop_pipeline_execution(PipelineExecutionArn=execution)


def test_stopping_ends_a_running_processing_job(stage: Stage, tmp_path: Path) -> None:
    started = tmp_path / "started"
    execution = stage.begin(stage.create(stage.step("Sleep_1", "sleep", str(started))))
    until(started.exists)
    stage.sagemaker.stop_pipeline_execution(PipelineExecutionArn=execution)
    assert stage.end_of(execution)["PipelineExecutionStatus"] == "Stopped"
    step = stage.steps(execution)["Sleep_1"]
    assert step["StepStatus"] == "Stopped"
    (job,) = stage.sagemaker.list_processing_jobs(NameContains="Sleep-1")["ProcessingJobSummaries"]
    assert job["ProcessingJobStatus"] == "Stopped"


def test_a_failing_job_fails_the_execution_with_its_message(stage: Stage, tmp_path: Path) -> None:
    first = stage.step("Check", "fail")
    second = stage.step("After", "sleep", str(tmp_path / "never"), depends_on=[first])
    execution = stage.begin(stage.create(first, second))
    ended = stage.end_of(execution)
    assert ended["PipelineExecutionStatus"] == "Failed"
    reason = "AlgorithmError: Too few records: 3 of 20., exit code: 1"
    assert ended["FailureReason"] == f"Step failure: Check: {reason}"
    steps = stage.steps(execution)
    assert list(steps) == ["Check"]
    assert steps["Check"]["FailureReason"] == reason
    summaries = stage.sagemaker.list_pipeline_executions(
        PipelineName=ended["PipelineArn"].rsplit("/", 1)[1]
    )["PipelineExecutionSummaries"]
    assert summaries[0]["PipelineExecutionFailureReason"] == ended["FailureReason"]


def test_steps_that_need_nothing_of_each_other_run_at_once(stage: Stage, tmp_path: Path) -> None:
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    pipeline = stage.create(
        stage.step("One", "meet", one, two), stage.step("Two", "meet", two, one)
    )
    assert stage.end_of(stage.begin(pipeline))["PipelineExecutionStatus"] == "Succeeded"


def test_a_retry_policy_tries_again_what_the_service_got_wrong(
    stage: Stage, tmp_path: Path
) -> None:
    policy = StepRetryPolicy(
        exception_types=[StepExceptionTypeEnum.SERVICE_FAULT], interval_seconds=10, max_attempts=2
    )
    marker = str(tmp_path / "marker")
    pipeline = stage.create(stage.step("Do", "meet", marker, marker, retry_policies=[policy]))

    faults = stage.cloud.faults
    faults.add("sagemaker", "CreateProcessingJob", "InternalFailure", "Sorry.", times=2)
    execution = stage.begin(pipeline)
    assert stage.end_of(execution)["PipelineExecutionStatus"] == "Succeeded"
    assert stage.steps(execution)["Do"]["AttemptCount"] == 3

    faults.add("sagemaker", "CreateProcessingJob", "InternalFailure", "Sorry.", times=3)
    ended = stage.end_of(stage.begin(pipeline))
    assert ended["PipelineExecutionStatus"] == "Failed"
    assert "InternalFailure" in ended["FailureReason"]


def test_parameters_are_checked_before_anything_starts(stage: Stage, tuning: str) -> None:
    start = stage.sagemaker.start_pipeline_execution
    before = stage.sagemaker.list_pipeline_executions(PipelineName=tuning)
    assert "'DatasetUri' has no default" in refusal(start, PipelineName=tuning)
    wrong = [{"Name": "DatasetUri", "Value": "s3://d"}, {"Name": "Epochs", "Value": "1"}]
    message = refusal(start, PipelineName=tuning, PipelineParameters=wrong)
    assert "Unknown parameter 'Epochs'" in message
    after = stage.sagemaker.list_pipeline_executions(PipelineName=tuning)
    assert after["PipelineExecutionSummaries"] == before["PipelineExecutionSummaries"]
    with pytest.raises(stage.sagemaker.exceptions.ResourceNotFound):
        start(PipelineName="nothing-of-this-name")


def test_a_definition_that_cannot_run_is_refused_when_created(stage: Stage) -> None:
    definition = {"Version": "2020-12-01", "Steps": [{"Name": "Train", "Type": "Training"}]}
    message = refusal(
        stage.sagemaker.create_pipeline,
        PipelineName="training",
        PipelineDefinition=json.dumps(definition),
        RoleArn=ROLE,
    )
    assert "'Train' has the type 'Training'" in message
    with pytest.raises(stage.sagemaker.exceptions.ResourceNotFound):
        stage.sagemaker.describe_pipeline(PipelineName="training")


def test_pipelines_are_updated_listed_and_deleted(stage: Stage, tmp_path: Path) -> None:
    marker = str(tmp_path / "marker")
    pipeline = stage.create(stage.step("Before", "meet", marker, marker))
    other = stage.create(stage.step("After", "meet", marker, marker))
    definition = stage.sagemaker.describe_pipeline(PipelineName=other)["PipelineDefinition"]
    stage.sagemaker.update_pipeline(
        PipelineName=pipeline, PipelineDefinition=definition, PipelineDescription="Newer."
    )
    assert [
        p["PipelineName"]
        for p in stage.sagemaker.get_paginator("list_pipelines")
        .paginate(PipelineNamePrefix=pipeline, PaginationConfig={"PageSize": 1})
        .build_full_result()["PipelineSummaries"]
    ] == [pipeline]
    executions = [stage.begin(pipeline) for _ in range(3)]
    assert [list(stage.steps(e)) for e in executions if stage.end_of(e)] == [["After"]] * 3
    listed = (
        stage.sagemaker.get_paginator("list_pipeline_executions")
        .paginate(PipelineName=pipeline, PaginationConfig={"PageSize": 2})
        .build_full_result()["PipelineExecutionSummaries"]
    )
    assert [e["PipelineExecutionArn"] for e in listed] == executions[::-1]

    stage.sagemaker.delete_pipeline(PipelineName=pipeline)
    with pytest.raises(stage.sagemaker.exceptions.ResourceNotFound):
        stage.describe(executions[0])


def test_status_changes_reach_eventbridge(stage: Stage, tmp_path: Path) -> None:
    sqs, events = stage.cloud.client("sqs"), stage.cloud.client("events")
    queue = sqs.create_queue(QueueName="events")["QueueUrl"]
    attributes = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]
    events.put_rule(Name="all", EventPattern=json.dumps({"source": ["aws.sagemaker"]}))
    events.put_targets(Rule="all", Targets=[{"Id": "queue", "Arn": attributes["QueueArn"]}])

    execution = stage.begin(stage.create(stage.step("Check", "fail")))
    stage.end_of(execution)
    seen: list[tuple[str, str]] = []

    def collect() -> bool:
        answer = sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, WaitTimeSeconds=1)
        for message in answer.get("Messages", []):
            if execution.rpartition("/")[2] not in message["Body"]:
                continue  # the end of an earlier test's
            event = json.loads(message["Body"])
            detail = event["detail"]
            kind = event["detail-type"].removeprefix("SageMaker Model Building Pipeline ")
            status = next(
                detail[name]
                for name in (
                    "currentPipelineExecutionStatus",
                    "currentStepStatus",
                    "ProcessingJobStatus",
                )
                if name in detail
            )
            seen.append((kind, status))
        return len(seen) >= 7

    until(collect)
    assert sorted(seen) == sorted(
        [
            ("Execution Status Change", "Executing"),
            ("Execution Status Change", "Failed"),
            ("Execution Step Status Change", "Starting"),
            ("Execution Step Status Change", "Executing"),
            ("Execution Step Status Change", "Failed"),
            ("SageMaker Processing Job State Change", "InProgress"),
            ("SageMaker Processing Job State Change", "Failed"),
        ]
    )
    events.remove_targets(Rule="all", Ids=["queue"])
    events.delete_rule(Name="all")
