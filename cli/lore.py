"""The demo's knowledge: the example's lore hydrated as its users would, and asked questions."""

import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from cli import result
from cli.errors import CommandError
from cli.knowledge import Knowledge
from processing.hydration_report import HydrationReport
from vectors.index import Passage

LORE = Path("examples/emberfall/lore")
QUESTIONS = Path("examples/emberfall/questions.jsonl")
SIDECAR = ".metadata.json"
UPLOADS_AT_ONCE = 8
LOOK_SECONDS = 0.5


@dataclass(frozen=True)
class Question:
    """A question, the document that answers it, and the passages that were found."""

    text: str
    document: str
    passages: Sequence[Passage]

    @property
    def found(self) -> bool:
        return any(passage.source.endswith(f"/{self.document}") for passage in self.passages)


def hydrate(
    knowledge: Knowledge, note: Callable[[str], None], deadline: float
) -> tuple[result.Knowledge, list[Question]]:
    """Upload the lore, wait until nothing of it is left to do, and ask every question.

    `deadline` is of `time.monotonic`. Raises CommandError if it passes, or a job ends without a
    report.
    """
    started = time.monotonic()
    files = sorted(path for path in LORE.iterdir() if path.is_file())
    documents = sum(not path.name.endswith(SIDECAR) for path in files)
    note(f"{documents} documents to {knowledge.documents_bucket}")
    with ThreadPoolExecutor(UPLOADS_AT_ONCE) as pool:
        list(pool.map(lambda path: knowledge.upload(path.name, str(path)), files))
    runs = _wait_for_jobs(knowledge, documents, note, deadline)
    seconds = time.monotonic() - started
    index = knowledge.index()
    lines = QUESTIONS.read_text(encoding="utf-8").splitlines()
    note(f"asking {len(lines)} questions")
    questions = [
        Question(line["question"], line["document"], knowledge.ask(index, line["question"]))
        for line in map(json.loads, lines)
    ]
    found = sum(question.found for question in questions)
    hydrated = result.Knowledge(
        documents=len(index.sources()),
        chunks=index.count(),
        failed=_failed(runs[-1]),  # each job tries again what failed before
        embedding_calls=sum(report.embedding_calls for reports in runs for report in reports),
        questions=len(questions),
        recall_at_5=round(found / len(questions), 4),
        seconds=round(seconds, 2),
    )
    note(
        f"{hydrated.documents} documents, {hydrated.chunks} chunks; "
        f"{found} of {len(questions)} questions find theirs"
    )
    return hydrated, questions


def _wait_for_jobs(
    knowledge: Knowledge, documents: int, note: Callable[[str], None], deadline: float
) -> list[list[HydrationReport]]:
    """Wait until every document is indexed or failed, no change waits and no job runs.

    Returns the reports of each job.
    """
    while True:
        waiting = knowledge.changes_waiting()
        jobs = knowledge.jobs()
        if running := [job.name for job in jobs if job.running]:
            note(running[0])
        elif jobs and not waiting:
            runs = [knowledge.reports(job.name) for job in jobs]
            for job, reports in zip(jobs, runs, strict=True):
                if not reports:
                    raise CommandError(f"{job.name} {job.status.lower()}: {job.reason}")
            if len(knowledge.index().sources()) + _failed(runs[-1]) >= documents:
                return runs
        if time.monotonic() > deadline:
            raise CommandError(
                f"Waited in vain for {documents} documents to be indexed: {waiting} changes wait, "
                f"{len(jobs)} jobs were started."
            )
        time.sleep(LOOK_SECONDS)


def _failed(reports: Sequence[HydrationReport]) -> int:
    return sum(report.documents.failed for report in reports)
