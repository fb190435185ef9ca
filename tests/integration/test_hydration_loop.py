"""The knowledge loop as deployed: what lies in the bucket is what a question finds."""

import json
import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from stack import Tuning, small, until
from typer.testing import CliRunner

from cli.knowledge import Job, Knowledge
from cli.main import app
from vectors.index import Chunk

SETTINGS = small()
CORPUS = 200
A_HANDFUL = 8


@dataclass(frozen=True)
class Library:
    """The documents bucket and what became of its content."""

    stack: Tuning
    knowledge: Knowledge

    @property
    def bucket(self) -> str:
        return self.knowledge.documents_bucket

    def source(self, key: str) -> str:
        return f"s3://{self.bucket}/{key}"

    def put(self, key: str, body: str | bytes) -> None:
        data = body.encode() if isinstance(body, str) else body
        self.stack.client("s3").put_object(Bucket=self.bucket, Key=key, Body=data)

    def delete(self, key: str) -> None:
        self.stack.client("s3").delete_object(Bucket=self.bucket, Key=key)

    def keys(self) -> set[str]:
        """Of the bucket's documents."""
        pages = (
            self.stack.client("s3").get_paginator("list_objects_v2").paginate(Bucket=self.bucket)
        )
        found = {entry["Key"] for page in pages for entry in page.get("Contents", [])}
        return {key for key in found if not key.endswith(".metadata.json")}

    def indexed(self) -> set[str]:
        """Keys of the documents in the index."""
        return {source.removeprefix(self.source("")) for source in self.knowledge.index().sources()}

    def tell(self, detail_type: str, key: str, sequencer: str) -> None:
        """Publish an event by hand, as S3 does."""
        item = {"key": key, "version-id": "v", "sequencer": sequencer, "size": 1}
        detail = {"version": "0", "bucket": {"name": self.bucket}, "object": item}
        self.stack.cloud.publish_event(
            "aws.s3", detail_type, detail, [f"arn:aws:s3:::{self.bucket}"]
        )

    def after(self, change: Callable[[], object]) -> list[Job]:
        """Make a change, wait until nothing is left to do; the jobs that it took, oldest first."""
        before = len(self.knowledge.jobs())
        change()

        def done() -> list[Job] | None:
            waiting = self.knowledge.changes_waiting()  # before the jobs: they take the changes
            jobs = self.knowledge.jobs()
            if len(jobs) == before or any(job.running for job in jobs):
                return None
            return jobs[before:] if not waiting else None

        jobs: list[Job] = until(done, "the changes to be hydrated")
        return jobs

    def report(self, job: Job) -> dict[str, Any]:
        (report,) = self.knowledge.reports(job.name)
        return report.model_dump()


@pytest.fixture(scope="module")
def library(tuning: Tuning) -> Iterator[Library]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VECTOR_INDEX_LOCATION", tuning.cloud.index_location)
        yield Library(tuning, Knowledge(SETTINGS.name, tuning.outputs, tuning.client))


def test_an_uploaded_document_is_found_until_it_is_deleted(library: Library) -> None:
    key = "lore/gate ö+1.md"

    def upload() -> None:
        library.put(f"{key}.metadata.json", json.dumps({"metadataAttributes": {"town": "Ashfall"}}))
        library.put(key, "# The ember gate\n\nOnly the keeper Ysolde may open the ember gate.")

    jobs = library.after(upload)
    assert [job.status for job in jobs] == ["Completed"] * len(jobs)
    first, *_ = library.knowledge.ask(library.knowledge.index(), "Who may open the ember gate?")
    assert first.source == library.source(key)
    assert first.attributes == {"town": "Ashfall"}

    library.after(lambda: library.delete(key))
    assert library.indexed() == set()
    assert library.knowledge.ask(library.knowledge.index(), "Who may open the gate?") == []


def test_many_files_at_once_make_a_handful_of_jobs(library: Library) -> None:
    def upload(number: int) -> None:
        library.put(f"corpus/{number}.txt", f"Gate {number} is kept by the warden of that number.")

    def upload_all() -> None:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(upload, range(CORPUS)))

    jobs = library.after(upload_all)
    assert len(jobs) <= A_HANDFUL
    assert {job.status for job in jobs} == {"Completed"}
    assert library.indexed() == library.keys()
    assert library.knowledge.index().count() == CORPUS
    assert sum(library.report(job)["documents"]["added"] for job in jobs) == CORPUS


def test_what_comes_while_a_job_runs_is_the_next_ones(library: Library) -> None:
    def upload() -> None:
        library.put("early.txt", "The early lamp burns at dawn.")
        until(lambda: library.knowledge.jobs()[-1].running, "a job", pause=0.05)
        library.put("late.txt", "The late lamp burns at dusk.")

    jobs = library.after(upload)
    assert [job.status for job in jobs] == ["Completed", "Completed"]
    assert [library.report(job)["documents"]["added"] for job in jobs] == [1, 1]
    assert {"early.txt", "late.txt"} <= library.indexed()


def test_events_that_come_again_double_nothing(library: Library) -> None:
    before = library.knowledge.index().count()

    def repeat() -> None:
        for sequencer in ("0A", "0B", "0A"):
            library.tell("Object Created", "corpus/1.txt", sequencer)

    jobs = library.after(repeat)
    assert library.knowledge.index().count() == before
    for job in jobs:
        assert library.report(job)["documents"]["unchanged"] == 1
        assert library.report(job)["embedding_calls"] == 0


def test_events_in_the_wrong_order_leave_the_index_true_to_the_bucket(library: Library) -> None:
    def disorder() -> None:
        library.delete("corpus/2.txt")
        library.tell("Object Deleted", "corpus/1.txt", "0B")  # it is there
        library.tell("Object Created", "corpus/1.txt", "0A")
        library.tell("Object Deleted", "corpus/2.txt", "0A")  # it is not any more
        library.tell("Object Created", "corpus/2.txt", "FF")

    jobs = library.after(disorder)
    assert {job.status for job in jobs} == {"Completed"}
    assert "corpus/1.txt" in library.indexed()
    assert library.indexed() == library.keys()


def test_nothing_is_lost_while_no_job_can_be_created(library: Library) -> None:
    faults = library.stack.cloud.faults
    faults.add("sagemaker", "CreateProcessingJob", "ResourceLimitExceeded", "no instances", 3)
    jobs = library.after(lambda: library.put("patient.txt", "The patient lantern waits."))
    assert not faults.concerns("sagemaker")
    assert [job.status for job in jobs] == ["Completed"]
    assert "patient.txt" in library.indexed()


def test_a_poisonous_document_is_reported_and_the_others_are_indexed(library: Library) -> None:
    def upload() -> None:
        library.put("broken.pdf", b"%PDF-1.7\nthis is no PDF")
        library.put("sound.txt", "The sound bell rings at noon.")

    jobs = library.after(upload)
    assert "sound.txt" in library.indexed()
    assert "broken.pdf" not in library.indexed()
    assert jobs[-1].status == "Failed"
    assert "broken.pdf" in jobs[-1].reason
    (failure,) = library.report(jobs[-1])["failures"]
    assert failure["document"] == library.source("broken.pdf")
    told = until(
        lambda: library.stack.queued("FailedHydrations", "knowledge"), "the failure's event"
    )
    assert json.loads(told[0])["detail"]["ProcessingJobStatus"] == "Failed"

    jobs = library.after(lambda: library.delete("broken.pdf"))
    assert jobs[-1].status == "Completed"


def test_a_reconciliation_repairs_the_index_either_way(library: Library) -> None:
    index = library.knowledge.index()
    index.delete_by_source(library.source("corpus/3.txt"))
    index.upsert(
        [Chunk("g", library.source("ghost.txt"), "Ghost", "A ghost.", 0, "", [1 / 16] * 256, {})]
    )
    assert library.indexed() != library.keys()
    started: list[Job] = []

    def sync() -> None:
        started.append(library.knowledge.start_sync())
        started.append(library.knowledge.start_sync())  # busy: answers with the one that runs

    (job,) = library.after(sync)
    assert [found.name for found in started] == [job.name, job.name]
    assert library.indexed() == library.keys()
    counts = library.report(job)["documents"]
    assert (counts["added"], counts["removed"], counts["failed"]) == (1, 1, 0)
    assert library.report(job)["embedding_calls"] == 1


def test_the_command_shows_what_became_of_each(
    library: Library, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in library.stack.cloud.environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    library.after(lambda: library.put("broken.docx", b"no document"))

    answer = CliRunner().invoke(app, ["documents", "sync"])
    assert answer.exit_code == 1
    counts = re.search(r"documents +0 +0 +(\d+) +0 +1", answer.output)
    assert counts is not None, answer.output
    assert int(counts[1]) == len(library.indexed())
    assert "1 documents could not be hydrated" in answer.output
    assert f"{library.source('broken.docx')}: " in answer.output

    library.after(lambda: library.delete("broken.docx"))
    answer = CliRunner().invoke(app, ["documents", "sync"])
    assert answer.exit_code == 0
    assert f"The index is true to s3://{library.bucket}/" in answer.output
