"""Processing jobs of the embedded cloud, driven with boto3."""

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from local.cloud import Cloud
from local.config import LocalConfig

ROLE = "arn:aws:iam::123456789012:role/processing"
PATIENCE = 20.0  # seconds until a wait is given up

REPORT = """
import json, os, sys
from pathlib import Path

root = Path(os.environ["ML_ROOT"])
given = sorted(p for p in (root / "processing/input").rglob("*") if p.is_file())
host = json.loads((root / "config/resourceconfig.json").read_text())
config = json.loads((root / "config/processingjobconfig.json").read_text())
report = {
    "files": {str(p.relative_to(root / "processing/input")): p.read_text() for p in given},
    "host": host,
    "job": config["ProcessingJobName"],
    "arguments": sys.argv[1:],
    "place": os.environ["PLACE"],
    "endpoint": os.environ["AWS_ENDPOINT_URL"],
    "index": os.environ["VECTOR_INDEX_LOCATION"],
}
target = root / "processing/output/report" / (host["current_host"] + ".json")
target.write_text(json.dumps(report))
(root / "output/message").write_text("All well.")
print("read", len(given), "files")
"""
# Leaves a grandchild behind, which must not live longer than the job.
SLEEP = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open(sys.argv[1] + ".part", "w").write(str(child.pid))
__import__("os").rename(sys.argv[1] + ".part", sys.argv[1])
time.sleep(60)
"""


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("processing")
    with Cloud(LocalConfig(port=0, state_dir=folder / "cloud")) as cloud:
        s3 = cloud.client("s3")
        s3.create_bucket(Bucket="data")
        for name in ("a", "b", "c", "deep/d"):
            s3.put_object(Bucket="data", Key=f"in/{name}.txt", Body=name.encode())
        yield cloud


def request(name: str, script: Path, *arguments: str, **more: Any) -> dict[str, Any]:
    return {
        "ProcessingJobName": name,
        "RoleArn": ROLE,
        "AppSpecification": {
            "ImageUri": "image",
            "ContainerEntrypoint": ["python3", str(script)],
            "ContainerArguments": list(arguments) or ["-"],
        },
        "ProcessingResources": {"ClusterConfig": cluster(1)},
        **more,
    }


def cluster(instances: int) -> dict[str, Any]:
    return {"InstanceCount": instances, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 30}


def s3_input(name: str, uri: str, **more: str) -> dict[str, Any]:
    return {
        "InputName": name,
        "S3Input": {
            "S3Uri": uri,
            "LocalPath": f"/opt/ml/processing/input/{name}",
            "S3DataType": "S3Prefix",
            "S3InputMode": "File",
            **more,
        },
    }


def s3_output(name: str, uri: str, mode: str = "EndOfJob") -> dict[str, Any]:
    path = f"/opt/ml/processing/output/{name}"
    return {
        "OutputName": name,
        "S3Output": {"S3Uri": uri, "LocalPath": path, "S3UploadMode": mode},
    }


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def end_of(cloud: Cloud, name: str) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        job: dict[str, Any] = cloud.client("sagemaker").describe_processing_job(
            ProcessingJobName=name
        )
        return job if "ProcessingEndTime" in job else None

    return dict(until(ended))


def written(folder: Path, text: str) -> Path:
    script = folder / "script.py"
    script.write_text(text)
    return script


def reports(cloud: Cloud, prefix: str) -> dict[str, Any]:
    s3 = cloud.client("s3")
    keys = [o["Key"] for o in s3.list_objects_v2(Bucket="data", Prefix=prefix)["Contents"]]
    return {
        key.removeprefix(prefix): json.load(s3.get_object(Bucket="data", Key=key)["Body"])
        for key in keys
    }


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def test_a_job_reads_its_inputs_and_leaves_its_outputs(cloud: Cloud, tmp_path: Path) -> None:
    script = written(tmp_path, REPORT)
    job = request(
        "whole",
        script,
        "--from",
        "/opt/ml/processing/input",
        Environment={"PLACE": "/opt/ml/processing:/opt/mlx", "AWS_ENDPOINT_URL": "elsewhere"},
        ProcessingInputs=[
            s3_input("all", "s3://data/in/"),
            s3_input("one", "s3://data/in/a.txt"),
        ],
        ProcessingOutputConfig={"Outputs": [s3_output("report", "s3://data/out/whole")]},
    )
    cloud.client("sagemaker").create_processing_job(**job)
    ended = end_of(cloud, "whole")
    assert ended["ProcessingJobStatus"] == "Completed", ended
    assert ended["ExitMessage"] == "All well."
    assert "FailureReason" not in ended
    assert ended["ProcessingInputs"][0]["InputName"] == "all"

    root = cloud.config.state_dir / "processing" / "whole"
    assert reports(cloud, "out/whole/") == {
        "algo-1.json": {
            "files": {
                "all/a.txt": "a",
                "all/b.txt": "b",
                "all/c.txt": "c",
                "all/deep/d.txt": "deep/d",
                "one/a.txt": "a",
            },
            "host": {"current_host": "algo-1", "hosts": ["algo-1"]},
            "job": "whole",
            "arguments": ["--from", f"{root}/processing/input"],
            "place": f"{root}/processing:/opt/mlx",
            "endpoint": cloud.endpoint,
            "index": cloud.index_location,
        }
    }
    log = cloud.config.state_dir / "logs" / "processing" / "whole.log"
    assert log.read_text() == "read 5 files\n"
    events = cloud.client("logs").filter_log_events(
        logGroupName="/aws/sagemaker/ProcessingJobs", logStreamNamePrefix="whole/"
    )["events"]
    assert [event["message"] for event in events] == ["read 5 files"]

    with pytest.raises(ClientError) as caught:
        cloud.client("sagemaker").create_processing_job(**job)
    assert caught.value.response["Error"]["Code"] == "ResourceInUse"


def test_a_job_needs_no_inputs_and_its_environment_is_enough_for_boto3(
    cloud: Cloud, tmp_path: Path
) -> None:
    script = """
import boto3
boto3.client("s3").put_object(Bucket="data", Key="by-a-job", Body=b"done")
"""
    cloud.client("sagemaker").create_processing_job(
        **request("no-inputs", written(tmp_path, script))
    )
    ended = end_of(cloud, "no-inputs")
    assert ended["ProcessingJobStatus"] == "Completed", ended
    assert cloud.client("s3").get_object(Bucket="data", Key="by-a-job")["Body"].read() == b"done"


def test_sharding_gives_each_instance_its_part(cloud: Cloud, tmp_path: Path) -> None:
    job = request(
        "sharded",
        written(tmp_path, REPORT),
        Environment={"PLACE": "x"},
        ProcessingResources={"ClusterConfig": cluster(3)},
        ProcessingInputs=[
            s3_input("part", "s3://data/in", S3DataDistributionType="ShardedByS3Key"),
            s3_input("same", "s3://data/in/deep"),
        ],
        ProcessingOutputConfig={"Outputs": [s3_output("report", "s3://data/out/sharded")]},
    )
    cloud.client("sagemaker").create_processing_job(**job)
    assert end_of(cloud, "sharded")["ProcessingJobStatus"] == "Completed"
    found = reports(cloud, "out/sharded/")
    assert sorted(found) == ["algo-1.json", "algo-2.json", "algo-3.json"]
    parts = [
        {name for name in report["files"] if name.startswith("part/")} for report in found.values()
    ]
    assert set.union(*parts) == {"part/a.txt", "part/b.txt", "part/c.txt", "part/deep/d.txt"}
    assert sum(map(len, parts)) == 4
    assert all(parts)
    assert all(report["files"]["same/d.txt"] == "deep/d" for report in found.values())


@pytest.mark.parametrize(
    ("script", "reason", "exit_message"),
    [
        (
            "import os, sys; open(os.environ['ML_ROOT'] + '/output/message', 'w')"
            ".write('é' * 2000); sys.exit(3)",
            "AlgorithmError: " + "é" * 500,
            "é" * 512,
        ),
        (
            "raise SystemExit(2)",
            "AlgorithmError: See job logs for more information, exit code: 2",
            None,
        ),
    ],
)
def test_a_job_that_fails_says_why(
    cloud: Cloud, tmp_path: Path, script: str, reason: str, exit_message: str | None
) -> None:
    name = f"failing-{len(script)}"
    job = request(
        name,
        written(tmp_path, script),
        ProcessingOutputConfig={"Outputs": [s3_output("x", f"s3://data/out/{name}")]},
    )
    cloud.client("sagemaker").create_processing_job(**job)
    ended = end_of(cloud, name)
    assert ended["ProcessingJobStatus"] == "Failed"
    assert ended["FailureReason"].startswith(reason)
    assert ended.get("ExitMessage") == exit_message


def test_a_job_that_fails_leaves_its_continuous_outputs(cloud: Cloud, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import os, sys\n"
        "for name in ('kept', 'lost'):\n"
        "    root = os.environ['ML_ROOT']\n"
        "    open(f'{root}/processing/output/{name}/file', 'w').write(name)\n"
        "sys.exit(1)\n"
    )
    outputs = [
        s3_output("kept", "s3://data/of-failed/kept", mode="Continuous"),
        s3_output("lost", "s3://data/of-failed/lost"),
    ]
    cloud.client("sagemaker").create_processing_job(
        **request("leaves-outputs", script, ProcessingOutputConfig={"Outputs": outputs})
    )
    assert end_of(cloud, "leaves-outputs")["ProcessingJobStatus"] == "Failed"
    listing = cloud.client("s3").list_objects_v2(Bucket="data", Prefix="of-failed/")
    assert [item["Key"] for item in listing["Contents"]] == ["of-failed/kept/file"]


def test_a_job_without_its_data_fails(cloud: Cloud, tmp_path: Path) -> None:
    job = request(
        "no-data",
        written(tmp_path, REPORT),
        ProcessingInputs=[s3_input("none", "s3://data/nowhere/")],
    )
    cloud.client("sagemaker").create_processing_job(**job)
    reason = end_of(cloud, "no-data")["FailureReason"]
    assert reason.startswith('ClientError: No S3 objects found under S3 URL "s3://data/nowhere/"')


def test_one_failing_instance_ends_the_others(cloud: Cloud, tmp_path: Path) -> None:
    script = (
        "import json, os, sys, time\n"
        "host = json.load(open(os.environ['ML_ROOT'] + '/config/resourceconfig.json'))\n"
        "sys.exit(4) if host['current_host'] == 'algo-2' else time.sleep(60)\n"
    )
    job = request(
        "half", written(tmp_path, script), ProcessingResources={"ClusterConfig": cluster(2)}
    )
    cloud.client("sagemaker").create_processing_job(**job)
    ended = end_of(cloud, "half")
    assert ended["ProcessingJobStatus"] == "Failed"
    assert "exit code: 4" in ended["FailureReason"]


def test_a_stopped_job_leaves_no_process_behind(cloud: Cloud, tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    sagemaker = cloud.client("sagemaker")
    sagemaker.create_processing_job(**request("stopped", written(tmp_path, SLEEP), str(marker)))
    until(marker.exists)
    grandchild = int(marker.read_text())
    assert is_alive(grandchild)
    sagemaker.stop_processing_job(ProcessingJobName="stopped")
    assert end_of(cloud, "stopped")["ProcessingJobStatus"] == "Stopped"
    until(lambda: not is_alive(grandchild))
    with pytest.raises(ClientError, match="is in status Stopped"):
        sagemaker.stop_processing_job(ProcessingJobName="stopped")


def test_a_job_may_not_run_longer_than_its_limit(cloud: Cloud, tmp_path: Path) -> None:
    job = request(
        "long",
        written(tmp_path, "import time; time.sleep(60)"),
        StoppingCondition={"MaxRuntimeInSeconds": 1},
    )
    cloud.client("sagemaker").create_processing_job(**job)
    ended = end_of(cloud, "long")
    assert ended["ProcessingJobStatus"] == "Stopped"
    assert ended["FailureReason"] == "MaxRuntimeExceeded: ran longer than 1 seconds."


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"ProcessingJobName": "under_score"}, "ProcessingJobName"),
        ({"AppSpecification": {"ImageUri": "image"}}, "ContainerEntrypoint"),
        (
            {"ProcessingInputs": [s3_input("x", "s3://data/in", S3DataType="ManifestFile")]},
            "S3DataType ManifestFile",
        ),
        (
            {"ProcessingInputs": [s3_input("x", "s3://data/in", S3InputMode="Pipe")]},
            "S3InputMode Pipe",
        ),
        (
            {"ProcessingInputs": [s3_input("x", "s3://data/in", LocalPath="/opt/ml/../etc")]},
            "LocalPath of 'x'",
        ),
        ({"NetworkConfig": {"EnableNetworkIsolation": True}}, "EnableNetworkIsolation"),
    ],
)
def test_what_cannot_be_done_is_refused_by_name(
    cloud: Cloud, tmp_path: Path, change: dict[str, Any], complaint: str
) -> None:
    job = {**request("refused", tmp_path / "never.py"), **change}
    with pytest.raises(ClientError, match=complaint) as caught:
        cloud.client("sagemaker").create_processing_job(**job)
    assert caught.value.response["Error"]["Code"] == "ValidationException"
    with pytest.raises(cloud.client("sagemaker").exceptions.ResourceNotFound):
        cloud.client("sagemaker").describe_processing_job(ProcessingJobName="refused")


def test_jobs_are_listed_by_what_they_are_and_in_pages(cloud: Cloud, tmp_path: Path) -> None:
    sagemaker = cloud.client("sagemaker")
    scripts = {"page-b": "raise SystemExit(0)", "page-a": "raise SystemExit(1)"}
    names = [*scripts, "my-Page-c"]
    for name in names:
        folder = tmp_path / name
        folder.mkdir()
        sagemaker.create_processing_job(
            **request(name, written(folder, scripts.get(name, "raise SystemExit(0)")))
        )
        end_of(cloud, name)

    def listed(**filters: Any) -> list[str]:
        pages = sagemaker.get_paginator("list_processing_jobs").paginate(
            NameContains="page-", PaginationConfig={"PageSize": 2}, **filters
        )
        return [
            job["ProcessingJobName"] for page in pages for job in page["ProcessingJobSummaries"]
        ]

    assert listed() == names
    assert listed(SortBy="CreationTime", SortOrder="Descending") == names[::-1]
    assert listed(SortBy="Name") == ["my-Page-c", "page-a", "page-b"]
    assert listed(StatusEquals="Failed") == ["page-a"]
    assert listed(StatusEquals="Completed", SortBy="Name", SortOrder="Descending") == [
        "page-b",
        "my-Page-c",
    ]
    newest = sagemaker.list_processing_jobs(
        NameContains="page-", SortBy="CreationTime", SortOrder="Descending", MaxResults=1
    )
    assert [job["ProcessingJobName"] for job in newest["ProcessingJobSummaries"]] == names[-1:]


def test_a_jobs_states_are_events(cloud: Cloud, tmp_path: Path) -> None:
    """https://docs.aws.amazon.com/sagemaker/latest/dg/automating-sagemaker-with-eventbridge.html"""
    sqs, events = cloud.client("sqs"), cloud.client("events")
    url = sqs.create_queue(QueueName="job-states")["QueueUrl"]
    pattern = {
        "source": ["aws.sagemaker"],
        "detail-type": ["SageMaker Processing Job State Change"],
        "detail": {
            "ProcessingJobName": [{"prefix": "told-"}],
            "ProcessingJobStatus": ["Failed", "Stopped"],
        },
    }
    events.put_rule(Name="job-states", EventPattern=json.dumps(pattern))
    queue = "arn:aws:sqs:us-east-1:123456789012:job-states"
    events.put_targets(Rule="job-states", Targets=[{"Id": "1", "Arn": queue}])
    cloud.client("sagemaker").create_processing_job(
        **request("told-of", written(tmp_path, "raise SystemExit(2)"))
    )
    described = end_of(cloud, "told-of")
    (message,) = until(lambda: sqs.receive_message(QueueUrl=url).get("Messages"))
    event = json.loads(message["Body"])
    assert event["resources"] == [described["ProcessingJobArn"]]
    detail = event["detail"]
    assert detail["ProcessingJobName"] == "told-of"
    assert detail["ProcessingJobStatus"] == "Failed"
    assert detail["FailureReason"] == described["FailureReason"]
    assert detail["AppSpecification"] == described["AppSpecification"]
    for moment in (
        "CreationTime",
        "LastModifiedTime",
        "ProcessingStartTime",
        "ProcessingEndTime",
    ):
        assert detail[moment] == int(described[moment].timestamp()) * 1000
