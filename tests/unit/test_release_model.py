"""release_model: production is to have what QA was deployed with, and the job has an answer."""

import json

import boto3
import pytest
from botocore.stub import ANY

from lambdas import clients

APPROVED, PARAMETER = "/quench/model", "/quench/model-prod"
JOB = "c0d76431-b0e7-4f5a-97e3-e8ee786eb6f6"


@pytest.fixture
def function(load_function):
    return load_function("release_model", MODEL_PARAMETER=APPROVED, PRODUCTION_PARAMETER=PARAMETER)


@pytest.fixture
def ssm(moto_aws):
    return clients.client("ssm")


@pytest.fixture
def codepipeline(function, stub):
    return stub("codepipeline")


@pytest.fixture
def event(read_event):
    return read_event("codepipeline_job")


def configuration(event):
    return event["CodePipeline.job"]["data"]["actionConfiguration"]["configuration"]


def expect_success(codepipeline):
    codepipeline.add_response(
        "put_job_success_result", {}, {"jobId": JOB, "executionDetails": {"summary": ANY}}
    )


class Message:
    """Equal to a message of the length that CodePipeline accepts; remembers it."""

    def __eq__(self, other):
        self.text = other
        return 1 <= len(other) <= 5000

    __hash__ = None


def expect_failure(codepipeline):
    message = Message()
    codepipeline.add_response(
        "put_job_failure_result",
        {},
        {"jobId": JOB, "failureDetails": {"type": "JobFailed", "message": message}},
    )
    return message


def test_the_model_of_qa_goes_to_production(function, codepipeline, ssm, event, context):
    expect_success(codepipeline)
    function.handler(event, context)
    written = ssm.get_parameter(Name=PARAMETER)["Parameter"]
    assert json.loads(written["Value"]) == json.loads(configuration(event)["UserParameters"])


def test_a_job_delivered_again_changes_nothing(function, codepipeline, ssm, event, context, caplog):
    expect_success(codepipeline)
    codepipeline.add_client_error("put_job_success_result", "InvalidJobStateException")
    for _ in range(2):
        function.handler(event, context)
    assert ssm.get_parameter(Name=PARAMETER)["Parameter"]["Version"] == 1
    assert "production was to have" in caplog.text
    assert "the job was already answered" in caplog.text


def test_a_job_whose_answer_was_lost_is_answered_again(function, codepipeline, ssm, event, context):
    codepipeline.add_client_error("put_job_success_result", "ServiceUnavailable")
    with pytest.raises(Exception, match="ServiceUnavailable"):
        function.handler(event, context)
    expect_success(codepipeline)
    function.handler(event, context)
    assert ssm.get_parameter(Name=PARAMETER)["Parameter"]["Version"] == 1


def test_the_base_model_goes_to_production(function, codepipeline, ssm, event, context):
    nothing = dict.fromkeys(json.loads(configuration(event)["UserParameters"]))
    configuration(event)["UserParameters"] = json.dumps(nothing)
    expect_success(codepipeline)
    function.handler(event, context)
    assert json.loads(ssm.get_parameter(Name=PARAMETER)["Parameter"]["Value"]) == nothing


@pytest.mark.parametrize("back_to", ["an earlier model", "the base model"])
def test_a_model_that_was_taken_back_does_not_go_to_production(
    function, codepipeline, ssm, event, context, back_to
):
    """A rollback while its release waits between QA and production."""
    model = json.loads(configuration(event)["UserParameters"])
    earlier = model | {"model_package": "version/1", "approved_at": "2020-01-01T00:00:00Z"}
    value = earlier if back_to == "an earlier model" else dict.fromkeys(model)
    ssm.put_parameter(Name=APPROVED, Value=json.dumps(value), Type="String")
    message = expect_failure(codepipeline)
    function.handler(event, context)
    assert f"{model['model_package']} was taken back" in message.text
    assert not ssm.describe_parameters(ParameterFilters=[{"Key": "Name", "Values": [PARAMETER]}])[
        "Parameters"
    ]


def test_a_model_passes_though_a_later_one_is_approved(function, codepipeline, ssm, event, context):
    model = json.loads(configuration(event)["UserParameters"])
    later = model | {"model_package": "version/9", "approved_at": "2126-01-01T00:00:00Z"}
    ssm.put_parameter(Name=APPROVED, Value=json.dumps(later), Type="String")
    expect_success(codepipeline)
    function.handler(event, context)
    assert json.loads(ssm.get_parameter(Name=PARAMETER)["Parameter"]["Value"]) == model


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        (None, "UserParameters: Field required"),
        ("#{QA.Model}", "UserParameters: Invalid JSON"),
        ('{"model_id": null}', "UserParameters.base_model: Field required"),
        (json.dumps("x" * 900), "UserParameters"),
    ],
)
def test_what_is_no_model_fails_the_job(
    function, codepipeline, ssm, event, context, caplog, parameters, told
):
    del configuration(event)["UserParameters"]
    if parameters is not None:
        configuration(event)["UserParameters"] = parameters
    message = expect_failure(codepipeline)
    function.handler(event, context)
    assert "UserParameters must be the output ServedModel of the QA stack" in message.text
    assert told in message.text
    assert "job failed" in caplog.text
    assert "a secret" not in caplog.text
    assert not ssm.describe_parameters()["Parameters"]


def test_a_parameter_that_somebody_else_filled_is_left_alone(
    function, codepipeline, ssm, event, context
):
    ssm.put_parameter(Name=PARAMETER, Value="precious", Type="String")
    message = expect_failure(codepipeline)
    function.handler(event, context)
    assert "/quench/model-prod does not hold a served model" in message.text
    assert ssm.get_parameter(Name=PARAMETER)["Parameter"]["Value"] == "precious"


def test_a_service_that_refuses_fails_the_job(function, codepipeline, stub, event, context):
    stub("ssm").add_client_error("get_parameter", "AccessDeniedException", "not you " * 1000)
    message = expect_failure(codepipeline)
    function.handler(event, context)
    assert "AccessDeniedException" in message.text


def test_what_is_no_job_has_nobody_to_answer(function, context):
    with pytest.raises(ValueError, match=r"CodePipeline.job"):
        function.handler({}, context)


def test_production_elsewhere_gets_model_and_index_there(
    load_function, moto_aws, stub, event, context
):
    role = "arn:aws:iam::222222222222:role/quench-prod-release"
    function = load_function(
        "release_model",
        MODEL_PARAMETER=APPROVED,
        PRODUCTION_PARAMETER=PARAMETER,
        PRODUCTION_ACCESS=json.dumps({"role": role, "region": "us-west-2"}),
        INDEX_PARAMETER="/quench/index",
    )
    here = boto3.client("ssm")
    here.put_parameter(Name="/quench/index", Value='{"name": "lore"}', Type="String")
    codepipeline = stub("codepipeline")
    for _ in range(2):  # the second is delivered again
        expect_success(codepipeline)
        function.handler(event, context)
    there = as_role(role).client("ssm", region_name="us-west-2")
    model = json.loads(there.get_parameter(Name=PARAMETER)["Parameter"]["Value"])
    assert model == json.loads(configuration(event)["UserParameters"])
    assert there.get_parameter(Name="/quench/index")["Parameter"]["Value"] == '{"name": "lore"}'
    assert here.get_parameter(Name=PARAMETER)["Parameter"]["Version"] == 1
    assert not boto3.client("ssm", region_name="us-west-2").describe_parameters()["Parameters"]


def as_role(role):
    """A session of another account, as moto tells accounts apart."""
    assumed = boto3.client("sts").assume_role(RoleArn=role, RoleSessionName="test")["Credentials"]
    return boto3.Session(
        assumed["AccessKeyId"], assumed["SecretAccessKey"], assumed["SessionToken"]
    )
