"""Who may search a domain is made known to it by signed requests to a stand-in of its security
plugin, which the local OpenSearch does not have."""

import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from hydration_job import Job, bedrock, cloud, job

from benchmarks.bedrock_stand_in import BedrockStandIn
from vectors.index import VectorIndexError
from vectors.open import allow_readers, open_index

__all__ = ["bedrock", "cloud", "job"]

HOST = "search-lore-abc0.eu-west-1.es.amazonaws.com"
RAG, STATUS = (f"arn:aws:iam::123456789012:role/quench-{name}-api" for name in ("rag", "status"))
ROLE = "/_plugins/_security/api/roles/lore-reader"
MAPPING = "/_plugins/_security/api/rolesmapping/lore-reader"


class Domain(ThreadingHTTPServer):
    """Takes whatever is put, unless it refuses everybody; its indexes are empty."""

    def __init__(self) -> None:
        self.refusing = False
        self.requests: list[tuple[str, str]] = []
        self.security: dict[str, Any] = {}
        self.authorizations: list[str] = []
        super().__init__(("127.0.0.1", 0), DomainHandler)

    @property
    def location(self) -> str:
        return f"http://{HOST}:{self.server_port}"


class DomainHandler(BaseHTTPRequestHandler):
    server: Domain
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path))
        self.server.authorizations.append(self.headers.get("Authorization", ""))
        if self.server.refusing:
            return self._answer(403, {"status": "FORBIDDEN", "message": "no permission"})
        self.server.security[self.path] = json.loads(body)
        return self._answer(200, {"status": "OK"})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.server.requests.append((self.command, self.path))
        none = {"hits": {"hits": []}, "aggregations": {"values": {"buckets": []}}}
        self._answer(200, {"responses": [none], "count": 0, **none})

    def do_HEAD(self) -> None:
        self.server.requests.append((self.command, self.path))
        self._answer(400, {})

    def _answer(self, status: int, answer: dict[str, Any]) -> None:
        content = b"" if self.command == "HEAD" else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def domain(monkeypatch: pytest.MonkeyPatch) -> Iterator[Domain]:
    """A stand-in that is found by the name of a domain, so that requests are signed for it."""
    find = socket.getaddrinfo

    def find_here(host: Any, *arguments: Any, **options: Any) -> Any:
        return find("127.0.0.1" if host == HOST else host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", find_here)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIATEST")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.delenv("VECTOR_INDEX_LOCATION", raising=False)
    with Domain() as domain:
        Thread(target=domain.serve_forever, args=(0.01,), daemon=True).start()
        yield domain
        domain.shutdown()


def test_iam_roles_may_search_one_index_and_nothing_else(domain: Domain) -> None:
    allow_readers(domain.location, "lore", [RAG, STATUS])
    assert domain.security == {
        ROLE: {
            "cluster_permissions": ["indices:data/read/msearch"],
            "index_permissions": [
                {"index_patterns": ["lore", "lore-??????"], "allowed_actions": ["search"]}
            ],
        },
        MAPPING: {"backend_roles": [RAG, STATUS]},
    }
    for authorization in domain.authorizations:
        assert authorization.startswith("AWS4-HMAC-SHA256 Credential=AKIATEST/")
        assert "/eu-west-1/es/aws4_request" in authorization


def test_searching_and_counting_take_no_more_than_that(domain: Domain) -> None:
    index = open_index(domain.location, "lore", 4)
    index.search([1.0] * 4, "gate", top_k=3, filter={"region": "north"})
    index.sources()
    index.count()
    # of the cluster indices:data/read/msearch, of the index indices:data/read/search thrice
    assert domain.requests == [
        ("POST", "/_msearch"),
        ("POST", "/lore/_search"),
        ("POST", "/lore/_count"),
    ]


def test_whoever_is_no_longer_named_loses_the_role(domain: Domain) -> None:
    allow_readers(domain.location, "lore", [RAG, STATUS])
    once = dict(domain.security)
    allow_readers(domain.location, "lore", [RAG, STATUS])
    assert domain.security == once
    allow_readers(domain.location, "lore", [STATUS])
    assert domain.security == {**once, MAPPING: {"backend_roles": [STATUS]}}


def test_a_refusal_names_role_and_endpoint(domain: Domain) -> None:
    domain.refusing = True
    with pytest.raises(VectorIndexError) as caught:
        allow_readers(domain.location, "lore", [RAG])
    for part in ("lore-reader", domain.location, RAG, "403", "no permission", "master user"):
        assert part in str(caught.value)
    assert domain.requests == [("PUT", ROLE)]


def test_an_index_elsewhere_knows_no_iam_roles(
    domain: Domain, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = f"http://127.0.0.1:{domain.server_port}"
    for location in (elsewhere, f"lancedb:{tmp_path}"):
        allow_readers(location, "lore", [RAG])
        monkeypatch.setenv("VECTOR_INDEX_LOCATION", location)
        allow_readers(domain.location, "lore", [RAG])
        monkeypatch.delenv("VECTOR_INDEX_LOCATION")
    assert domain.requests == []


def test_a_job_that_may_not_let_readers_in_says_so_and_embeds_nothing(
    domain: Domain, bedrock: BedrockStandIn, job: Job
) -> None:
    domain.refusing = True
    job.location = domain.location
    job.more = ["--reader-roles", f"{RAG},{STATUS}"]
    job.fill(documents=2)
    job.run(code=1)
    assert "lore-reader" in job.message()
    assert STATUS in job.message()
    assert bedrock.calls == 0
    assert domain.requests == [("PUT", ROLE)]


@pytest.mark.parametrize(("host", "asked"), [("algo-1", [ROLE, MAPPING]), ("algo-2", [])])
def test_one_host_of_several_lets_readers_in(
    domain: Domain, job: Job, host: str, asked: list[str]
) -> None:
    job.location = domain.location
    job.more = ["--reader-roles", RAG]
    config = job.root / "config/resourceconfig.json"
    config.parent.mkdir(parents=True)
    config.write_text(json.dumps({"current_host": host, "hosts": ["algo-1", "algo-2"]}))
    with pytest.raises(Exception, match="400"):  # there is no index in the stand-in
        job.run()
    assert [path for method, path in domain.requests if method == "PUT"] == asked
    assert domain.requests[-1] == ("HEAD", "/_alias/lore")


@pytest.mark.parametrize("roles", ["", "quench-rag-api", f"{RAG},", f"{RAG};{STATUS}"])
def test_reader_roles_are_arns(job: Job, roles: str) -> None:
    job.more = ["--reader-roles", roles]
    with pytest.raises(FileNotFoundError):  # no report either
        job.run(code=1)
    assert "reader_roles" in job.message()


def test_a_job_of_the_embedded_cloud_needs_no_domain(domain: Domain, job: Job) -> None:
    job.more = ["--reader-roles", f"{RAG},{STATUS}"]
    job.fill(documents=1)
    assert job.run()["documents"]["added"] == 1
    assert domain.requests == []
