"""A cloud that stops ends what its pipelines run, and tells nobody."""

import json
import threading
import time
from pathlib import Path

from local.cloud import Cloud
from local.config import LocalConfig

PATIENCE = 30.0
PROMPTLY = 10.0  # on a machine that is busy with other tests
ROLE = "arn:aws:iam::123456789012:role/pipeline"


def test_a_cloud_that_stops_leaves_nothing_running(tmp_path: Path) -> None:
    tree, marker = tmp_path / "tree", tmp_path / "pid"
    tree.mkdir()
    (tree / "README").write_text("released")
    commands = [f"echo $$ > {marker}.new && mv {marker}.new {marker} && sleep 60"]
    buildspec = {"version": "0.2", "phases": {"build": {"commands": commands}}}
    with Cloud(LocalConfig(port=0, state_dir=tmp_path / "cloud", source=tree)) as cloud:
        cloud.client("codebuild").create_project(
            name="endless",
            source={"type": "CODEPIPELINE", "buildspec": json.dumps(buildspec)},
            artifacts={"type": "CODEPIPELINE"},
            environment={
                "type": "LINUX_CONTAINER",
                "image": "aws/codebuild/standard:7.0",
                "computeType": "BUILD_GENERAL1_SMALL",
            },
            serviceRole=ROLE,
        )
        owner = {"owner": "AWS", "version": "1"}
        codepipeline = cloud.client("codepipeline")
        codepipeline.create_pipeline(
            pipeline={
                "name": "endless",
                "roleArn": ROLE,
                "artifactStore": {"type": "S3", "location": "artifacts"},
                "stages": [
                    {
                        "name": "Source",
                        "actions": [
                            {
                                "name": "Tree",
                                "actionTypeId": {
                                    "category": "Source",
                                    "provider": "CodeCommit",
                                    **owner,
                                },
                                "configuration": {"RepositoryName": "a", "BranchName": "main"},
                                "outputArtifacts": [{"name": "Source"}],
                            }
                        ],
                    },
                    {
                        "name": "Endless",
                        "actions": [
                            {
                                "name": "Build",
                                "actionTypeId": {
                                    "category": "Build",
                                    "provider": "CodeBuild",
                                    **owner,
                                },
                                "configuration": {"ProjectName": "endless"},
                                "inputArtifacts": [{"name": "Source"}],
                            },
                            {
                                "name": "Gate",
                                "actionTypeId": {
                                    "category": "Approval",
                                    "provider": "Manual",
                                    **owner,
                                },
                            },
                        ],
                    },
                ],
            }
        )
        codepipeline.start_pipeline_execution(name="endless")
        deadline = time.monotonic() + PATIENCE
        while not marker.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process = int(marker.read_text())
        begun = time.monotonic()
        cloud.stop()
        assert time.monotonic() - begun < PROMPTLY

    assert not Path(f"/proc/{process}").exists()
    assert [t.name for t in threading.enumerate() if t.name.startswith("endless/")] == []
