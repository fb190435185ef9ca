"""A cloud that stops ends its executions and their processes."""

import json
import threading
import time
from pathlib import Path

from local.cloud import Cloud
from local.config import LocalConfig

PATIENCE = 20.0
SCRIPT = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
ROLE = "arn:aws:iam::123456789012:role/pipeline"


def test_a_cloud_that_stops_leaves_nothing_running(tmp_path: Path) -> None:
    script, marker = tmp_path / "script.py", tmp_path / "pid"
    script.write_text(SCRIPT)
    with Cloud(LocalConfig(port=0, state_dir=tmp_path / "cloud")) as cloud:
        queue = cloud.client("sqs").create_queue(QueueName="callbacks")["QueueUrl"]
        cluster = {"InstanceCount": 1, "InstanceType": "ml.m5.large", "VolumeSizeInGB": 1}
        job = {
            "RoleArn": ROLE,
            "ProcessingResources": {"ClusterConfig": cluster},
            "AppSpecification": {
                "ImageUri": "image",
                "ContainerEntrypoint": ["python3", str(script), str(marker)],
            },
        }
        definition = {
            "Version": "2020-12-01",
            "Steps": [
                {"Name": "Sleep", "Type": "Processing", "Arguments": job},
                {"Name": "Wait", "Type": "Callback", "Arguments": {}, "SqsQueueUrl": queue},
            ],
        }
        sagemaker = cloud.client("sagemaker")
        sagemaker.create_pipeline(
            PipelineName="endless", PipelineDefinition=json.dumps(definition), RoleArn=ROLE
        )
        sagemaker.start_pipeline_execution(PipelineName="endless")
        assert "Messages" in cloud.client("sqs").receive_message(QueueUrl=queue, WaitTimeSeconds=10)
        deadline = time.monotonic() + PATIENCE
        while not (marker.exists() and marker.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        process = int(marker.read_text())

    assert not Path(f"/proc/{process}").exists()
    left = [t.name for t in threading.enumerate() if t.name.startswith("arn:aws:sagemaker")]
    assert left == []
