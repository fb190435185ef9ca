"""Which index a location means."""

import os
from urllib.parse import urlsplit

from vectors.index import VectorIndex, VectorIndexError


def open_index(
    location: str,
    name: str,
    dimensions: int,
    *,
    timeout_seconds: float = 60,
    retries: int = 3,
) -> VectorIndex:
    """The index of that name for vectors of so many dimensions; `ensure()` creates it.

    `location` is the URL of an OpenSearch endpoint, or `lancedb:` and a folder. The environment
    variable VECTOR_INDEX_LOCATION, if set, takes its place, as AWS_ENDPOINT_URL does for services:
    so the embedded cloud has an index where a template names a domain. Time-out and retries are
    those of each request to an endpoint. Raises VectorIndexError for any other location.
    """
    location = os.environ.get("VECTOR_INDEX_LOCATION") or location
    if urlsplit(location).scheme in ("http", "https"):
        from vectors.opensearch import OpenSearchIndex, connect

        return OpenSearchIndex(connect(location, timeout_seconds, retries), name, dimensions)
    if location.startswith("lancedb:") and location != "lancedb:":
        from vectors.lance import LanceIndex

        return LanceIndex(location.removeprefix("lancedb:"), name, dimensions)
    raise VectorIndexError(
        f"{location!r} is no vector index. Name an https:// endpoint or lancedb:<folder>."
    )
