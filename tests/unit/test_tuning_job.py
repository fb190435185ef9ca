"""tuning_job: each task of the state machine, and the answer for executions that end badly."""

import json
import re
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lambdas.callbacks import FAILURE_REASON_LIMIT, TuningCallback, shorten
from lambdas.customization_jobs import job_name
from lambdas.validation import EnvironmentVariableError

EXECUTION = "arn:aws:sagemaker:us-east-1:123456789012:pipeline/quench-tuning/execution/7pinimwddh3a"
NAME = "quench-7pinimwddh3a-26vcYbeWsZ"
BASE = "amazon.nova-micro-v1:0:128k"
JOB = f"arn:aws:bedrock:us-east-1:123456789012:model-customization-job/{BASE}/abcdefabcdef"
MODEL = f"arn:aws:bedrock:us-east-1:123456789012:custom-model/{BASE}/fedcbafedcba"
DEPLOYMENT = "arn:aws:bedrock:us-east-1:123456789012:custom-model-deployment/0123456789ab"
ENVIRONMENT = {
    "BEDROCK_ROLE_ARN": "arn:aws:iam::123456789012:role/quench-bedrock",
    "TIMEOUT_SECONDS": "86400",
    "NAME_PREFIX": "quench",
}
TAGS = [
    {"key": "quench:pipeline-execution", "value": EXECUTION},
    {"key": "quench:base-model", "value": BASE},
]
CREATE = {
    "jobName": NAME,
    "customModelName": NAME,
    "clientRequestToken": NAME,
    "roleArn": "arn:aws:iam::123456789012:role/quench-bedrock",
    "baseModelIdentifier": BASE,
    "customizationType": "FINE_TUNING",
    "trainingDataConfig": {"s3Uri": "s3://quench-data/runs/7pinimwddh3a/train/data.jsonl"},
    "validationDataConfig": {
        "validators": [{"s3Uri": "s3://quench-data/runs/7pinimwddh3a/validation/data.jsonl"}]
    },
    "outputDataConfig": {"s3Uri": "s3://quench-data/runs/7pinimwddh3a/training/"},
    "hyperParameters": {
        "epochCount": "2",
        "learningRate": "0.00001",
        "learningRateWarmupSteps": "10",
    },
    "jobTags": TAGS,
    "customModelTags": TAGS,
}


@pytest.fixture
def function(load_function):
    return load_function("tuning_job", **ENVIRONMENT)


@pytest.fixture
def sagemaker(function, stub):
    return stub("sagemaker")


@pytest.fixture
def bedrock(function, stub):
    return stub("bedrock")


@pytest.fixture
def run(function, read_event, context):
    """Run an action as the state machine does, some hours after its start."""
    message = json.loads(read_event("sqs_callbacks")["Records"][0]["body"])

    def run_action(action, hours=1.0, **known):
        started = datetime.now(UTC) - timedelta(hours=hours)
        state = {**message, **known}
        payload = {"action": action, "execution_started": started.isoformat(), "state": state}
        result = function.handler(payload, context)
        # The state comes back whole.
        assert {key: result[key] for key in message if key != "status"} == {
            key: value for key, value in message.items() if key != "status"
        }
        assert result.keys() >= known.keys()
        return result

    return run_action


def expect_pipeline(sagemaker, status="Executing"):
    sagemaker.add_response(
        "describe_pipeline_execution",
        {"PipelineExecutionStatus": status},
        {"PipelineExecutionArn": EXECUTION},
    )


def expect_job(bedrock, status, identifier=NAME, **more):
    if status is None:
        bedrock.add_client_error(
            "get_model_customization_job",
            "ResourceNotFoundException",
            expected_params={"jobIdentifier": identifier},
        )
        return
    bedrock.add_response(
        "get_model_customization_job",
        {
            "jobArn": JOB,
            "jobName": NAME,
            "outputModelName": NAME,
            "roleArn": ENVIRONMENT["BEDROCK_ROLE_ARN"],
            "status": status,
            "creationTime": datetime(2026, 11, 20, tzinfo=UTC),
            "baseModelArn": f"arn:aws:bedrock:us-east-1::foundation-model/{BASE}",
            "trainingDataConfig": {},
            "validationDataConfig": {"validators": []},
            "outputDataConfig": {"s3Uri": "s3://quench-data/runs/7pinimwddh3a/training/"},
            **more,
        },
        {"jobIdentifier": identifier},
    )


def expect_stop(bedrock, identifier=NAME):
    expect_job(bedrock, "InProgress", identifier)
    bedrock.add_response("stop_model_customization_job", {}, {"jobIdentifier": identifier})


def expect_deployment(bedrock, status, identifier=DEPLOYMENT, model=MODEL, **more):
    bedrock.add_response(
        "get_custom_model_deployment",
        {
            "customModelDeploymentArn": DEPLOYMENT,
            "modelDeploymentName": NAME,
            "modelArn": model,
            "createdAt": datetime(2026, 11, 20, tzinfo=UTC),
            "status": status,
            **more,
        },
        {"customModelDeploymentIdentifier": identifier},
    )


class Answer:
    """Remembers the failure reason or outputs that were sent."""

    def __init__(self):
        self.content = None

    def __eq__(self, other):
        self.content = other
        return True

    __hash__ = None


def expect_answer(sagemaker, kind):
    answer, token = Answer(), Answer()
    member = {"failure": "FailureReason", "success": "OutputParameters"}[kind]
    sagemaker.add_response(
        f"send_pipeline_execution_step_{kind}",
        {"PipelineExecutionArn": EXECUTION},
        {"CallbackToken": "26vcYbeWsZ", member: answer, "ClientRequestToken": token},
    )
    return answer


# start


def test_start_creates_the_job(run, sagemaker, bedrock):
    expect_pipeline(sagemaker)
    bedrock.add_response("create_model_customization_job", {"jobArn": JOB}, CREATE)
    result = run("start")
    assert (result["status"], result["job_arn"]) == ("Started", JOB)


def test_start_encrypts_with_the_key_it_is_given(load_function, stub, read_event, context):
    key = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab"
    function = load_function("tuning_job", **ENVIRONMENT, KMS_KEY_ARN=key)
    expect_pipeline(stub("sagemaker"))
    stub("bedrock").add_response(
        "create_model_customization_job", {"jobArn": JOB}, CREATE | {"customModelKmsKeyId": key}
    )
    payload = {
        "action": "start",
        "execution_started": datetime.now(UTC).isoformat(),
        "state": json.loads(read_event("sqs_callbacks")["Records"][0]["body"]),
    }
    assert function.handler(payload, context)["status"] == "Started"


@pytest.mark.parametrize(
    "code",
    ["ServiceQuotaExceededException", "ThrottlingException", "TooManyRequestsException"],
)
def test_a_full_quota_waits(run, sagemaker, bedrock, code):
    expect_pipeline(sagemaker)
    bedrock.add_client_error("create_model_customization_job", code)
    assert run("start")["status"] == "QuotaFull"


def test_a_job_that_never_started_says_what_kept_it(run, sagemaker, bedrock):
    expect_pipeline(sagemaker)
    bedrock.add_client_error("create_model_customization_job", "ThrottlingException", "too many")
    refused = run("start")
    expect_pipeline(sagemaker)
    expect_job(bedrock, None)
    result = run("start", hours=25, refusal=refused["refusal"])
    assert result["status"] == "TimedOut"
    assert "never started" in result["reason"]
    assert "too many" in result["reason"]


def test_a_job_that_exists_is_found_again(run, sagemaker, bedrock):
    expect_pipeline(sagemaker)
    bedrock.add_client_error("create_model_customization_job", "ConflictException")
    expect_job(bedrock, "InProgress")
    result = run("start")
    assert (result["status"], result["job_arn"]) == ("Started", JOB)


def test_a_conflict_with_something_else_is_an_error(run, function, sagemaker, bedrock):
    expect_pipeline(sagemaker)
    bedrock.add_client_error("create_model_customization_job", "ConflictException", "model name")
    expect_job(bedrock, None)
    with pytest.raises(function.ClientError, match="model name"):
        run("start")


def test_what_bedrock_refuses_is_an_error(run, function, sagemaker, bedrock):
    expect_pipeline(sagemaker)
    bedrock.add_client_error("create_model_customization_job", "ValidationException", "bad data")
    with pytest.raises(function.ClientError, match="bad data"):
        run("start")


@pytest.mark.parametrize("status", ["Stopping", "Stopped", "Failed"])
def test_start_does_not_create_a_job_for_a_pipeline_that_is_stopped(
    run, sagemaker, bedrock, status
):
    expect_pipeline(sagemaker, status)
    expect_job(bedrock, None)
    result = run("start")
    assert result["status"] == "Stopped"
    assert status in result["reason"]


def test_a_quota_that_stays_full_ends_in_a_time_out(run, sagemaker, bedrock):
    expect_pipeline(sagemaker)
    expect_job(bedrock, None)
    result = run("start", hours=25)
    assert result["status"] == "TimedOut"
    assert "24 hours" in result["reason"]


# check


def test_check_of_a_running_job(run, sagemaker, bedrock):
    expect_job(bedrock, "InProgress", JOB)
    expect_pipeline(sagemaker)
    assert run("check", job_arn=JOB)["status"] == "InProgress"


@pytest.mark.parametrize("hours", [1, 25])
def test_check_of_a_completed_job(run, sagemaker, bedrock, hours):
    expect_job(bedrock, "Completed", JOB, outputModelArn=MODEL)
    expect_pipeline(sagemaker)
    result = run("check", hours, job_arn=JOB)
    assert (result["status"], result["custom_model_arn"]) == ("Completed", MODEL)


def test_a_job_completed_for_a_stopped_pipeline_is_not_deployed(run, sagemaker, bedrock):
    expect_job(bedrock, "Completed", JOB, outputModelArn=MODEL)
    expect_pipeline(sagemaker, "Stopping")
    assert run("check", job_arn=JOB)["status"] == "Stopped"


def test_check_of_a_failed_job_and_its_callback(run, sagemaker, bedrock):
    message = "Line 17 of the training data is invalid. " + "x" * 1900 + " See the guide."
    expect_job(bedrock, "Failed", JOB, failureMessage=message)
    state = run("check", job_arn=JOB)
    assert state["status"] == "Failed"
    assert message in state["reason"]

    answer = expect_answer(sagemaker, "failure")
    expect_job(bedrock, "Failed")
    run("fail", **{k: state[k] for k in ("status", "job_arn", "reason")})
    assert len(answer.content) <= FAILURE_REASON_LIMIT
    assert f"Tuning job {NAME} failed: Line 17 of the training data" in answer.content
    assert answer.content.endswith("See the guide.")


@pytest.mark.parametrize("status", ["Stopping", "Stopped"])
def test_check_of_a_stopped_job(run, bedrock, status):
    expect_job(bedrock, status, JOB)
    result = run("check", job_arn=JOB)
    assert result["status"] == "Stopped"
    assert "was stopped" in result["reason"]


def test_check_stops_the_job_of_a_pipeline_that_is_stopping(run, sagemaker, bedrock):
    expect_job(bedrock, "InProgress", JOB)
    expect_pipeline(sagemaker, "Stopping")
    expect_stop(bedrock)
    result = run("check", job_arn=JOB)
    assert result["status"] == "Stopped"
    assert "Stopping" in result["reason"]


def test_check_stops_a_job_that_never_ends(run, sagemaker, bedrock):
    expect_job(bedrock, "InProgress", JOB)
    expect_pipeline(sagemaker)
    expect_stop(bedrock)
    result = run("check", hours=25, job_arn=JOB)
    assert result["status"] == "TimedOut"
    assert "did not end within 24 hours" in result["reason"]


# deploy


def test_deploy(run, bedrock):
    bedrock.add_response(
        "create_custom_model_deployment",
        {"customModelDeploymentArn": DEPLOYMENT},
        {"modelDeploymentName": NAME, "modelArn": MODEL, "clientRequestToken": NAME},
    )
    result = run("deploy", job_arn=JOB, custom_model_arn=MODEL)
    assert (result["status"], result["deployment_arn"]) == ("Deploying", DEPLOYMENT)


def test_a_deployment_that_exists_is_found_again(run, bedrock):
    bedrock.add_client_error("create_custom_model_deployment", "ValidationException", "exists")
    expect_deployment(bedrock, "Creating", NAME)
    assert run("deploy", custom_model_arn=MODEL)["deployment_arn"] == DEPLOYMENT


def test_a_deployment_of_another_model_is_an_error(run, function, bedrock):
    bedrock.add_client_error("create_custom_model_deployment", "ValidationException", "exists")
    expect_deployment(bedrock, "Active", NAME, model=MODEL.replace("fedcba", "abcabc"))
    with pytest.raises(function.ClientError, match="exists"):
        run("deploy", custom_model_arn=MODEL)


def test_a_refused_deployment_is_an_error(run, function, bedrock):
    bedrock.add_client_error("create_custom_model_deployment", "ValidationException", "not Active")
    bedrock.add_client_error("get_custom_model_deployment", "ResourceNotFoundException")
    with pytest.raises(function.ClientError, match="not Active"):
        run("deploy", custom_model_arn=MODEL)


def test_check_of_an_active_deployment(run, bedrock):
    expect_deployment(bedrock, "Active")
    assert run("check_deployment", hours=25, deployment_arn=DEPLOYMENT)["status"] == "Active"


def test_check_of_a_failed_deployment(run, bedrock):
    expect_deployment(bedrock, "Failed", failureMessage="no capacity in the region")
    result = run("check_deployment", deployment_arn=DEPLOYMENT)
    assert result["status"] == "Failed"
    assert "no capacity in the region" in result["reason"]


@pytest.mark.parametrize(
    ("pipeline", "hours", "status"),
    [("Executing", 1, "Deploying"), ("Executing", 25, "TimedOut"), ("Stopping", 1, "Stopped")],
)
def test_check_of_a_deployment_that_is_being_created(
    run, sagemaker, bedrock, pipeline, hours, status
):
    expect_deployment(bedrock, "Creating")
    expect_pipeline(sagemaker, pipeline)
    assert run("check_deployment", hours, deployment_arn=DEPLOYMENT)["status"] == status


# succeed and fail


@pytest.mark.parametrize(("deployment", "serving"), [(DEPLOYMENT, DEPLOYMENT), (None, "none")])
def test_succeed_sends_all_outputs(run, sagemaker, deployment, serving):
    answer = expect_answer(sagemaker, "success")
    known = {"deployment_arn": deployment} if deployment else {}
    assert run("succeed", job_arn=JOB, custom_model_arn=MODEL, **known)["status"] == "Succeeded"
    outputs = {output["Name"]: output["Value"] for output in answer.content}
    hyperparameters = outputs.pop("hyperparameters")
    assert re.fullmatch(r"[\w .:/=+\-@]{1,256}", hyperparameters)  # as package metadata must be
    assert dict(pair.split("=") for pair in hyperparameters.split()) == CREATE["hyperParameters"]
    assert outputs == {
        "custom_model_arn": MODEL,
        "job_arn": JOB,
        "serving_model_id": serving,
    }


def test_an_answer_sent_twice_is_one(run, sagemaker):
    sagemaker.add_client_error("send_pipeline_execution_step_success", "ValidationException")
    step = {"StepStatus": "Succeeded", "Metadata": {"Callback": {"CallbackToken": "26vcYbeWsZ"}}}
    sagemaker.add_response("list_pipeline_execution_steps", {"PipelineExecutionSteps": [step]})
    assert run("succeed", job_arn=JOB, custom_model_arn=MODEL)["status"] == "Succeeded"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            {
                "Error": "ClientError",
                "Cause": json.dumps({"errorMessage": "An error occurred (AccessDenied)"}),
            },
            "ClientError: An error occurred (AccessDenied)",
        ),
        ({"Error": "States.Timeout", "Cause": ""}, "States.Timeout: no cause given"),
        ({"Error": "States.Timeout"}, "States.Timeout: no cause given"),
        ({"Error": "States.TaskFailed", "Cause": "not JSON"}, "States.TaskFailed: not JSON"),
        ({"Error": "States.TaskFailed", "Cause": "[1]"}, "States.TaskFailed: [1]"),
    ],
)
def test_an_error_of_a_task_is_the_reason_and_leaves_no_job_behind(
    run, sagemaker, bedrock, error, expected
):
    answer = expect_answer(sagemaker, "failure")
    expect_stop(bedrock)
    run("fail", error=error, reason="something earlier")
    assert answer.content == expected


# executions of the state machine that ended badly


def test_a_state_machine_that_timed_out_is_answered_for(
    function, sagemaker, bedrock, read_event, context
):
    answer = expect_answer(sagemaker, "failure")
    expect_stop(bedrock)
    function.handler(read_event("state_machine_timed_out"), context)
    assert answer.content == (
        "State machine execution 7pinimwddh3a-26vcYbeWsZ ended TIMED_OUT: no cause given"
    )


def test_a_state_machine_that_failed_after_its_callback_changes_nothing(
    function, sagemaker, bedrock, read_event, context
):
    event = read_event("state_machine_timed_out")
    event["detail"] |= {"status": "FAILED", "error": "TuningFailed", "cause": "told already"}
    sagemaker.add_client_error("send_pipeline_execution_step_failure", "ValidationException")
    step = {"StepStatus": "Failed", "Metadata": {"Callback": {"CallbackToken": "26vcYbeWsZ"}}}
    sagemaker.add_response("list_pipeline_execution_steps", {"PipelineExecutionSteps": [step]})
    expect_job(bedrock, "Failed")
    assert "TuningFailed: told already" in function.handler(event, context)["reason"]


# names, reasons, environment


@given(
    prefix=st.text(min_size=1, max_size=100),
    execution=st.from_regex(r"[a-z0-9-]{1,60}", fullmatch=True),
    token=st.from_regex(r"[a-zA-Z0-9]{10}", fullmatch=True),
)
def test_names_are_valid_and_keep_the_token(prefix, execution, token):
    arn = f"arn:aws:sagemaker:us-east-1:123456789012:pipeline/p/execution/{execution}"
    name = job_name(prefix, TuningCallback(token=token, pipeline_execution_arn=arn))
    assert len(name) <= 63
    # jobName, customModelName and modelDeploymentName, clientRequestToken in Bedrock's model
    assert re.fullmatch(r"[a-zA-Z0-9](-*[a-zA-Z0-9\+\-\.])*", name)
    assert re.fullmatch(r"([0-9a-zA-Z][_-]?){1,63}", name)
    assert re.fullmatch(r"[a-zA-Z0-9]([-a-zA-Z0-9]{0,254}[a-zA-Z0-9])?", name)
    assert name.endswith(token)


@given(st.text(max_size=600))
def test_a_reason_always_fits(text):
    reason = shorten(text)
    assert len(reason.encode("utf-16-le", "surrogatepass")) // 2 <= FAILURE_REASON_LIMIT
    if text.isascii() and len(text) <= FAILURE_REASON_LIMIT:
        assert reason == " ".join(text.split())


def test_bad_environment_variables_are_named(load_function, monkeypatch):
    monkeypatch.delenv("BEDROCK_ROLE_ARN", raising=False)
    with pytest.raises(EnvironmentVariableError) as raised:
        load_function("tuning_job", TIMEOUT_SECONDS="soon", NAME_PREFIX="quench")
    assert "BEDROCK_ROLE_ARN: Field required" in str(raised.value)
    assert "TIMEOUT_SECONDS: Input should be a valid integer" in str(raised.value)
