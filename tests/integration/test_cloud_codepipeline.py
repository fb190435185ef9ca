"""CodePipeline in the embedded cloud, as its clients see it: every action does its real work."""

import io
import json
import subprocess
import sys
import time
import uuid
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError
from hypothesis import given
from hypothesis import strategies as st

from local.cloud import Cloud
from local.codepipeline.pipelines import KEPT_EXECUTIONS
from local.codepipeline.source import snapshot
from local.codepipeline.variables import UnknownVariable, fill
from local.config import LocalConfig

PATIENCE = 30.0  # seconds until a wait is given up
ROLE = "arn:aws:iam::123456789012:role/pipeline"
BUCKET = "pipeline-artifacts"
ENDED = ("SUCCEEDED", "FAILED", "STOPPED", "CANCELED", "SUPERSEDED")

BUILDSPEC = {
    "version": "0.2",
    "env": {"exported-variables": ["ANSWER"]},
    "phases": {"build": {"commands": ['eval "$SCRIPT"']}},
    "artifacts": {"files": ["**/*"]},
}

# What the Lambda action runs; its UserParameters say how it goes.
FUNCTION = """
import json
import boto3

def handler(event, context):
    job = event["CodePipeline.job"]
    wish = json.loads(job["data"]["actionConfiguration"]["configuration"]["UserParameters"])
    codepipeline = boto3.client("codepipeline")
    if wish["do"] == "succeed":
        codepipeline.put_job_success_result(
            jobId=job["id"],
            outputVariables={"Event": json.dumps(event)},
            executionDetails={"summary": "The function did it", "externalExecutionId": "f-1"},
        )
    elif wish["do"] == "fail":
        codepipeline.put_job_failure_result(
            jobId=job["id"],
            failureDetails={"type": "ConfigurationError", "message": "No such thing"},
        )
    else:
        raise ValueError("no way")
"""

# What a build runs that changes the pipeline it is part of, as `cdk deploy` does.
SELF_MUTATION = """
import sys
from pathlib import Path
import boto3

cloudformation = boto3.client("cloudformation")
try:
    template = Path(sys.argv[1]).read_text()
    cloudformation.update_stack(StackName="mutant", TemplateBody=template)
except cloudformation.exceptions.ClientError as error:
    if "No updates" not in str(error):
        raise
"""


def source(**more: Any) -> dict[str, Any]:
    return action("Tree", "Source", "CodeCommit", outputs=["Source"], namespace="Tree", **more) | {
        "configuration": {"RepositoryName": "quench", "BranchName": "main"}
    }


def build(name: str, script: str, **more: Any) -> dict[str, Any]:
    """An action that runs a shell script in the working tree."""
    variables = [{"name": "SCRIPT", "value": script, "type": "PLAINTEXT"}]
    configuration = {"ProjectName": "shell", "EnvironmentVariables": json.dumps(variables)}
    configuration |= more.pop("configuration", {})
    inputs = more.pop("inputs", ["Source"])
    return action(name, "Build", "CodeBuild", configuration, inputs=inputs, **more)


def deploy(name: str, stack: str, template: str, **more: Any) -> dict[str, Any]:
    configuration = {
        "ActionMode": "CREATE_UPDATE",
        "StackName": stack,
        "TemplatePath": f"Source::{template}",
        "Capabilities": "CAPABILITY_NAMED_IAM,CAPABILITY_AUTO_EXPAND",
        "RoleArn": ROLE,
        **more.pop("configuration", {}),
    }
    return action(name, "Deploy", "CloudFormation", configuration, inputs=["Source"], **more)


def approval(name: str, **more: Any) -> dict[str, Any]:
    return action(name, "Approval", "Manual", **more)


def invoke(name: str, wish: str, **more: Any) -> dict[str, Any]:
    configuration = {"FunctionName": "job", "UserParameters": json.dumps({"do": wish})}
    return action(name, "Invoke", "Lambda", configuration, **more)


def action(
    name: str,
    category: str,
    provider: str,
    configuration: dict[str, str] | None = None,
    *,
    inputs: list[str] | None = None,
    outputs: list[str] | None = None,
    order: int = 1,
    **more: Any,
) -> dict[str, Any]:
    return {
        "name": name,
        "actionTypeId": {
            "category": category,
            "owner": "AWS",
            "provider": provider,
            "version": "1",
        },
        "configuration": configuration or {},
        "inputArtifacts": [{"name": artifact} for artifact in inputs or []],
        "outputArtifacts": [{"name": artifact} for artifact in outputs or []],
        "runOrder": order,
        **more,
    }


def declaration(name: str, *stages: list[dict[str, Any]]) -> dict[str, Any]:
    """A pipeline whose first stage takes the working tree, and whose others are these."""
    names = ("One", "Two", "Three")
    return {
        "name": name,
        "roleArn": ROLE,
        "pipelineType": "V2",
        "artifactStore": {"type": "S3", "location": BUCKET},
        "stages": [
            {"name": "Source", "actions": [source()]},
            *(
                {"name": stage, "actions": actions}
                for stage, actions in zip(names, stages, strict=False)
            ),
        ],
    }


def pascal_case(value: Any) -> Any:
    """An API's value as a template writes it."""
    if isinstance(value, list):
        return [pascal_case(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {
        key[0].upper() + key[1:]: inner if key == "configuration" else pascal_case(inner)
        for key, inner in value.items()
    }


def pipeline_template(pipeline: dict[str, Any], **more: Any) -> str:
    return json.dumps(
        {
            "Resources": {
                "Pipeline": {
                    "Type": "AWS::CodePipeline::Pipeline",
                    "Properties": {
                        "RestartExecutionOnUpdate": True,
                        **pascal_case(pipeline),
                        **more,
                    },
                }
            },
            "Outputs": {
                "Name": {"Value": {"Ref": "Pipeline"}},
                "Version": {"Value": {"Fn::GetAtt": ["Pipeline", "Version"]}},
            },
        }
    )


@dataclass
class Release:
    """A running cloud, its working tree, and what EventBridge has told of its pipelines."""

    cloud: Cloud
    tree: Path
    queue_url: str
    events: list[dict[str, Any]] = field(default_factory=list)

    @property
    def api(self) -> Any:
        return self.cloud.client("codepipeline")

    def create(self, *stages: list[dict[str, Any]]) -> str:
        """Create a pipeline of these stages, after the one of the source; its name."""
        name = f"pipeline-{uuid.uuid4().hex[:8]}"
        self.api.create_pipeline(pipeline=declaration(name, *stages))
        return name

    def begin(self, pipeline: str) -> str:
        return str(self.api.start_pipeline_execution(name=pipeline)["pipelineExecutionId"])

    def run(self, *stages: list[dict[str, Any]]) -> tuple[str, str, dict[str, dict[str, Any]]]:
        """Run a pipeline of these stages to its end: its name, its status and its actions."""
        pipeline = self.create(*stages)
        execution = self.begin(pipeline)
        status = self.end_of(execution)
        return pipeline, status, self.actions(pipeline, execution)

    def wait_for(self, what: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The first event, past or to come, of which this is true."""
        deadline = time.monotonic() + PATIENCE
        seen = 0
        sqs = self.cloud.client("sqs")
        while time.monotonic() < deadline:
            for event in self.events[seen:]:
                if what(event):
                    return event
            seen = len(self.events)
            answer = sqs.receive_message(
                QueueUrl=self.queue_url, MaxNumberOfMessages=10, WaitTimeSeconds=1
            )
            for message in answer.get("Messages", []):
                self.events.append(json.loads(message["Body"]))
                sqs.delete_message(QueueUrl=self.queue_url, ReceiptHandle=message["ReceiptHandle"])
        told = [(e["detail-type"], e["detail"]) for e in self.events]
        raise AssertionError(f"waited in vain; told was {json.dumps(told, indent=1)}")

    def told(self, execution: str, **detail: Any) -> dict[str, Any]:
        """The event of an execution with this detail."""

        def fits(event: dict[str, Any]) -> bool:
            told = event["detail"]
            wanted = {"execution-id": execution, **detail}
            return all(told.get(key.replace("_", "-")) == value for key, value in wanted.items())

        return self.wait_for(fits)

    def end_of(self, execution: str, attempt: int = 1) -> str:
        """The status that an execution ends with."""
        event = self.wait_for(
            lambda event: (
                event["detail-type"] == "CodePipeline Pipeline Execution State Change"
                and event["detail"]["execution-id"] == execution
                and event["detail"]["pipeline-execution-attempt"] == attempt
                and event["detail"]["state"] in ENDED
            )
        )
        pipeline = event["detail"]["pipeline"]
        return self.status(pipeline, execution)

    def status(self, pipeline: str, execution: str) -> str:
        return str(self.describe(pipeline, execution)["status"])

    def describe(self, pipeline: str, execution: str) -> dict[str, Any]:
        answer = self.api.get_pipeline_execution(
            pipelineName=pipeline, pipelineExecutionId=execution
        )
        return dict(answer["pipelineExecution"])

    def history(self, pipeline: str, execution: str) -> list[dict[str, Any]]:
        answer = self.api.list_action_executions(
            pipelineName=pipeline, filter={"pipelineExecutionId": execution}
        )
        return list(answer["actionExecutionDetails"])

    def actions(self, pipeline: str, execution: str) -> dict[str, dict[str, Any]]:
        """The last run of each action."""
        return {run["actionName"]: run for run in reversed(self.history(pipeline, execution))}

    def stage(self, pipeline: str, name: str) -> dict[str, Any]:
        stages = self.api.get_pipeline_state(name=pipeline)["stageStates"]
        return dict(next(stage for stage in stages if stage["stageName"] == name))

    def state(self, pipeline: str, stage: str, name: str) -> dict[str, Any]:
        states = self.stage(pipeline, stage)["actionStates"]
        return dict(next(state for state in states if state["actionName"] == name))

    def token(self, pipeline: str, execution: str, stage: str, name: str) -> str:
        """The token of an approval, once it is waited for."""
        self.told(execution, action=name, state="STARTED")
        return str(self.state(pipeline, stage, name)["latestExecution"]["token"])

    def answer(
        self, pipeline: str, stage: str, name: str, token: str, status: str = "Approved"
    ) -> None:
        self.api.put_approval_result(
            pipelineName=pipeline,
            stageName=stage,
            actionName=name,
            result={"summary": f"{status} by a test", "status": status},
            token=token,
        )


def refused(call: Callable[..., Any], **arguments: Any) -> tuple[str, str]:
    """Code and message of the error that a call ends with."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    error = caught.value.response["Error"]
    return error["Code"], error["Message"]


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=Someone", "-c", "user.email=someone@example.com"]
    command = ["git", "-C", str(folder), *identity, *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def queue(cloud: Cloud, name: str) -> tuple[str, str]:
    sqs = cloud.client("sqs")
    url = sqs.create_queue(QueueName=name)["QueueUrl"]
    attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    return url, attributes["Attributes"]["QueueArn"]


def add_project(cloud: Cloud) -> None:
    cloud.client("codebuild").create_project(
        name="shell",
        source={"type": "CODEPIPELINE", "buildspec": json.dumps(BUILDSPEC)},
        artifacts={"type": "CODEPIPELINE"},
        environment={
            "type": "LINUX_CONTAINER",
            "image": "aws/codebuild/standard:7.0",
            "computeType": "BUILD_GENERAL1_SMALL",
        },
        serviceRole=ROLE,
    )


def add_function(cloud: Cloud) -> None:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("job.py", FUNCTION)
    cloud.client("iam").create_role(RoleName="function", AssumeRolePolicyDocument="{}")
    cloud.client("lambda").create_function(
        FunctionName="job",
        Runtime="python3.13",
        Handler="job.handler",
        Role="arn:aws:iam::123456789012:role/function",
        Code={"ZipFile": archive.getvalue()},
        Timeout=20,
    )


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Release]:
    folder = tmp_path_factory.mktemp("codepipeline")
    tree = folder / "tree"
    tree.mkdir()
    (tree / "README").write_text("released")
    git(tree, "init", "--quiet", "--initial-branch=main")
    git(tree, "add", ".")
    git(tree, "commit", "--quiet", "--message", "All of it")
    with Cloud(LocalConfig(port=0, state_dir=folder / "cloud", source=tree)) as cloud:
        cloud.client("s3").create_bucket(Bucket=BUCKET)
        add_project(cloud)
        add_function(cloud)
        url, arn = queue(cloud, "told")
        events = cloud.client("events")
        events.put_rule(Name="told", EventPattern=json.dumps({"source": ["aws.codepipeline"]}))
        events.put_targets(Rule="told", Targets=[{"Id": "1", "Arn": arn}])
        yield Release(cloud, tree, url)


class TestExecutions:
    def test_stages_and_run_orders_follow_each_other_and_equals_run_together(
        self, release: Release, tmp_path: Path
    ) -> None:
        def meet(mine: str, other: str) -> str:
            return (
                f"touch {tmp_path}/{mine}; while [ ! -e {tmp_path}/{other} ]; do sleep 0.02; done"
            )

        _, status, actions = release.run(
            [
                build("After", f"ls {tmp_path}/left {tmp_path}/right", order=2),
                build("Left", meet("left", "right"), order=1),
                build("Right", meet("right", "left"), order=1),
            ],
            [build("Last", "true")],
        )
        assert status == "Succeeded"
        in_order = ["Tree", "Left", "Right", "After", "Last"]
        assert sorted(actions) == sorted(in_order)
        assert actions["After"]["startTime"] >= actions["Left"]["lastUpdateTime"]
        assert actions["After"]["startTime"] >= actions["Right"]["lastUpdateTime"]
        assert actions["Last"]["startTime"] >= actions["After"]["lastUpdateTime"]

    def test_artifacts_and_variables_reach_later_actions(self, release: Release) -> None:
        pipeline, status, actions = release.run(
            [
                build(
                    "Make",
                    "echo made > made; export ANSWER=$(cat README)-42",
                    outputs=["Made"],
                    namespace="Make",
                )
            ],
            [
                build(
                    "Use",
                    'test "$(cat made)" = made && test "$(cat $CODEBUILD_SRC_DIR_Source/README)"'
                    ' = released && export ANSWER="$GIVEN"',
                    inputs=["Made", "Source"],
                    configuration={
                        "PrimarySource": "Made",
                        "EnvironmentVariables": json.dumps(
                            [
                                {"name": "SCRIPT", "value": 'export ANSWER="$GIVEN"; cat made'},
                                {
                                    "name": "GIVEN",
                                    "value": "#{Make.ANSWER} in #{codepipeline.PipelineExecutionId}"
                                    " of #{Tree.BranchName}",
                                },
                            ]
                        ),
                    },
                )
            ],
        )
        assert status == "Succeeded"
        use, make = actions["Use"], actions["Make"]
        execution = use["pipelineExecutionId"]
        assert use["output"]["outputVariables"] == {"ANSWER": f"released-42 in {execution} of main"}
        assert "#{Make.ANSWER}" in use["input"]["configuration"]["EnvironmentVariables"]
        assert "released-42" in use["input"]["resolvedConfiguration"]["EnvironmentVariables"]
        assert use["input"]["inputArtifacts"] == [{"name": "Made"}, {"name": "Source"}]
        assert make["output"]["outputArtifacts"] == [{"name": "Made"}]
        assert make["input"]["namespace"] == "Make"
        result = make["output"]["executionResult"]
        assert result["externalExecutionId"].startswith("shell:")
        assert Path(result["externalExecutionUrl"].removeprefix("file://")).is_file()
        latest = release.state(pipeline, "One", "Make")["latestExecution"]
        assert latest["externalExecutionId"] == result["externalExecutionId"]

    def test_an_unknown_variable_fails_the_action_by_name(self, release: Release) -> None:
        _, status, actions = release.run(
            [build("Ask", "true", configuration={"ProjectName": "#{Tree.Nothing}"})]
        )
        assert status == "Failed"
        details = actions["Ask"]["output"]["executionResult"]["errorDetails"]
        assert details["code"] == "ConfigurationError"
        assert "#{Tree.Nothing}" in details["message"]
        assert "CommitId" in details["message"]

    def test_an_execution_holds_a_stage_and_the_newest_waits_for_it(self, release: Release) -> None:
        pipeline = release.create([approval("Gate")], [approval("Next")])
        first = release.begin(pipeline)
        token = release.token(pipeline, first, "One", "Gate")
        second = release.begin(pipeline)
        release.told(second, stage="Source", state="SUCCEEDED")
        assert release.stage(pipeline, "One")["inboundExecution"] == {
            "pipelineExecutionId": second,
            "status": "InProgress",
        }
        third = release.begin(pipeline)
        assert release.end_of(second) == "Superseded"
        stage = release.stage(pipeline, "One")
        assert stage["latestExecution"]["pipelineExecutionId"] == first
        assert [e["pipelineExecutionId"] for e in stage["inboundExecutions"]] == [third]

        release.answer(pipeline, "One", "Gate", token)
        again = release.token(pipeline, third, "One", "Gate")
        assert again != token
        next_token = release.token(pipeline, first, "Two", "Next")
        release.answer(pipeline, "Two", "Next", next_token)
        assert release.end_of(first) == "Succeeded"
        listed = release.api.list_pipeline_executions(pipelineName=pipeline)
        found = [
            (summary["pipelineExecutionId"], summary["status"])
            for summary in listed["pipelineExecutionSummaries"]
        ]
        assert found == [(third, "InProgress"), (second, "Superseded"), (first, "Succeeded")]
        passed = release.api.list_pipeline_executions(
            pipelineName=pipeline, filter={"succeededInStage": {"stageName": "One"}}
        )
        assert [e["pipelineExecutionId"] for e in passed["pipelineExecutionSummaries"]] == [first]

    def test_a_token_starts_one_execution(self, release: Release) -> None:
        pipeline = release.create([approval("Gate")])
        start, token = release.api.start_pipeline_execution, "once-and-no-more"
        first = start(name=pipeline, clientRequestToken=token)["pipelineExecutionId"]
        again = start(name=pipeline, clientRequestToken=token)["pipelineExecutionId"]
        other = start(name=pipeline)["pipelineExecutionId"]
        assert first == again != other

    def test_listings_have_pages(self, release: Release) -> None:
        pipeline = release.create([approval("Gate")])
        started = [release.begin(pipeline) for _ in range(3)]
        pages = release.api.get_paginator("list_pipeline_executions").paginate(
            pipelineName=pipeline, PaginationConfig={"PageSize": 2}
        )
        found = [[e["pipelineExecutionId"] for e in p["pipelineExecutionSummaries"]] for p in pages]
        assert found == [started[:0:-1], started[:1]]
        code, _ = refused(
            release.api.list_action_executions, pipelineName=pipeline, nextToken="nonsense"
        )
        assert code == "InvalidNextTokenException"

    def test_artifacts_of_old_executions_are_removed(self, release: Release) -> None:
        pipeline = release.create([build("Build", "true")])
        executions = []
        for _ in range(KEPT_EXECUTIONS + 2):
            executions.append(release.begin(pipeline))
            assert release.end_of(executions[-1]) == "Succeeded"
        folder = release.cloud.config.state_dir / "codepipeline" / pipeline
        left = eventually(
            lambda: (
                (found := {path.name for path in folder.iterdir()})
                and len(found) == KEPT_EXECUTIONS
                and found
            )
        )
        assert left == set(executions[-KEPT_EXECUTIONS:])

    def test_a_rule_starts_a_pipeline(self, release: Release) -> None:
        pipeline = release.create([build("Build", "true")])
        arn = release.api.get_pipeline(name=pipeline)["metadata"]["pipelineArn"]
        events = release.cloud.client("events")
        events.put_rule(Name="pushed", EventPattern=json.dumps({"source": ["a.test"]}))
        events.put_targets(Rule="pushed", Targets=[{"Id": "1", "Arn": arn, "RoleArn": ROLE}])
        events.put_events(Entries=[{"Source": "a.test", "DetailType": "Pushed", "Detail": "{}"}])
        event = release.wait_for(lambda event: event["detail"]["pipeline"] == pipeline)
        assert release.end_of(event["detail"]["execution-id"]) == "Succeeded"


def eventually(what: Callable[[], Any]) -> Any:
    """The first truthy answer, where no event tells of it."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if answer := what():
            return answer
        time.sleep(0.02)
    raise AssertionError("it did not happen")


class TestFailures:
    def test_a_failed_action_fails_the_execution_when_the_others_have_ended(
        self, release: Release, tmp_path: Path
    ) -> None:
        wait = f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done"
        pipeline = release.create(
            [
                build("Fail", "echo the reason; exit 3"),
                build("Wait", wait),
                build("Never", "true", order=2),
            ]
        )
        execution = release.begin(pipeline)
        event = release.told(execution, action="Fail", state="FAILED")
        assert event["detail"]["execution-result"]["error-code"] == "JobFailed"
        assert release.status(pipeline, execution) == "InProgress"
        (tmp_path / "go").touch()
        assert release.end_of(execution) == "Failed"
        actions = release.actions(pipeline, execution)
        assert {name: run["status"] for name, run in actions.items()} == {
            "Tree": "Succeeded",
            "Fail": "Failed",
            "Wait": "Succeeded",
        }
        details = release.state(pipeline, "One", "Fail")["latestExecution"]["errorDetails"]
        assert details["code"] == "JobFailed"
        assert "the reason" in details["message"]
        assert release.stage(pipeline, "One")["latestExecution"]["status"] == "Failed"

    @pytest.mark.parametrize(
        ("mode", "runs"), [("FAILED_ACTIONS", {"Good": 1}), ("ALL_ACTIONS", {"Good": 2})]
    )
    def test_a_failed_stage_is_retried(
        self, release: Release, tmp_path: Path, mode: str, runs: dict[str, int]
    ) -> None:
        pipeline = release.create(
            [build("Good", "true"), build("Bad", f"test -e {tmp_path}/mended")],
            [build("Later", "true")],
        )
        execution = release.begin(pipeline)
        assert release.end_of(execution) == "Failed"
        (tmp_path / "mended").touch()
        arguments = {
            "pipelineName": pipeline,
            "stageName": "One",
            "pipelineExecutionId": execution,
            "retryMode": mode,
        }
        assert release.api.retry_stage_execution(**arguments)["pipelineExecutionId"] == execution
        release.told(execution, stage="One", state="RESUMED", pipeline_execution_attempt=2)
        assert release.end_of(execution, attempt=2) == "Succeeded"
        names = [run["actionName"] for run in release.history(pipeline, execution)]
        assert names[-1] == "Tree"
        assert names[0] == "Later"
        assert {name: names.count(name) for name in ("Good", "Bad", "Later", "Tree")} == {
            "Bad": 2,
            "Later": 1,
            "Tree": 1,
            **runs,
        }
        code, _ = refused(release.api.retry_stage_execution, **arguments)
        assert code == "StageNotRetryableException"

    def test_only_the_latest_execution_of_the_same_structure_is_retried(
        self, release: Release
    ) -> None:
        pipeline = release.create([build("Bad", "false")])
        first, second = release.begin(pipeline), None
        assert release.end_of(first) == "Failed"
        second = release.begin(pipeline)
        assert release.end_of(second) == "Failed"
        arguments = {"pipelineName": pipeline, "stageName": "One", "retryMode": "FAILED_ACTIONS"}
        retry = release.api.retry_stage_execution
        code, _ = refused(retry, **arguments, pipelineExecutionId=first)
        assert code == "NotLatestPipelineExecutionException"
        release.api.update_pipeline(pipeline=declaration(pipeline, [build("Bad", "exit 2")]))
        code, _ = refused(retry, **arguments, pipelineExecutionId=second)
        assert code == "StageNotRetryableException"

    def test_stopping_waits_for_what_runs_or_abandons_it(
        self, release: Release, tmp_path: Path
    ) -> None:
        wait = f"while [ ! -e {tmp_path}/go ]; do sleep 0.02; done"
        pipeline = release.create([build("Wait", wait), build("Never", "true", order=2)])
        stop = release.api.stop_pipeline_execution
        first = release.begin(pipeline)
        release.told(first, action="Wait", state="STARTED")
        stop(pipelineName=pipeline, pipelineExecutionId=first, reason="enough")
        assert release.status(pipeline, first) == "Stopping"
        told = release.told(first, state="STOPPING", stop_execution_comments="enough")
        assert told["detail-type"] == "CodePipeline Pipeline Execution State Change"
        code, _ = refused(stop, pipelineName=pipeline, pipelineExecutionId=first)
        assert code == "DuplicatedStopRequestException"
        stop(pipelineName=pipeline, pipelineExecutionId=first, abandon=True)
        assert release.end_of(first) == "Stopped"
        assert release.actions(pipeline, first)["Wait"]["status"] == "Abandoned"

        second = release.begin(pipeline)
        release.told(second, action="Wait", state="STARTED")
        stop(pipelineName=pipeline, pipelineExecutionId=second)
        (tmp_path / "go").touch()
        assert release.end_of(second) == "Stopped"
        statuses = {n: run["status"] for n, run in release.actions(pipeline, second).items()}
        assert statuses == {"Tree": "Succeeded", "Wait": "Succeeded"}
        code, _ = refused(stop, pipelineName=pipeline, pipelineExecutionId=second)
        assert code == "PipelineExecutionNotStoppableException"

    def test_an_unexpected_error_fails_the_action(
        self, release: Release, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fault(*_arguments: Any, **_more: Any) -> None:
            raise OSError("no space left")

        monkeypatch.setattr(release.cloud.services["codebuild"], "run", fault)
        pipeline, status, actions = release.run([build("Build", "true")])
        assert status == "Failed"
        summary = actions["Build"]["output"]["executionResult"]["externalExecutionSummary"]
        assert summary == "OSError('no space left')"
        assert f"{pipeline}/One/Build" in caplog.text


class TestApprovals:
    def test_what_is_approved_goes_on(self, release: Release) -> None:
        url, queue_arn = queue(release.cloud, "reviewers")
        sns = release.cloud.client("sns")
        topic = sns.create_topic(Name="reviewers")["TopicArn"]
        attributes = {"RawMessageDelivery": "true"}
        sns.subscribe(TopicArn=topic, Protocol="sqs", Endpoint=queue_arn, Attributes=attributes)
        configuration = {
            "NotificationArn": topic,
            "CustomData": "Look at #{Tree.CommitMessage}",
            "ExternalEntityLink": "https://example.com/qa",
        }
        pipeline = release.create([approval("Gate", configuration=configuration)])
        execution = release.begin(pipeline)
        received = release.cloud.client("sqs").receive_message(QueueUrl=url, WaitTimeSeconds=10)
        token = release.token(pipeline, execution, "One", "Gate")
        message = json.loads(received["Messages"][0]["Body"])
        assert message["approval"] == {
            "pipelineName": pipeline,
            "stageName": "One",
            "actionName": "Gate",
            "token": token,
            "customData": "Look at All of it",
            "externalEntityLink": "https://example.com/qa",
        }
        state = release.state(pipeline, "One", "Gate")
        assert state["entityUrl"] == "https://example.com/qa"
        assert state["latestExecution"]["status"] == "InProgress"

        put = {
            "pipelineName": pipeline,
            "stageName": "One",
            "actionName": "Gate",
            "result": {"summary": "Fine", "status": "Approved"},
        }
        wrong = str(uuid.uuid4())
        code, _ = refused(release.api.put_approval_result, **put, token=wrong)
        assert code == "InvalidApprovalTokenException"
        assert "approvedAt" in release.api.put_approval_result(**put, token=token)
        assert release.end_of(execution) == "Succeeded"
        code, _ = refused(release.api.put_approval_result, **put, token=token)
        assert code == "ApprovalAlreadyCompletedException"
        latest = release.state(pipeline, "One", "Gate")["latestExecution"]
        assert (latest["status"], latest["summary"]) == ("Succeeded", "Fine")
        assert "token" not in latest

    def test_what_is_rejected_fails_with_the_reviewers_words(self, release: Release) -> None:
        pipeline = release.create([approval("Gate")])
        execution = release.begin(pipeline)
        token = release.token(pipeline, execution, "One", "Gate")
        release.answer(pipeline, "One", "Gate", token, "Rejected")
        assert release.end_of(execution) == "Failed"
        latest = release.state(pipeline, "One", "Gate")["latestExecution"]
        assert latest["errorDetails"]["message"] == "Rejected by a test"


class TestFunctions:
    def test_a_function_reports_success(self, release: Release) -> None:
        _, status, actions = release.run([invoke("Ask", "succeed", namespace="Ask")])
        assert status == "Succeeded"
        ask = actions["Ask"]
        assert ask["output"]["executionResult"] == {
            "externalExecutionId": "f-1",
            "externalExecutionSummary": "The function did it",
        }
        job = json.loads(ask["output"]["outputVariables"]["Event"])["CodePipeline.job"]
        assert job["accountId"] == "123456789012"
        assert sorted(job["data"]) == [
            "actionConfiguration",
            "artifactCredentials",
            "inputArtifacts",
            "outputArtifacts",
        ]
        code, _ = refused(release.api.put_job_success_result, jobId=job["id"])
        assert code == "InvalidJobStateException"
        code, _ = refused(release.api.put_job_success_result, jobId=str(uuid.uuid4()))
        assert code == "JobNotFoundException"

    @pytest.mark.parametrize(
        ("wish", "code", "message"),
        [
            ("fail", "ConfigurationError", "No such thing"),
            ("raise", "JobFailed", "The function job failed: ValueError: no way"),
        ],
    )
    def test_a_function_reports_failure_or_raises(
        self, release: Release, wish: str, code: str, message: str
    ) -> None:
        _, status, actions = release.run([invoke("Ask", wish)])
        assert status == "Failed"
        details = actions["Ask"]["output"]["executionResult"]["errorDetails"]
        assert details == {"code": code, "message": message}

    def test_a_function_that_is_not_there_fails_the_action(self, release: Release) -> None:
        missing = {"FunctionName": "nobody"}
        _, status, actions = release.run([action("Ask", "Invoke", "Lambda", missing)])
        assert status == "Failed"
        details = actions["Ask"]["output"]["executionResult"]["errorDetails"]
        assert details == {"code": "ConfigurationError", "message": "There is no function nobody."}


def parameter_template(value: str, **more: Any) -> str:
    """A stack of one parameter in Parameter Store; larger than what a call may hold."""
    return json.dumps(
        {
            "Description": "x" * 60_000,
            "Parameters": {"Name": {"Type": "String"}},
            "Resources": {
                "Parameter": {
                    "Type": "AWS::SSM::Parameter",
                    "Properties": {"Name": {"Ref": "Name"}, "Type": "String", "Value": value},
                },
                **more,
            },
            "Outputs": {"Stored": {"Value": {"Ref": "Parameter"}}},
        }
    )


class TestStacks:
    def test_a_stack_is_created_left_updated_and_not_broken(self, release: Release) -> None:
        file = release.tree / "stack.json"
        file.write_text(parameter_template("first"))
        parameters = {"ParameterOverrides": json.dumps({"Name": "/#{Tree.BranchName}/a"})}
        pipeline = release.create(
            [
                deploy("Deploy", "made", "stack.json", configuration=parameters, namespace="Made"),
                build("Show", "export ANSWER='#{Made.Stored}'", order=2),
            ]
        )
        ssm = release.cloud.client("ssm")

        def deployed() -> tuple[str, dict[str, dict[str, Any]]]:
            execution = release.begin(pipeline)
            status = release.end_of(execution)
            return status, release.actions(pipeline, execution)

        for value, summary in (
            ("first", "CREATE_COMPLETE"),
            ("first", "Nothing has changed"),
            ("second", "UPDATE_COMPLETE"),
        ):
            file.write_text(parameter_template(value))
            status, actions = deployed()
            assert status == "Succeeded"
            result = actions["Deploy"]["output"]["executionResult"]
            assert result["externalExecutionSummary"] == f"Stack made: {summary}"
            assert ":stack/made/" in result["externalExecutionId"]
            assert actions["Show"]["output"]["outputVariables"] == {"ANSWER": "/main/a"}
            assert ssm.get_parameter(Name="/main/a")["Parameter"]["Value"] == value

        wrong = {"Type": "AWS::S3::Bucket", "Properties": {"AccelerateConfiguration": {}}}
        file.write_text(parameter_template("third", Wrong=wrong))
        status, actions = deployed()
        assert status == "Failed"
        details = actions["Deploy"]["output"]["executionResult"]["errorDetails"]
        assert "Wrong (AWS::S3::Bucket) failed" in details["message"]
        assert "AccelerateConfiguration" in details["message"]
        assert "Show" not in actions

    def test_change_sets_are_replaced_and_executed(self, release: Release) -> None:
        file = release.tree / "changes.json"
        (release.tree / "settings.json").write_text(
            json.dumps({"Parameters": {"Name": "/changes"}, "Tags": {"room": "release"}})
        )
        settings = {
            "ActionMode": "CHANGE_SET_REPLACE",
            "ChangeSetName": "PipelineChange",
            "TemplateConfiguration": "Source::settings.json",
        }
        execute = {
            "ActionMode": "CHANGE_SET_EXECUTE",
            "StackName": "changes",
            "ChangeSetName": "PipelineChange",
        }
        pipeline = release.create(
            [
                deploy("Prepare", "changes", "changes.json", configuration=settings),
                action("Execute", "Deploy", "CloudFormation", execute, order=2),
            ]
        )
        ssm = release.cloud.client("ssm")
        for value in ("first", "first", "second"):
            file.write_text(parameter_template(value))
            execution = release.begin(pipeline)
            assert release.end_of(execution) == "Succeeded"
            actions = release.actions(pipeline, execution)
            assert actions["Execute"]["output"]["outputVariables"] == {"Stored": "/changes"}
            assert ssm.get_parameter(Name="/changes")["Parameter"]["Value"] == value
        stack = release.cloud.client("cloudformation").describe_stacks(StackName="changes")
        assert stack["Stacks"][0]["Tags"] == [{"Key": "room", "Value": "release"}]

    def test_what_is_configured_wrongly_fails_by_name(self, release: Release) -> None:
        _, status, actions = release.run(
            [
                deploy("Missing", "wrong", "nowhere.json"),
                deploy("NoJson", "wrong", "README", configuration={"ParameterOverrides": "{"}),
            ]
        )
        assert status == "Failed"
        messages = {
            name: run["output"]["executionResult"]["errorDetails"]["message"]
            for name, run in actions.items()
            if name != "Tree"
        }
        assert messages["Missing"] == "TemplatePath Source::nowhere.json: there is no such file."
        assert messages["NoJson"].startswith("ParameterOverrides is not JSON")


class TestPipelinesOfTemplates:
    def test_an_update_cancels_and_restarts(self, release: Release) -> None:
        cloudformation = release.cloud.client("cloudformation")
        before = declaration("templated", [approval("Gate")])
        before["stages"][0]["actions"][0]["configuration"]["PollForSourceChanges"] = False
        cloudformation.create_stack(StackName="templated", TemplateBody=pipeline_template(before))
        kept = release.api.get_pipeline(name="templated")["pipeline"]
        tree = kept["stages"][0]["actions"][0]
        assert tree["configuration"] == {
            "RepositoryName": "quench",
            "BranchName": "main",
            "PollForSourceChanges": "false",
        }
        executions = release.api.list_pipeline_executions
        assert executions(pipelineName="templated")["pipelineExecutionSummaries"] == []

        first = release.begin("templated")
        token = release.token("templated", first, "One", "Gate")
        same = pipeline_template(before, Tags=[{"Key": "room", "Value": "release"}])
        cloudformation.update_stack(StackName="templated", TemplateBody=same)
        assert release.status("templated", first) == "InProgress"

        after = declaration("templated", [build("Build", "true"), approval("Gate", order=2)])
        cloudformation.update_stack(StackName="templated", TemplateBody=pipeline_template(after))
        assert release.end_of(first) == "Cancelled"
        release.told(first, action="Gate", state="CANCELED")
        release.told(first, stage="One", state="CANCELED")
        assert release.actions("templated", first)["Gate"]["status"] == "Abandoned"
        gate = {"pipelineName": "templated", "stageName": "One", "actionName": "Gate"}
        result = {"summary": "late", "status": "Approved"}
        code, _ = refused(release.api.put_approval_result, **gate, result=result, token=token)
        assert code == "ApprovalAlreadyCompletedException"
        summaries = executions(pipelineName="templated")["pipelineExecutionSummaries"]
        assert [summary["status"] for summary in summaries] == ["InProgress", "Cancelled"]
        outputs = cloudformation.describe_stacks(StackName="templated")["Stacks"][0]["Outputs"]
        assert {output["OutputKey"]: output["OutputValue"] for output in outputs} == {
            "Name": "templated",
            "Version": "2",
        }
        second = summaries[0]["pipelineExecutionId"]
        again = release.token("templated", second, "One", "Gate")
        assert again != token
        release.answer("templated", "One", "Gate", again)
        assert release.end_of(second) == "Succeeded"
        assert release.describe("templated", second)["pipelineVersion"] == 2

        cloudformation.delete_stack(StackName="templated")
        code, _ = refused(release.api.get_pipeline, name="templated")
        assert code == "PipelineNotFoundException"

    def test_a_pipeline_updates_itself(self, release: Release) -> None:
        (release.tree / "mutate.py").write_text(SELF_MUTATION)
        mutate = build("SelfMutate", f"{sys.executable} mutate.py mutant.json")
        before = declaration("mutant", [mutate])
        after = declaration("mutant", [mutate], [build("Added", "true")])
        (release.tree / "mutant.json").write_text(pipeline_template(after))
        release.cloud.client("cloudformation").create_stack(
            StackName="mutant", TemplateBody=pipeline_template(before)
        )
        first = release.begin("mutant")
        assert release.end_of(first) == "Cancelled"
        summaries = release.api.list_pipeline_executions(pipelineName="mutant")
        second = summaries["pipelineExecutionSummaries"][0]["pipelineExecutionId"]
        assert release.end_of(second) == "Succeeded"
        assert set(release.actions("mutant", second)) == {"Tree", "SelfMutate", "Added"}
        assert release.actions("mutant", first)["SelfMutate"]["status"] == "Abandoned"

    def test_what_the_api_does_not_have_is_refused(self, release: Release) -> None:
        template = pipeline_template(
            declaration("odd", [approval("Gate")]),
            DisableInboundStageTransitions=[{"StageName": "One", "Reason": "never"}],
        )
        _, message = refused(
            release.cloud.client("cloudformation").create_stack,
            StackName="odd",
            TemplateBody=template,
        )
        assert "DisableInboundStageTransitions" in message


class TestEvents:
    def test_every_change_is_told_in_the_documented_form(self, release: Release) -> None:
        pipeline = release.create([build("Make", "true", outputs=["Made"])])
        execution = release.begin(pipeline)
        assert release.end_of(execution) == "Succeeded"
        kind = "CodePipeline {} Execution State Change"
        arn = f"arn:aws:codepipeline:us-east-1:123456789012:{pipeline}"
        started = release.told(execution, state="STARTED", stage=None)
        assert started["detail-type"] == kind.format("Pipeline")
        assert started["resources"] == [arn]
        assert started["detail"] == {
            "pipeline": pipeline,
            "execution-id": execution,
            "start-time": started["detail"]["start-time"],
            "execution-trigger": {"trigger-type": "StartPipelineExecution"},
            "state": "STARTED",
            "version": 1.0,
            "pipeline-execution-attempt": 1.0,
        }
        stage = release.told(execution, state="SUCCEEDED", stage="One", action=None)
        assert stage["detail-type"] == kind.format("Stage")
        event = release.told(execution, state="SUCCEEDED", action="Make")
        assert event["detail-type"] == kind.format("Action")
        run = release.actions(pipeline, execution)["Make"]
        detail = event["detail"]
        assert detail["action-execution-id"] == run["actionExecutionId"]
        assert detail["type"] == {
            "owner": "AWS",
            "category": "Build",
            "provider": "CodeBuild",
            "version": "1",
        }
        assert detail["output-artifacts"] == [{"name": "Made"}]
        result = run["output"]["executionResult"]
        assert detail["execution-result"] == {
            "external-execution-id": result["externalExecutionId"],
            "external-execution-url": result["externalExecutionUrl"],
        }
        begun = release.told(execution, state="STARTED", action="Make")["detail"]
        assert begun["input-artifacts"] == [{"name": "Source"}]


def changed(pipeline: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """A declaration with another value at `a.0.b`."""
    copy: dict[str, Any] = json.loads(json.dumps(pipeline))
    *parents, last = path.split(".")
    place: Any = copy
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[int(last) if isinstance(place, list) else last] = value
    return copy


class TestStructures:
    @pytest.mark.parametrize(
        ("path", "value", "code", "words"),
        [
            ("executionMode", "QUEUED", "ValidationException", "QUEUED"),
            ("variables", [{"name": "Stage"}], "ValidationException", "variables"),
            (
                "triggers",
                [
                    {
                        "providerType": "CodeStarSourceConnection",
                        "gitConfiguration": {"sourceActionName": "Tree"},
                    }
                ],
                "ValidationException",
                "triggers",
            ),
            ("stages.1.onFailure", {"result": "ROLLBACK"}, "ValidationException", "onFailure"),
            ("stages.1.actions.0.commands", ["ls"], "ValidationException", "commands"),
            (
                "stages.1.actions.0.actionTypeId.provider",
                "Jenkins",
                "ValidationException",
                "Build Jenkins",
            ),
            ("stages.1.actions.0.actionTypeId.owner", "Custom", "ValidationException", "Custom"),
            ("stages.1.actions.0.region", "eu-west-1", "ValidationException", "eu-west-1"),
            (
                "stages.1.actions.0.configuration.BatchEnabled",
                "true",
                "ValidationException",
                "BatchEnabled",
            ),
            (
                "stages.1.actions.0.inputArtifacts",
                [{"name": "Source"}, {"name": "Source"}],
                "InvalidActionDeclarationException",
                "PrimarySource",
            ),
            (
                "stages.1.actions.0.configuration",
                {},
                "InvalidActionDeclarationException",
                "ProjectName",
            ),
            (
                "stages.1.actions.0.inputArtifacts",
                [{"name": "Nobodys"}],
                "InvalidActionDeclarationException",
                "Nobodys",
            ),
            (
                "stages.1.actions.0.outputArtifacts",
                [{"name": "Source"}],
                "InvalidActionDeclarationException",
                "Source",
            ),
            (
                "stages.1.actions.0.namespace",
                "codepipeline",
                "InvalidActionDeclarationException",
                "codepipeline",
            ),
            (
                "stages.1.actions.1",
                build("Build", "true"),
                "InvalidStageDeclarationException",
                "several actions named Build",
            ),
            ("stages.1.name", "Source", "InvalidStageDeclarationException", "Source"),
            ("stages.1.actions", [], "InvalidStageDeclarationException", "One"),
            ("stages.1.actions.0", source(), "InvalidStructureException", "Tree"),
            ("stages", [], "InvalidStructureException", "two stages"),
            (
                "stages.1.actions.1.configuration.ActionMode",
                "DELETE_ONLY",
                "ValidationException",
                "DELETE_ONLY",
            ),
            (
                "stages.1.actions.1.configuration.TemplatePath",
                "Other::a.json",
                "InvalidActionDeclarationException",
                "Other::a.json",
            ),
            (
                "stages.0.actions.0.configuration.OutputArtifactFormat",
                "CODEBUILD_CLONE_REF",
                "ValidationException",
                "CODEBUILD_CLONE_REF",
            ),
            ("artifactStore", None, "InvalidStructureException", "artifactStore"),
        ],
    )
    def test_what_cannot_run_is_refused_by_name(
        self, release: Release, path: str, value: Any, code: str, words: str
    ) -> None:
        actions = [build("Build", "true"), deploy("Deploy", "some", "a.json")]
        wrong = changed(declaration("refused", actions), path, value)
        wrong = {key: value for key, value in wrong.items() if value is not None}
        answer = refused(release.api.create_pipeline, pipeline=wrong)
        assert answer[0] == code
        assert words in answer[1]
        assert code_of_get(release, "refused") == "PipelineNotFoundException"

    def test_operations_and_arguments_without_an_engine_are_refused(self, release: Release) -> None:
        pipeline = release.create([approval("Gate")])
        api = release.api
        code, message = refused(api.list_webhooks)
        assert code == "NotImplemented"
        assert "codepipeline:ListWebhooks" in message
        _, message = refused(
            api.start_pipeline_execution, name=pipeline, variables=[{"name": "a", "value": "b"}]
        )
        assert "variables" in message
        code, _ = refused(api.create_pipeline, pipeline=declaration(pipeline, [approval("Gate")]))
        assert code == "PipelineNameInUseException"

    def test_pipelines_are_listed_tagged_and_deleted(self, release: Release) -> None:
        pipeline = declaration("tagged", [approval("Gate")])
        api = release.api
        api.create_pipeline(pipeline=pipeline, tags=[{"key": "room", "value": "release"}])
        arn = api.get_pipeline(name="tagged")["metadata"]["pipelineArn"]
        api.tag_resource(resourceArn=arn, tags=[{"key": "more", "value": "yes"}])
        api.untag_resource(resourceArn=arn, tagKeys=["room"])
        assert api.list_tags_for_resource(resourceArn=arn)["tags"] == [
            {"key": "more", "value": "yes"}
        ]
        assert api.update_pipeline(pipeline=pipeline)["pipeline"]["version"] == 1
        listed = {p["name"]: p["version"] for p in api.list_pipelines()["pipelines"]}
        assert listed["tagged"] == 1
        execution = release.begin("tagged")
        release.told(execution, action="Gate", state="STARTED")
        api.delete_pipeline(name="tagged")
        api.delete_pipeline(name="tagged")  # none is no error
        release.told(execution, state="CANCELED", stage=None)
        assert code_of_get(release, "tagged") == "PipelineNotFoundException"


def code_of_get(release: Release, pipeline: str) -> str:
    return refused(release.api.get_pipeline, name=pipeline)[0]


class TestSource:
    def test_a_snapshot_has_what_git_would_keep(self, tmp_path: Path) -> None:
        tree, target = tmp_path / "tree", tmp_path / "target"
        (tree / "deep").mkdir(parents=True)
        for name in ("kept", "changed", "deleted", "deep/ünïcode file", "run.sh"):
            (tree / name).write_text(name)
        (tree / "run.sh").chmod(0o755)
        (tree / ".gitignore").write_text("ignored\n")
        (tree / "link").symlink_to("kept")
        (tree / "dangling").symlink_to("nowhere")
        git(tree, "init", "--quiet")
        git(tree, "add", ".")
        git(tree, "commit", "--quiet", "--message", "A subject\n\nand a body")
        commit = git(tree, "rev-parse", "HEAD")
        clean = snapshot(tree, tmp_path / "clean")
        assert (clean.id, clean.message) == (commit, "A subject\n\nand a body")
        assert clean.author_date is not None

        (tree / "changed").write_text("otherwise")
        (tree / "deleted").unlink()
        (tree / "untracked").write_text("new")
        (tree / "ignored").write_text("secret")
        dirty = snapshot(tree, target)
        assert dirty.id.startswith(f"{commit}-dirty-")
        assert snapshot(tree, tmp_path / "again").id == dirty.id
        found = {p.relative_to(target).as_posix() for p in target.rglob("*") if not p.is_dir()}
        assert found == {
            ".gitignore",
            "kept",
            "changed",
            "untracked",
            "deep/ünïcode file",
            "run.sh",
            "link",
            "dangling",
        }
        assert (target / "changed").read_text() == "otherwise"
        assert (target / "link").readlink() == Path("kept")
        assert (target / "run.sh").stat().st_mode & 0o100
        (tree / "untracked").write_text("newer")
        assert snapshot(tree, tmp_path / "newer").id != dirty.id

    def test_a_folder_without_git_is_taken_but_for_caches(self, tmp_path: Path) -> None:
        tree, target = tmp_path / "tree", tmp_path / "target"
        for name in ("a/b", ".venv/c", ".quench/d", "cdk.out/e", "a/__pycache__/f"):
            (tree / name).parent.mkdir(parents=True, exist_ok=True)
            (tree / name).write_text(name)
        revision = snapshot(tree, target)
        assert [p.name for p in target.rglob("*") if p.is_file()] == ["b"]
        assert (len(revision.id), revision.author_date) == (64, None)

    def test_a_repository_without_commits_is_named_by_its_content(self, tmp_path: Path) -> None:
        tree = tmp_path / "tree"
        tree.mkdir()
        (tree / "new").write_text("new")
        git(tree, "init", "--quiet")
        assert len(snapshot(tree, tmp_path / "target").id) == 64

    def test_a_connection_is_the_working_tree_too(self, release: Release) -> None:
        pipeline = declaration("connected", [build("Build", "true")])
        pipeline["stages"][0]["actions"][0] |= {
            "actionTypeId": {
                "category": "Source",
                "owner": "AWS",
                "provider": "CodeStarSourceConnection",
                "version": "1",
            },
            "configuration": {
                "ConnectionArn": "arn:aws:codestar-connections:us-east-1:123456789012:connection/a",
                "FullRepositoryId": "someone/quench",
                "BranchName": "main",
            },
        }
        release.api.create_pipeline(pipeline=pipeline)
        execution = release.begin("connected")
        assert release.end_of(execution) == "Succeeded"
        commit = git(release.tree, "rev-parse", "HEAD")
        variables = release.actions("connected", execution)["Tree"]["output"]["outputVariables"]
        assert variables["CommitId"].startswith(commit)
        assert variables["CommitMessage"] == "All of it"
        assert variables["FullRepositoryName"] == "someone/quench"
        assert sorted(variables) == [
            "AuthorDate",
            "BranchName",
            "CommitId",
            "CommitMessage",
            "ConnectionArn",
            "FullRepositoryName",
        ]
        (revision,) = release.describe("connected", execution)["artifactRevisions"]
        assert revision["name"] == "Source"
        assert revision["revisionId"] == variables["CommitId"]
        assert revision["revisionSummary"] == "All of it"
        listed = release.api.list_pipeline_executions(pipelineName="connected")
        (summary,) = listed["pipelineExecutionSummaries"]
        assert summary["sourceRevisions"][0]["revisionId"] == variables["CommitId"]
        current = release.state("connected", "Source", "Tree")["currentRevision"]
        assert current["revisionId"] == variables["CommitId"]


NAMES = st.text("abcXYZ019@_-", min_size=1, max_size=8)
TEXTS = st.text('aé"\n\\ #{}.$0', max_size=12)


class TestVariables:
    @given(values=st.dictionaries(NAMES, TEXTS, min_size=1), between=TEXTS)
    def test_every_reference_is_replaced_and_what_is_put_in_stays(
        self, values: dict[str, str], between: str
    ) -> None:
        text = between.join(f"#{{space.{name}}}" for name in values)
        assert fill(text, {"space": values}) == between.join(values.values())

    @given(text=TEXTS)
    def test_a_text_without_references_stays(self, text: str) -> None:
        assert (
            fill(f"{text}#{{}} ${{a.b}} #{{a}} #{{a.b", {}) == f"{text}#{{}} ${{a.b}} #{{a}} #{{a.b"
        )

    @given(namespace=NAMES, name=NAMES)
    def test_what_is_unknown_is_named(self, namespace: str, name: str) -> None:
        with pytest.raises(UnknownVariable, match=f"#{{{namespace}.{name}}}"):
            fill(f"a #{{{namespace}.{name}}}", {"other": {}})
