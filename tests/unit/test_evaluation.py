"""The Evaluate step through its front door, against a small bedrock-runtime on this machine."""

import gzip
import json
import math
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote

import pytest

from evaluation import evaluate

BASE = "amazon.nova-micro-v1:0"
TUNED = "arn:aws:bedrock:us-east-1:123456789012:custom-model-deployment/abcdefghijkl"
ACCOUNT = "arn:aws:bedrock:us-east-1:123456789012"
JOB = f"{ACCOUNT}:model-customization-job/amazon.nova-micro-v1:0:128k/q1w2e3r4t5y6"
CUSTOM = f"{ACCOUNT}:custom-model/amazon.nova-micro-v1:0:128k/q1w2e3r4t5y6"


class Fault(Exception):
    """What the service answers instead of an answer."""

    def __init__(self, status: int, code: str, message: str) -> None:
        self.status, self.code, self.message = status, code, message


@dataclass
class BedrockRuntime:
    """What the models say (`answer(model, prompt)`), and what they were asked."""

    answer: Callable[[str, str], str]
    requests: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def invoke(self, model: str, body: dict[str, Any]) -> dict[str, Any]:
        with self.lock:
            self.requests.append((model, body))
        if model == "amazon.titan-embed-text-v2:0":
            letters = Counter(body["inputText"].lower())
            vector = [float(letters[chr(32 + index)]) for index in range(body["dimensions"])]
            return {"embedding": vector, "inputTextTokenCount": 1}
        text = self.answer(model, body["messages"][-1]["content"][0]["text"])
        return {
            "output": {"message": {"role": "assistant", "content": [{"text": text}]}},
            "stopReason": "end_turn",
            "usage": {"inputTokens": 1, "outputTokens": 1, "totalTokens": 2},
        }

    def asked(self, model: str) -> list[dict[str, Any]]:
        return [body for asked, body in self.requests if asked == model]


def number(prompt: str) -> int:
    return int(prompt.rpartition(" ")[2])


def good(model: str, prompt: str) -> str:
    """The tuned model gives the reference, the base model something else."""
    if model == TUNED:
        return f"The lantern number {number(prompt)} burns blue over Emberfall."
    return "I am a helpful assistant."


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Iterator[BedrockRuntime]:
    service = BedrockRuntime(good)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1  # headers and body in one write, or each call waits 40 ms for the first's ACK

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            model = unquote(self.path.split("/")[2])
            try:
                self._send(200, service.invoke(model, body))
            except Fault as fault:
                self._send(fault.status, {"message": fault.message}, fault.code)

        def _send(self, status: int, body: dict[str, Any], error: str | None = None) -> None:
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            if error:
                self.send_header("x-amzn-ErrorType", error)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield service
    server.shutdown()
    thread.join()
    server.server_close()


@dataclass
class Job:
    """A prepared /opt/ml of the Evaluate step."""

    root: Path

    @property
    def _artifacts(self) -> Path:
        return self.root / "processing/input/training/model-customization-job-q1w2e3r4t5y6"

    @property
    def training_csv(self) -> Path:
        return self._artifacts / "training_artifacts/step_wise_training_metrics.csv"

    @property
    def validation_csv(self) -> Path:
        folder = self._artifacts / "validation_artifacts/post_fine_tuning_validation"
        return folder / "validation/validation_metrics.csv"

    @property
    def test_set(self) -> Path:
        return self.root / "processing/input/test/data.jsonl"

    def prepare(self, records: int) -> None:
        for path in (self.training_csv, self.validation_csv, self.test_set):
            path.parent.mkdir(parents=True)
        self.training_csv.write_text(
            "step_number,epoch_number,training_loss,perplexity\n"
            "1,1,4.0,54.6\n2,1,3.0,20.1\n3,2,2.5,12.2\n"
        )
        self.validation_csv.write_text(
            "step_number,epoch_number,validation_loss,perplexity\n0,0,4.0,54.6\n3,2,2.0,7.4\n"
        )
        self.test_set.write_text(
            "".join(
                json.dumps(
                    {
                        "schemaVersion": "bedrock-conversation-2024",
                        "system": [{"text": "You keep the lanterns."}],
                        "messages": [
                            {"role": "user", "content": [{"text": f"What of lantern {index}"}]},
                            {
                                "role": "assistant",
                                "content": [{"text": good(TUNED, f"lantern {index}")}],
                            },
                        ],
                    }
                )
                + "\n"
                for index in range(records)
            )
        )

    def run(self, **changes: str) -> int:
        options = {
            "base-model": "amazon.nova-micro-v1:0:128k",
            "serving-model": TUNED,
            "custom-model": CUSTOM,
            "job-arn": JOB,
            "embedding-model": "amazon.titan-embed-text-v2:0",
            "max-records": "100",
            "max-tokens": "64",
            "concurrency": "4",
            "gate-metric": "gain.rouge_l",
        } | {name.replace("_", "-"): value for name, value in changes.items()}
        return evaluate.main([part for name in options for part in (f"--{name}", options[name])])

    @property
    def archive(self) -> Path:
        return self.root / "processing/output/model/model.tar.gz"

    def report(self) -> dict[str, Any]:
        report: dict[str, Any] = json.loads(
            (self.root / "processing/output/evaluation/evaluation.json").read_text()
        )
        return report

    def message(self) -> str:
        return (self.root / "output/message").read_text()


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.setenv("ML_ROOT", str(tmp_path))
    job = Job(tmp_path)
    job.prepare(records=12)
    return job


def test_scores_base_and_tuned_side_by_side(job: Job, runtime: BedrockRuntime) -> None:
    assert job.run() == 0

    report = job.report()
    assert report["schema_version"] == "1"
    assert report["base_model"] == "amazon.nova-micro-v1:0:128k"
    assert report["serving_model"] == TUNED
    assert report["custom_model"] == CUSTOM
    assert report["job"] == JOB
    assert (report["test_records"], report["scored_records"]) == (12, 12)
    assert report["training"] == {"steps": 3, "first_loss": 4.0, "last_loss": 2.5}
    assert report["validation"] == {
        "first_loss": 4.0,
        "last_loss": 2.0,
        "first_perplexity": pytest.approx(math.exp(4)),
        "last_perplexity": pytest.approx(math.exp(2)),
    }
    tuned, base, gain = report["tuned"], report["base"], report["gain"]
    assert tuned["rouge_l"] == 1.0
    assert tuned["chrf"] == 100.0
    assert tuned["embedding_similarity"] == pytest.approx(1.0)
    assert tuned["length_ratio"] == 1.0
    assert tuned["intervals"] == {"rouge_l": [1.0, 1.0], "chrf": [100.0, 100.0]}
    assert tuned["perplexity"] == pytest.approx(math.exp(2))
    assert base["perplexity"] == pytest.approx(math.exp(4))
    assert base["rouge_l"] == 0.0
    assert 0 < base["chrf"] < 30
    assert 0 < base["latency_seconds"]["p50"] <= base["latency_seconds"]["p95"]
    assert gain["rouge_l"] == 1.0
    assert gain["chrf"] == pytest.approx(100 - base["chrf"])
    assert gain["perplexity"] == pytest.approx(1 - math.exp(-2))
    assert gain["intervals"]["rouge_l"] == [1.0, 1.0]
    assert report["failed_answers"] == []
    assert len(report["samples"]) == 10
    for sample in report["samples"]:
        lantern = number(sample["prompt"])
        assert sample == {
            "system": "You keep the lanterns.",
            "prompt": f"What of lantern {lantern}",
            "reference": f"The lantern number {lantern} burns blue over Emberfall.",
            "base": "I am a helpful assistant.",
            "tuned": f"The lantern number {lantern} burns blue over Emberfall.",
        }


def test_asks_both_models_alike(job: Job, runtime: BedrockRuntime) -> None:
    job.run()

    def sorted_bodies(model: str) -> list[str]:
        return sorted(json.dumps(body, sort_keys=True) for body in runtime.asked(model))

    assert len(runtime.asked(BASE)) == 12
    assert sorted_bodies(BASE) == sorted_bodies(TUNED)
    body = runtime.asked(BASE)[0]
    assert body["inferenceConfig"] == {"maxTokens": 64, "temperature": 0.0}
    assert [message["role"] for message in body["messages"]] == ["user"]


def test_the_archive_names_the_model_and_is_the_same_every_time(
    job: Job, runtime: BedrockRuntime
) -> None:
    job.run()
    first = job.archive.read_bytes()
    with tarfile.open(job.archive) as archive:
        assert archive.getnames() == ["model.json"]
        content = archive.extractfile("model.json")
        assert content is not None
        assert json.load(content) == {
            "base_model": "amazon.nova-micro-v1:0:128k",
            "custom_model": CUSTOM,
            "job": JOB,
            "serving_model": TUNED,
        }
    assert gzip.decompress(first)
    job.archive.unlink()
    job.run()
    assert job.archive.read_bytes() == first


def test_scores_a_fixed_choice_of_a_large_test_set(job: Job, runtime: BedrockRuntime) -> None:
    assert job.run(max_records="5") == 0
    report = job.report()
    assert (report["test_records"], report["scored_records"]) == (12, 5)
    chosen = [sample["prompt"] for sample in report["samples"]]
    assert chosen != sorted(chosen, key=number)

    job.test_set.write_text("".join(sorted(job.test_set.open(), reverse=True)))
    job.run(max_records="5")
    assert [sample["prompt"] for sample in job.report()["samples"]] == chosen


@pytest.mark.slow
def test_asks_again_when_throttled(job: Job, runtime: BedrockRuntime) -> None:
    throttled: list[str] = []
    lock = Lock()

    def answer(model: str, prompt: str) -> str:
        with lock:
            refused = model == TUNED and len(throttled) < 2
            if refused:
                throttled.append(prompt)
        if refused:
            raise Fault(429, "ThrottlingException", "Too many requests, please wait.")
        return good(model, prompt)

    runtime.answer = answer
    assert job.run(max_records="4") == 0
    assert len(throttled) == 2
    assert len(runtime.asked(TUNED)) == 6
    assert job.report()["failed_answers"] == []
    assert job.report()["scored_records"] == 4


def test_leaves_a_record_that_fails_out_of_both_sides(job: Job, runtime: BedrockRuntime) -> None:
    def answer(model: str, prompt: str) -> str:
        if model == TUNED and number(prompt) == 4:
            raise Fault(400, "ValidationException", "The lantern has gone out.")
        return good(model, prompt) if model == TUNED else "x" * (1 + 1000 * (number(prompt) == 4))

    runtime.answer = answer
    assert job.run() == 0
    report = job.report()
    assert (report["test_records"], report["scored_records"]) == (12, 11)
    (failed,) = report["failed_answers"]
    assert (failed["line"], failed["step"], failed["model"]) == (5, "tuned", TUNED)
    assert "The lantern has gone out." in failed["reason"]
    assert report["tuned"]["rouge_l"] == 1.0
    assert report["base"]["length_ratio"] < 0.1, "the long answer to the failed record counts"


def test_an_answer_in_another_shape_is_a_failure(job: Job, runtime: BedrockRuntime) -> None:
    shapeless: Any = {"no": "text"}
    runtime.answer = lambda model, prompt: shapeless
    assert job.run() == 1
    assert "Not a response of the nova family" in job.message()


def test_a_blank_answer_scores_nothing_but_is_no_failure(job: Job, runtime: BedrockRuntime) -> None:
    runtime.answer = lambda model, prompt: " " if model == BASE else good(model, prompt)
    assert job.run() == 0
    base = job.report()["base"]
    assert (base["rouge_l"], base["chrf"], base["embedding_similarity"]) == (0, 0, 0)
    assert job.report()["scored_records"] == 12
    assert all(body["inputText"].strip() for body in runtime.asked("amazon.titan-embed-text-v2:0"))


def test_fails_when_too_many_answers_fail(job: Job, runtime: BedrockRuntime) -> None:
    def answer(model: str, prompt: str) -> str:
        if model == TUNED:
            raise Fault(403, "AccessDeniedException", "You may not invoke this model.")
        return good(model, prompt)

    runtime.answer = answer
    assert job.run(concurrency="1") == 1
    assert "more than 10%" in job.message()
    assert TUNED in job.message()
    assert "You may not invoke this model." in job.message()
    assert len(runtime.asked(TUNED)) < 12, "it stops asking once too many failed"


def test_without_serving_capacity_the_losses_can_pass_the_gate(job: Job) -> None:
    assert job.run(serving_model="none", gate_metric="gain.perplexity") == 0
    report = job.report()
    assert report["serving_model"] is None
    assert report["base"] is None
    assert report["tuned"] is None
    assert report["gain"]["perplexity"] == pytest.approx(1 - math.exp(-2))
    assert report["gain"]["rouge_l"] is None
    assert (report["test_records"], report["scored_records"]) == (12, 0)
    assert job.archive.is_file()


def test_fails_when_the_gates_metric_has_no_value(job: Job) -> None:
    assert job.run(serving_model="none") == 1
    assert "'gain.rouge_l' has no number" in job.message()
    assert "no serving capacity" in job.message()
    assert "gain.perplexity" in job.message()


def test_fails_when_the_gates_metric_is_unknown(job: Job, runtime: BedrockRuntime) -> None:
    assert job.run(gate_metric="gain.bleu") == 1
    assert "'gain.bleu' has no number" in job.message()
    assert "gain.rouge_l" in job.message()
    assert "tuned.latency_seconds.p95" in job.message()


def test_without_a_loss_from_before_training_the_base_perplexity_is_unknown(
    job: Job, runtime: BedrockRuntime
) -> None:
    job.validation_csv.write_text("step_number,epoch_number,validation_loss\n3,2,2.0\n")
    assert job.run() == 0
    report = job.report()
    assert report["validation"]["first_perplexity"] is None
    assert report["base"]["perplexity"] is None
    assert report["tuned"]["perplexity"] == pytest.approx(math.exp(2))
    assert report["gain"]["perplexity"] is None

    assert job.run(gate_metric="gain.perplexity") == 1
    assert "step 0" in job.message()


def test_a_job_without_validation_data_has_no_perplexity(job: Job, runtime: BedrockRuntime) -> None:
    job.validation_csv.unlink()
    for folder in list(job.validation_csv.parents)[:3]:
        folder.rmdir()
    assert job.run() == 0
    assert job.report()["validation"] is None
    assert job.report()["tuned"]["perplexity"] is None

    assert job.run(gate_metric="gain.perplexity") == 1
    assert "no validation data" in job.message()


@pytest.mark.parametrize("below", ["some/deeper/folder", "model-customization-job-other"])
def test_finds_the_jobs_folder_wherever_it_lies(
    job: Job, runtime: BedrockRuntime, below: str
) -> None:
    folder = job.training_csv.parents[1]
    target = folder.parent / below / folder.name
    target.parent.mkdir(parents=True)
    folder.rename(target)
    assert job.run() == 0
    assert job.report()["training"]["steps"] == 3


TRAINING = "step_number,epoch_number,training_loss,perplexity\n"


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "no column step_number, training_loss"),
        ("step_number,loss\n1,2.0\n", "no column training_loss"),
        (TRAINING, "no rows"),
        (TRAINING + "1,1,warm,2.0\n", "line 2"),
        (TRAINING + "1,1,2.0,7\n2,1\n", "line 3"),
        (TRAINING + "1,1,nan,nan\n", "diverged"),
        (TRAINING + "1,1,1000,inf\n", "no finite perplexity"),
    ],
)
def test_fails_naming_a_broken_metrics_file(job: Job, content: str, reason: str) -> None:
    job.training_csv.write_text(content)
    assert job.run(serving_model="none") == 1
    assert "step_wise_training_metrics.csv cannot be read" in job.message()
    assert reason in job.message()


def test_fails_naming_a_metrics_file_that_is_not_text(job: Job) -> None:
    job.validation_csv.write_bytes(b"\xff\xfe\x00")
    assert job.run(serving_model="none") == 1
    assert "validation_metrics.csv cannot be read" in job.message()


def test_fails_naming_a_missing_metrics_file(job: Job) -> None:
    job.validation_csv.unlink()
    assert job.run(serving_model="none") == 1
    assert "holds no validation_metrics.csv" in job.message()

    job.training_csv.unlink()
    assert job.run(serving_model="none") == 1
    assert "holds no step_wise_training_metrics.csv" in job.message()


def test_fails_when_the_jobs_output_is_not_there(job: Job) -> None:
    assert job.run(job_arn=JOB + "x") == 1
    assert "No folder model-customization-job-q1w2e3r4t5y6x" in job.message()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "holds no records"),
        (b"\n \n", "holds no records"),
        (b"{not json\n", "line 1 is not a bedrock-conversation-2024 record"),
        (b"\xff\xff\n", "line 1 is not a bedrock-conversation-2024 record"),
        (b'{"prompt": "a", "completion": "b"}\n', "line 1 is not a bedrock-conversation-2024"),
        (
            b'{"schemaVersion": "bedrock-conversation-2024", "messages": '
            b'[{"role": "user", "content": [{"text": "Hello"}]}]}\n',
            "line 1 does not end with an answer",
        ),
    ],
)
def test_fails_on_a_test_set_that_cannot_be_scored(job: Job, content: bytes, reason: str) -> None:
    job.test_set.write_bytes(content)
    assert job.run() == 1
    assert reason in job.message()


def test_fails_on_a_missing_test_set(job: Job) -> None:
    job.test_set.unlink()
    assert job.run() == 1
    assert "data.jsonl is missing" in job.message()


def test_fails_on_bad_arguments_with_a_message(job: Job) -> None:
    assert job.run(max_records="0") == 1
    assert "--max-records '0'" in job.message()
    assert job.run(base_model="acme.unknown-v1:0") == 1
    assert "acme.unknown-v1:0" in job.message()
    assert len(job.message().encode()) <= 1024
    assert evaluate.main(["--base-model", "x"]) == 1
    assert "required" in job.message()
