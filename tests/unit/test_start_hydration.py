"""start_hydration: one job for a batch, none beside a running one, and no message lost.

The jobs run in the embedded cloud, each test under its own prefix.
"""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from types import SimpleNamespace

import pytest
from botocore.exceptions import ClientError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lambdas import clients
from lambdas.validation import EnvironmentVariableError
from local.cloud import Cloud
from local.config import LocalConfig
from workflows.hydration_job import HydrationResources, hydration_job
from workflows.settings import Settings

DOCUMENTS, HYDRATION = "quench-documents", "quench-hydration"
SYNC = {"source": "quench.documents", "action": "sync"}
PATIENCE = 20.0  # seconds until a wait is given up
QUICK = "pass"
SLOW = "import time; time.sleep(60)"
# Leaves its inputs as its report.
SHOW = (
    "import os, shutil; root = os.environ['ML_ROOT'] + '/processing';"
    " shutil.copytree(f'{root}/input', f'{root}/output/report', dirs_exist_ok=True)"
)
number = count()


@pytest.fixture(scope="module")
def cloud(tmp_path_factory):
    folder = tmp_path_factory.mktemp("hydration")
    with Cloud(LocalConfig(port=0, state_dir=folder / "cloud")) as cloud:
        for bucket in (DOCUMENTS, HYDRATION):
            cloud.client("s3").create_bucket(Bucket=bucket)
        yield cloud


@pytest.fixture
def prefix():
    """Contained in the prefixes of some other tests, as other stacks' prefixes may be."""
    return f"{next(number)}-hydration"


@pytest.fixture
def load(cloud, load_function, prefix):
    """Import the function with jobs that run this Python code."""

    def load(code):
        return load_function("start_hydration", **environment(prefix, code), **cloud.environment())

    yield load
    cloud.faults.clear()
    for job in jobs(cloud, prefix):
        if job["ProcessingJobStatus"] == "InProgress":
            with suppress(ClientError):  # it ended meanwhile
                stop(cloud, job["ProcessingJobName"])


def definition(code):
    """The job as it is deployed, but with this Python code in it."""
    resources = HydrationResources(
        documents_bucket=DOCUMENTS,
        hydration_bucket=HYDRATION,
        index_location="https://search.example.com",
        image_uri="123456789012.dkr.ecr.us-east-1.amazonaws.com/assets:hydration",
        role_arn="arn:aws:iam::123456789012:role/hydration",
        region="us-east-1",
    )
    job = hydration_job(Settings(), resources)
    job["AppSpecification"]["ContainerEntrypoint"] = ["python3", "-c", code]
    return job


def environment(prefix, code):
    return {
        "PROCESSING_JOB": json.dumps(definition(code)),
        "DOCUMENTS_BUCKET": DOCUMENTS,
        "HYDRATION_BUCKET": HYDRATION,
        "JOB_PREFIX": prefix,
    }


def change(key, detail_type="Object Created", sequencer="00671DA8A14B3C2E10", bucket=DOCUMENTS):
    return {
        "source": "aws.s3",
        "detail-type": detail_type,
        "detail": {
            "bucket": {"name": bucket},
            "object": {"key": key, "version-id": "v", "sequencer": sequencer},
        },
    }


def batch(*bodies):
    """A batch of these bodies, each an event or a text; messages are named by their position."""
    return {
        "Records": [
            {
                "messageId": str(position),
                "body": body if isinstance(body, str) else json.dumps(body),
            }
            for position, body in enumerate(bodies)
        ]
    }


def failed(response):
    return [failure["itemIdentifier"] for failure in response["batchItemFailures"]]


def jobs(cloud, prefix):
    """The jobs of this prefix, oldest first."""
    answer = cloud.client("sagemaker").list_processing_jobs(NameContains=prefix)
    return [
        job
        for job in answer["ProcessingJobSummaries"]
        if job["ProcessingJobName"].startswith(prefix)
    ]


def names(cloud, prefix):
    return [job["ProcessingJobName"] for job in jobs(cloud, prefix)]


def end_of(cloud, name):
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        job = cloud.client("sagemaker").describe_processing_job(ProcessingJobName=name)
        if "ProcessingEndTime" in job:
            return job
        time.sleep(0.02)
    raise AssertionError(f"{name} runs on and on")


def stop(cloud, name):
    cloud.client("sagemaker").stop_processing_job(ProcessingJobName=name)
    end_of(cloud, name)


def create(cloud, name):
    """A job that somebody else starts, and that ends at once."""
    cloud.client("sagemaker").create_processing_job(ProcessingJobName=name, **definition(QUICK))
    end_of(cloud, name)


def change_lists(cloud, prefix):
    """The change lists written for jobs of this prefix, by key."""
    s3 = cloud.client("s3")
    listing = s3.list_objects_v2(Bucket=HYDRATION, Prefix=f"changes/{prefix}-")
    return {
        found["Key"]: json.load(s3.get_object(Bucket=HYDRATION, Key=found["Key"])["Body"])
        for found in listing.get("Contents", [])
    }


def test_a_batch_starts_one_job_with_what_changed(cloud, load, prefix, read_event, context):
    response = load(SHOW).handler(read_event("sqs_documents_changed"), context)
    assert response == {"batchItemFailures": []}

    name = f"{prefix}-000001"
    assert names(cloud, prefix) == [name]
    job = end_of(cloud, name)
    assert job["ProcessingJobStatus"] == "Completed", job
    list_name = f"{name}-{context.aws_request_id}.json"
    assert job["ProcessingInputs"] == [
        {
            "InputName": "changes",
            "S3Input": {
                "S3Uri": f"s3://{HYDRATION}/changes/{list_name}",
                "LocalPath": "/opt/ml/processing/input/changes",
                "S3DataType": "S3Prefix",
                "S3InputMode": "File",
                "S3DataDistributionType": "FullyReplicated",
            },
        }
    ]
    read = cloud.client("s3").get_object(
        Bucket=HYDRATION, Key=f"reports/{name}/changes/{list_name}"
    )["Body"]
    assert json.load(read) == {
        "upserts": [
            "lore/Flüsse+Seen/Überblick.docx",
            "lore/The Ashen Court (2nd ed.) 100%.pdf",
            "lore/The Ashen Court (2nd ed.) 100%.pdf.metadata.json",
            "lore/bestiary.md",
        ],
        "deletes": ["drafts/old.txt", "lore/retired.txt"],
    }


def test_messages_stay_while_a_job_runs(cloud, load, prefix, context):
    function = load(SLOW)
    first, second = f"{prefix}-000001", f"{prefix}-000002"
    assert failed(function.handler(batch(change("a.txt")), context)) == []
    written = change_lists(cloud, prefix)

    waiting = batch(change("b.txt"), change("c.txt"), "garbled")
    for _ in range(2):
        assert failed(function.handler(waiting, context)) == ["0", "1", "2"]
        assert function.handler(SYNC, context) == {"busy": first}
    assert names(cloud, prefix) == [first]
    assert change_lists(cloud, prefix) == written

    stop(cloud, first)
    assert failed(function.handler(waiting, context)) == ["2"]
    assert names(cloud, prefix) == [first, second]
    changes = change_lists(cloud, prefix)[f"changes/{second}-{context.aws_request_id}.json"]
    assert changes == {"upserts": ["b.txt", "c.txt"], "deletes": []}
    job = cloud.client("sagemaker").describe_processing_job(ProcessingJobName=second)
    (report,) = job["ProcessingOutputConfig"]["Outputs"]
    assert report["S3Output"]["S3Uri"] == f"s3://{HYDRATION}/reports/{second}/"


@pytest.mark.slow
def test_of_functions_that_take_the_same_name_one_starts_a_job(cloud, load, prefix, context):
    function = load(SLOW)
    all_know_the_next_name = threading.Barrier(3, timeout=PATIENCE)

    def before_creating(**_):
        all_know_the_next_name.wait()

    clients.client("sagemaker").meta.events.register(
        "before-call.sagemaker.CreateProcessingJob", before_creating
    )

    def invoke(event, request_id):
        return function.handler(
            event, SimpleNamespace(**vars(context) | {"aws_request_id": request_id})
        )

    events = [batch(change("a.txt")), batch(change("b.txt")), SYNC]
    with ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(invoke, events, ["a", "b", "sync"]))

    name = f"{prefix}-000001"
    assert names(cloud, prefix) == [name]
    job = cloud.client("sagemaker").describe_processing_job(ProcessingJobName=name)
    given = [item["S3Input"]["S3Uri"] for item in job.get("ProcessingInputs", [])]
    started = given[0].removesuffix(".json")[-1] if given else "sync"
    assert answers == [
        {"batchItemFailures": [] if started == "a" else [{"itemIdentifier": "0"}]},
        {"batchItemFailures": [] if started == "b" else [{"itemIdentifier": "0"}]},
        {"job": name} if started == "sync" else {"busy": name},
    ]


@pytest.mark.parametrize(
    ("service", "operation", "code"),
    [
        ("sagemaker", "CreateProcessingJob", "ResourceLimitExceeded"),
        ("sagemaker", "ListProcessingJobs", "AccessDeniedException"),
        ("s3", "PutObject", "AccessDenied"),
    ],
)
def test_nothing_is_taken_off_the_queue_if_no_job_can_be_created(
    cloud, load, prefix, context, service, operation, code
):
    function = load(QUICK)
    event = batch(change("a.txt"), "garbled")
    cloud.faults.add(service, operation, code, "not now")
    with pytest.raises(ClientError, match=code):
        function.handler(event, context)
    assert names(cloud, prefix) == []
    assert failed(function.handler(event, context)) == ["1"]
    assert names(cloud, prefix) == [f"{prefix}-000001"]


def test_a_message_that_is_no_event_of_a_document_fails_alone(cloud, load, prefix, context, caplog):
    event = batch(
        change("a.txt"),
        "garbled",
        change("b.txt", bucket="another-bucket"),
        change("c.txt", detail_type="Object Restore Completed"),
        change("d.txt", sequencer="last"),
        json.dumps(change("e.txt")).replace("e.txt", "\\ud800"),
        change("f.txt", detail_type="Object Deleted"),
    )
    assert failed(load(QUICK).handler(event, context)) == ["1", "2", "3", "4", "5"]
    assert list(change_lists(cloud, prefix).values()) == [
        {"upserts": ["a.txt"], "deletes": ["f.txt"]}
    ]
    assert "another-bucket is not the bucket quench-documents" in caplog.text
    assert "sequencer: String should match pattern" in caplog.text


@pytest.mark.parametrize("more", [[], ["garbled"]])
def test_folder_marks_start_no_job(cloud, load, prefix, context, more):
    marks = [change("lore/"), change("lore/", detail_type="Object Deleted")]
    response = load(QUICK).handler(batch(*marks, *more), context)
    assert failed(response) == ["2"] * len(more)
    assert names(cloud, prefix) == []


def test_a_sync_starts_a_job_over_everything(cloud, load, prefix, context):
    name = f"{prefix}-000001"
    assert load(QUICK).handler(SYNC, context) == {"job": name}
    job = end_of(cloud, name)
    assert job["ProcessingJobStatus"] == "Completed", job
    assert "ProcessingInputs" not in job
    assert change_lists(cloud, prefix) == {}


@pytest.mark.parametrize("event", [{}, SYNC | {"action": "stop"}, SYNC | {"source": "aws.s3"}])
def test_another_request_is_refused(cloud, load, prefix, context, event):
    with pytest.raises(ValueError, match="SyncRequest"):
        load(QUICK).handler(event, context)
    assert names(cloud, prefix) == []


@pytest.mark.slow
def test_numbers_follow_the_newest_job_of_the_very_prefix(cloud, load, prefix, context):
    function = load(QUICK)
    for name in ("000009", "000041", "000007"):
        create(cloud, f"{prefix}-{name}")
    for foreign in (f"x-{prefix}-000099", f"{prefix}-000077-x", f"{prefix}-12", f"{prefix}-x00001"):
        create(cloud, foreign)
    assert function.handler(SYNC, context) == {"job": f"{prefix}-000008"}
    end_of(cloud, f"{prefix}-000008")
    create(cloud, f"{prefix}-999999")
    assert function.handler(SYNC, context) == {"job": f"{prefix}-1000000"}
    end_of(cloud, f"{prefix}-1000000")
    assert function.handler(SYNC, context) == {"job": f"{prefix}-1000001"}


@pytest.mark.parametrize("status", ["InProgress", "Stopping"])
def test_a_running_job_is_found_behind_pages_of_foreign_ones(load, prefix, stub, context, status):
    function = load(QUICK)
    sagemaker = stub("sagemaker")

    def page(name, **more):
        arn = f"arn:aws:sagemaker:us-east-1:123456789012:processing-job/{name}"
        summary = {
            "ProcessingJobName": name,
            "ProcessingJobArn": arn,
            "CreationTime": 1795172553,
            "ProcessingJobStatus": status,
        }
        return {"ProcessingJobSummaries": [summary], **more}

    asked = {"NameContains": f"{prefix}-", "SortBy": "CreationTime", "SortOrder": "Descending"}
    foreign = page(f"x-{prefix}-000001", NextToken="next")
    sagemaker.add_response("list_processing_jobs", foreign, asked)
    ours = page(f"{prefix}-000001")
    sagemaker.add_response("list_processing_jobs", ours, asked | {"NextToken": "next"})
    assert function.handler(SYNC, context) == {"busy": f"{prefix}-000001"}


def as_number(sequencer):
    return int(sequencer.ljust(18, "0"), 16)


sequencers = st.lists(
    st.text("0123456789abcdef", min_size=1, max_size=18), unique_by=as_number, max_size=5
).map(lambda found: sorted(found, key=as_number))
# Of each key: what happened to it, in the order in which it did.
histories = st.dictionaries(
    st.text(st.sampled_from("ab /+%2F&?=#\"'\\~äöé\u0301日本🐉"), min_size=1, max_size=6),
    sequencers.flatmap(
        lambda moments: st.tuples(
            *(
                st.tuples(st.just(moment), st.sampled_from(["Object Created", "Object Deleted"]))
                for moment in moments
            )
        )
    ),
    max_size=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories, st.data())
def test_the_last_event_of_a_key_counts_however_they_come(fresh_function, happened, data):
    bodies = [
        json.dumps(
            change(key, detail_type, data.draw(st.sampled_from([moment, moment.upper()]))),
            ensure_ascii=data.draw(st.booleans()),
        )
        for key, history in happened.items()
        for moment, detail_type in history
    ]
    repeated = data.draw(st.lists(st.sampled_from(bodies), max_size=5)) if bodies else []
    delivered = data.draw(st.permutations(bodies + repeated))

    changes = fresh_function.collapse(map(fresh_function.read_event, delivered))

    last = {key: history[-1][1] for key, history in happened.items() if history}
    assert changes.upserts == sorted(
        key for key in last if last[key] == "Object Created" and not key.endswith("/")
    )
    assert changes.deletes == sorted(
        key for key in last if last[key] == "Object Deleted" and not key.endswith("/")
    )


@pytest.fixture
def fresh_function(load_function):
    return load_function("start_hydration", **environment("quench-hydration", QUICK))


@pytest.mark.parametrize(
    ("variable", "value", "problem"),
    [
        ("PROCESSING_JOB", "{", "PROCESSING_JOB: Invalid JSON"),
        ("JOB_PREFIX", "q" * 57, "JOB_PREFIX: String should have at most 56 characters"),
        ("JOB_PREFIX", "quench_hydration", "JOB_PREFIX: String should match pattern"),
        ("DOCUMENTS_BUCKET", "", "DOCUMENTS_BUCKET: Field required"),
    ],
)
def test_a_bad_environment_variable_is_named(load_function, variable, value, problem):
    with pytest.raises(EnvironmentVariableError, match=problem):
        load_function("start_hydration", **environment("q", QUICK) | {variable: value})


def test_the_longest_names_fit_into_lambdas_environment():
    """All variables together hold 4 KB: names, values and what JSON adds to them."""
    bucket, name, region = "b" * 63, "n" * 20, "ap-southeast-5"
    registry = f"123456789012.dkr.ecr.{region}.amazonaws.com"
    resources = HydrationResources(
        documents_bucket=bucket,
        hydration_bucket=bucket,
        index_location="https://" + "e" * 248,  # 256 characters is all that a job's argument holds
        image_uri=f"{registry}/cdk-hnb659fds-container-assets-123456789012-{region}:{'a' * 64}",
        role_arn=f"arn:aws:iam::123456789012:role/{'r' * 64}",
        region=region,
    )
    variables = {
        "PROCESSING_JOB": json.dumps(hydration_job(Settings(), resources)),
        "DOCUMENTS_BUCKET": bucket,
        "HYDRATION_BUCKET": bucket,
        "JOB_PREFIX": f"{name}-hydration",
        "POWERTOOLS_SERVICE_NAME": "start_hydration",
    }
    assert len(json.dumps(variables)) <= 4096
