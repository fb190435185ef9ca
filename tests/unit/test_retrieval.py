"""What of the vector indexes needs no server: fusion, locations, retrieval, signed requests."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import urllib3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st

from vectors.fusion import fuse
from vectors.index import Chunk, VectorIndexError
from vectors.lance import LanceIndex
from vectors.open import open_index
from vectors.opensearch import OpenSearchIndex, aws_region
from vectors.retrieval import retrieve

DOMAIN = "https://search-lore-abc123.eu-west-1.es.amazonaws.com"
rankings = st.lists(st.lists(st.sampled_from("abcdefgh"), unique=True), max_size=4)


def test_fusion_adds_reciprocal_ranks() -> None:
    assert fuse([["a", "b"], ["b", "c"]]) == [
        ("b", pytest.approx(1 / 62 + 1 / 61)),
        ("a", pytest.approx(1 / 61)),
        ("c", pytest.approx(1 / 62)),
    ]


@given(rankings)
def test_fusion_keeps_everything_once_and_in_order(given_rankings: list[list[str]]) -> None:
    fused = fuse(given_rankings)
    assert sorted(id for id, _ in fused) == sorted({id for r in given_rankings for id in r})
    assert [score for _, score in fused] == sorted((s for _, s in fused), reverse=True)


@given(rankings, st.randoms(use_true_random=False))
def test_fusion_does_not_care_which_ranking_comes_first(
    given_rankings: list[list[str]], random: Any
) -> None:
    shuffled = random.sample(given_rankings, len(given_rankings))
    one, other = dict(fuse(given_rankings)), dict(fuse(shuffled))
    assert one.keys() == other.keys()
    assert all(math.isclose(one[id], other[id]) for id in one)


@given(st.lists(st.sampled_from("abcdefgh"), unique=True))
def test_a_single_ranking_keeps_its_order(ranking: list[str]) -> None:
    assert [id for id, _ in fuse([ranking])] == ranking


@given(rankings, st.sampled_from("abcdefgh"))
def test_what_leads_every_ranking_leads_the_fusion(
    given_rankings: list[list[str]], best: str
) -> None:
    led = [[best, *(id for id in ranking if id != best)] for ranking in [*given_rankings, []]]
    assert fuse(led)[0][0] == best


def test_a_location_chooses_the_index(tmp_path: Path) -> None:
    assert isinstance(open_index("http://localhost:9200", "lore", 4), OpenSearchIndex)
    assert isinstance(open_index(f"lancedb:{tmp_path}", "lore", 4), LanceIndex)


def test_the_environment_can_name_another_location(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VECTOR_INDEX_LOCATION", f"lancedb:{tmp_path}")
    open_index(DOMAIN, "lore", 4).ensure()
    assert (tmp_path / "lore" / "chunks.sqlite3").is_file()

    monkeypatch.setenv("VECTOR_INDEX_LOCATION", "nowhere")
    with pytest.raises(VectorIndexError, match="'nowhere' is no vector index"):
        open_index(DOMAIN, "lore", 4)

    monkeypatch.setenv("VECTOR_INDEX_LOCATION", "")
    assert isinstance(open_index("http://localhost:9200", "lore", 4), OpenSearchIndex)


@pytest.mark.parametrize("location", ["", "lancedb:", "s3://bucket", "/tmp/index", "file:///x"])
def test_other_locations_are_refused(location: str) -> None:
    with pytest.raises(VectorIndexError, match="lancedb:<folder>"):
        open_index(location, "lore", 4)


@pytest.mark.parametrize(
    ("location", "region"),
    [
        (DOMAIN, "eu-west-1"),
        ("https://vpc-lore-abc.us-gov-west-1.es.amazonaws.com", "us-gov-west-1"),
        ("https://search-lore-abc.cn-north-1.es.amazonaws.com.cn", "cn-north-1"),
        ("https://search-lore-abc.aos.us-east-1.on.aws", "us-east-1"),
        ("https://search.example.com", None),
        ("http://localhost:9200", None),
        ("https://x.us-east-1.es.amazonaws.com.evil.example", None),
    ],
)
def test_aws_hosts_are_known_by_their_names(location: str, region: str | None) -> None:
    assert aws_region(location) == region


def test_opensearch_serverless_is_refused_by_name() -> None:
    with pytest.raises(VectorIndexError, match="Serverless"):
        open_index("https://abc.us-east-1.aoss.amazonaws.com", "lore", 4)


def test_requests_to_aws_are_signed_as_they_are_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.delenv("AWS_SESSION_TOKEN", raising=False)
    sent = []

    def urlopen(pool: Any, method: str, url: str, body: Any = None, **options: Any) -> Any:
        sent.append((method, f"https://{pool.host}{url}", body, options["headers"]))
        answer = b'{"items": [{"index": {"_id": "a", "status": 201}}]}'
        headers = {"content-type": "application/json"}
        return urllib3.HTTPResponse(answer, headers, 200, preload_content=False)

    monkeypatch.setattr(urllib3.HTTPSConnectionPool, "urlopen", urlopen)
    chunk = Chunk("a", "s3://d/ä.md", "Ä", "text", 0, "", [1.0, 0.0])
    open_index(DOMAIN, "lore", 2).upsert([chunk])

    assert [url.split("?")[0] for _, url, _, _ in sent] == [
        f"{DOMAIN}/_bulk",
        f"{DOMAIN}/lore/_refresh",
    ]
    for method, url, body, headers in sent:
        scope, signed, signature = headers["Authorization"].split(", ")
        assert "/eu-west-1/es/aws4_request" in scope
        names = signed.removeprefix("SignedHeaders=").split(";")
        lowered = {name.lower(): value for name, value in headers.items()}
        request = AWSRequest(
            method, url, {name: lowered[name] for name in names if name in lowered}, body
        )
        request.context["timestamp"] = lowered["x-amz-date"]
        auth = SigV4Auth(Credentials("AKIDEXAMPLE", "secret"), "es", "eu-west-1")
        wanted = auth.signature(
            auth.string_to_sign(request, auth.canonical_request(request)), request
        )
        assert signature == f"Signature={wanted}"


def test_a_domain_without_credentials_says_what_is_missing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(VectorIndexError, match="no AWS credentials"):
        open_index(DOMAIN, "lore", 2)


def embed(question: str) -> Sequence[float]:
    return [1.0, 0.0] if "dragon" in question else [0.0, 1.0]


def test_retrieve_finds_by_meaning_and_words(tmp_path: Path) -> None:
    index = open_index(f"lancedb:{tmp_path}", "lore", 2)
    index.ensure()
    index.upsert(
        [
            Chunk("a", "s3://d/a.md", "Wyrms", "It breathes fire.", 0, "", [1.0, 0.1], {"age": 1}),
            Chunk("b", "s3://d/b.md", "Bread", "It needs an oven.", 0, "", [0.1, 1.0], {"age": 2}),
        ]
    )
    assert [p.id for p in retrieve(index, embed, "what do dragons do")] == ["a", "b"]
    assert [p.id for p in retrieve(index, embed, " ovens ", top_k=1)] == ["b"]
    assert [p.id for p in retrieve(index, embed, "dragon", filter={"age": 2})] == ["b"]


@pytest.mark.parametrize(("question", "top_k"), [(" \n", 5), ("dragon", 0), ("dragon", 101)])
def test_retrieve_refuses_what_cannot_be_answered(
    tmp_path: Path, question: str, top_k: int
) -> None:
    with pytest.raises(ValueError, match=r"question|top_k"):
        retrieve(open_index(f"lancedb:{tmp_path}", "lore", 2), embed, question, top_k)
