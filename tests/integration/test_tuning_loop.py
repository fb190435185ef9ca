"""The tuning loop as deployed: good data ends as an approved model, all else says why not."""

import gzip
import json
import os
import re
import signal

import pytest
from stack import Tuning, commands_below, dialogues, small, until

SETTINGS = small()


@pytest.fixture(scope="module")
def trained(tuning: Tuning) -> str:
    """An execution that succeeded, its upload event having come three times."""
    tuning.upload("datasets/good.jsonl", dialogues(60))
    head = tuning.client("s3").head_object(Bucket=tuning.bucket, Key="datasets/good.jsonl")
    detail = {
        "version": "0",
        "bucket": {"name": tuning.bucket},
        "object": {
            "key": "datasets/good.jsonl",
            "size": head["ContentLength"],
            "etag": head["ETag"].strip('"'),
            "version-id": head["VersionId"],
            "sequencer": "0061F8C6A1",
        },
        "request-id": "N4N7GDK58NMKJ12R",
        "requester": "123456789012",
        "source-ip-address": "127.0.0.1",
        "reason": "PutObject",
    }
    for _ in range(2):
        tuning.cloud.publish_event(
            "aws.s3", "Object Created", detail, [f"arn:aws:s3:::{tuning.bucket}"]
        )
    execution = tuning.execution_of("datasets/good.jsonl")
    ended = tuning.end_of(execution)
    assert ended["PipelineExecutionStatus"] == "Succeeded", tuning.steps(execution)
    return execution


def test_a_dataset_becomes_a_registered_model(tuning: Tuning, trained: str) -> None:
    steps = tuning.steps(trained)
    assert {name: step["StepStatus"] for name, step in steps.items()} == dict.fromkeys(
        ("Preprocess", "FineTune", "Evaluate", "QualityGate", "Register-RegisterModel"),
        "Succeeded",
    )
    assert tuning.machine(trained)["status"] == "SUCCEEDED"
    outputs = {
        output["Name"]: output["Value"]
        for output in steps["FineTune"]["Metadata"]["Callback"]["OutputParameters"]
    }
    package = tuning.client("sagemaker").describe_model_package(
        ModelPackageName=tuning.package_of(trained)
    )
    assert package["ModelApprovalStatus"] == "PendingManualApproval"
    metadata = package["CustomerMetadataProperties"]
    assert metadata["custom_model"] == outputs["custom_model_arn"]
    assert metadata["job"] == outputs["job_arn"]
    assert metadata["dataset_uri"] == f"s3://{tuning.bucket}/datasets/good.jsonl"
    assert "epochCount=2" in metadata["hyperparameters"].split()
    # CustomerMetadataValue of SageMaker's API: letters, spaces, digits and these.
    assert all(re.fullmatch(r"[\w\s.:/=+\-@]{1,256}", value) for value in metadata.values())
    report = package["ModelMetrics"]["ModelQuality"]["Statistics"]["S3Uri"]
    bucket, key = report.removeprefix("s3://").split("/", 1)
    body = tuning.client("s3").get_object(Bucket=bucket, Key=key)["Body"].read()
    assert json.loads(body)["tuned"]["perplexity"] < json.loads(body)["base"]["perplexity"]


def test_an_event_that_comes_three_times_starts_one_execution(tuning: Tuning, trained: str) -> None:
    assert tuning.executions_of("datasets/good.jsonl") == [trained]


def test_a_callback_that_comes_twice_starts_one_machine(tuning: Tuning, trained: str) -> None:
    states = tuning.client("stepfunctions")
    machine = tuning.machine(trained)
    before = len(
        states.list_executions(stateMachineArn=tuning.outputs["StateMachineArn"])["executions"]
    )
    sqs = tuning.client("sqs")
    queue = tuning.outputs["CallbackQueueUrl"]
    sqs.send_message(QueueUrl=queue, MessageBody=machine["input"])
    until(lambda: _is_empty(tuning, queue), "the second callback to be handled")
    after = states.list_executions(stateMachineArn=tuning.outputs["StateMachineArn"])["executions"]
    assert len(after) == before
    assert tuning.describe(trained)["PipelineExecutionStatus"] == "Succeeded"


def test_a_callback_that_comes_again_while_its_machine_runs_changes_nothing(
    tuning: Tuning,
) -> None:
    tuning.upload("other/again.jsonl", dialogues(200, "again"))
    execution = start(tuning, "other/again.jsonl", EpochCount="1")
    job = tuning.tuning_job(execution)
    queue = tuning.outputs["CallbackQueueUrl"]
    message = tuning.machine(execution)["input"]
    tuning.client("sqs").send_message(QueueUrl=queue, MessageBody=message)
    until(lambda: _is_empty(tuning, queue), "the second callback to be handled")
    assert tuning.end_of(execution)["PipelineExecutionStatus"] == "Succeeded"
    assert tuning.machine(execution)["status"] == "SUCCEEDED"
    jobs = tuning.client("bedrock").list_model_customization_jobs(
        nameContains=execution.rsplit("/", 1)[-1]
    )["modelCustomizationJobSummaries"]
    assert [found["jobArn"] for found in jobs] == [job["jobArn"]]


def test_approval_promotes_and_rejection_changes_nothing(tuning: Tuning, trained: str) -> None:
    package = tuning.package_of(trained)
    before = tuning.parameter()
    tuning.decide(package, "Rejected")
    tuning.decide(package, "Approved")
    promoted = until(
        lambda: value if (value := tuning.parameter()) != before else None, "the promotion"
    )
    assert promoted["model_package"] == package
    assert ":custom-model-deployment/" in promoted["model_id"]
    tuning.decide(package, "Rejected")
    until(lambda: _is_empty(tuning, tuning.outputs["ApprovalQueueUrl"]), "the rejection")
    assert tuning.parameter() == promoted


def test_a_folder_starts_one_run_when_success_lands(tuning: Tuning) -> None:
    tuning.upload("datasets/parts/one.jsonl", dialogues(30, "one"))
    table = b"question,answer\nWho goes there?,A friend.\n"
    tuning.upload("datasets/parts/deeper/two.csv.gz", gzip.compress(table))
    tuning.upload("datasets/parts/_SUCCESS", b"")
    execution = tuning.execution_of("datasets/parts/")
    assert tuning.end_of(execution)["PipelineExecutionStatus"] == "Succeeded"
    assert len(tuning.executions_of("datasets/parts/")) == 1
    key = f"runs/{execution.rsplit('/', 1)[-1]}/report/preprocess_report.json"
    body = tuning.client("s3").get_object(Bucket=tuning.bucket, Key=key)["Body"].read()
    files = json.loads(body)["files"]
    assert {file["name"]: file["read"] for file in files} == {
        "one.jsonl": 30,
        "deeper/two.csv.gz": 1,
    }


def test_a_run_tunes_on_the_version_that_it_is_for(tuning: Tuning) -> None:
    key = "other/versions.jsonl"
    tuning.upload(key, dialogues(60, "first"))
    first = tuning.client("s3").head_object(Bucket=tuning.bucket, Key=key)["VersionId"]
    tuning.upload(key, dialogues(90, "second"))
    execution = start(tuning, key, DatasetVersion=first)
    until(
        lambda: tuning.steps(execution).get("Preprocess", {}).get("StepStatus") == "Succeeded",
        "the preprocessing",
    )
    tuning.client("sagemaker").stop_pipeline_execution(PipelineExecutionArn=execution)
    report = f"runs/{execution.rsplit('/', 1)[-1]}/report/preprocess_report.json"
    body = tuning.client("s3").get_object(Bucket=tuning.bucket, Key=report)["Body"].read()
    assert json.loads(body)["total"]["read"] == 60
    tuning.end_of(execution)


def test_a_malformed_dataset_fails_the_run_with_what_to_do(tuning: Tuning) -> None:
    tuning.upload("datasets/broken.jsonl", "{not json}\n" * 40)
    execution = tuning.execution_of("datasets/broken.jsonl")
    ended = tuning.end_of(execution)
    assert ended["PipelineExecutionStatus"] == "Failed"
    reason = tuning.steps(execution)["Preprocess"]["FailureReason"]
    assert "40" in reason
    assert "rejected" in reason


@pytest.mark.parametrize(
    ("key", "body", "cause"),
    [
        ("datasets/notes.txt", b"hello", "allowed are .jsonl"),
        ("datasets/nothing.jsonl", b"", "is empty"),
    ],
)
def test_what_cannot_be_a_dataset_is_kept_with_the_cause(
    tuning: Tuning, key: str, body: bytes, cause: str
) -> None:
    tuning.upload(key, body)
    until(
        lambda: any(key in kept and cause in kept for kept in tuning.queued("FailedEvents")),
        f"{key} among the failed events",
    )
    assert tuning.executions_of(key) == []


def test_a_task_that_raises_fails_the_step_with_the_cause(tuning: Tuning) -> None:
    tuning.upload("other/data.jsonl", dialogues(60, "raise"))
    execution = start(tuning, "other/data.jsonl", EpochCount="9")
    assert tuning.end_of(execution)["PipelineExecutionStatus"] == "Failed"
    assert "epochCount" in tuning.steps(execution)["FineTune"]["FailureReason"]
    until(lambda: tuning.machine(execution)["status"] == "FAILED", "the machine to end")


def test_a_job_that_dies_fails_the_step_with_the_cause(tuning: Tuning) -> None:
    tuning.upload("other/killed.jsonl", dialogues(400, "killed"))
    execution = start(tuning, "other/killed.jsonl", EpochCount="5")
    job = tuning.tuning_job(execution)
    process = until(lambda: _training_process(job["jobArn"]), "the training process")
    os.kill(process, signal.SIGKILL)
    assert tuning.end_of(execution)["PipelineExecutionStatus"] == "Failed"
    assert job["jobName"] in tuning.steps(execution)["FineTune"]["FailureReason"]


def test_a_job_that_is_stopped_fails_the_step_with_the_cause(tuning: Tuning) -> None:
    tuning.upload("other/stopped.jsonl", dialogues(400, "stopped"))
    execution = start(tuning, "other/stopped.jsonl", EpochCount="5")
    job = tuning.tuning_job(execution)
    tuning.client("bedrock").stop_model_customization_job(jobIdentifier=job["jobArn"])
    assert tuning.end_of(execution)["PipelineExecutionStatus"] == "Failed"
    assert "stopped" in tuning.steps(execution)["FineTune"]["FailureReason"]


def test_stopping_the_execution_stops_the_job(tuning: Tuning) -> None:
    tuning.upload("other/halted.jsonl", dialogues(400, "halted"))
    execution = start(tuning, "other/halted.jsonl", EpochCount="5")
    job = tuning.tuning_job(execution)
    tuning.client("sagemaker").stop_pipeline_execution(PipelineExecutionArn=execution)
    assert tuning.end_of(execution)["PipelineExecutionStatus"] == "Stopped"
    step = tuning.steps(execution)["FineTune"]
    assert step["StepStatus"] == "Stopped"
    assert "stopped" in step["FailureReason"] or "Stopping" in step["FailureReason"]
    until(lambda: tuning.machine(execution)["status"] == "FAILED", "the machine to end")
    stopped = until(
        lambda: (
            found
            if (
                found := tuning.client("bedrock").get_model_customization_job(
                    jobIdentifier=job["jobArn"]
                )
            )["status"]
            == "Stopped"
            else None
        ),
        "the job to stop",
    )
    assert stopped["status"] == "Stopped"


def test_an_aborted_machine_fails_the_step(tuning: Tuning) -> None:
    tuning.upload("other/aborted.jsonl", dialogues(400, "aborted"))
    execution = start(tuning, "other/aborted.jsonl", EpochCount="5")
    tuning.tuning_job(execution)
    tuning.client("stepfunctions").stop_execution(
        executionArn=tuning.machine(execution)["executionArn"], cause="by an operator"
    )
    assert tuning.end_of(execution)["PipelineExecutionStatus"] == "Failed"
    assert "ABORTED" in tuning.steps(execution)["FineTune"]["FailureReason"]


def test_a_full_quota_waits_and_tries_again(tuning: Tuning) -> None:
    tuning.cloud.faults.add(
        "bedrock",
        "CreateModelCustomizationJob",
        "ServiceQuotaExceededException",
        "too many jobs",
        2,
    )
    tuning.upload("other/quota.jsonl", dialogues(60, "quota"))
    execution = start(tuning, "other/quota.jsonl")
    assert tuning.end_of(execution)["PipelineExecutionStatus"] == "Succeeded"
    history = tuning.client("stepfunctions").get_execution_history(
        executionArn=tuning.machine(execution)["executionArn"], maxResults=1000
    )
    entered = [
        event["stateEnteredEventDetails"]["name"]
        for event in history["events"]
        if "stateEnteredEventDetails" in event
    ]
    assert entered.count("WaitForQuota") == 2


def test_a_poisonous_message_does_not_hold_up_the_batch(tuning: Tuning) -> None:
    tuning.upload("other/batch.jsonl", dialogues(60, "batch"))
    sqs = tuning.client("sqs")
    sqs.send_message_batch(
        QueueUrl=tuning.outputs["CallbackQueueUrl"],
        Entries=[{"Id": str(n), "MessageBody": f"poison {n}"} for n in range(3)],
    )
    execution = start(tuning, "other/batch.jsonl")
    assert tuning.end_of(execution)["PipelineExecutionStatus"] == "Succeeded"
    dead: list[str] = []
    until(
        lambda: (
            dead.extend(tuning.queued("CallbackDeadLetters"))
            or sorted(dead) == ["poison 0", "poison 1", "poison 2"]
        ),
        "the poisonous messages among the dead letters",
    )


def test_a_callback_function_that_cannot_run_leaves_no_pipeline_waiting(tuning: Tuning) -> None:
    functions = tuning.client("lambda")
    name = "quench-tuning-callback"
    whole = functions.get_function_configuration(FunctionName=name)["Environment"]
    functions.update_function_configuration(FunctionName=name, Environment={"Variables": {}})
    try:
        tuning.upload("other/broken-function.jsonl", dialogues(60, "broken"))
        execution = start(tuning, "other/broken-function.jsonl")
        assert tuning.end_of(execution)["PipelineExecutionStatus"] == "Failed"
    finally:
        functions.update_function_configuration(FunctionName=name, Environment=whole)
    assert "never handled" in tuning.steps(execution)["FineTune"]["FailureReason"]


def test_a_missed_quality_gate_says_which_threshold(tuning: Tuning) -> None:
    sagemaker = tuning.client("sagemaker")
    name = tuning.outputs["PipelineName"]
    text = sagemaker.describe_pipeline(PipelineName=name)["PipelineDefinition"]
    definition = json.loads(text)
    gate = next(step for step in definition["Steps"] if step["Name"] == "QualityGate")
    gate["Arguments"]["Conditions"][0]["RightValue"] = 1.0
    strict = sagemaker.create_pipeline(
        PipelineName="strict",
        PipelineDefinition=json.dumps(definition),
        RoleArn="arn:aws:iam::123456789012:role/pipeline",
        ClientRequestToken="c" * 32,
    )
    tuning.upload("other/strict.jsonl", dialogues(60, "strict"))
    execution = start(tuning, "other/strict.jsonl", pipeline=strict["PipelineArn"].split("/")[-1])
    assert tuning.end_of(execution)["PipelineExecutionStatus"] == "Failed"
    steps = tuning.steps(execution)
    assert "gain.perplexity" in steps["QualityGateFailed"]["FailureReason"]
    assert "Register-RegisterModel" not in steps


def start(tuning: Tuning, key: str, pipeline: str | None = None, **parameters: str) -> str:
    """Start the pipeline by hand for data outside the datasets' prefix."""
    values = {"DatasetUri": f"s3://{tuning.bucket}/{key}", **parameters}
    answer = tuning.client("sagemaker").start_pipeline_execution(
        PipelineName=pipeline or tuning.outputs["PipelineName"],
        PipelineParameters=[{"Name": name, "Value": value} for name, value in values.items()],
        ClientRequestToken=key.encode().hex().ljust(32, "0")[:128],
    )
    return str(answer["PipelineExecutionArn"])


def _is_empty(tuning: Tuning, queue: str) -> bool:
    attributes = tuning.client("sqs").get_queue_attributes(
        QueueUrl=queue,
        AttributeNames=[
            "ApproximateNumberOfMessages",
            "ApproximateNumberOfMessagesNotVisible",
            "ApproximateNumberOfMessagesDelayed",
        ],
    )["Attributes"]
    return not any(int(count) for count in attributes.values())


def _training_process(job_arn: str) -> int | None:
    job = job_arn.rsplit("/", 1)[-1]
    for process, command in commands_below(os.getpid()):
        if "local.bedrock.training" in command and job in command:
            return process
    return None
