"""Which index a location means."""

import os
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from vectors.index import VectorIndex, VectorIndexError


def open_index(
    location: str,
    name: str,
    dimensions: int,
    *,
    timeout_seconds: float = 60,
    retries: int = 3,
    credentials: Any = None,
) -> VectorIndex:
    """The index of that name for vectors of so many dimensions; `ensure()` creates it.

    `location` is the URL of an OpenSearch endpoint, or `lancedb:` and a folder. The environment
    variable VECTOR_INDEX_LOCATION, if set, takes its place, as AWS_ENDPOINT_URL does for services:
    so the embedded cloud has an index where a template names a domain. Time-out and retries are
    those of each request to an endpoint. Those to Amazon OpenSearch Service are signed with
    botocore's credentials, of the process if there are no others. Raises VectorIndexError for any
    other location.
    """
    location = _meant(location)
    if _is_endpoint(location):
        from vectors.opensearch import OpenSearchIndex, connect

        return OpenSearchIndex(
            connect(location, timeout_seconds, retries, credentials), name, dimensions
        )
    if location.startswith("lancedb:") and location != "lancedb:":
        from vectors.lance import LanceIndex

        return LanceIndex(location.removeprefix("lancedb:"), name, dimensions)
    raise VectorIndexError(
        f"{location!r} is no vector index. Name an https:// endpoint or lancedb:<folder>."
    )


def allow_readers(location: str, name: str, iam_roles: Sequence[str]) -> None:
    """Lets IAM roles, by their ARNs, search the index of that name, if it is in a domain of Amazon
    OpenSearch Service: other indexes know no such roles. The domain must have fine-grained access
    control, and this process be its master user.

    `location` is that of `open_index`. Raises VectorIndexError if the domain refuses.
    """
    location = _meant(location)
    if _is_endpoint(location):
        from vectors.opensearch import aws_region, connect
        from vectors.reader_role import grant_reader_role

        if aws_region(location):
            grant_reader_role(connect(location), name, iam_roles)


def _meant(location: str) -> str:
    return os.environ.get("VECTOR_INDEX_LOCATION") or location


def _is_endpoint(location: str) -> bool:
    return urlsplit(location).scheme in ("http", "https")
