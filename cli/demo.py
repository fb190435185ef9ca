"""The demo: a dataset taken through the whole loop by calls that any AWS client could make."""

import base64
import csv
import json
import math
import shutil
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from rich.console import Console

from cli import lore, result, view
from cli.api import Api, Mode
from cli.errors import CommandError, needs
from cli.knowledge import Knowledge
from cli.pipeline import Execution, ReleasePipeline, find_failed
from cli.progress import Progress, Step, expected_steps, merge_steps, now
from cli.result import RESULT_FILE, DemoResult
from cli.synth import load_settings
from cli.up import EXAMPLE, ModelSize, Stacks, UpOptions, only_one, running_cloud
from evaluation.report import Evaluation, ModelScores

if TYPE_CHECKING:
    from local.cloud import Cloud

FOLDER = Path(".quench/demo")
STATE_DIR = FOLDER / "cloud"
LOCK_FILE = Path(".quench/demo.lock")
PERSONAS = Path("examples/emberfall/personas")
PERSONA = "oriel"
MODES: tuple[Mode, ...] = ("base", "tuned", "rag")
QUESTION = "What was Emberfall called before the Long Night?"
MAX_TOKENS = 60  # a laptop answers 12 a second at best, and the API waits for 16 seconds at least
ANSWERS_TRIED = 3  # while something else keeps the machine busy, an answer may come too late
PICTURE = "The bell tower of Emberfall at dusk, ash falling like snow"
LOOK_SECONDS = 2.0
START_SECONDS = 60.0
PROMOTION_SECONDS = 120.0
STAGES = ("qa", "prod")
REPORTS = (
    "report/preprocess_report.json",
    "rejected/rejected.jsonl",
    "evaluation/evaluation.json",
)

T = TypeVar("T")


@dataclass(frozen=True)
class DemoOptions:
    dataset: Path = EXAMPLE
    settings: Path | None = None
    port: int = 0
    model: ModelSize | None = None
    source: Path | None = None
    timeout_seconds: float = 1800.0


def run(options: DemoOptions, console: Console, plain: bool) -> DemoResult:
    """Run the demo, show it, and leave `.quench/demo.json`, whatever happens.

    Raises
    ------
    CommandError
        Names the step that failed, its reason and the log to read.
    """
    with needs("local"):
        from cli.memory import PeakMemory

    outcome, progress, memory = DemoResult(), Progress(), PeakMemory()
    questions: list[lore.Question] = []
    try:
        if not options.dataset.is_file():
            raise CommandError(
                f"There is no dataset at {options.dataset}.",
                "Name a .jsonl, .json, .csv, .tsv or .parquet file with --dataset. The example is "
                "in Quench's checkout only.",
            )
        with view.shown(progress, console, plain), memory:
            places = _run(options, progress, outcome, questions)
        outcome.ok = True
    except BaseException as error:
        outcome.error = str(error) or "interrupted"
        raise
    finally:
        outcome.phases = [
            result.Phase(name=phase.name, seconds=round(phase.seconds(now()), 2))
            for phase in progress.phases
            if phase.started
        ]
        outcome.peak_memory_mb = round(memory.peak_mb, 1)
        outcome.write()
        if questions:
            console.print(view.found_passages(questions), "")
        if outcome.evaluation:
            evaluation = Evaluation.model_validate_json((FOLDER / "evaluation.json").read_text())
            console.print(view.comparison(evaluation), "")
            console.print(view.answers(evaluation.samples), "")
        if outcome.release:
            console.print(view.release(outcome.release), "")
        if outcome.answers:
            console.print(view.api_answers(QUESTION, outcome.answers, outcome.picture), "")
    console.print("[green]✓[/] The tuned model is approved, released and answers.\n")
    places |= {
        "Reports": f"{FOLDER}/",
        "State and logs": f"{STATE_DIR}/",
        "Result": f"{RESULT_FILE}",
        "Peak memory": f"{outcome.peak_memory_mb:.0f} MB ({memory.measure}, all processes)",
    }
    console.print(view.listing(places), soft_wrap=True)
    return outcome


def _run(
    options: DemoOptions,
    progress: Progress,
    outcome: DemoResult,
    questions: list[lore.Question],
) -> dict[str, str]:
    """Go through the phases, and keep what questions found; says where in the cloud things are."""
    deadline = time.monotonic() + options.timeout_seconds
    with ExitStack() as stack:
        # Each demo clears the folder of the one before: two at once would spoil each other.
        another = CommandError(
            f"Another demo runs here ({LOCK_FILE} is locked).",
            "Wait for it to end, or run this one in another folder.",
        )
        stack.enter_context(only_one(LOCK_FILE, another))
        settings = load_settings(options.settings)
        if settings.tuning.serving != "on-demand":
            raise CommandError(
                f"tuning.serving is {settings.tuning.serving}: nobody buys Provisioned Throughput "
                "in the demo, so its model would never be invoked.",
                "Run it with QUENCH_TUNING__SERVING=on-demand.",
            )
        shutil.rmtree(FOLDER, ignore_errors=True)
        with progress.phase("start"):
            progress.note("start", "synthesizing the stack, starting the embedded cloud")
            cloud, stacks = stack.enter_context(
                running_cloud(
                    UpOptions(
                        options.settings, options.port, STATE_DIR, options.model, options.source
                    )
                )
            )
            demo = Demo(cloud, stacks, progress, outcome, deadline)
        with progress.phase("hydrate"):
            questions += demo.hydrate(settings.name)
        with progress.phase("upload"):
            demo.upload(options.dataset, settings.dataset.prefix)
        with progress.phase("tune"):
            demo.tune()
        with progress.phase("approve"):
            demo.approve()
        with progress.phase("promote"):
            model_id = demo.promote()
        with progress.phase("release"):
            demo.release(model_id)
        with progress.phase("answer"):
            api_url = demo.answer()
    return {
        "Model to invoke": model_id,
        "API": f"{api_url} (signed requests: IAM)",
        "QA's API": stacks["qa-inference"]["ApiUrl"],
        "Named by": f"{stacks['promotion']['ModelParameterName']} (Parameter Store)",
        "Was in S3": f"s3://{demo.bucket}/{demo.run_folder}/",
    }


class Demo:
    """What a user of the cloud does, in order; what is learned goes to `progress` and `outcome`."""

    def __init__(
        self,
        cloud: "Cloud",
        stacks: Stacks,
        progress: Progress,
        outcome: DemoResult,
        deadline: float,
    ) -> None:
        self._cloud = cloud
        self._stacks = stacks
        self._outputs = outputs = stacks["tuning"]
        self._progress = progress
        self._outcome = outcome
        self._deadline = deadline
        self.bucket = outputs["DataBucketName"]
        self._state_dir = cloud.config.state_dir
        self._s3 = cloud.client("s3")
        self._sagemaker = cloud.client("sagemaker")
        self._stepfunctions = cloud.client("stepfunctions")
        self._bedrock = cloud.client("bedrock")
        self._ssm = cloud.client("ssm")
        self._sqs = cloud.client("sqs")
        definition = self._sagemaker.describe_pipeline(PipelineName=outputs["PipelineName"])
        self._expected = expected_steps(json.loads(definition["PipelineDefinition"]))
        self._execution_arn = ""
        self._served_before: dict[str, str | None] = {}
        progress.note("start", cloud.endpoint)
        progress.update(steps=self._expected)

    def hydrate(self, name: str) -> list[lore.Question]:
        """Make the example's lore searchable, and ask what it answers."""
        if not lore.LORE.is_dir():
            self._progress.note("hydrate", f"skipped: {lore.LORE} is in Quench's checkout only")
            return []
        outputs = {**self._stacks["knowledge"], "IndexLocation": self._cloud.index_location}
        knowledge = Knowledge(name, outputs, self._cloud.client)
        self._outcome.knowledge, questions = lore.hydrate(
            knowledge, lambda note: self._progress.note("hydrate", note), self._deadline
        )
        if self._outcome.knowledge.failed:
            raise CommandError(
                f"{self._outcome.knowledge.failed} documents could not be hydrated.",
                f"The jobs' logs are in {self._state_dir / 'logs' / 'processing'}",
            )
        return questions

    def upload(self, dataset: Path, prefix: str) -> None:
        key = f"{prefix}{dataset.name}"
        self._progress.note("upload", f"{key} to {self.bucket}")
        self._s3.upload_file(str(dataset), self.bucket, key)

    def tune(self) -> None:
        """Follow the execution that the upload started to its end."""
        self._execution_arn = self._wait(
            "the upload to start a pipeline execution", self._started_execution, START_SECONDS
        )
        self._progress.note(
            "tune", f"{self._outputs['PipelineName']}, execution {self._execution_id}"
        )
        status = self._wait("the pipeline execution to end", self._look, math.inf)
        failed = next((step for step in self._progress.steps if step.failed), None)
        if failed and failed.type == "Fail":
            raise CommandError(failed.failure_reason, f"Reports are in {FOLDER}/")
        if failed:
            raise CommandError(
                f"{failed.name} {failed.status.lower()}: {failed.failure_reason}",
                self._to_read(failed),
            )
        if status != "Succeeded":
            described = self._describe_execution()
            raise CommandError(
                f"The pipeline execution {status.lower()}: {described.get('FailureReason', '')}",
                f"Logs are in {self._state_dir / 'logs'}",
            )
        unfinished = [s.name for s in self._progress.steps if s.status != "Succeeded"]
        if unfinished:
            raise CommandError(f"The pipeline execution succeeded without {', '.join(unfinished)}.")
        self._wait("the state machine to end", self._machine_ended, START_SECONDS)

    def approve(self) -> None:
        """Approve the registered version, as an approver would."""
        self._served_before = self._served_models()
        register = next(step for step in self._progress.steps if step.type == "RegisterModel")
        arn = register.metadata["RegisterModel"]["Arn"]
        self._progress.note("approve", arn)
        self._sagemaker.update_model_package(
            ModelPackageArn=arn,
            ModelApprovalStatus="Approved",
            ApprovalDescription="Approved by quench demo",
        )
        package = self._sagemaker.describe_model_package(ModelPackageName=arn)
        self._outcome.model_package = result.ModelPackage(
            arn=arn, approval_status=package["ModelApprovalStatus"]
        )
        if package["ModelApprovalStatus"] != "Approved":
            raise CommandError(f"{arn} is {package['ModelApprovalStatus']}, not Approved.")

    def promote(self) -> str:
        """Wait until Parameter Store names a deployment of exactly this custom model; its ARN."""
        name = self._stacks["promotion"]["ModelParameterName"]
        custom_model = self._fine_tune_outputs()["custom_model_arn"]
        self._progress.note("promote", name)

        def promoted() -> str | None:
            value: str = self._ssm.get_parameter(Name=name)["Parameter"]["Value"]
            self._outcome.parameter = result.Parameter(name=name, value=value)
            return value if json.loads(value)["custom_model"] == custom_model else None

        value = self._wait(f"{name} to name the model", promoted, PROMOTION_SECONDS)
        model_id: str = json.loads(value)["model_id"]
        deployment = self._bedrock.get_custom_model_deployment(
            customModelDeploymentIdentifier=model_id
        )
        if deployment["modelArn"] != custom_model or deployment["status"] != "Active":
            raise CommandError(
                f"{name} names {model_id}, a deployment of {deployment['modelArn']} that is "
                f"{deployment['status']}; expected is an active one of {custom_model}."
            )
        return model_id

    def release(self, model_id: str) -> None:
        """Follow the release that the approval started, through QA to production."""
        pipeline = ReleasePipeline(
            self._stacks["release"]["ReleasePipelineName"], self._cloud.client
        )
        parameter = self._stacks["promotion"]["ModelParameterName"]
        written = self._ssm.get_parameter(Name=parameter)["Parameter"]["LastModifiedDate"]
        started = time.monotonic()

        def ended() -> Execution | None:
            found = pipeline.release_since(written)
            if found is None:
                return None
            actions = pipeline.actions_of(found.id)
            statuses = {place: action.status for place, action in actions.items()}
            running = [place for place, status in statuses.items() if status == "InProgress"]
            if running:
                self._progress.note("release", ", ".join(sorted(running)))
            after = self._served_before if found.running else self._served_models()
            self._outcome.release = result.Release(
                pipeline=pipeline.name,
                execution=found.id,
                status=found.status,
                seconds=round(time.monotonic() - started, 2),
                stages=[
                    result.Stage(
                        name=stage.upper(),
                        model_before=self._served_before[stage],
                        model_after=model,
                        system_tests=statuses.get(f"{stage.upper()}/SystemTests"),
                    )
                    for stage, model in after.items()
                ],
            )
            return None if found.running else found

        execution = self._wait("the release to end", ended, math.inf)
        if execution.status != "Succeeded":
            failed = find_failed(pipeline.actions_of(execution.id))
            raise CommandError(
                f"The release {execution.id} {execution.status.lower()}"
                + (f" in {failed.place}: {failed.message}" if failed else "."),
                f"Its builds' logs are in {self._state_dir / 'logs' / 'codebuild'}",
            )
        for stage in self._outcome.release.stages if self._outcome.release else []:
            if stage.model_after != model_id:
                raise CommandError(
                    f"{stage.name} answers with {stage.model_after}, not with {model_id}."
                )
        self._progress.note("release", f"{pipeline.name}, execution {execution.id}")

    def _served_models(self) -> dict[str, str | None]:
        """What each stage says of itself."""
        return {stage: self._api(stage).health().body["models"]["tuned"] for stage in STAGES}

    def _api(self, stage: str) -> Api:
        return Api(self._stacks[f"{stage}-inference"]["ApiUrl"], self._cloud.session)

    def answer(self) -> str:
        """Ask production one question three ways, have a picture drawn; the API's URL."""
        outputs = self._stacks["prod-inference"]
        api = self._api("prod")
        persona = self._upload_personas(outputs["PersonasUri"])
        for mode in MODES:
            self._progress.note("answer", f"{QUESTION} ({mode})")
            started = time.monotonic()
            for _ in range(ANSWERS_TRIED):
                reply = api.ask(mode, QUESTION, MAX_TOKENS, persona)
                if reply.status != 504:
                    break
            self._outcome.answers = [
                *self._outcome.answers,
                result.Answer(
                    mode=mode,
                    status=reply.status,
                    model_id=reply.body.get("model_id", ""),
                    response=reply.body.get("response", reply.problem),
                    sources=[
                        result.Source(**{name: source[name] for name in result.Source.model_fields})
                        for source in reply.body.get("sources", [])
                    ],
                    seconds=round(time.monotonic() - started, 2),
                ),
            ]
            if reply.status != 200 and not (mode == "rag" and self._outcome.knowledge is None):
                raise CommandError(f"/{mode} answered {reply.status}: {reply.problem}")
        self._draw(api)
        self._progress.note("answer", outputs["ApiUrl"])
        return outputs["ApiUrl"]

    def _upload_personas(self, uri: str) -> str | None:
        """The example's personas, for the API to load; the one to ask, if they are here."""
        if not PERSONAS.is_dir():
            return None
        bucket, _, prefix = uri.removeprefix("s3://").partition("/")
        for path in sorted(PERSONAS.glob("*.json")):
            self._s3.upload_file(str(path), bucket, prefix + path.name)
        return PERSONA

    def _draw(self, api: Api) -> None:
        self._progress.note("answer", PICTURE)
        started = time.monotonic()
        reply = api.draw(PICTURE)
        if reply.status != 200:
            raise CommandError(f"/image answered {reply.status}: {reply.problem}")
        path = FOLDER / "picture.png"
        path.write_bytes(base64.b64decode(reply.body["image"]))
        self._outcome.picture = result.Picture(
            status=reply.status,
            model_id=reply.body["model_id"],
            placeholder=reply.body["placeholder"],
            path=str(path),
            seconds=round(time.monotonic() - started, 2),
        )

    @property
    def run_folder(self) -> str:
        """The run's prefix in the data bucket."""
        return f"runs/{self._execution_id}"

    @property
    def _execution_id(self) -> str:
        return self._execution_arn.rpartition("/")[2]

    def _started_execution(self) -> str | None:
        found = self._sagemaker.list_pipeline_executions(
            PipelineName=self._outputs["PipelineName"], SortBy="CreationTime", SortOrder="Ascending"
        )["PipelineExecutionSummaries"]
        if not found:
            self._raise_if_refused()
        return found[0]["PipelineExecutionArn"] if found else None

    def _raise_if_refused(self) -> None:
        """Raise what the function said that should have started an execution."""
        for url in self._sqs.list_queues()["QueueUrls"]:
            if "-FailedEvents" in url:
                for message in self._sqs.receive_message(QueueUrl=url).get("Messages", []):
                    failed = json.loads(message["Body"])
                    raise CommandError(
                        f"The upload started nothing: {failed['responsePayload']['errorMessage']}",
                        f"The functions' logs are in {self._state_dir / 'logs'}",
                    )

    def _describe_execution(self) -> dict[str, Any]:
        described: dict[str, Any] = self._sagemaker.describe_pipeline_execution(
            PipelineExecutionArn=self._execution_arn
        )
        return described

    def _look(self) -> str | None:
        """Take over what changed; the execution's status once it ended."""
        status: str = self._describe_execution()["PipelineExecutionStatus"]
        listed = self._sagemaker.list_pipeline_execution_steps(
            PipelineExecutionArn=self._execution_arn, SortOrder="Ascending"
        )["PipelineExecutionSteps"]
        steps = merge_steps(self._expected, listed)
        self._progress.update(steps=steps, losses=self._losses_so_far())
        self._look_at_machine()
        self._outcome.execution = result.Execution(
            arn=self._execution_arn,
            status=status,
            steps=[
                result.Step(name=step.name, type=step.type, status=step.status) for step in steps
            ],
        )
        if status in ("Executing", "Stopping"):
            return None
        self._read_reports()
        return status

    def _look_at_machine(self) -> str:
        """Take over the state machine's current state; its status, or nothing before it began."""
        executions = self._stepfunctions.list_executions(
            stateMachineArn=self._outputs["StateMachineArn"]
        )["executions"]
        found = next((e for e in executions if e["name"].startswith(self._execution_id)), None)
        if found is None:
            return ""
        arn, status = found["executionArn"], str(found["status"])
        self._outcome.state_machine = result.StateMachine(execution_arn=arn, status=status)
        history = self._stepfunctions.get_execution_history(
            executionArn=arn, reverseOrder=True, maxResults=50, includeExecutionData=False
        )["events"]
        entered = [event for event in history if "stateEnteredEventDetails" in event]
        if entered:
            latest = max(entered, key=lambda event: int(event["id"]))
            self._progress.update(machine_state=latest["stateEnteredEventDetails"]["name"])
        return status

    def _machine_ended(self) -> bool | None:
        status = self._look_at_machine()
        if status == "RUNNING":
            return None
        if status != "SUCCEEDED":
            raise CommandError(f"The state machine's execution is {status or 'missing'}.")
        return True

    def _losses_so_far(self) -> tuple[float, ...]:
        """What the running job has appended to its metrics; the job writes while we read."""
        files = sorted(self._state_dir.glob("bedrock/jobs/*/step_wise_training_metrics.csv"))
        if not files:
            return ()
        text = files[-1].read_text(encoding="utf-8")
        return read_losses(text[: text.rfind("\n") + 1])

    def _read_reports(self) -> None:
        """Take over what the run left in S3, as far as it got."""
        listed = self._s3.list_objects_v2(Bucket=self.bucket, Prefix=f"{self.run_folder}/")
        keys = {entry["Key"] for entry in listed.get("Contents", []) if entry["Size"]}
        for report in REPORTS:
            key = f"{self.run_folder}/{report}"
            if key in keys:
                text = self._read(self.bucket, key)
                (FOLDER / Path(report).name).write_text(text, encoding="utf-8")
        self._read_training()
        exported = FOLDER / "evaluation.json"
        if exported.is_file():
            evaluation = Evaluation.model_validate_json(exported.read_text(encoding="utf-8"))
            self._outcome.evaluation = result.Evaluation(
                test_records=evaluation.test_records,
                base=_scores(evaluation.base),
                tuned=_scores(evaluation.tuned),
            )

    def _read_training(self) -> None:
        job_arn = self._fine_tune_outputs().get("job_arn")
        if job_arn is None:
            return
        job = self._bedrock.get_model_customization_job(jobIdentifier=job_arn)
        bucket, _, prefix = job["outputDataConfig"]["s3Uri"].removeprefix("s3://").partition("/")
        metrics = self._read(
            bucket,
            f"{prefix.rstrip('/')}/model-customization-job-{job_arn.rpartition('/')[2]}"
            "/training_artifacts/step_wise_training_metrics.csv",
        )
        losses = read_losses(metrics)
        self._progress.update(losses=losses)
        self._outcome.training = result.Training(
            job_arn=job_arn, steps=len(losses), first_loss=losses[0], last_loss=losses[-1]
        )

    def _read(self, bucket: str, key: str) -> str:
        body: bytes = self._s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        return body.decode("utf-8")

    def _fine_tune_outputs(self) -> dict[str, str]:
        """What the callback brought: none before it succeeded."""
        step = next(step for step in self._progress.steps if step.type == "Callback")
        outputs = step.metadata.get("Callback", {}).get("OutputParameters", [])
        return {output["Name"]: output["Value"] for output in outputs}

    def _to_read(self, step: Step) -> str:
        """Where a failed step left its log: a job's own, or those of the functions behind it."""
        logs = self._state_dir / "logs"
        arn = step.metadata.get("ProcessingJob", {}).get("Arn", "")
        for log in (logs / "processing").glob("*.log"):
            if log.stem.lower() == arn.rpartition("/")[2].lower():  # the ARN is in lower case
                written = self._state_dir / "processing" / log.stem / "processing" / "output"
                return f"Its log is {log}\nWhat it wrote is in {written}"
        return f"Logs are in {logs}"

    def _wait(self, what: str, look: Callable[[], T | None], seconds: float) -> T:
        """Look until there is something: for some seconds, and never past the demo's deadline."""
        deadline = min(self._deadline, time.monotonic() + seconds)
        while (found := look()) is None:
            if time.monotonic() > deadline:
                raise CommandError(
                    f"Waited in vain for {what}.",
                    f"The functions' logs are in {self._state_dir / 'logs'}",
                )
            time.sleep(LOOK_SECONDS)
        return found


def read_losses(metrics: str) -> tuple[float, ...]:
    """Training losses of a step_wise_training_metrics.csv, in its order."""
    return tuple(float(row["training_loss"]) for row in csv.DictReader(metrics.splitlines()))


def _scores(scores: ModelScores | None) -> result.Scores | None:
    if scores is None:
        return None
    return result.Scores(perplexity=scores.perplexity, rouge_l=scores.rouge_l, chrf=scores.chrf)
