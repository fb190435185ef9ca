"""The hydration job through its front door: S3 in the embedded cloud, a stand-in for Bedrock,
LanceDB or OpenSearch."""

import json
import os
import shutil
import threading
import uuid
from collections import Counter
from dataclasses import replace
from typing import Any

import boto3
import pytest
from hydration_job import TITAN, Job, bedrock, cloud, documents, job, prose

from benchmarks.bedrock_stand_in import BedrockStandIn
from processing.hydrate import main
from vectors.index import Chunk
from vectors.opensearch import connect

__all__ = ["bedrock", "cloud", "job"]


def test_a_second_run_embeds_nothing_and_changes_nothing(bedrock: BedrockStandIn, job: Job) -> None:
    job.fill()
    job.write("deep/a.md", "# Gate\n\nIt is shut.\n\n## Well\n\nIt is dry.")
    job.write("deep/", b"")
    first = job.run()
    content = job.content()
    assert first["documents"] == documents(added=7)
    assert first["chunks"]["added"] == sum(map(len, content.values())) == bedrock.calls
    assert first["embedding_calls"] == bedrock.calls
    assert f"{job.uri}/deep/a.md" in content
    assert all(seconds > 0 for seconds in first["seconds"].values())
    calls = bedrock.calls
    second = job.run()
    assert bedrock.calls == calls
    assert second["embedding_calls"] == 0
    assert second["documents"] == documents(unchanged=7)
    assert second["chunks"]["unchanged"] == first["chunks"]["added"]
    assert job.content() == content


def test_a_small_edit_costs_few_embeddings(bedrock: BedrockStandIn, job: Job) -> None:
    text = prose(1, 150_000)
    job.write("a.txt", text)
    before = job.run()["chunks"]["added"]
    middle = text.index("\n\n", 75_000)
    job.write("a.txt", text[:middle] + " And the gate is shut." + text[middle:])
    job.change(upserts=["a.txt"])
    report = job.run()
    assert 0 < report["embedding_calls"] <= before / 100
    assert report["documents"]["changed"] == 1
    assert report["chunks"]["removed"] >= 1
    assert sum(map(len, job.content().values())) == job.index.count()


def test_new_chunks_are_there_before_stale_ones_go(job: Job) -> None:
    job.write("a.txt", "The gate is shut.")
    job.run()
    index, seen = job.index, []
    job.write("a.txt", "The gate is open.")
    stop = threading.Event()

    def look() -> None:
        while not stop.is_set():
            seen.append(frozenset(p.text for p in index.search([1.0] * 256, None, top_k=9)))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        job.run()
    finally:
        stop.set()
        looking.join()
    assert frozenset() not in seen
    assert [chunk[1] for chunk in job.content()[f"{job.uri}/a.txt"]] == ["The gate is open."]


def test_reconciliation_removes_what_is_gone(job: Job) -> None:
    job.fill(documents=3, characters=1_000)
    job.run()
    elsewhere = Chunk("x", f"{job.uri}2/a.txt", "A", "text", 0, "", [1.0] * 256)
    job.index.upsert([elsewhere])
    job.delete("d1.txt")
    report = job.run()
    assert report["documents"] == documents(unchanged=2, removed=1)
    assert report["chunks"]["removed"] > 1
    assert [*job.content()] == [f"{job.uri}/d0.txt", f"{job.uri}/d2.txt", elsewhere.source]


def test_a_change_list_touches_only_what_it_names(job: Job) -> None:
    job.fill(documents=3, characters=1_000)
    job.run()
    job.delete("d0.txt")  # by an event that is yet to come
    job.delete("d1.txt")
    job.write("new.txt", "The gate is shut.")
    job.change(upserts=["new.txt", "d1.txt", "deep/"], deletes=["d2.txt", "never.txt"])
    report = job.run()
    assert report["documents"] == documents(added=1, unchanged=1, removed=1)
    assert job.sources() == ["d0.txt", "d2.txt", "new.txt"]
    assert job.markers() == {}


@pytest.mark.parametrize("key", ["a.txt", "a.txt.metadata.json"])
@pytest.mark.parametrize("there", [True, False])
def test_what_lies_in_the_bucket_counts_not_what_events_say(
    job: Job, key: str, there: bool
) -> None:
    job.write("a.txt", "The gate is shut.")
    job.write("b.txt", "The well is dry.")
    job.run()
    job.write("a.txt", "The gate is open.") if there else job.delete("a.txt")
    for upserts, deletes in [([], [key]), ([key], []), ([key, key], [key]), ([], [key, key])]:
        job.change(upserts=upserts, deletes=deletes)
        job.run()
        texts = {source: [chunk[1] for chunk in of] for source, of in job.content().items()}
        gate = {f"{job.uri}/a.txt": ["The gate is open."]} if there else {}
        assert texts == {**gate, f"{job.uri}/b.txt": ["The well is dry."]}


def test_metadata_becomes_attributes(job: Job) -> None:
    job.write("a.txt", "The gate is shut.")
    job.write("b.txt", "The well is dry.")
    job.write("a.txt.metadata.json", '{"metadataAttributes": {"region": "ash", "year": 812}}')
    job.write("b.txt.metadata.json", "no JSON")
    report = job.run()
    assert [broken["document"] for broken in report["broken_metadata"]] == [
        f"{job.uri}/b.txt.metadata.json"
    ]
    found = job.index.search([1.0] * 256, None, top_k=9, filter={"region": "ash"})
    assert [(p.text, p.attributes) for p in found] == [
        ("The gate is shut.", {"region": "ash", "year": 812.0})
    ]
    job.write("b.txt.metadata.json", '{"metadataAttributes": {"region": "ash"}}')
    job.delete("a.txt.metadata.json")
    job.change(upserts=["b.txt.metadata.json"], deletes=["a.txt.metadata.json"])
    assert job.run()["documents"] == documents(changed=2)
    found = job.index.search([1.0] * 256, None, top_k=9, filter={"region": "ash"})
    assert [p.text for p in found] == ["The well is dry."]
    assert job.index.count() == 2


def test_reads_text_in_other_encodings(job: Job) -> None:
    text = "Das Tor ist für immer verschlossen."
    for encoding in ("utf-8", "utf-16", "latin-1"):
        job.write(f"{encoding}.txt", text.encode(encoding))
    job.run()
    assert [chunk[1] for [chunk] in job.content().values()] == [text] * 3


def test_repeated_text_is_indexed_each_time(bedrock: BedrockStandIn, job: Job) -> None:
    lines = "\n".join(json.dumps({"line": "The gate is shut. " * 15}) for _ in range(5))
    job.write("a.jsonl", lines)
    assert job.run()["chunks"]["added"] == job.index.count() == 5
    assert job.run()["embedding_calls"] == 0
    assert job.index.count() == 5


def test_cohere_gets_ninety_six_texts_a_request(bedrock: BedrockStandIn, job: Job) -> None:
    sizes: list[int] = []
    bedrock.before = lambda texts: sizes.append(len(texts))
    job.model = "cohere.embed-v4:0"
    job.fill(characters=10_000)
    job.run()
    count = job.index.count()
    assert Counter(sizes)[96] == count // 96 > 0
    assert sum(sizes) == count


def test_documents_are_not_held_back_until_a_request_is_full(
    bedrock: BedrockStandIn, job: Job
) -> None:
    job.model = "cohere.embed-v4:0"
    for number in range(200):
        job.write(f"d{number:03}.txt", f"It is gate number {number}.")
    job.run()
    for number in (0, 199):
        job.write(f"d{number:03}.txt", f"It is another gate, number {number}.")
    sizes: list[int] = []
    bedrock.before = lambda texts: sizes.append(len(texts))
    assert job.run()["documents"] == documents(changed=2, unchanged=198)
    assert sizes == [1, 1]


def test_requests_keep_to_their_ceiling(bedrock: BedrockStandIn, job: Job) -> None:
    job.more = ["--requests-per-second", "50"]
    job.fill(documents=8)
    job.run()
    starts = bedrock.started_at
    assert len(starts) > 80
    assert starts[-1] - starts[0] > (len(starts) - 1) / 50 * 0.9


def test_concurrency_is_bounded(bedrock: BedrockStandIn, job: Job) -> None:
    bedrock.latency_seconds = 0.1
    job.concurrency = 3
    job.fill(documents=2)
    job.run()
    assert bedrock.most_under_way == 3


def test_hosts_divide_the_work_and_take_up_only_their_own(job: Job) -> None:
    job = replace(job, bucket="documents-of-two-hosts")  # names divide the work: here evenly
    job.fill(characters=1_000)
    job.write("bad.csv", 'name\n"never closed')
    job.run(code=1)
    alone = job.content()
    shutil.rmtree(job.location.removeprefix("lancedb:"))
    config = job.root / "config/resourceconfig.json"
    config.parent.mkdir()

    def run_hosts() -> list[dict[str, int]]:
        counts = []
        for host in hosts:
            config.write_text(json.dumps({"current_host": host, "hosts": hosts}))
            main(job.arguments)
            counts.append(job.report(f"hydration_report-{host}")["documents"])
        return counts

    hosts = ["algo-1", "algo-2"]
    counts = run_hosts()
    assert job.content() == alone
    assert sorted(count["failed"] for count in counts) == [0, 1]
    assert sum(count["added"] for count in counts) == 6
    assert all(count["added"] for count in counts)
    job.delete("d3.txt")
    job.write("bad.csv", "name\nMira")
    job.change(deletes=["d3.txt"])
    counts = run_hosts()
    assert sum(count["added"] for count in counts) == 1  # taken up for its marker
    assert sum(count["removed"] for count in counts) == 1
    assert job.sources() == ["bad.csv", "d0.txt", "d1.txt", "d2.txt", "d4.txt", "d5.txt"]
    assert job.markers() == {}


def test_markers_that_another_host_removes_meanwhile_are_no_error(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    job.write("bad.csv", 'name\n"never closed')
    job.run(code=1)
    job.write("a.txt", "The gate is shut.")
    job.change(upserts=["a.txt"])

    def remove(params: Any, **_: Any) -> None:
        if job.failures_bucket in params["url"]:
            job.s3.delete_object(
                Bucket=job.failures_bucket, Key=params["url_path"].removeprefix("/")
            )

    session = boto3.Session()
    session.events.register("before-call.s3.GetObject", remove)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", session)
    assert job.run()["documents"] == documents(added=1)
    assert job.sources() == ["a.txt"]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--dimensions", "300", "vectors of 1024, 512, 256 dimensions, not 300"),
        ("--embedding-model", "amazon.nova-micro-v1:0", "is not an embedding model"),
        ("--embedding-model", "nonsense", "Unknown model 'nonsense'"),
        ("--chunk-overlap", "390", "half of chunk-size at most"),
        ("--documents-bucket", "s3://documents", "documents_bucket"),
        ("--documents-bucket", "nowhere", "bucket nowhere cannot be listed: "),
        ("--failures-uri", "s3://nowhere/failed/", "markers below s3://nowhere/failed/ cannot be"),
        ("--failures-uri", "s3://nowhere/failed", "failures_uri"),
        ("--index-location", "nowhere", "is no vector index"),
    ],
)
def test_says_what_it_cannot_be_started_with(
    job: Job, monkeypatch: pytest.MonkeyPatch, option: str, value: str, message: str
) -> None:
    monkeypatch.setenv("ML_ROOT", str(job.root))
    assert main([*job.arguments, option, value]) == 1
    assert message in job.message()


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds 0 change lists, and must hold one"),
        ({"a.json": "{}", "b.json": "{}"}, "holds 2 change lists"),
        ({"a.json": '{"upserts": "a.txt"}'}, "a.json is no change list"),
    ],
)
def test_never_takes_a_broken_change_list_for_none(
    job: Job, files: dict[str, str], message: str
) -> None:
    folder = job.root / "processing/input/changes"
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_text(content)
    os.environ["ML_ROOT"] = str(job.root)
    assert main(job.arguments) == 1
    assert message in job.message()


def test_opensearch_is_hydrated_alike(bedrock: BedrockStandIn, job: Job) -> None:
    if not (url := os.environ.get("OPENSEARCH_URL")):
        pytest.skip("OPENSEARCH_URL names no server")
    job.fill(documents=4, characters=2_000)
    job.write("a.txt.metadata.json", '{"metadataAttributes": {"region": "ash"}}')
    job.write("a.txt", "The gate is shut.")
    job.run()
    job.write("d1.txt", prose(99, 2_000))
    job.run()
    expected = job.content()
    opensearch = Job(
        job.s3,
        job.root,
        url,
        index_name=f"hydrate-{uuid.uuid4().hex}",
        bucket=job.bucket,
        model=TITAN,
    )
    try:
        job.fill(documents=4, characters=2_000)
        opensearch.run()
        job.write("d1.txt", prose(99, 2_000))
        opensearch.change(upserts=["d1.txt"])
        assert opensearch.run()["documents"] == documents(changed=1)
        assert opensearch.content() == expected
        calls = bedrock.calls
        assert opensearch.run()["documents"] == documents(unchanged=1)
        job.delete("d0.txt")
        job.delete("a.txt")
        opensearch.change(deletes=["d0.txt", "a.txt"])
        assert opensearch.run()["documents"] == documents(removed=2)
        assert opensearch.sources() == ["d1.txt", "d2.txt", "d3.txt"]
        assert bedrock.calls == calls
    finally:
        connect(url).indices.delete(index=f"{opensearch.index_name}-*")
