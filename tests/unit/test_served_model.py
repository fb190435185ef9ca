"""served_model: whoever wrote last, the latest approval that still stands is in force."""

import json
from datetime import UTC, datetime

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from lambdas import clients, served_model
from lambdas.served_model import (
    NOTHING_APPROVED,
    ServedModel,
    Stored,
    UnusableParameterError,
    in_force,
    read,
    read_history,
    replace,
    settle,
    start_release,
    write,
)

PARAMETER = "/quench/model"
PACKAGES = "arn:aws:sagemaker:us-east-1:123456789012:model-package/quench-models"
BEDROCK = "arn:aws:bedrock:us-east-1:123456789012"


def approved(number):
    """A model by the version of its package, which says how late it was approved."""
    return ServedModel(
        model_id=f"{BEDROCK}:custom-model-deployment/{number:012}",
        base_model="amazon.nova-micro-v1:0:128k",
        custom_model=f"{BEDROCK}:custom-model/x/{number:012}",
        model_package=f"{PACKAGES}/{number}",
        approved_at=datetime(2026, 11, 20, 12, number, tzinfo=UTC),
    )


A, B, C = approved(1), approved(2), approved(3)


@pytest.fixture
def ssm(moto_aws):
    return clients.client("ssm")


@pytest.fixture
def registry(moto_aws, stub):
    """Say what the registry will answer on a package, once, and whether the model is served."""
    sagemaker, bedrock = stub("sagemaker"), stub("bedrock")

    def answer(model, status, served=True):
        request = {"ModelPackageName": model.model_package}
        if status is None:
            sagemaker.add_client_error(
                "describe_model_package",
                "ValidationException",
                f"ModelPackage {model.model_package} does not exist.",
                expected_params=request,
            )
            return
        package = {
            "ModelPackageName": "quench-models",
            "ModelPackageArn": model.model_package,
            "CreationTime": 1795172553,
            "ModelPackageStatus": "Completed",
            "ModelPackageStatusDetails": {"ValidationStatuses": []},
            "ModelApprovalStatus": status,
        }
        sagemaker.add_response("describe_model_package", package, request)
        if status != "Approved":
            return
        bedrock.add_response(
            "list_provisioned_model_throughputs", {"provisionedModelSummaries": []}
        )
        deployment = {
            "customModelDeploymentArn": model.model_id,
            "customModelDeploymentName": "players",
            "modelArn": model.custom_model,
            "createdAt": 1795172553,
            "status": "Active",
        }
        bedrock.add_response(
            "list_custom_model_deployments",
            {"modelDeploymentSummaries": [deployment] if served else []},
            {"modelArnEquals": model.custom_model, "statusEquals": "Active"},
        )

    return answer


def put(*models):
    for model in models:
        write(PARAMETER, model)


def test_a_parameter_that_is_not_there_holds_nothing(ssm):
    assert read(PARAMETER) is None
    assert read_history(PARAMETER) == []
    assert settle(PARAMETER) is None


def test_the_newest_version_is_what_the_parameter_holds(ssm):
    put(A, B)
    stored = read(PARAMETER)
    assert (stored.version, stored.model) == (2, B)
    assert stored == read_history(PARAMETER)[-1] == settle(PARAMETER)


def test_the_history_comes_in_pages(ssm):
    put(*[approved(number % 50) for number in range(70)])
    assert [stored.version for stored in read_history(PARAMETER)] == list(range(1, 71))


def test_a_former_value_of_somebody_else_is_left_out(ssm, caplog):
    put(A)
    ssm.put_parameter(Name=PARAMETER, Value="precious", Overwrite=True)
    with pytest.raises(UnusableParameterError, match="/quench/model does not hold a served model"):
        settle(PARAMETER)
    put(B)
    assert [stored.model for stored in read_history(PARAMETER)] == [A, B]
    assert "version 2 is left out" in caplog.text


def test_the_constant_of_the_template_is_the_base_model(ssm):
    value = json.dumps(dict.fromkeys(ServedModel.model_fields))
    ssm.put_parameter(Name=PARAMETER, Value=value, Type="String")
    assert read(PARAMETER).model == NOTHING_APPROVED


@pytest.mark.parametrize(
    ("history", "rejected", "expected"),
    [
        ([], [], NOTHING_APPROVED),
        ([NOTHING_APPROVED, A, B], [], B),
        ([NOTHING_APPROVED, B, A], [], B),  # A was written by who had not seen B
        ([B, A], [B], A),  # B was taken back
        ([B, NOTHING_APPROVED], [B], NOTHING_APPROVED),
        ([B, NOTHING_APPROVED], [], B),
        ([C, B, A], [], C),
        ([C, B, A, B], [], C),  # B was written back, which is not enough
        ([A, B, C, A], [C], A),  # B gave way to C, and comes not back when C is taken back
        ([A, B, A, NOTHING_APPROVED], [A, B], NOTHING_APPROVED),
        ([A, B, A, C], [B], C),
        ([A, B], [A, B], B),  # a rejection alone changes nothing
    ],
)
def test_what_is_in_force(history, rejected, expected):
    assert in_force(history, lambda model: model not in rejected) == expected


@given(
    st.lists(st.integers(0, 9).map(approved), min_size=1),
    st.sets(st.integers(0, 9).map(approved)),
)
def test_what_is_in_force_settles_itself(history, approved_still):
    """Writing it makes it the newest value, and nothing else comes into force by that."""
    model = in_force(history, approved_still.__contains__)
    assert in_force([*history, model], approved_still.__contains__) == model
    latest = max(approved_still & set(history), key=lambda model: model.approved_at, default=None)
    if latest == max(history, key=lambda model: model.approved_at):
        assert model == latest


def test_the_later_approval_comes_back(ssm, registry, caplog):
    put(NOTHING_APPROVED, B, A)
    registry(B, "Approved")
    registry(B, "Approved")
    stored = settle(PARAMETER)
    assert (stored.model, stored.version) == (B, 4)
    assert stored == read(PARAMETER)
    assert f"{A.name} gives way to {B.name}" in caplog.text


@pytest.mark.parametrize("status", ["Rejected", "PendingManualApproval", None])
def test_an_approval_that_no_longer_stands_does_not_come_back(ssm, registry, status):
    put(B)
    registry(B, status)
    assert replace(PARAMETER, A).model == A
    assert read(PARAMETER).version == 2


def test_an_approval_that_nothing_serves_any_more_does_not_come_back(ssm, registry):
    put(B)
    registry(B, "Approved", served=False)
    assert replace(PARAMETER, A).model == A
    assert read(PARAMETER).version == 2


def test_of_three_that_raced_the_latest_comes_back(ssm, registry):
    put(C, B, A)
    registry(C, "Approved")
    registry(C, "Approved")
    assert settle(PARAMETER).model == C


def test_a_write_while_settling_is_seen(ssm, registry, monkeypatch):
    """C comes between what settle sees and what it writes."""
    put(B, A)
    for model in (B, B, C, B, C):
        registry(model, "Approved")
    writes = [C]

    def write_late(name, model):
        while writes:
            write(name, writes.pop())
        write(name, model)

    monkeypatch.setattr(served_model, "write", write_late)
    assert settle(PARAMETER).model == C


def test_a_registry_that_does_not_answer_is_an_error(ssm, stub):
    put(B, A)
    stub("sagemaker").add_client_error("describe_model_package", "AccessDeniedException", "no")
    with pytest.raises(ClientError, match="AccessDenied"):
        settle(PARAMETER)


def test_a_version_has_one_release(moto_aws, stub):
    tokens = []

    class Token:
        def __eq__(self, other):
            tokens.append(other)
            return len(other) <= 128 and other.replace("-", "").isalnum() and other.isascii()

        __hash__ = None

    now = datetime.now(UTC)
    for stored in (Stored(1, now, A), Stored(1, now, A), Stored(2, now, A), Stored(1, now, B)):
        stub("codepipeline").add_response(
            "start_pipeline_execution",
            {"pipelineExecutionId": "12345678-1234-1234-1234-123456789012"},
            {"name": "quench-release", "clientRequestToken": Token()},
        )
        assert start_release("quench-release", stored) == "12345678-1234-1234-1234-123456789012"
    assert tokens[0] == tokens[1]
    assert len(set(tokens)) == 3
