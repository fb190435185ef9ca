"""The hydration job: the documents in S3 become the chunks in the vector index.

Runs in the processing container, as `python -m processing.hydrate`. Below ML_ROOT (`/opt/ml`):

    processing/input/changes/*.json             {"upserts": [keys], "deletes": [keys]}: look at
                                                these; without it, at all that is in the bucket
                                                or in the index
    config/resourceconfig.json                  this host, and which others share the work
    processing/output/report/hydration_report.json
                                                of several hosts, each has its own:
                                                hydration_report-<host>.json
    output/message                              why the job failed, if it did

What counts is what lies in the bucket now: a changed key that is there is indexed, one that is not
is taken out, whatever the change list calls it. So events may come twice or in any order, and a job
that was killed is simply run again.

Every document that a change list names, or that failed, has a marker in S3 until it is done. Each
run takes up those that it finds, and so what an earlier one left, however that ended.
"""

import faulthandler
import hashlib
import os
import sys
import time
from collections.abc import Iterator, Sequence, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from bedrock.models import (
    UnknownModelError,
    UnusableModelError,
    find_model,
    require_usable,
)
from bedrock.text import BodyError
from processing.bucket import BucketError, DocumentsBucket, FailureMarkers
from processing.chunking import ChunkSettings
from processing.embedding import Embedder, EmbeddingRefusedError
from processing.hydration_report import HydrationReport
from processing.job import ArgumentsError, leave_message, parse_arguments
from processing.pipeline import Pipeline
from vectors.index import VectorIndexError
from vectors.open import allow_readers, open_index

NOT_DONE = "The job that was to hydrate it ended before."

RoleArn = Annotated[str, Field(pattern=r"^arn:[a-z-]+:iam::\d{12}:role/[\w+=.@/-]+$")]


class HydrationError(Exception):
    """The job cannot be done as it was asked for; the message says why."""


class Arguments(BaseModel):
    """What the job was started with. Chunks are measured in characters; 0 requests
    per second set no ceiling; reader roles are IAM roles that are to search the index, with commas
    between their ARNs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    documents_bucket: str = Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")
    failures_uri: str = Field(pattern=r"^s3://[^/]+/(.+/)?$")
    index_location: str
    index_name: str
    embedding_model: str
    dimensions: int = Field(ge=1)
    chunk_size: int = Field(default=1_000, ge=100, le=8_000)
    chunk_overlap: int = Field(default=100, ge=0)
    concurrency: int = Field(default=16, ge=1, le=256)
    requests_per_second: float = Field(default=0, ge=0)
    reader_roles: Annotated[tuple[RoleArn, ...], BeforeValidator(lambda text: text.split(","))] = ()

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.chunk_overlap > self.chunk_size / 2:
            raise ValueError("chunk-overlap must be half of chunk-size at most")
        return self


class Changes(BaseModel):
    """The change list: keys of the bucket."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    upserts: list[str] = []
    deletes: list[str] = []


class ResourceConfig(BaseModel):
    """What SageMaker tells a container of the hosts of its job."""

    current_host: str = "algo-1"
    hosts: list[str] = ["algo-1"]

    @model_validator(mode="after")
    def _knows_itself(self) -> Self:
        if self.current_host not in self.hosts:
            raise ValueError(f"{self.current_host} is not among the hosts {self.hosts}")
        return self

    @property
    def is_first(self) -> bool:
        """Whether this host does what one host is to do for all."""
        return self.current_host == min(self.hosts)

    def is_ours(self, source: str) -> bool:
        """Whether a document is this host's work: each is one host's, by hash of its source."""
        digest = hashlib.blake2b(source.encode(), digest_size=8).digest()
        hosts = sorted(self.hosts)
        return hosts[int.from_bytes(digest) % len(hosts)] == self.current_host


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    root = Path(os.environ.get("ML_ROOT", "/opt/ml"))
    try:
        report = hydrate(parse_arguments(Arguments, "processing.hydrate", __doc__, argv), root)
    except (
        ArgumentsError,
        BodyError,
        BucketError,
        EmbeddingRefusedError,
        HydrationError,
        UnknownModelError,
        UnusableModelError,
        VectorIndexError,
    ) as error:
        leave_message(root, str(error))
        print(error, file=sys.stderr)
        return 1
    except Exception as error:
        leave_message(root, f"Hydration broke off: {type(error).__name__}: {error}")
        raise
    print(report.model_dump_json())
    if not report.documents.failed:
        return 0
    message = _partial_failure(report)
    leave_message(root, message)
    print(message, file=sys.stderr)
    return 1


def hydrate(arguments: Arguments, root: Path) -> HydrationReport:
    """Bring the index in line with the bucket; the report is written in any case.

    Documents that fail are in the report, and will be tried again by the next run. Raises what
    `main` catches when no document could be processed any further.
    """
    started = time.monotonic()
    hosts = _resource_config(root)
    bucket = DocumentsBucket(arguments.documents_bucket)
    changed = _changed(root, bucket)
    markers = FailureMarkers(arguments.failures_uri, bucket.uri, hosts.is_ours)
    if changed is not None:
        unmarked = set(filter(hosts.is_ours, changed)) - markers.sources
        markers.write(dict.fromkeys(unmarked, NOT_DONE))
    model = find_model(arguments.embedding_model)
    require_usable(model, datetime.now(UTC).date())
    embedder = Embedder(
        model,
        arguments.dimensions,
        arguments.concurrency,
        arguments.requests_per_second / len(hosts.hosts),
    )
    index = open_index(arguments.index_location, arguments.index_name, arguments.dimensions)
    report = HydrationReport(
        documents_bucket=arguments.documents_bucket,
        index=arguments.index_name,
        embedding_model=model.id,
        dimensions=arguments.dimensions,
    )
    settings = ChunkSettings(
        arguments.chunk_size, arguments.chunk_overlap, model.id, arguments.dimensions
    )
    pipeline = Pipeline(bucket, markers, index, embedder, settings, report)
    try:
        if arguments.reader_roles and hosts.is_first:
            allow_readers(arguments.index_location, arguments.index_name, arguments.reader_roles)
        index.ensure()
        if changed is None:
            indexed = {source for source in index.sources() if source.startswith(bucket.uri)}
            sources = _reconciled(bucket, indexed | markers.sources)
            pipeline.run(filter(hosts.is_ours, sources), indexed)
        else:
            pipeline.run(sorted(markers.sources), None)
    finally:
        report.embedding_calls, report.embedding_retries = embedder.calls, embedder.retries
        report.seconds.embedding = embedder.seconds
        report.seconds.total = time.monotonic() - started
        _write_report(report, hosts, root)
    return report


def _reconciled(bucket: DocumentsBucket, others: Set[str]) -> Iterator[str]:
    """All documents in the bucket, then those of the others that are not there."""
    missing = set(others)
    for source in bucket.sources():
        missing.discard(source)
        yield source
    yield from sorted(missing)


def _changed(root: Path, bucket: DocumentsBucket) -> set[str] | None:
    """The documents that the change list names, None if there is no change list."""
    folder = root / "processing/input/changes"
    if not folder.is_dir():
        return None
    paths = [*folder.glob("*.json")]
    if len(paths) != 1:
        raise HydrationError(f"{folder} holds {len(paths)} change lists, and must hold one.")
    try:
        changes = Changes.model_validate_json(paths[0].read_bytes())
    except ValidationError as error:
        raise HydrationError(f"{paths[0].name} is no change list: {error}") from error
    sources = map(bucket.source, [*changes.upserts, *changes.deletes])
    return {source for source in sources if source is not None}


def _resource_config(root: Path) -> ResourceConfig:
    path = root / "config/resourceconfig.json"
    try:
        return ResourceConfig.model_validate_json(path.read_bytes() if path.is_file() else "{}")
    except ValidationError as error:
        raise HydrationError(f"{path} cannot be understood: {error}") from error


def _partial_failure(report: HydrationReport) -> str:
    first = "; ".join(f"{failure.document}: {failure.reason}" for failure in report.failures[:3])
    more = " …" if len(report.failures) > 3 else ""
    return (
        f"{report.documents.failed} documents could not be hydrated, the others were. {first}{more}"
        " (hydration_report.json lists them all). Correct and upload them again, or delete them; "
        "every run tries them once more."
    )


def _write_report(report: HydrationReport, hosts: ResourceConfig, root: Path) -> None:
    suffix = f"-{hosts.current_host}" if len(hosts.hosts) > 1 else ""
    path = root / f"processing/output/report/hydration_report{suffix}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(report.model_dump_json(indent=2), encoding="utf-8")


if __name__ == "__main__":
    faulthandler.enable()
    sys.exit(main())
