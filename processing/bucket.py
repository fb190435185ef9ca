"""What hydration reads and writes in S3: the documents, and markers of those that failed."""

import hashlib
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TypeVar

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from pydantic import BaseModel, ValidationError

from processing import sidecars
from processing.documents import DocumentError, require_readable

REQUESTS_AT_ONCE = 8
DOWNLOADS_TRIED = 3
KEYS_PER_DELETION = 1000  # as many as DeleteObjects takes


_Given = TypeVar("_Given")
_Result = TypeVar("_Result")


class BucketError(Exception):
    """A bucket cannot be used; the message says which, and why."""


class DocumentsBucket:
    """The documents of a bucket, each named by its source, `s3://bucket/key`.

    Keys of sidecars belong to their documents; keys that end in "/" mark folders. For up to
    REQUESTS_AT_ONCE threads at once.
    """

    def __init__(self, name: str) -> None:
        self.uri = f"s3://{name}/"
        self._name = name
        self._client = _client()

    def source(self, key: str) -> str | None:
        """The document that a key is of, or is the sidecar of."""
        document = key.removesuffix(sidecars.SUFFIX)
        return self.uri + document if document and not document.endswith("/") else None

    def sources(self) -> Iterator[str]:
        """All documents, listed as they are asked for. Raises BucketError."""
        with _explained(f"The documents bucket {self._name} cannot be listed"):
            for key in _keys(self._client, self._name, ""):
                if not key.endswith(sidecars.SUFFIX) and (source := self.source(key)):
                    yield source

    def download(self, source: str, path: Path) -> bool:
        """Write a document to a file; says whether there is such a document.

        Raises DocumentError, also for one that could not be read afterwards, and BucketError.
        """
        attempts = 0
        while response := self._get(source):
            attempts += 1
            with closing(response["Body"]) as body:
                require_readable(source.rpartition("/")[2], response["ContentLength"])
                try:
                    with path.open("wb") as file:
                        shutil.copyfileobj(body, file, 2**20)
                    return True
                except BotoCoreError as error:  # the connection broke off
                    if attempts == DOWNLOADS_TRIED:
                        raise DocumentError(f"it could not be fetched: {error}") from error
        return False

    def sidecar(self, source: str) -> bytes | None:
        """The content of a document's sidecar, if it has one; of one too large, the beginning.

        Raises DocumentError and BucketError.
        """
        response = self._get(source + sidecars.SUFFIX)
        if response is None:
            return None
        with closing(response["Body"]) as body:
            try:
                content: bytes = body.read(sidecars.MAXIMUM_BYTES + 1)
            except BotoCoreError as error:
                raise DocumentError(f"its metadata could not be fetched: {error}") from error
            return content

    def _get(self, source: str) -> Any:
        key = source.removeprefix(self.uri)
        try:
            return self._client.get_object(Bucket=self._name, Key=key)
        except ClientError as error:
            match error.response["Error"]["Code"]:
                case "NoSuchKey":
                    return None
                case "NoSuchBucket":
                    raise BucketError(f"There is no documents bucket {self._name}.") from error
            raise DocumentError(f"{key} could not be fetched: {error}") from error
        except BotoCoreError as error:
            raise DocumentError(f"{key} could not be fetched: {error}") from error


class _Marker(BaseModel):
    source: str
    reason: str


class FailureMarkers:
    """Objects below a URI, one for each document that the next run must take up.

    `sources` are the documents of `bucket` that are marked, of those that are `ours`.
    Raises BucketError.
    """

    def __init__(self, uri: str, documents_uri: str, is_ours: Callable[[str], bool]) -> None:
        self._bucket, _, self._prefix = uri.removeprefix("s3://").partition("/")
        self._client = _client()
        with _explained(f"The failure markers below {uri} cannot be read"):
            keys = _keys(self._client, self._bucket, self._prefix)
            self.sources = {
                source
                for source in _at_once(self._read, keys)
                if source and source.startswith(documents_uri) and is_ours(source)
            }

    def write(self, failures: Mapping[str, str]) -> None:
        """Mark documents, by source, with the reason of each."""
        with _explained("Failure markers cannot be written"):
            for source in _at_once(self._write, failures.items()):
                self.sources.add(source)

    def remove(self, sources: Collection[str]) -> None:
        """Take the markers off those documents that have one."""
        marked = [source for source in sources if source in self.sources]
        for first in range(0, len(marked), KEYS_PER_DELETION):
            batch = marked[first : first + KEYS_PER_DELETION]
            objects = [{"Key": self._key(source)} for source in batch]
            with _explained("Failure markers cannot be deleted"):
                answer = self._client.delete_objects(
                    Bucket=self._bucket, Delete={"Objects": objects, "Quiet": True}
                )
            if errors := answer.get("Errors"):
                raise BucketError(f"Failure markers cannot be deleted: {errors[:3]}")
            self.sources.difference_update(batch)

    def _key(self, source: str) -> str:
        return f"{self._prefix}{hashlib.sha256(source.encode()).hexdigest()}.json"

    def _read(self, key: str) -> str | None:
        try:
            content = self._client.get_object(Bucket=self._bucket, Key=key)["Body"].read()
        except self._client.exceptions.NoSuchKey:
            return None  # another host was done with its document since the markers were listed
        try:
            return _Marker.model_validate_json(content).source
        except ValidationError as error:
            raise BucketError(
                f"s3://{self._bucket}/{key} is no failure marker; remove it: {error}"
            ) from error

    def _write(self, failure: tuple[str, str]) -> str:
        source, reason = failure
        body = _Marker(source=source, reason=reason).model_dump_json().encode()
        self._client.put_object(Bucket=self._bucket, Key=self._key(source), Body=body)
        return source


def _client() -> Any:
    config = Config(
        connect_timeout=10,
        read_timeout=60,
        max_pool_connections=REQUESTS_AT_ONCE,
        retries={"mode": "standard", "max_attempts": 5},
    )
    return boto3.client("s3", config=config)


def _keys(client: Any, bucket: str, prefix: str) -> Iterator[str]:
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    return (entry["Key"] for page in pages for entry in page.get("Contents", ()))


def _at_once(function: Callable[[_Given], _Result], items: Iterable[_Given]) -> Iterator[_Result]:
    with ThreadPoolExecutor(REQUESTS_AT_ONCE) as pool:
        yield from pool.map(function, items)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise BucketError(f"{what}: {error}") from error
