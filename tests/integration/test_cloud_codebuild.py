"""CodeBuild in the embedded cloud: projects of a template, and builds as a pipeline runs them."""

import io
import json
import shutil
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from botocore.exceptions import ClientError

from local.cloud import Cloud
from local.codebuild import builds
from local.codebuild.builds import Build
from local.codebuild.service import CodeBuildService
from local.config import LocalConfig

PATIENCE = 60.0  # seconds until a wait is given up
BUCKET = "cdk-hnb659fds-assets-123456789012-us-east-1"
ENVIRONMENT = {
    "Type": "LINUX_CONTAINER",
    "Image": "aws/codebuild/standard:7.0",
    "ComputeType": "BUILD_GENERAL1_SMALL",
    "ImagePullCredentialsType": "CODEBUILD",
    "PrivilegedMode": False,
}


def project(**more: Any) -> dict[str, Any]:
    """A project as CDK Pipelines writes it."""
    return {
        "Type": "AWS::CodeBuild::Project",
        "Properties": {
            "Artifacts": {"Type": "CODEPIPELINE"},
            "Cache": {"Type": "NO_CACHE"},
            "Environment": ENVIRONMENT,
            "ServiceRole": "arn:aws:iam::123456789012:role/build",
            "Source": {"Type": "CODEPIPELINE"},
            **more,
        },
    }


def template() -> dict[str, Any]:
    variables = [
        {"Name": "FROM_SPEC_AND_PROJECT", "Type": "PLAINTEXT", "Value": "project"},
        {"Name": "FROM_ALL", "Value": "project"},
    ]
    inline = {"version": "0.2", "phases": {"build": {"commands": ["echo inline > made"]}}}
    return {
        "Resources": {
            "Caching": project(
                Name="caching",
                Cache={"Type": "LOCAL", "Modes": ["LOCAL_CUSTOM_CACHE"]},
                Environment={**ENVIRONMENT, "EnvironmentVariables": variables},
                Description="Builds what its source says",
                TimeoutInMinutes=30,
                Tags=[{"Key": "room", "Value": "release"}],
            ),
            "Inline": project(
                Source={
                    "Type": "CODEPIPELINE",
                    "BuildSpec": json.dumps({**inline, "artifacts": {"files": "made"}}, indent=2),
                }
            ),
        },
        "Outputs": {
            name: {"Value": value}
            for name, value in {
                "Caching": {"Ref": "Caching"},
                "Inline": {"Ref": "Inline"},
                "Arn": {"Fn::GetAtt": ["Caching", "Arn"]},
            }.items()
        },
    }


def write_assembly(folder: Path, name: str, body: dict[str, Any], **assets: dict[str, Any]) -> Path:
    """A cloud assembly of one stack, as the CDK would write it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.template.json").write_text(json.dumps(body))
    (folder / f"{name}.assets.json").write_text(json.dumps(assets))
    artifacts = {
        name: {
            "type": "aws:cloudformation:stack",
            "environment": "aws://unknown-account/us-east-1",
            "properties": {"templateFile": f"{name}.template.json", "stackName": name.lower()},
            "dependencies": [f"{name}.assets"],
        },
        f"{name}.assets": {
            "type": "cdk:asset-manifest",
            "properties": {"file": f"{name}.assets.json"},
        },
    }
    (folder / "manifest.json").write_text(json.dumps({"version": "1", "artifacts": artifacts}))
    return folder


def file_asset(path: str, key: str) -> dict[str, Any]:
    return {
        "source": {"path": path, "packaging": "zip"},
        "destinations": {
            "here-1": {
                "bucketName": "cdk-hnb659fds-assets-${AWS::AccountId}-us-east-1",
                "objectKey": key,
                "assumeRoleArn": "arn:${AWS::Partition}:iam::${AWS::AccountId}:role/publishing",
            }
        },
    }


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("codebuild")
    wheels = folder / "tree" / ".quench" / "cache" / "wheels"
    wheels.mkdir(parents=True)
    (wheels / "wheel").write_text("a wheel")
    config = LocalConfig(port=0, state_dir=folder / "cloud", source=folder / "tree")
    with Cloud(config) as running:
        yield running


@pytest.fixture(scope="module")
def outputs(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    assembly = write_assembly(tmp_path_factory.mktemp("assembly"), "Projects", template())
    return cloud.deploy(assembly)["projects"]


class Pipeline:
    """What a pipeline does with a project: it gives it a source and takes its artifacts."""

    def __init__(self, cloud: Cloud, project: str, folder: Path) -> None:
        self.cloud = cloud
        self.project = project
        self.stopped = threading.Event()
        self.source = folder / "source"
        self.artifacts = folder / "artifacts"
        self.source.mkdir()
        self.artifacts.mkdir()

    def spec(self, *build: str, **more: Any) -> None:
        """Let the source's buildspec have these commands, and more."""
        phases = {"build": {"commands": list(build)}, **more.pop("phases", {})}
        self.write("buildspec.yml", json.dumps({"version": 0.2, "phases": phases, **more}))

    def write(self, name: str, text: str) -> Path:
        file = self.source / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def run(
        self,
        *,
        hands_on: bool = False,
        service: CodeBuildService | None = None,
        **environment: str,
    ) -> Build:
        service = service or cast(CodeBuildService, self.cloud.services["codebuild"])
        return service.run(
            self.project,
            self.source,
            revision="4f2c",
            environment=environment,
            artifacts=self.artifacts if hands_on else None,
            stopped=self.stopped,
            initiator="codepipeline/release",
        )

    def build(self, *commands: str, **more: Any) -> Build:
        self.spec(*commands, **more)
        return self.run()

    def result(self) -> dict[str, str]:
        return {
            str(file.relative_to(self.artifacts)): file.read_text()
            for file in self.artifacts.rglob("*")
            if file.is_file()
        }


@pytest.fixture
def pipeline(cloud: Cloud, outputs: dict[str, str], tmp_path: Path) -> Pipeline:
    return Pipeline(cloud, outputs["Caching"], tmp_path)


def until(condition: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := condition():
            return found
        time.sleep(0.02)
    raise AssertionError("waited in vain")


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


class TestProjects:
    def test_a_template_makes_them(self, cloud: Cloud, outputs: dict[str, str]) -> None:
        codebuild = cloud.client("codebuild")
        (found,) = codebuild.batch_get_projects(names=["caching"])["projects"]
        assert found["arn"] == outputs["Arn"]
        assert found["arn"] == "arn:aws:codebuild:us-east-1:123456789012:project/caching"
        assert found["environment"]["image"] == "aws/codebuild/standard:7.0"
        assert found["environment"]["privilegedMode"] is False
        assert found["timeoutInMinutes"] == 30
        assert found["tags"] == [{"key": "room", "value": "release"}]
        assert outputs["Inline"].startswith("projects-Inline-")
        assert set(codebuild.list_projects()["projects"]) == {"caching", outputs["Inline"]}
        assert codebuild.batch_get_projects(names=["none"])["projectsNotFound"] == ["none"]

    def test_an_update_takes_back_what_the_template_no_longer_says(
        self, cloud: Cloud, tmp_path: Path
    ) -> None:
        codebuild = cloud.client("codebuild")
        body = {"Resources": {"Project": project(Name="changing", TimeoutInMinutes=5)}}
        cloud.deploy(write_assembly(tmp_path, "Changing", body))
        body = {"Resources": {"Project": project(Name="changing", Description="changed")}}
        cloud.deploy(write_assembly(tmp_path, "Changing", body))
        (found,) = codebuild.batch_get_projects(names=["changing"])["projects"]
        assert (found["description"], found["timeoutInMinutes"]) == ("changed", 60)
        cloud.client("cloudformation").delete_stack(StackName="changing")
        assert codebuild.batch_get_projects(names=["changing"])["projects"] == []

    @pytest.mark.parametrize(
        ("more", "named"),
        [
            ({"VpcConfig": {"VpcId": "vpc-1"}}, "vpcConfig"),
            ({"BuildBatchConfig": {"ServiceRole": "role"}}, "buildBatchConfig"),
            ({"Source": {"Type": "GITHUB"}}, "source must be of type CODEPIPELINE, not GITHUB"),
            ({"Artifacts": {"Type": "S3"}}, "artifacts must be of type CODEPIPELINE, not S3"),
            ({"Visibility": "PUBLIC_READ"}, "Visibility"),
            ({"LogsConfig": {"S3Logs": {"Status": "ENABLED", "Location": "logs"}}}, "s3Logs"),
            (
                {
                    "Environment": {
                        **ENVIRONMENT,
                        "EnvironmentVariables": [
                            {"Name": "TOKEN", "Type": "SECRETS_MANAGER", "Value": "secret"}
                        ],
                    }
                },
                r"SECRETS_MANAGER \(TOKEN\)",
            ),
        ],
    )
    def test_what_cannot_be_honoured_is_refused_by_name(
        self, cloud: Cloud, more: dict[str, Any], named: str
    ) -> None:
        body = json.dumps({"Resources": {"Project": project(Name="refused", **more)}})
        with pytest.raises(ClientError, match=named):
            cloud.client("cloudformation").create_stack(StackName="refused", TemplateBody=body)

    def test_so_are_builds_outside_of_a_pipeline(self, cloud: Cloud) -> None:
        with pytest.raises(ClientError, match=r"does not implement codebuild:StartBuild"):
            cloud.client("codebuild").start_build(projectName="caching")

    def test_unknown_names_have_error_codes(self, cloud: Cloud, pipeline: Pipeline) -> None:
        codebuild = cloud.client("codebuild")
        with pytest.raises(codebuild.exceptions.ResourceNotFoundException):
            codebuild.list_builds_for_project(projectName="none")
        with pytest.raises(codebuild.exceptions.ResourceNotFoundException):
            codebuild.stop_build(id="none:1")


class TestCommands:
    def test_share_one_shell_and_change_only_a_copy(self, pipeline: Pipeline) -> None:
        note = pipeline.write("sub/note", "as it was")
        pipeline.spec(
            "cd sub",
            "plain=1; export OPEN=2; add() { echo $(($1 + 1)); }",
            'echo "$(pwd) $plain $OPEN $(add 2)" | tee note',
            "cat note; read -r line || echo no input",
            phases={"post_build": {"commands": ['[ "$CODEBUILD_SRC_DIR/sub $plain" = "$PWD 1" ]']}},
        )
        build = pipeline.run()
        assert build.status == "SUCCEEDED", build.reason
        lines = build.log_file.read_text().splitlines()
        at = next(at for at, line in enumerate(lines) if line.endswith("Running command cd sub"))
        assert lines[at + 3].endswith("/src/sub 1 2 3")
        assert lines[at + 4].endswith("Running command cat note; read -r line || echo no input")
        assert lines[at + 6] == "no input"
        assert note.read_text() == "as it was"

    def test_the_first_that_fails_ends_its_phase(self, pipeline: Pipeline) -> None:
        build = pipeline.build(
            "seq 100",
            "echo broken >&2; false",
            "touch never",
            phases={"post_build": {"commands": ["echo after $CODEBUILD_BUILD_SUCCEEDING"]}},
        )
        assert build.status == "FAILED"
        assert build.reason == (
            "BUILD failed: `echo broken >&2; false` exited with code 1:\nbroken"
        )
        text = build.log_file.read_text()
        assert "\nafter 0\n" in text
        assert "touch never" not in text

    def test_the_reason_has_the_last_lines_only(self, pipeline: Pipeline) -> None:
        reason = pipeline.build("seq 1000; exit 3").reason
        assert reason.startswith("BUILD failed: `seq 1000; exit 3` exited with code 3:\n981\n")
        assert reason.endswith("\n1000")

    def test_one_may_end_the_shell(self, pipeline: Pipeline) -> None:
        pre_build = {"pre_build": {"commands": ["lost=1", "set -e", "false", "echo never"]}}
        build = pipeline.build("echo never", phases=pre_build)
        assert build.reason == "PRE_BUILD failed: `false` exited with code 1."
        assert "Running command echo never" not in build.log_file.read_text()
        build = pipeline.build("lost=1; exit 0", 'echo "then $lost"')
        assert build.status == "SUCCEEDED"
        assert "\nthen \n" in build.log_file.read_text()

    def test_run_in_sh_where_there_is_no_bash(
        self, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "which", lambda _: None)
        build = pipeline.build(
            "mkdir deep; cd deep; kept=1", "true & wait", "pwd; echo $kept; ls x"
        )
        assert build.reason.startswith("BUILD failed: `pwd; echo $kept; ls x` exited with code 2:")
        assert "/src/deep\n1\n" in build.reason

    def test_one_may_leave_a_process_behind_till_the_end(self, pipeline: Pipeline) -> None:
        pid = pipeline.source / "pid"
        build = pipeline.build(f"sleep 60 & echo $! > {pid}", f"kill -0 $(cat {pid})")
        assert build.status == "SUCCEEDED", build.reason
        until(lambda: not is_alive(int(pid.read_text())))

    def test_those_of_the_install_phase_are_skipped_and_said_to_be(
        self, pipeline: Pipeline
    ) -> None:
        install = {
            "commands": ["npm install -g aws-cdk@2", "touch installed"],
            "runtime-versions": {"python": 3.13},
        }
        build = pipeline.build("[ ! -e installed ]", phases={"install": install})
        assert build.status == "SUCCEEDED", build.reason
        text = build.log_file.read_text()
        assert "installed beside Quench: npm install -g aws-cdk@2\n" in text
        assert "installed beside Quench: touch installed\n" in text

    def test_see_the_builds_variables_and_no_others(
        self, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SECRET_OF_THIS_PROCESS", "1")
        monkeypatch.setenv("QUENCH_TUNING__CHECK_SECONDS", "300")
        monkeypatch.setenv("QUENCH_NAME", "host")
        names = ("FROM_SPEC", "FROM_SPEC_AND_PROJECT", "FROM_ALL", "QUENCH_NAME")
        pipeline.spec(
            f"{sys.executable} -c 'import json, os; print(json.dumps(dict(os.environ)))' > seen",
            env={"variables": dict.fromkeys(names, "spec")},
            artifacts={"files": ["seen"]},
        )
        build = pipeline.run(hands_on=True, FROM_ALL="pipeline", AWS_ENDPOINT_URL="elsewhere")
        assert build.status == "SUCCEEDED", build.reason
        seen = json.loads(pipeline.result()["seen"])
        assert [seen[name] for name in names] == ["spec", "project", "pipeline", "spec"]
        assert seen["QUENCH_TUNING__CHECK_SECONDS"] == "300"
        assert "SECRET_OF_THIS_PROCESS" not in seen
        assert seen.items() >= pipeline.cloud.environment().items()
        assert seen["CI"] == "true"
        assert seen["CODEBUILD_BUILD_ID"] == build.id
        assert seen["CODEBUILD_BUILD_ARN"] == build.arn
        assert seen["CODEBUILD_INITIATOR"] == "codepipeline/release"
        assert seen["CODEBUILD_RESOLVED_SOURCE_VERSION"] == "4f2c"
        assert seen["CODEBUILD_SRC_DIR"].endswith("/src")
        path = seen["PATH"].split(":")
        assert Path(path[0]).parent == Path(seen["CODEBUILD_SRC_DIR"]).parent
        assert path[1] == str(Path(sys.executable).parent)


class TestArtifacts:
    def test_are_the_files_that_match(self, pipeline: Pipeline) -> None:
        pipeline.spec(
            "mkdir -p out/deep/.hidden",
            "echo 1 > out/one; echo 2 > out/deep/.hidden/two; echo 3 > beside",
            'printf "#!/bin/sh\\n" > out/run; chmod +x out/run',
            artifacts={"base-directory": "out", "files": "**/*"},
        )
        build = pipeline.run(hands_on=True)
        assert build.status == "SUCCEEDED", build.reason
        assert set(pipeline.result()) == {"one", "deep/.hidden/two", "run"}
        assert (pipeline.artifacts / "run").stat().st_mode & 0o111

    def test_may_be_named_one_by_one_by_an_inline_buildspec(
        self, cloud: Cloud, outputs: dict[str, str], tmp_path: Path
    ) -> None:
        pipeline = Pipeline(cloud, outputs["Inline"], tmp_path)
        assert pipeline.run(hands_on=True).status == "SUCCEEDED"
        assert pipeline.result() == {"made": "inline\n"}

    @pytest.mark.parametrize(
        ("artifacts", "reason"),
        [
            ({"files": ["*.txt"]}, "no file of . matches *.txt"),
            ({"files": "*", "base-directory": "out"}, "there is no folder out"),
            (None, "the buildspec names no artifacts"),
        ],
    )
    def test_that_are_missing_fail_the_build(
        self, pipeline: Pipeline, artifacts: Any, reason: str
    ) -> None:
        pipeline.spec("true", **({"artifacts": artifacts} if artifacts else {}))
        build = pipeline.run(hands_on=True)
        assert build.status == "FAILED"
        assert build.reason.startswith("UPLOAD_ARTIFACTS failed: ")
        assert reason in build.reason

    def test_variables_are_exported_too(self, pipeline: Pipeline) -> None:
        build = pipeline.build(
            'export VERSION="1.2 beta"',
            env={"variables": {"STAGE": "qa"}, "exported-variables": ["VERSION", "STAGE", "NONE"]},
        )
        assert build.exported_variables == {"VERSION": "1.2 beta", "STAGE": "qa"}
        assert "NONE is to be exported, but is not set" in build.log_file.read_text()


CACHE = {"paths": [".quench/cache/**/*", "none/here/*", "/root/.cache/**/*"]}


class TestCache:
    def test_is_the_working_trees_folder(self, cloud: Cloud, pipeline: Pipeline) -> None:
        pipeline.spec(
            "cat .quench/cache/wheels/wheel; echo new > .quench/cache/added",
            cache=CACHE,
            artifacts={"files": "**/*"},
        )
        build = pipeline.run(hands_on=True)
        assert build.status == "SUCCEEDED", build.reason
        text = build.log_file.read_text()
        cache = cloud.config.source / ".quench" / "cache"
        assert f"Linked .quench/cache to {cache.resolve()}" in text
        assert "a wheel" in text
        assert "there is no folder" in text
        assert (cache / "added").read_text() == "new\n"
        assert (cache / "wheels" / "wheel").exists()
        assert set(pipeline.result()) == {"buildspec.yml"}

    def test_is_not_used_by_a_project_without(self, cloud: Cloud, tmp_path: Path) -> None:
        body = {"Resources": {"Project": project(Name="uncached")}}
        cloud.deploy(write_assembly(tmp_path / "assembly", "Uncached", body))
        pipeline = Pipeline(cloud, "uncached", tmp_path)
        build = pipeline.build("[ ! -e .quench ]", cache=CACHE)
        assert build.status == "SUCCEEDED", build.reason
        assert "cache.paths is not used" in build.log_file.read_text()


class TestBuildspec:
    @pytest.mark.parametrize(
        ("more", "named"),
        [
            ({"batch": {}}, "batch in the buildspec"),
            ({"reports": {}}, "reports in the buildspec"),
            ({"run-as": "root"}, "run-as in the buildspec"),
            ({"env": {"secrets-manager": {}}}, "secrets-manager in env"),
            ({"env": {"shell": "bash"}}, "shell in env"),
            ({"phases": {"deploy": {}}}, "deploy in phases"),
            ({"phases": {"build": {"finally": []}}}, "finally in phases.build"),
            ({"phases": {"install": {"on-failure": "CONTINUE"}}}, "on-failure in phases.install"),
            ({"artifacts": {"files": "*", "secondary-artifacts": {}}}, "secondary-artifacts in"),
            ({"artifacts": {"files": "../*"}}, "must lie in the source"),
            ({"cache": {"paths": ["**/*"]}}, "must begin with a folder"),
            ({"version": 0.1}, "only 0.2 is run"),
            ({"phases": ["build"]}, "phases must be a mapping"),
        ],
    )
    def test_what_would_be_ignored_is_refused_by_name(
        self, pipeline: Pipeline, more: dict[str, Any], named: str
    ) -> None:
        pipeline.write("buildspec.yml", json.dumps({"version": 0.2, **more}))
        build = pipeline.run()
        assert build.status == "FAILED"
        assert build.reason.startswith("DOWNLOAD_SOURCE failed: ")
        assert named in build.reason

    def test_it_may_be_yaml_whose_values_are_text(self, pipeline: Pipeline) -> None:
        text = """
        version: 0.2
        env:
          variables: {FLAG: no, NUMBER: 010}
        phases:
          build:
            commands:
              - |
                if [ "$FLAG $NUMBER" = "no 010" ]
                then echo as text
                fi
              - true
        """
        pipeline.write("buildspec.yml", text)
        assert "\nas text\n" in pipeline.run().log_file.read_text()

    def test_it_may_be_missing(self, pipeline: Pipeline) -> None:
        build = pipeline.run()
        assert build.reason == (
            "DOWNLOAD_SOURCE failed: There is no file buildspec.yml in the source."
        )


class TestEnd:
    @pytest.fixture
    def running(self, pipeline: Pipeline) -> Iterator[tuple[Future[Build], int]]:
        """A build that would take a minute, and a process that it started."""
        mark = pipeline.source / "pid"
        pipeline.spec(
            f"sleep 60 & echo $! > {mark}; wait",
            phases={"post_build": {"commands": ["echo never"]}},
        )
        with ThreadPoolExecutor(1) as pool:
            build = pool.submit(pipeline.run)
            until(lambda: mark.exists() and mark.read_text())
            yield build, int(mark.read_text())
            pipeline.stopped.set()

    def test_the_pipeline_stops_it(
        self, pipeline: Pipeline, running: tuple[Future[Build], int]
    ) -> None:
        pipeline.stopped.set()
        build = running[0].result(PATIENCE)
        assert (build.status, build.reason) == ("STOPPED", "BUILD was stopped.")
        until(lambda: not is_alive(running[1]))
        assert "echo never" not in build.log_file.read_text()

    def test_so_does_the_api(self, cloud: Cloud, running: tuple[Future[Build], int]) -> None:
        codebuild = cloud.client("codebuild")
        build_id = codebuild.list_builds_for_project(projectName="caching")["ids"][0]
        (build,) = codebuild.batch_get_builds(ids=[build_id])["builds"]
        assert (build["buildStatus"], build["currentPhase"]) == ("IN_PROGRESS", "BUILD")
        assert codebuild.stop_build(id=build_id)["build"]["buildStatus"] == "STOPPED"
        assert running[0].result(PATIENCE).status == "STOPPED"

    def test_it_ends_after_its_projects_time_out(
        self, pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(builds, "SECONDS_IN_A_MINUTE", 0.01)
        build = pipeline.build("sleep 60")
        assert build.status == "TIMED_OUT"
        assert "longer than the 30 minutes" in build.reason

    def test_nothing_of_it_stays_but_the_log(self, cloud: Cloud, pipeline: Pipeline) -> None:
        build = pipeline.build("mkdir deep; touch deep/file")
        assert build.log_file.parent == (cloud.config.state_dir / "logs" / "codebuild").resolve()
        folder = cloud.config.state_dir / "codebuild" / "caching"
        assert not (folder / build.id.partition(":")[2]).exists()

    def test_it_is_described(self, cloud: Cloud, pipeline: Pipeline) -> None:
        build = pipeline.build("false")
        codebuild = cloud.client("codebuild")
        (described,) = codebuild.batch_get_builds(ids=[build.id])["builds"]
        assert described["arn"] == build.arn
        assert described["buildStatus"] == "FAILED"
        assert described["buildComplete"] is True
        assert described["initiator"] == "codepipeline/release"
        phases = {phase["phaseType"]: phase for phase in described["phases"]}
        assert list(phases) == ["DOWNLOAD_SOURCE", "PRE_BUILD", "BUILD", "POST_BUILD"]
        assert phases["BUILD"]["phaseStatus"] == "FAILED"
        assert phases["BUILD"]["contexts"][0]["message"] == build.reason

    def test_cloudwatch_has_the_log_while_it_runs(
        self, cloud: Cloud, pipeline: Pipeline, tmp_path: Path
    ) -> None:
        logs = cloud.client("logs")
        go = tmp_path / "go"

        def messages() -> list[str]:
            ids = cloud.client("codebuild").list_builds_for_project(projectName="caching")["ids"]
            stream = ids[0].partition(":")[2]
            found = logs.filter_log_events(
                logGroupName="/aws/codebuild/caching", logStreamNames=[stream]
            )
            return [event["message"] for event in found["events"]]

        pipeline.spec(f"echo begun; until [ -e {go} ]; do sleep 0.02; done; printf ended")
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(pipeline.run)
            until(lambda: "begun" in messages())
            go.touch()
            build = running.result(PATIENCE)
        text = [line for line in build.log_file.read_text().splitlines() if line.strip()]
        assert messages() == text
        assert messages()[-1].endswith("Build SUCCEEDED")


HOLDING = """
import sys, threading
from pathlib import Path
from local.cloud import Cloud
from local.config import LocalConfig

folder = Path(sys.argv[1])
cloud = Cloud(LocalConfig(port=0, state_dir=folder / "state"))
cloud.start()
cloud.client("codebuild").create_project(
    name="holding",
    source={"type": "CODEPIPELINE"},
    artifacts={"type": "CODEPIPELINE"},
    environment={"type": "LINUX_CONTAINER", "image": "x", "computeType": "BUILD_GENERAL1_SMALL"},
    serviceRole="role",
)
cloud.services["codebuild"].run(
    "holding",
    folder / "source",
    revision="1",
    environment={},
    artifacts=None,
    stopped=threading.Event(),
)
"""


class TestCloudsEnd:
    def test_a_cloud_that_stops_stops_its_builds(self, cloud: Cloud, pipeline: Pipeline) -> None:
        another = CodeBuildService(cloud)  # as a cloud has it that may be stopped
        another.create_project(
            {
                "name": "ending",
                "source": {"type": "CODEPIPELINE"},
                "artifacts": {"type": "CODEPIPELINE"},
                "environment": {"type": "LINUX_CONTAINER", "image": "x", "computeType": "SMALL"},
                "serviceRole": "role",
            }
        )
        pipeline.project = "ending"
        mark = pipeline.source / "mark"
        pipeline.spec(f"touch {mark}; sleep 60")
        with ThreadPoolExecutor(1) as pool:
            running = pool.submit(pipeline.run, service=another)
            until(mark.exists)
            another.stop()
        assert running.result().status == "STOPPED"
        assert pipeline.run(service=another).status == "STOPPED"

    def test_a_cloud_that_is_killed_leaves_no_process_behind(self, tmp_path: Path) -> None:
        mark = tmp_path / "pid"
        command = f"sleep 60 & echo $! > {mark}; wait"
        spec = {"version": "0.2", "phases": {"build": {"commands": [command]}}}
        (tmp_path / "source").mkdir()
        (tmp_path / "source" / "buildspec.yml").write_text(json.dumps(spec))
        with subprocess.Popen([sys.executable, "-c", HOLDING, str(tmp_path)]) as holding:
            pid = int(until(lambda: mark.exists() and mark.read_text()))
            assert is_alive(pid)
            holding.kill()
        until(lambda: not is_alive(pid))


class TestTools:
    @pytest.fixture
    def release(self, pipeline: Pipeline) -> Pipeline:
        """A pipeline whose source is a cloud assembly with a stage nested in it."""
        shutil.rmtree(pipeline.source)
        body = {
            "Resources": {
                "Kept": {
                    "Type": "AWS::SSM::Parameter",
                    "Properties": {"Name": "/release/kept", "Type": "String", "Value": "1"},
                }
            }
        }
        own = file_asset("asset.own", "own.zip")
        write_assembly(pipeline.source, "Release", body, files={"own": own})
        stage = file_asset("../asset.stage", "stage.zip")
        image = {
            "source": {"directory": "../asset.image"},
            "destinations": {"here-1": {"repositoryName": "images", "imageTag": "image"}},
        }
        write_assembly(
            pipeline.source / "assembly-Release-QA",
            "ReleaseQA",
            {},
            files={"stage": stage},
            dockerImages={"image": image},
        )
        for asset in ("own", "stage"):
            pipeline.write(f"asset.{asset}/file", asset)
        # The source's own package of that name is not what cdk runs.
        pipeline.write("local/__init__.py", "raise RuntimeError('the source, not the cloud')")
        return pipeline

    def test_the_cdks_commands_deploy_in_this_cloud(self, cloud: Cloud, release: Pipeline) -> None:
        manifest = "assembly-Release-QA/ReleaseQA.assets.json"
        deploy = "cdk -a . deploy Release --require-approval=never --verbose"
        publish = f'cdk-assets --path "{manifest}" --verbose publish'
        build = release.build(
            deploy, deploy, f'{publish} "stage:here-1"', f'{publish} "image:here-1"'
        )
        assert build.status == "SUCCEEDED", build.reason
        parameter = cloud.client("ssm").get_parameter(Name="/release/kept")["Parameter"]
        assert parameter["Value"] == "1"
        for asset in ("own", "stage"):
            body = cloud.client("s3").get_object(Bucket=BUCKET, Key=f"{asset}.zip")["Body"].read()
            assert zipfile.ZipFile(io.BytesIO(body)).read("file") == asset.encode()
        text = build.log_file.read_text()
        assert f"Published s3://{BUCKET}/own.zip\nCreated the stack release\n" in text
        assert "Nothing to update in the stack release\n" in text
        assert "builds no images" in text

    @pytest.mark.parametrize(
        ("command", "code", "said"),
        [
            ("cdk -a . destroy Release", 2, "invalid choice: 'destroy'"),
            ("cdk -a . deploy Release --require-approval=never --hotswap", 2, "--hotswap"),
            (
                "cdk -a . deploy Nothing --require-approval=never",
                1,
                "holds no stack Nothing",
            ),
            (
                "cdk-assets --path Release.assets.json publish own:elsewhere",
                1,
                "holds no asset own:elsewhere",
            ),
        ],
    )
    def test_and_nothing_else(self, release: Pipeline, command: str, code: int, said: str) -> None:
        build = release.build(command)
        assert build.status == "FAILED"
        assert f"`{command}` exited with code {code}" in build.reason
        assert said in build.reason
