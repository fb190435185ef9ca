"""A vector index in OpenSearch 2.19 or later, with the k-NN plugin.

The index is an alias on a concrete index, so that another can take its place at once.
"""

import random
import re
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from opensearchpy import NotFoundError, OpenSearch, RequestError, Urllib3AWSV4SignerAuth, helpers

from vectors.fusion import depth
from vectors.index import (
    Chunk,
    Filter,
    IndexMismatchError,
    IndexNotFoundError,
    IndexWriteError,
    Passage,
    VectorIndexError,
)
from vectors.records import MOST_WORDS, conditions, fused_passages, passage, record, unfit

_FILTERS = ["possessives", "lowercase", "asciifolding", "stop", "stems"]
_SETTINGS = {
    "index": {"knn": True, "number_of_shards": 1, "auto_expand_replicas": "0-1"},
    "analysis": {
        "filter": {
            "possessives": {"type": "stemmer", "language": "possessive_english"},
            "stems": {"type": "stemmer", "language": "english"},
            "most": {"type": "limit", "max_token_count": MOST_WORDS},
        },
        "analyzer": {
            "words": {"type": "custom", "tokenizer": "standard", "filter": _FILTERS},
            "question": {"type": "custom", "tokenizer": "standard", "filter": [*_FILTERS, "most"]},
        },
    },
}
_TRANSIENT = {429, 502, 503, 504, "N/A", "TIMEOUT"}
"""Statuses worth another try; the client writes the last two for connections that failed."""

_SEARCH_WIDTH = 400
"""With the lucene engine a query's `k` is also how widely the graph is searched. Of 20,000 vectors
without any structure, the hardest case, 100 finds 87 % of the ten nearest and 400 finds 98 %."""


def connect(
    location: str, timeout_seconds: float = 60, retries: int = 3, credentials: Any = None
) -> OpenSearch:
    """A client for the endpoint; requests to Amazon OpenSearch Service are signed (SigV4) with the
    credentials, or those of the process."""
    region = aws_region(location)
    return OpenSearch(
        hosts=[location],
        http_auth=_signer(region, credentials) if region else None,
        timeout=timeout_seconds,
        max_retries=retries,
        retry_on_timeout=True,
        pool_maxsize=16,
    )


def aws_region(location: str) -> str | None:
    """The region of a domain of Amazon OpenSearch Service, None for a server of another kind.

    Raises VectorIndexError for OpenSearch Serverless, whose vector collections take no document
    ids, so that nothing could be replaced.
    """
    host = urlsplit(location).hostname or ""
    if re.search(r"\.aoss\.(amazonaws\.com|on\.aws)$", host):
        raise VectorIndexError(f"{host} is OpenSearch Serverless; Quench needs a domain.")
    domain = re.search(r"\.([a-z0-9-]+)\.es\.amazonaws\.com(\.cn)?$", host) or re.search(
        r"\.aos\.([a-z0-9-]+)\.on\.aws$", host
    )
    return domain[1] if domain else None


def _signer(region: str, credentials: Any) -> Urllib3AWSV4SignerAuth:
    if credentials is None:
        import boto3

        credentials = boto3.Session().get_credentials()
    if credentials is None:
        raise VectorIndexError(
            "There are no AWS credentials to sign requests to the OpenSearch domain with. Log in, "
            "or set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        )
    return Urllib3AWSV4SignerAuth(credentials, region, "es")


class OpenSearchIndex:
    """The index behind an alias, or behind a plain name if `alias` is false. Writes that are
    refused for now are retried for `patience` seconds."""

    def __init__(
        self,
        client: OpenSearch,
        name: str,
        dimensions: int,
        *,
        patience: float = 120,
        alias: bool = True,
    ) -> None:
        self._client = client
        self._alias = alias
        self._name = name
        self._dimensions = dimensions
        self._patience = patience

    def ensure(self) -> None:
        if not self._client.indices.exists_alias(name=self._name):
            if self._client.indices.exists(index=self._name):
                raise IndexMismatchError(
                    f"{self._name} is an index, and must be an alias of one. {self._remedy()}"
                )
            self._create(f"{self._name}-000001", aliases={self._name: {}})
        [(index, found)] = self._client.indices.get_mapping(index=self._name).items()
        differences = list(_differences(self._mapping(), found["mappings"]))
        if differences:
            raise IndexMismatchError(
                f"The index {index} does not fit the settings: {'; '.join(differences)}. "
                + self._remedy()
            )
        # Writers refresh what they wrote, but for those that were killed before they could.
        self._client.indices.refresh(index=self._name)

    def existing(self, source: str) -> set[str]:
        return self._values("id", {"term": {"source": source}})

    def upsert(self, chunks: Sequence[Chunk]) -> None:
        latest = {chunk.id: chunk for chunk in chunks}
        failures = unfit(latest.values(), self._dimensions)
        _, refused = self._bulk(
            {
                id: {"_op_type": "index", "_source": record(chunk)}
                for id, chunk in latest.items()
                if id not in failures
            }
        )
        failures |= refused
        if failures:
            raise IndexWriteError(self._name, failures)

    def delete_by_source(self, source: str, keep: Collection[str] = ()) -> int:
        stale = self.existing(source) - set(keep)
        deleted, failures = self._bulk({id: {"_op_type": "delete"} for id in stale})
        if failures:
            raise IndexWriteError(self._name, failures)
        return deleted

    def search(
        self,
        vector: Sequence[float],
        text: str | None,
        *,
        top_k: int,
        filter: Filter | None = None,
    ) -> list[Passage]:
        allowed = [{"terms": {"labels": labels}} for labels in conditions(filter)]
        size = depth(top_k) if text else top_k
        nearest: dict[str, Any] = {"vector": list(vector), "k": max(_SEARCH_WIDTH, size)}
        if allowed:
            nearest["filter"] = {"bool": {"filter": allowed}}
        queries: list[dict[str, Any]] = [{"knn": {"vector": nearest}}]
        if text:
            matching = {"match": {"words": {"query": text}}}
            queries.append({"bool": {"must": matching, "filter": allowed}})
        hits, *others = self._rankings(queries, size)
        near = [(hit["_source"], hit["_score"]) for hit in hits]
        if not others:
            return [passage(record, similarity, similarity) for record, similarity in near]
        return fused_passages(near, [hit["_source"] for hit in others[0]], top_k)

    def sources(self) -> set[str]:
        return self._values("source", {"match_all": {}})

    def count(self) -> int:
        with self._must_exist():
            return int(self._client.count(index=self._name)["count"])

    def reindex(self) -> None:
        """Copies all chunks into a new index of today's mapping, which then takes this one's place.

        For a mapping that changed while the vectors did not; see `replacement` for the others.
        Raises VectorIndexError, and leaves all as it was, if a chunk cannot be copied.
        """
        with self.replacement() as new:
            answer = self._client.reindex(
                body={"source": {"index": self._name}, "dest": {"index": new._name}},
                params={"request_timeout": 3600, "refresh": "true"},
            )
            if answer["failures"] or answer["created"] != answer["total"]:
                raise VectorIndexError(
                    f"Of {answer['total']} chunks of {self._name}, {answer['created']} could be "
                    f"copied: {answer['failures'][:3]}"
                )

    @contextmanager
    def replacement(self) -> Iterator["OpenSearchIndex"]:
        """A new, empty index to be filled, which nobody searches until the block ends well: then
        it takes the alias in one step, and the old index is removed. If the block fails, the new
        one is removed. What others write to the old one meanwhile is not in the new one."""
        with self._must_exist():
            [old] = self._client.indices.get_alias(name=self._name)
        taken = self._client.indices.get(
            index=f"{self._name}-*", params={"expand_wildcards": "all"}
        )
        numbers = [
            int(match[1])
            for index in taken
            if (match := re.fullmatch(rf"{re.escape(self._name)}-(\d{{6}})", index))
        ]
        new = f"{self._name}-{max(numbers, default=0) + 1:06}"
        self._create(new)
        try:
            yield OpenSearchIndex(
                self._client, new, self._dimensions, patience=self._patience, alias=False
            )
        except BaseException:
            self._client.indices.delete(index=new)
            raise
        # If this fails, the new index stays: it may have taken over, and only the answer be lost
        self._client.indices.update_aliases(
            body={
                "actions": [
                    {"add": {"index": new, "alias": self._name}},
                    {"remove_index": {"index": old}},
                ]
            }
        )

    def _create(self, index: str, aliases: Mapping[str, Any] | None = None) -> None:
        body = {"settings": _SETTINGS, "mappings": self._mapping(), "aliases": aliases or {}}
        try:
            self._client.indices.create(index=index, body=body)
        except RequestError as error:
            if aliases is None or error.error != "resource_already_exists_exception":
                raise  # otherwise another process was first

    def _mapping(self) -> dict[str, Any]:
        kept = {"type": "keyword", "index": False, "doc_values": False}
        searched = {**kept, "copy_to": ["words"]}
        return {
            "dynamic": "strict",
            "properties": {
                "id": {"type": "keyword"},
                "source": {"type": "keyword"},
                "title": searched,
                "heading": searched,
                "text": searched,
                "position": {"type": "integer"},
                "attributes": kept,
                "labels": {"type": "keyword"},
                "words": {"type": "text", "analyzer": "words", "search_analyzer": "question"},
                "vector": {
                    "type": "knn_vector",
                    "dimension": self._dimensions,
                    "method": {
                        "name": "hnsw",
                        "engine": "lucene",
                        "space_type": "cosinesimil",
                        "parameters": {"m": 16, "ef_construction": 128},
                    },
                },
            },
        }

    def _remedy(self) -> str:
        return (
            "Re-index: name another index in the settings and run `quench documents sync`, which "
            "fills it with every document; or, if vectors keep their dimensions, let "
            "OpenSearchIndex.reindex() copy them into a new index."
        )

    def _bulk(self, actions: Mapping[str, Mapping[str, Any]]) -> tuple[int, dict[str, str]]:
        """Carries out actions by id, visible afterwards: how many had an effect, and why others
        failed. What the service refused for now is tried again, at growing intervals."""
        pending, failures, done = dict(actions), dict[str, str](), 0
        end, pause = time.monotonic() + self._patience, 0.25
        while pending:
            refused = {}
            for succeeded, answer in helpers.streaming_bulk(
                self._client,
                ({"_index": self._name, "_id": id, **action} for id, action in pending.items()),
                chunk_size=500,
                max_chunk_bytes=5 * 2**20,
                raise_on_error=False,
                raise_on_exception=False,
                require_alias=self._alias,  # else a missing index would be made by the first write
            ):
                [item] = answer.values()
                if succeeded:
                    done += 1
                elif item["status"] in _TRANSIENT:
                    refused[item["_id"]] = _reason(item)
                elif item["status"] != 404 or item.get("result") != "not_found":
                    failures[item["_id"]] = _reason(item)
            pending = {id: pending[id] for id in refused}
            if pending and time.monotonic() + pause > end:
                failures |= {id: f"{reason} (given up)" for id, reason in refused.items()}
                break
            if pending:
                time.sleep(pause * random.uniform(0.5, 1))  # noqa: S311
                pause = min(2 * pause, 15)
        if done:
            self._client.indices.refresh(index=self._name)
        return done, failures

    def _values(self, field: str, query: Mapping[str, Any]) -> set[str]:
        """All values of a field in the documents that a query finds."""
        values: set[str] = set()
        with self._must_exist():
            pages: dict[str, Any] = {
                "size": 10_000,
                "sources": [{field: {"terms": {"field": field}}}],
            }
            while True:
                body = {"size": 0, "query": query, "aggs": {"values": {"composite": pages}}}
                page = self._client.search(index=self._name, body=body)["aggregations"]["values"]
                values.update(bucket["key"][field] for bucket in page["buckets"])
                if "after_key" not in page:
                    return values
                pages["after"] = page["after_key"]

    def _rankings(
        self, queries: Iterable[Mapping[str, Any]], size: int
    ) -> list[list[dict[str, Any]]]:
        lines: list[dict[str, Any]] = []
        for query in queries:
            lines.append({"index": self._name})
            lines.append({"query": query, "size": size, "_source": {"excludes": ["vector"]}})
        rankings = []
        for answer in self._client.msearch(body=lines)["responses"]:
            if answer.get("status") == 404:
                raise self._missing()
            if "error" in answer:
                raise VectorIndexError(
                    f"The index {self._name} could not be searched: {_reason(answer)}"
                )
            rankings.append(answer["hits"]["hits"])
        return rankings

    def _missing(self) -> IndexNotFoundError:
        return IndexNotFoundError(
            f"There is no index {self._name} yet; hydrating documents creates it."
        )

    @contextmanager
    def _must_exist(self) -> Iterator[None]:
        try:
            yield
        except NotFoundError as error:
            raise self._missing() from error


def _reason(item: Mapping[str, Any]) -> str:
    error = item.get("error", "")
    if isinstance(error, dict):  # that of a search only says that all shards failed
        error = next(iter(error.get("root_cause") or [error]))
    text = f"{error.get('type')}: {error.get('reason')}" if isinstance(error, dict) else str(error)
    return f"{item.get('status')} {text}"[:500]


def _differences(wanted: Any, found: Any, path: str = "") -> Iterator[str]:
    if isinstance(wanted, dict) and isinstance(found, dict):
        for key, value in wanted.items():
            yield from _differences(value, found.get(key), f"{path}.{key}" if path else key)
    elif str(wanted).lower() != str(found).lower():
        yield f"{path} is {found}, not {wanted}"
