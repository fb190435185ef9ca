"""start_tuning: which events start an execution, which wait, and which are refused."""

import re
from datetime import UTC, datetime

import pytest

from lambdas import clients
from lambdas.validation import EnvironmentVariableError

EXECUTION = "arn:aws:sagemaker:us-east-1:123456789012:pipeline/quench-tuning/execution/7pinimwddh3a"
ENVIRONMENT = {
    "PIPELINE_NAME": "quench-tuning",
    "DATA_BUCKET": "quench-data",
    "DATASET_PREFIX": "datasets/",
}


class AnyText:
    """Equal to every string that matches, and remembers those it met."""

    def __init__(self, pattern):
        self.pattern = pattern
        self.met = []

    def __eq__(self, other):
        self.met.append(other)
        return re.fullmatch(self.pattern, other) is not None

    __hash__ = None


@pytest.fixture
def function(load_function):
    return load_function("start_tuning", **ENVIRONMENT)


@pytest.fixture
def sagemaker(stub, function):
    return stub("sagemaker")


@pytest.fixture
def bucket(moto_aws):
    s3 = clients.client("s3")
    s3.create_bucket(Bucket="quench-data")
    s3.put_bucket_versioning(Bucket="quench-data", VersioningConfiguration={"Status": "Enabled"})
    return s3


def expect_list(sagemaker, *executions):
    summaries = [
        {
            "PipelineExecutionArn": EXECUTION,
            "PipelineExecutionDisplayName": name,
            "PipelineExecutionStatus": status,
            "StartTime": datetime(2026, 11, 1, tzinfo=UTC),
        }
        for name, status in executions
    ]
    sagemaker.add_response(
        "list_pipeline_executions",
        {"PipelineExecutionSummaries": summaries},
        {"PipelineName": "quench-tuning"},
    )


def expect_start(sagemaker, uri, version):
    """Expect a start; the matchers remember name and token, valid as the service wants them."""
    name = AnyText(r"(?=.{1,82}$)[a-zA-Z0-9](-*[a-zA-Z0-9]){0,81}")
    token = AnyText(r".{32,128}")
    sagemaker.add_response(
        "start_pipeline_execution",
        {"PipelineExecutionArn": EXECUTION},
        {
            "PipelineName": "quench-tuning",
            "PipelineExecutionDisplayName": name,
            "PipelineParameters": [
                {"Name": "DatasetUri", "Value": uri},
                {"Name": "DatasetVersion", "Value": version},
            ],
            "ClientRequestToken": token,
        },
    )
    return name, token


def test_an_uploaded_file_starts_an_execution(function, sagemaker, read_event, context):
    event = read_event("s3_object_created")
    version = event["detail"]["object"]["version-id"]
    expect_list(sagemaker)
    name, _ = expect_start(sagemaker, "s3://quench-data/datasets/dialogues.jsonl", version)

    result = function.handler(event, context)

    assert result == {
        "execution": EXECUTION,
        "dataset": "s3://quench-data/datasets/dialogues.jsonl",
        "version": version,
    }
    assert name.met[0].startswith("dialogues-jsonl-")


def test_an_event_that_comes_three_times_asks_for_the_same_execution(
    function, sagemaker, read_event, context
):
    event = read_event("s3_object_created")
    version = event["detail"]["object"]["version-id"]
    asked = set()
    for _ in range(3):  # the list is slow to show a new execution: the token must do
        expect_list(sagemaker)
        name, token = expect_start(sagemaker, "s3://quench-data/datasets/dialogues.jsonl", version)
        function.handler(event, context)
        asked.add((name.met[0], token.met[0]))
    assert len(asked) == 1


def test_an_event_that_comes_after_the_execution_succeeded_is_skipped(
    function, sagemaker, read_event, context
):
    event = read_event("s3_object_created")
    obj = event["detail"]["object"]
    name = function.Dataset("quench-data", obj["key"], obj["version-id"]).display_name
    expect_list(sagemaker, (name, "Succeeded"))
    assert EXECUTION in function.handler(event, context)["skipped"]


def test_a_new_version_of_the_same_key_starts_its_own_execution(
    function, sagemaker, read_event, context
):
    asked = set()
    for version in ("one", "two"):
        event = read_event("s3_object_created")
        event["detail"]["object"]["version-id"] = version
        expect_list(sagemaker)
        name, token = expect_start(sagemaker, "s3://quench-data/datasets/dialogues.jsonl", version)
        function.handler(event, context)
        asked |= {name.met[0], token.met[0]}
    assert len(asked) == 4


def test_a_success_object_starts_an_execution_for_its_folder(
    function, sagemaker, read_event, context
):
    event = read_event("s3_success_object_created")
    expect_list(sagemaker)
    expect_start(
        sagemaker,
        "s3://quench-data/datasets/emberfall/2026-11/",
        event["detail"]["object"]["version-id"],
    )
    assert function.handler(event, context)["execution"] == EXECUTION


@pytest.mark.parametrize(
    "key",
    [
        "datasets/emberfall/part-0001.jsonl",
        "datasets/emberfall/image.png",
        "datasets/emberfall/",
        "datasets/",
        "runs/7pinimwddh3a/train/data.jsonl",
    ],
)
def test_files_of_a_folder_and_foreign_keys_start_nothing(
    function, sagemaker, read_event, context, key
):
    event = read_event("s3_object_created")
    event["detail"]["object"]["key"] = key
    assert key in function.handler(event, context)["skipped"]


@pytest.mark.parametrize(
    ("key", "size", "cause"),
    [
        ("datasets/dialogues.docx", 100, "allowed are .jsonl"),
        ("datasets/dialogues.gz", 100, "allowed are .jsonl"),
        ("datasets/_SUCCESS", 0, "folder"),
        ("datasets/dialogues.csv", 0, "is empty"),
        (f"datasets/{'d' * 250}.csv", 100, "256 characters"),
        ("datasets/dialogues (1).jsonl", 100, "holds '('"),
        ("datasets/dialogues,final.jsonl", 100, "holds ','"),
        ("datasets/Ra\u0308tsel.jsonl", 100, "letters, digits"),
    ],
)
def test_what_cannot_be_a_dataset_is_an_error_that_names_it(
    function, sagemaker, read_event, context, key, size, cause
):
    event = read_event("s3_object_created")
    event["detail"]["object"] |= {"key": key, "size": size}
    with pytest.raises(function.UnusableDatasetError) as raised:
        function.handler(event, context)
    assert f"s3://quench-data/{key}" in str(raised.value)
    assert cause in str(raised.value)


def test_names_without_a_letter_of_the_alphabet_still_make_a_display_name(
    function, sagemaker, read_event, context
):
    event = read_event("s3_object_created")
    event["detail"]["object"]["key"] = "datasets/対話/_SUCCESS"
    expect_list(sagemaker)
    name, _ = expect_start(
        sagemaker, "s3://quench-data/datasets/対話/", event["detail"]["object"]["version-id"]
    )
    function.handler(event, context)
    assert name.met[0].startswith("dataset-")


def test_the_schedule_takes_the_newest_dataset(function, sagemaker, bucket, read_event, context):
    versions = {}
    keys = ("old.csv", "deep/part.jsonl", "deep/_SUCCESS", "notes.docx", "empty.csv", "new (1).csv")
    for key in keys:
        body = b"" if key in ("empty.csv", "deep/_SUCCESS") else b"content"
        answer = bucket.put_object(Bucket="quench-data", Key=f"datasets/{key}", Body=body)
        versions[key] = answer["VersionId"]
    expect_list(sagemaker)
    expect_start(sagemaker, "s3://quench-data/datasets/deep/", versions["deep/_SUCCESS"])
    assert function.handler(read_event("schedule"), context)["version"] == versions["deep/_SUCCESS"]


@pytest.mark.parametrize("status", ["Executing", "Stopping", "Succeeded"])
def test_the_schedule_skips_a_dataset_that_is_tuned_already(
    function, sagemaker, bucket, read_event, context, status
):
    answer = bucket.put_object(Bucket="quench-data", Key="datasets/old.csv", Body=b"x")
    name = function.Dataset("quench-data", "datasets/old.csv", answer["VersionId"]).display_name
    expect_list(sagemaker, ("another", "Executing"), (name, status))
    assert "is tuned by" in function.handler(read_event("schedule"), context)["skipped"]


def test_the_schedule_tries_again_what_failed(function, sagemaker, bucket, read_event, context):
    answer = bucket.put_object(Bucket="quench-data", Key="datasets/old.csv", Body=b"x")
    version = answer["VersionId"]
    name = function.Dataset("quench-data", "datasets/old.csv", version).display_name
    tokens = []
    for event in (
        read_event("schedule"),
        read_event("schedule"),
        read_event("schedule") | {"time": "2026-11-22T03:00:00Z"},
    ):
        expect_list(sagemaker, (name, "Failed"))
        _, token = expect_start(sagemaker, "s3://quench-data/datasets/old.csv", version)
        function.handler(event, context)
        tokens.append(token.met[0])
    assert tokens[0] == tokens[1] != tokens[2]


def test_the_schedule_says_when_there_is_no_dataset(
    function, sagemaker, bucket, read_event, context
):
    assert function.handler(read_event("schedule"), context) == {
        "skipped": "there is no dataset in s3://quench-data/datasets/"
    }


def test_a_bucket_without_versions_is_a_clear_error(function, read_event, context):
    event = read_event("s3_object_created")
    del event["detail"]["object"]["version-id"]
    with pytest.raises(ValueError, match="version-id"):
        function.handler(event, context)


def test_a_missing_environment_variable_is_named(load_function, monkeypatch):
    monkeypatch.delenv("PIPELINE_NAME", raising=False)
    with pytest.raises(EnvironmentVariableError, match="PIPELINE_NAME: Field required"):
        load_function("start_tuning", DATA_BUCKET="b", DATASET_PREFIX="datasets/")
