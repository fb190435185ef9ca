"""tuning_callback: every message of a batch ends in a state machine or an answered callback."""

import json
import re

import pytest

from lambdas import clients
from lambdas.callbacks import FAILURE_REASON_LIMIT, shorten

EXECUTION = "arn:aws:sagemaker:us-east-1:123456789012:pipeline/quench-tuning/execution/7pinimwddh3a"
BASE = "amazon.nova-micro-v1:0:128k"
JOB = f"arn:aws:bedrock:us-east-1:123456789012:model-customization-job/{BASE}/abcdefabcdef"
MACHINE = {"StartAt": "W", "States": {"W": {"Type": "Wait", "Seconds": 600, "End": True}}}


class Reason:
    """Equal to every failure reason the service accepts that has all these parts."""

    def __init__(self, *parts):
        self.parts = parts

    def __eq__(self, other):
        return len(other) <= FAILURE_REASON_LIMIT and all(part in other for part in self.parts)

    __hash__ = None

    def __repr__(self):
        return f"Reason{self.parts}"


class RequestToken:
    def __eq__(self, other):
        return 32 <= len(other) <= 128

    __hash__ = None


@pytest.fixture
def function(load_function):
    arn = "arn:aws:states:us-east-1:123456789012:stateMachine:quench-tuning-job"
    return load_function(
        "tuning_callback", STATE_MACHINE_ARN=arn, MAX_RECEIVE_COUNT="3", NAME_PREFIX="quench"
    )


@pytest.fixture
def states(moto_aws):
    states = clients.client("stepfunctions")
    states.create_state_machine(
        name="quench-tuning-job",
        definition=json.dumps(MACHINE),
        roleArn="arn:aws:iam::123456789012:role/quench",
    )
    return states


def executions(states):
    return {
        execution["name"]: states.describe_execution(executionArn=execution["executionArn"])
        for execution in states.list_executions(
            stateMachineArn="arn:aws:states:us-east-1:123456789012:stateMachine:quench-tuning-job"
        )["executions"]
    }


def expect_failure(sagemaker, token, *parts):
    sagemaker.add_response(
        "send_pipeline_execution_step_failure",
        {"PipelineExecutionArn": EXECUTION},
        {
            "CallbackToken": token,
            "FailureReason": Reason(*parts),
            "ClientRequestToken": RequestToken(),
        },
    )


def refuse_failure(sagemaker, code="ValidationException"):
    sagemaker.add_client_error("send_pipeline_execution_step_failure", code, "not open")


def expect_job(bedrock, status):
    name = "quench-7pinimwddh3a-26vcYbeWsZ"
    if status is None:
        bedrock.add_client_error(
            "get_model_customization_job",
            "ResourceNotFoundException",
            expected_params={"jobIdentifier": name},
        )
        return
    bedrock.add_response(
        "get_model_customization_job",
        {
            "jobArn": JOB,
            "jobName": name,
            "outputModelName": name,
            "roleArn": "arn:aws:iam::123456789012:role/quench",
            "status": status,
            "creationTime": 1795166048,
            "baseModelArn": "arn:aws:bedrock:us-east-1::foundation-model/amazon.nova-micro-v1:0",
            "trainingDataConfig": {},
            "validationDataConfig": {"validators": []},
            "outputDataConfig": {"s3Uri": "s3://quench-data/runs/7pinimwddh3a/training/"},
        },
        {"jobIdentifier": name},
    )


def failed(response):
    return [failure["itemIdentifier"] for failure in response["batchItemFailures"]]


def test_a_poisonous_message_does_not_keep_the_others_of_its_batch(
    function, states, read_event, context
):
    event = read_event("sqs_callbacks")
    response = function.handler(event, context)

    assert failed(response) == [event["Records"][1]["messageId"]]
    started = executions(states)
    assert set(started) == {"7pinimwddh3a-26vcYbeWsZ", "c0ffee5t34m1-eaZVvjDnKn"}
    body = json.loads(event["Records"][0]["body"])
    assert json.loads(started["7pinimwddh3a-26vcYbeWsZ"]["input"]) == body


def test_a_message_delivered_twice_starts_one_state_machine(function, states, read_event, context):
    event = read_event("sqs_callbacks")
    del event["Records"][1]
    assert failed(function.handler(event, context)) == []
    # Even once it has ended, when Step Functions refuses the name.
    for execution in executions(states).values():
        states.stop_execution(executionArn=execution["executionArn"])
    assert failed(function.handler(event, context)) == []
    assert len(executions(states)) == 2


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (lambda body: body["arguments"].pop("training_data"), ["training_data: Field required"]),
        (lambda body: body["arguments"].update(output_data="runs/"), ["output_data"]),
        (lambda body: body["arguments"].update(hyperparameter_epochCount=[2]), ["epochCount"]),
        (lambda body: body.update(status="Sleeping"), ["status", "Executing"]),
        (lambda body: body.update(pipelineExecutionArn="arn:x"), ["pipelineExecutionArn"]),
        (lambda body: body.pop("arguments"), ["arguments: Field required"]),
    ],
)
def test_an_unusable_message_fails_its_step_with_the_cause(
    function, states, stub, read_event, context, spoil, parts
):
    event = read_event("sqs_callbacks")
    event["Records"] = event["Records"][:1]
    body = json.loads(event["Records"][0]["body"])
    spoil(body)
    event["Records"][0]["body"] = json.dumps(body)
    expect_failure(stub("sagemaker"), "26vcYbeWsZ", *parts)

    assert failed(function.handler(event, context)) == []
    assert executions(states) == {}


def test_a_message_cut_off_after_its_token_fails_its_step(
    function, states, stub, read_event, context
):
    event = read_event("sqs_callbacks")
    event["Records"] = event["Records"][:1]
    event["Records"][0]["body"] = event["Records"][0]["body"][:60]
    expect_failure(stub("sagemaker"), "26vcYbeWsZ", "Invalid JSON")
    assert failed(function.handler(event, context)) == []


def test_an_error_is_retried_and_told_to_the_pipeline_on_the_last_delivery(
    function, stub, read_event, context
):
    event = read_event("sqs_callbacks")
    event["Records"] = event["Records"][:1]
    states, sagemaker = stub("stepfunctions"), stub("sagemaker")
    for receives in ("2", "3"):
        event["Records"][0]["attributes"]["ApproximateReceiveCount"] = receives
        states.add_client_error("start_execution", "StateMachineDoesNotExist", "gone")
        if receives == "3":
            expect_failure(sagemaker, "26vcYbeWsZ", "StateMachineDoesNotExist")
        # The message stays: in the queue, then in the dead-letter queue.
        assert failed(function.handler(event, context)) == [event["Records"][0]["messageId"]]


def test_stopping_stops_the_job_and_leaves_the_answer_to_the_state_machine(
    function, states, stub, read_event, context
):
    started = read_event("sqs_callbacks")
    del started["Records"][1]
    function.handler(started, context)
    bedrock = stub("bedrock")
    expect_job(bedrock, "InProgress")
    bedrock.add_response(
        "stop_model_customization_job", {}, {"jobIdentifier": "quench-7pinimwddh3a-26vcYbeWsZ"}
    )
    assert failed(function.handler(read_event("sqs_callback_stopping"), context)) == []


@pytest.mark.parametrize("status", [None, "Completed", "Stopping"])
def test_stopping_while_the_state_machine_runs_but_no_job_does_changes_nothing(
    function, states, stub, read_event, context, status
):
    started = read_event("sqs_callbacks")
    del started["Records"][1]
    function.handler(started, context)
    expect_job(stub("bedrock"), status)
    assert failed(function.handler(read_event("sqs_callback_stopping"), context)) == []


def test_stopping_a_job_that_ends_meanwhile_is_no_error(
    function, states, stub, read_event, context
):
    started = read_event("sqs_callbacks")
    del started["Records"][1]
    function.handler(started, context)
    bedrock = stub("bedrock")
    expect_job(bedrock, "InProgress")
    bedrock.add_client_error("stop_model_customization_job", "ConflictException")
    expect_job(bedrock, "Completed")
    assert failed(function.handler(read_event("sqs_callback_stopping"), context)) == []


def test_a_job_that_cannot_be_stopped_is_tried_again(function, states, stub, read_event, context):
    bedrock = stub("bedrock")
    expect_job(bedrock, "InProgress")
    bedrock.add_client_error("stop_model_customization_job", "AccessDeniedException")
    expect_job(bedrock, "InProgress")
    event = read_event("sqs_callback_stopping")
    assert failed(function.handler(event, context)) == [event["Records"][0]["messageId"]]


def test_stopping_before_anything_started_fails_the_step(
    function, states, stub, read_event, context
):
    expect_job(stub("bedrock"), None)
    expect_failure(stub("sagemaker"), "26vcYbeWsZ", "The pipeline execution was stopped")
    assert failed(function.handler(read_event("sqs_callback_stopping"), context)) == []


@pytest.mark.parametrize("code", ["ValidationException", "ConflictException", "ResourceNotFound"])
@pytest.mark.parametrize(
    ("step_status", "again"), [("Failed", False), ("Succeeded", False), ("Executing", True)]
)
def test_a_refused_answer_is_accepted_only_if_the_step_is_answered(
    function, states, stub, read_event, context, code, step_status, again
):
    expect_job(stub("bedrock"), None)
    sagemaker = stub("sagemaker")
    refuse_failure(sagemaker, code)
    step = {
        "StepName": "FineTune",
        "StepStatus": step_status,
        "Metadata": {"Callback": {"CallbackToken": "26vcYbeWsZ"}},
    }
    sagemaker.add_response(
        "list_pipeline_execution_steps",
        {"PipelineExecutionSteps": [{"StepName": "Preprocess"}, step]},
        {"PipelineExecutionArn": EXECUTION},
    )
    response = function.handler(read_event("sqs_callback_stopping"), context)
    assert bool(failed(response)) is again


@pytest.mark.parametrize(
    ("status", "again"), [("Stopped", False), ("Failed", False), ("Executing", True)]
)
def test_a_refused_answer_without_its_step_is_accepted_only_if_the_execution_ended(
    function, states, stub, read_event, context, status, again
):
    expect_job(stub("bedrock"), None)
    sagemaker = stub("sagemaker")
    refuse_failure(sagemaker)
    sagemaker.add_response("list_pipeline_execution_steps", {"PipelineExecutionSteps": []})
    sagemaker.add_response("describe_pipeline_execution", {"PipelineExecutionStatus": status})
    response = function.handler(read_event("sqs_callback_stopping"), context)
    assert bool(failed(response)) is again


def test_a_throttled_answer_is_tried_again(function, states, stub, read_event, context):
    expect_job(stub("bedrock"), None)
    refuse_failure(stub("sagemaker"), "ThrottlingException")
    event = read_event("sqs_callback_stopping")
    assert failed(function.handler(event, context)) == [event["Records"][0]["messageId"]]


def test_a_long_reason_keeps_its_beginning_and_its_end():
    reason = shorten("Tuning job x failed:\n" + "a" * 2000 + " the cause")
    assert len(reason) == FAILURE_REASON_LIMIT
    assert re.fullmatch(r"Tuning job x failed: a+ … a+ the cause", reason)
