"""A hydration job to be tested: its bucket in the embedded cloud, its folder and its index."""

import json
import os
import random
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from benchmarks.bedrock_stand_in import BedrockStandIn
from local.cloud import Cloud
from local.config import LocalConfig
from processing.hydrate import main
from vectors.index import VectorIndex
from vectors.open import open_index

TITAN = "amazon.titan-embed-text-v2:0"
WORDS = [f"{a}{b}{c}" for a in ("em", "ash", "fall") for b in "aeiou" for c in ("st", "r", "ght")]


def prose(seed: int, characters: int) -> str:
    rng = random.Random(seed)  # noqa: S311
    paragraphs = (" ".join(rng.choices(WORDS, k=rng.randint(20, 60))) for _ in range(10**6))
    text = ""
    while len(text) < characters:
        text += next(paragraphs) + ".\n\n"
    return text


def documents(**counts: int) -> dict[str, int]:
    """The report's counts of documents; those not named are 0."""
    names = ("added", "changed", "unchanged", "removed", "failed")
    return {name: counts.get(name, 0) for name in names}


@dataclass
class Job:
    """What it is started with can be changed between runs."""

    s3: Any
    root: Path
    location: str
    index_name: str = "lore"
    model: str = TITAN
    dimensions: int = 256
    concurrency: int = 8
    more: Sequence[str] = ()
    bucket: str = field(default_factory=lambda: f"documents-{uuid.uuid4().hex}")
    failures_bucket: str = field(default_factory=lambda: f"hydration-{uuid.uuid4().hex}")

    def __post_init__(self) -> None:
        self.s3.create_bucket(Bucket=self.bucket)
        self.s3.create_bucket(Bucket=self.failures_bucket)

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}"

    @property
    def index(self) -> VectorIndex:
        return open_index(self.location, self.index_name, self.dimensions)

    @property
    def arguments(self) -> list[str]:
        options = {
            "documents-bucket": self.bucket,
            "failures-uri": f"s3://{self.failures_bucket}/failed/",
            "index-location": self.location,
            "index-name": self.index_name,
            "embedding-model": self.model,
            "dimensions": str(self.dimensions),
            "chunk-size": "400",
            "chunk-overlap": "40",
            "concurrency": str(self.concurrency),
        }
        return [part for name, value in options.items() for part in (f"--{name}", value)] + [
            *self.more
        ]

    def write(self, key: str, content: str | bytes, **options: str) -> None:
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=content, **options)

    def fill(self, documents: int = 6, characters: int = 4_000) -> None:
        for number in range(documents):
            self.write(f"d{number}.txt", prose(number, characters))

    def delete(self, key: str) -> None:
        self.s3.delete_object(Bucket=self.bucket, Key=key)

    def change(self, *, upserts: Sequence[str] = (), deletes: Sequence[str] = ()) -> None:
        """Give the job a change list from now on."""
        path = self.root / "processing/input/changes/quench-hydration-000001-77.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"upserts": list(upserts), "deletes": list(deletes)}))

    def run(self, code: int = 0) -> Any:
        """Run the job, which is to exit so; its report."""
        os.environ["ML_ROOT"] = str(self.root)
        assert main(self.arguments) == code
        return self.report()

    def report(self, name: str = "hydration_report") -> Any:
        return json.loads((self.root / f"processing/output/report/{name}.json").read_text())

    def message(self) -> str:
        return (self.root / "output/message").read_text()

    def markers(self) -> dict[str, str]:
        """The reason of each marked document."""
        listing = self.s3.list_objects_v2(Bucket=self.failures_bucket, Prefix="failed/")
        found = {}
        for entry in listing.get("Contents", []):
            marker = json.load(
                self.s3.get_object(Bucket=self.failures_bucket, Key=entry["Key"])["Body"]
            )
            found[marker["source"]] = marker["reason"]
        return found

    def content(self) -> dict[str, list[tuple[str, str, int, str]]]:
        """All that the index holds: by source, the chunks' id, text, position and attributes."""
        index = self.index
        found: dict[str, list[tuple[str, str, int, str]]] = {}
        passages = index.search([1.0] * self.dimensions, None, top_k=2_000)
        assert len(passages) == index.count()
        for passage in passages:
            attributes = json.dumps(passage.attributes, sort_keys=True)
            found.setdefault(passage.source, []).append(
                (passage.id, passage.text, passage.position, attributes)
            )
        return {source: sorted(chunks) for source, chunks in sorted(found.items())}

    def sources(self) -> list[str]:
        """The keys of the documents that are in the index."""
        return [source.removeprefix(self.uri + "/") for source in self.content()]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    """The embedded cloud, where this process's AWS clients find it."""
    config = LocalConfig(port=0, state_dir=tmp_path_factory.mktemp("cloud"))
    with pytest.MonkeyPatch.context() as patch, Cloud(config) as cloud:
        for name, value in {**cloud.environment(), "ML_ROOT": ""}.items():
            patch.setenv(name, value)
        yield cloud


@pytest.fixture
def bedrock(cloud: Cloud, monkeypatch: pytest.MonkeyPatch) -> Iterator[BedrockStandIn]:
    with BedrockStandIn() as stand_in:
        monkeypatch.setenv("AWS_ENDPOINT_URL_BEDROCK_RUNTIME", stand_in.url)
        yield stand_in


@pytest.fixture
def job(cloud: Cloud, bedrock: BedrockStandIn, tmp_path: Path) -> Job:
    return Job(cloud.client("s3"), tmp_path / "ml", f"lancedb:{tmp_path / 'index'}")
