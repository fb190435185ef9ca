"""What hydration comes through with nothing lost and nothing twice: kills, throttling, documents
that are broken or change meanwhile, a cloud that is away."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hydration_job import TITAN, Job, bedrock, cloud, documents, job, prose

from benchmarks.bedrock_stand_in import BedrockStandIn
from local.cloud import Cloud
from processing import embedding, hydrate
from processing.bucket import DocumentsBucket

__all__ = ["bedrock", "cloud", "job"]

ROOT = Path(__file__).parents[2]


@dataclass
class Clean:
    """A bucket that has changed, with the index of before and what one run makes of it."""

    job: Job
    before: Path
    content: dict[str, Any]
    calls: int

    @property
    def changes(self) -> dict[str, list[str]]:
        return {
            "upserts": ["d0.txt", "d1.txt", "new.txt", "bad.csv"],
            "deletes": ["d3.txt", "d2.txt.metadata.json"],
        }


@pytest.fixture(scope="module")
def clean(cloud: Cloud, tmp_path_factory: pytest.TempPathFactory) -> Clean:
    folder = tmp_path_factory.mktemp("clean")
    job = Job(cloud.client("s3"), folder / "ml", f"lancedb:{folder / 'index'}")
    with pytest.MonkeyPatch.context() as patch, BedrockStandIn() as stand_in:
        patch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", stand_in.url)
        job.fill(documents=5, characters=2_400)
        job.write("bad.csv", 'name\n"never closed')
        job.run(code=1)
        shutil.copytree(folder / "index", folder / "before")
        for number in range(2):
            job.write(f"d{number}.txt", prose(100 + number, 2_400))
        job.write("d2.txt.metadata.json", '{"metadataAttributes": {"region": "ash"}}')
        job.write("new.txt", prose(7, 2_400))
        job.write("bad.csv", "name\nMira")
        job.delete("d3.txt")
        calls = stand_in.calls
        job.run()
        return Clean(job, folder / "before", job.content(), stand_in.calls - calls)


@pytest.fixture(scope="module")
def zygote(cloud: Cloud) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-W", "ignore", Path(__file__).with_name("hydration_zygote.py")]
    with subprocess.Popen(
        command,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        text=True,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as process:
        yield process


@pytest.mark.parametrize("seed", range(20))
def test_killed_anywhere_and_run_again(
    bedrock: BedrockStandIn,
    clean: Clean,
    zygote: "subprocess.Popen[str]",
    tmp_path: Path,
    seed: int,
) -> None:
    rng = random.Random(seed)  # noqa: S311
    assert zygote.stdin is not None
    assert zygote.stdout is not None
    shutil.copytree(clean.before, tmp_path / "index")
    job = replace(
        clean.job,
        root=tmp_path / "ml",
        location=f"lancedb:{tmp_path / 'index'}",
        failures_bucket=f"hydration-{tmp_path.name.replace('_', '-')}",
        concurrency=rng.choice([1, 3, 8]),
    )
    job.change(**clean.changes)
    environment = {
        "ML_ROOT": str(job.root),
        "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": bedrock.url,
    }
    calls = rng.randint(1, clean.calls)
    started = threading.Event()
    at_once = calls < clean.calls and rng.random() < 0.5

    def kill() -> None:
        started.wait()
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)

    def count(texts: list[str]) -> None:
        nonlocal calls
        calls -= 1
        if calls == 0 and at_once:
            kill()
        elif calls == 0:
            threading.Timer(rng.uniform(0, 0.15), kill).start()

    bedrock.before = count
    bedrock.latency_seconds = 0.004
    print(
        json.dumps({"arguments": job.arguments, "environment": environment}),
        file=zygote.stdin,
        flush=True,
    )
    process = int(zygote.stdout.readline())
    started.set()
    status = int(zygote.stdout.readline())
    assert status == signal.SIGKILL or not at_once
    bedrock.before = None
    job.change()
    job.run()
    assert job.content() == clean.content
    assert job.markers() == {}


@pytest.mark.parametrize(("model", "concurrency"), [(TITAN, 16), ("cohere.embed-v4:0", 4)])
def test_throttling_loses_nothing(
    bedrock: BedrockStandIn, job: Job, model: str, concurrency: int
) -> None:
    bedrock.throttled_fraction = 0.3
    job.model, job.concurrency = model, concurrency
    job.fill(characters=30_000 if "cohere" in model else 4_000)
    report = job.run()
    assert report["chunks"]["failed"] == 0
    assert report["chunks"]["added"] == job.index.count() > 60
    assert report["embedding_retries"] == bedrock.throttled > 0
    assert report["embedding_calls"] == bedrock.calls


def test_broken_connections_are_tried_again(bedrock: BedrockStandIn, job: Job) -> None:
    rng = random.Random(1)  # noqa: S311

    def sometimes_break(texts: list[str]) -> None:
        if rng.random() < 0.1:
            raise ConnectionError

    bedrock.before = sometimes_break
    job.fill()
    report = job.run()
    assert report["embedding_retries"] > 0
    assert report["chunks"]["added"] == job.index.count()


def test_one_poisonous_document_among_a_hundred(job: Job) -> None:
    for number in range(99):
        job.write(f"d{number}.md", f"# Gate {number}\n\nIt is shut.")
    job.write("bad.pdf", b"%PDF-1.7\n1 0 obj << /Type /Catalog /Pages 1 0 R >> endobj\ntrailer")
    report = job.run(code=1)
    assert report["documents"] == documents(added=99, failed=1)
    [failure] = report["failures"]
    assert failure["document"] == f"{job.uri}/bad.pdf"
    assert job.markers() == {failure["document"]: failure["reason"]}
    assert "bad.pdf" in job.message()
    assert len(job.content()) == 99


def test_the_next_run_takes_up_what_failed(bedrock: BedrockStandIn, job: Job) -> None:
    bedrock.refused = "forbidden"
    long = prose(1, 2_000)
    job.write("partly.txt", f"{long}A forbidden word.\n\n{prose(2, 2_000)}")
    job.write("broken.json", '{"gate": ')
    job.write("leaves.json", '{"well": ')
    job.write("unknown.xyz", "?")
    job.write("frozen.txt", "It is in another storage class.", StorageClass="GLACIER")
    job.write("good.txt", "A word.")
    report = job.run(code=1)
    assert report["documents"] == documents(added=1, failed=5)
    refused = report["chunks"]["failed"]
    assert 0 < refused < report["chunks"]["added"]
    reasons = {
        failure["document"].rpartition("/")[2]: failure["reason"] for failure in report["failures"]
    }
    assert sorted(reasons) == [
        "broken.json", "frozen.txt", "leaves.json", "partly.txt", "unknown.xyz",
    ]  # fmt: skip
    assert "unknown file type" in reasons["unknown.xyz"]
    assert "InvalidObjectState" in reasons["frozen.txt"]
    assert job.markers() == {f"{job.uri}/{key}": reason for key, reason in reasons.items()}
    bedrock.refused = None
    job.write("broken.json", '{"gate": "shut"}')
    job.write("other.txt", "Another word.")
    job.delete("leaves.json")
    for key in ("unknown.xyz", "frozen.txt"):
        job.delete(key)
    job.change(upserts=["other.txt"])
    calls = bedrock.calls
    report = job.run()
    assert report["documents"]["failed"] == 0
    assert bedrock.calls - calls == refused + 2
    assert job.markers() == {}
    assert job.sources() == ["broken.json", "good.txt", "other.txt", "partly.txt"]


def test_a_document_that_breaks_keeps_what_it_had(job: Job) -> None:
    job.write("a.csv", "gate\nshut")
    job.run()
    content = job.content()
    job.write("a.csv", 'gate\n"shut')
    job.change(upserts=["a.csv"])
    job.run(code=1)
    assert job.content() == content


def test_a_document_replaced_meanwhile_is_true_after_the_next_run(
    bedrock: BedrockStandIn, job: Job
) -> None:
    job.fill(documents=3)
    newer = prose(50, 4_000)

    def replace_once(texts: list[str]) -> None:
        bedrock.before = None
        job.write("d0.txt", newer)
        job.write("d1.txt", newer)
        job.write("d2.txt.metadata.json", '{"metadataAttributes": {"region": "ash"}}')

    bedrock.before = replace_once
    job.run()
    job.change(upserts=["d0.txt", "d1.txt", "d2.txt.metadata.json"])
    job.run()
    content = job.content()
    job.location += "-afresh"
    job.run()
    assert job.content() == content


def test_documents_that_vanish_after_they_were_listed_are_removed(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(30, 70):
        job.write(f"d{number}.txt", f"It is gate number {number}.")
    job.run()
    job.concurrency = 1

    def list_then_delete(bucket: DocumentsBucket, others: Set[str]) -> Iterator[str]:
        listed = list(reconciled(bucket, others))
        for number in (68, 69):
            job.delete(f"d{number}.txt")
        yield from listed

    reconciled = hydrate._reconciled
    monkeypatch.setattr(hydrate, "_reconciled", list_then_delete)
    for number in range(30, 50):
        job.write(f"d{number}.txt", f"It is another gate, number {number}.")
    report = job.run()
    assert report["documents"] == documents(changed=20, unchanged=18, removed=2)
    assert len(job.content()) == 38


def unreachable(job: Job, bedrock: BedrockStandIn, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", "http://127.0.0.1:1")
    patch.setattr(embedding, "PATIENCE_SECONDS", 0.5)


def refused(job: Job, bedrock: BedrockStandIn, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(bedrock, "closed", True)


def misshapen(job: Job, bedrock: BedrockStandIn, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(job, "dimensions", 512)


@pytest.mark.parametrize(
    ("trouble", "message"),
    [
        (unreachable, "gave up after 0.5 seconds: Could not connect"),
        (refused, "AccessDeniedException: You don't have access"),
        (misshapen, "Re-index"),
    ],
)
def test_changes_outlast_a_job_that_could_not_work(
    bedrock: BedrockStandIn,
    job: Job,
    trouble: Callable[[Job, BedrockStandIn, pytest.MonkeyPatch], None],
    message: str,
) -> None:
    job.index.ensure()
    job.fill(documents=2, characters=20_000)
    job.change(upserts=["d0.txt"], deletes=["d1.txt"])
    with pytest.MonkeyPatch.context() as patch:
        trouble(job, bedrock, patch)
        job.run(code=1)
    assert message in job.message()
    assert sorted(job.markers()) == [f"{job.uri}/d0.txt", f"{job.uri}/d1.txt"]
    job.change()
    assert job.run()["documents"] == documents(added=2)
    assert job.markers() == {}
