"""One contract for both vector indexes; OpenSearch's own promises below.

OpenSearch's tests use the server that OPENSEARCH_URL names, and skip without it.
"""

import json
import math
import os
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

import lancedb
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opensearchpy import ConnectionTimeout

from vectors.index import (
    Attribute,
    Chunk,
    IndexMismatchError,
    IndexWriteError,
    VectorIndex,
    VectorIndexError,
)
from vectors.lance import LanceIndex
from vectors.open import open_index
from vectors.opensearch import OpenSearchIndex, connect

Open = Callable[..., VectorIndex]

ember = Chunk(
    "e0",
    's3://docs/ember\'s "gate".md',
    "The Ember Gate",
    "The gate is kept burning by the ash wardens.",
    0,
    "Keepers",
    [1.0, 0.0, 0.0, 0.0],
    {"region": "north", "age": 7, "open": True, "tags": ["gate", "fire"]},
)
moat = replace(
    ember, id="e1", text="A moat lies in front.", position=1, vector=[0.8, 0.6, 0.0, 0.0]
)
bread = Chunk(
    "b0",
    "s3://docs/brød.md",
    "Bread",
    "Loaves are baked at the café at dawn.",
    0,
    "",
    [0.0, 0.0, 1.0, 0.0],
    {"region": "south", "age": "7"},
)


@pytest.fixture(params=["lancedb", "opensearch"])
def location(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return f"lancedb:{tmp_path}" if request.param == "lancedb" else _server()


@pytest.fixture
def name(request: pytest.FixtureRequest) -> Iterator[str]:
    name = f"test-{uuid.uuid4().hex}"
    yield name
    if url := os.environ.get("OPENSEARCH_URL"):
        connect(url).indices.delete(index=f"{name}*")


@pytest.fixture
def index(location: str, name: str) -> VectorIndex:
    index = open_index(location, name, 4)
    index.ensure()
    return index


@pytest.fixture
def opensearch(name: str) -> OpenSearchIndex:
    index = OpenSearchIndex(connect(_server()), name, 4)
    index.ensure()
    return index


def _server() -> str:
    url = os.environ.get("OPENSEARCH_URL")
    if not url:
        pytest.skip("OPENSEARCH_URL names no server")
    return url


def ids(index: VectorIndex, *arguments: Any, top_k: int = 10, **options: Any) -> list[str]:
    return [passage.id for passage in index.search(*arguments, top_k=top_k, **options)]


def test_a_passage_gives_back_what_was_indexed(index: VectorIndex) -> None:
    index.upsert([ember])
    [passage] = index.search(ember.vector, None, top_k=3)
    assert replace(passage, score=0.0, similarity=0.0) == type(passage)(
        ember.id, ember.text, ember.source, ember.title, ember.heading, 0.0, 0, ember.attributes
    )
    assert passage.score == pytest.approx(1)


def test_vector_search_is_by_cosine(index: VectorIndex) -> None:
    index.upsert([bread, ember, replace(moat, vector=[80.0, 60.0, 0.0, 0.0])])
    found = index.search([2.0, 0.0, 0.0, 0.0], None, top_k=2)
    assert [passage.id for passage in found] == ["e0", "e1"]
    assert found[1].score == pytest.approx((1 + 0.8) / 2, abs=1e-4)


def test_similarity_is_of_the_vectors_in_any_search(index: VectorIndex) -> None:
    index.upsert([bread, ember, replace(moat, vector=[80.0, 60.0, 0.0, 0.0])])
    for text in (None, "gate ember bread"):
        found = index.search([2.0, 0.0, 0.0, 0.0], text, top_k=10)
        similarities = {passage.id: passage.similarity for passage in found}
        expected = {"e0": 1.0, "e1": (1 + 0.8) / 2, "b0": 0.5}
        assert similarities == pytest.approx(expected, abs=1e-4)


def test_what_only_words_found_is_at_most_as_similar_as_what_was_near(
    index: VectorIndex,
) -> None:
    others = [
        replace(moat, id=f"o{n}", text="Nothing here.", vector=[1.0, 1.0, 0.0, n / 1000])
        for n in range(60)
    ]
    index.upsert([*others, bread])
    found = index.search([1.0, 0.0, 0.0, 0.0], "a loaf baked", top_k=10)
    similarities = {passage.id: passage.similarity for passage in found}
    assert similarities["b0"] == min(similarities.values()) > 0.8


def test_hybrid_search_finds_what_the_vector_alone_ranks_last(index: VectorIndex) -> None:
    others = [
        replace(moat, id=f"o{n}", text="Nothing here.", vector=[0.5, 0.1, 0.0, n / 100])
        for n in range(20)
    ]
    index.upsert([*others, bread])
    vector = [1.0, 0.0, 0.0, 0.0]
    assert "b0" not in ids(index, vector, None, top_k=3)
    assert "b0" in ids(index, vector, "Where is a loaf baked? At a cafe!", top_k=3)


@pytest.mark.parametrize("words", ["ember", "keepers", "WARDEN", "ash-wardens'"])
def test_words_are_found_in_title_heading_and_text_by_their_stems(
    index: VectorIndex, words: str
) -> None:
    index.upsert([bread, ember])
    assert ids(index, [0.0, 1.0, 0.0, 0.0], words)[0] == "e0"


@pytest.mark.parametrize("words", ["", "?!", "the", "a'b\" AND (", "x:y~2 ^[* TO *]", "\\", "ü\n"])
def test_no_text_is_an_expression(index: VectorIndex, words: str) -> None:
    index.upsert([bread, ember])
    assert ids(index, ember.vector, words) == ["e0", "b0"]


def test_a_question_may_be_long(index: VectorIndex) -> None:
    index.upsert([bread, ember])
    question = "loaves " + " ".join(f"word{n}" for n in range(5000))
    assert ids(index, [0.0, 1.0, 0.0, 0.0], question)[0] == "b0"


def test_an_empty_index_finds_nothing(index: VectorIndex) -> None:
    assert ids(index, ember.vector, "gate") == []
    assert index.count() == 0
    assert index.sources() == set()
    assert index.existing("s3://docs/none.md") == set()
    index.upsert([])
    assert index.delete_by_source("s3://docs/none.md") == 0


def test_upserting_twice_replaces(index: VectorIndex) -> None:
    index.upsert([ember, bread])
    index.upsert([replace(ember, text="Cold."), replace(ember, text="It is cold now.")])
    assert index.count() == 2
    assert index.search(ember.vector, None, top_k=1)[0].text == "It is cold now."
    assert (
        ids(index, [0.0, 1.0, 0.0, 0.0], "wardens")[0]
        != ids(index, [0.0, 1.0, 0.0, 0.0], "cold")[0]
        or index.search(ember.vector, "wardens", top_k=1)[0].text == "It is cold now."
    )


def test_deleting_a_source_keeps_what_is_to_be_kept(index: VectorIndex) -> None:
    index.upsert([ember, moat, bread])
    assert index.existing(ember.source) == {"e0", "e1"}
    assert index.sources() == {ember.source, bread.source}
    assert index.delete_by_source(ember.source, keep=["e1", "b0", "gone"]) == 1
    assert index.existing(ember.source) == {"e1"}
    assert index.delete_by_source(ember.source) == 1
    assert index.sources() == {bread.source}
    assert ids(index, ember.vector, "gate") == ["b0"]
    assert index.count() == 1


def test_a_source_has_more_chunks_than_a_page(index: VectorIndex) -> None:
    many = [replace(ember, id=f"m{n}", text="", attributes={}) for n in range(12_000)]
    index.upsert(many)
    assert len(index.existing(ember.source)) == 12_000
    assert index.delete_by_source(ember.source, keep=[f"m{n}" for n in range(11_000)]) == 1000
    assert index.count() == 11_000


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"region": "north"}, {"e0"}),
        ({"region": ["north", "south"]}, {"e0", "b0"}),
        ({"region": ["north", "south"], "tags": "fire"}, {"e0"}),
        ({"tags": ["ice", "gate"]}, {"e0"}),
        ({"age": 7}, {"e0"}),
        ({"age": 7.0}, {"e0"}),
        ({"age": "7"}, {"b0"}),
        ({"open": True}, {"e0"}),
        ({"open": 1}, set()),
        ({"region": "nor"}, set()),
        ({"region": []}, set()),
        ({"missing": "north"}, set()),
    ],
)
@pytest.mark.parametrize("text", [None, "gate loaves"])
def test_filters(
    index: VectorIndex, wanted: Mapping[str, Any], found: set[str], text: str | None
) -> None:
    index.upsert([ember, bread])
    assert set(ids(index, ember.vector, text, filter=wanted)) == found


def test_a_filter_does_not_cost_results(index: VectorIndex) -> None:
    near = [replace(ember, id=f"n{n}", attributes={"kind": "near"}) for n in range(600)]
    index.upsert([*near, replace(bread, attributes={"kind": "far"})])
    assert ids(index, ember.vector, "gate", filter={"kind": "far"}) == ["b0"]


awkward = st.text(st.sampled_from("ab'\"\\%_*;-[]{}:,\0\n é🜂ß")) | st.text(max_size=400)
scalars = awkward | st.integers(-(10**6), 10**6) | st.floats(allow_nan=False) | st.booleans()
attributes = st.dictionaries(awkward, scalars | st.lists(awkward, max_size=3), max_size=3)


def test_filters_match_exactly_whatever_names_and_values_hold(index: VectorIndex) -> None:
    examples = count()

    @settings(max_examples=30)
    @given(st.lists(attributes, min_size=1, max_size=4), st.data())
    def check(documents: list[dict[str, Attribute]], data: st.DataObject) -> None:
        example = f"example {next(examples)}"
        index.upsert(
            [
                replace(ember, id=f"{example}-{n}", attributes={**document, "example": example})
                for n, document in enumerate(documents)
            ]
        )
        held = [
            (key, item)
            for document in documents
            for key, value in document.items()
            for item in (value if isinstance(value, list) else [value])
        ]
        key, value = data.draw(st.sampled_from(held) if held else st.tuples(awkward, scalars))
        found = index.search(
            ember.vector, None, top_k=10, filter={key: value, "example": [example, "other"]}
        )
        assert {passage.id for passage in found} == {
            f"{example}-{n}" for n, document in enumerate(documents) if has(document, key, value)
        }
        for passage in found:
            assert passage.attributes["example"] == example

    def has(document: Mapping[str, Attribute], key: str, value: Attribute) -> bool:
        held = document.get(key, [])
        return any(
            item == value
            and isinstance(item, bool) == isinstance(value, bool)
            and math.copysign(1, item if isinstance(item, float | int) else 1)
            == math.copysign(1, value if isinstance(value, float | int) else 1)
            for item in (held if isinstance(held, list) else [held])
        )

    check()


@pytest.mark.parametrize("vector", [[1.0], [0.0] * 4, [math.nan, 0.0, 0.0, 0.0]])
def test_a_vector_that_does_not_fit_is_named_and_the_rest_is_written(
    index: VectorIndex, vector: list[float]
) -> None:
    with pytest.raises(IndexWriteError, match=r"1 chunks could not .*e1: its vector") as caught:
        index.upsert([ember, replace(moat, vector=vector), bread])
    assert set(caught.value.failures) == {"e1"}
    assert index.count() == 2


def test_an_index_of_other_dimensions_says_how_to_reindex(
    index: VectorIndex, location: str, name: str
) -> None:
    index.ensure()  # a second time is no trouble
    with pytest.raises(IndexMismatchError, match=r"(?s)4.*8.*Re-index.*quench documents sync"):
        open_index(location, name, 8).ensure()


def test_a_missing_index_is_named(location: str, name: str) -> None:
    index = open_index(location, name, 4)
    for use in (
        index.count,
        index.sources,
        lambda: index.existing("x"),
        lambda: index.search(ember.vector, "gate", top_k=1),
        lambda: index.upsert([ember]),
        lambda: index.delete_by_source("x"),
    ):
        with pytest.raises(VectorIndexError, match=name):
            use()


def test_everything_is_there_when_opened_again(
    index: VectorIndex, location: str, name: str
) -> None:
    index.upsert([ember, bread])
    again = open_index(location, name, 4)
    again.ensure()
    assert ids(again, ember.vector, "gate") == ["e0", "b0"]
    index.upsert([moat])
    assert again.count() == 3


def write(location: str, name: str, writer: int) -> None:
    """Three chunks out of four are written by every writer, the fourth by this one alone."""
    index = open_index(location, name, 4)
    index.ensure()
    for batch in range(12):
        index.upsert(
            [replace(ember, id=f"{batch}-{n}-{writer if n % 4 == 3 else 'all'}") for n in range(20)]
        )
        index.delete_by_source(f"s3://docs/{writer}.md")
        index.upsert([replace(bread, id=f"mine-{writer}", source=f"s3://docs/{writer}.md")])


def test_processes_write_at_once_and_nothing_is_lost_or_doubled(location: str, name: str) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("spawn")) as pool:
        for done in [pool.submit(write, location, name, writer) for writer in range(3)]:
            done.result(timeout=120)
    index = open_index(location, name, 4)
    assert index.count() == 12 * (15 + 5 * 3) + 3
    assert len(index.existing(ember.source)) == 12 * (15 + 5 * 3)


def write_until_killed(folder: str, ready: Connection) -> None:
    """Documents of 40 chunks in two editions, one after the other; every third is removed."""
    index = LanceIndex(folder, "lore", 4)
    ready.send("writing")
    for document in count():
        source = f"s3://docs/{document}.md"
        for edition in range(2):
            chunks = [
                replace(ember, id=f"{source} {edition} {n}", source=source) for n in range(40)
            ]
            index.upsert(chunks)
            index.delete_by_source(source, keep=[chunk.id for chunk in chunks])
        if document % 3 == 0:
            index.delete_by_source(source)


def test_a_killed_writer_leaves_nothing_between_chunks_and_vectors(tmp_path: Path) -> None:
    index = LanceIndex(tmp_path, "lore", 4)
    index.ensure()
    chance = random.Random(5)  # noqa: S311
    for _ in range(4):
        ours, theirs = get_context("spawn").Pipe()
        writer = get_context("spawn").Process(target=write_until_killed, args=(tmp_path, theirs))
        writer.start()
        ours.recv()
        writer.join(chance.uniform(0.05, 0.4))
        writer.kill()
        writer.join()
        there = {id for source in index.sources() for id in index.existing(source)}
        found = [passage.id for passage in index.search(ember.vector, None, top_k=10**6)]
        assert sorted(found) == sorted(there)
        assert set(ids(index, ember.vector, "wardens", top_k=100)) <= there

        index.upsert([bread])
        assert index.count() == len(there | {"b0"}) == vectors_in(tmp_path / "lore")


def vectors_in(folder: Path) -> int:
    database = lancedb.connect(folder)
    return sum(database.open_table(path.stem).count_rows() for path in folder.glob("*.lance"))


def test_vectors_lie_in_parts_and_are_found_in_all(tmp_path: Path) -> None:
    index = LanceIndex(tmp_path, "lore", 4)
    index.ensure()
    vectors = np.random.default_rng(2).normal(size=(10_000, 4))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    def chunk(n: int, vector: list[float]) -> Chunk:
        return replace(ember, id=f"c{n}", source=f"s3://docs/{n % 7}.md", vector=vector)

    for start in range(0, 10_000, 2500):
        batch = vectors[start : start + 2500].tolist()
        index.upsert([chunk(n, vector) for n, vector in enumerate(batch, start)])
    folder = tmp_path / "lore"
    assert len(list(folder.glob("*.lance"))) > 1
    for query in vectors[:20] + 0.1:
        exact = [f"c{n}" for n in np.argsort(-(vectors @ query))[:10]]
        assert ids(index, query.tolist(), None) == exact

    index.upsert([chunk(n, [0.0, 0.0, n - 1.0, 0.0]) for n in (0, 9_000)])
    assert ids(index, [0.0, 0.0, 1.0, 0.0], None, top_k=1) == ["c9000"]
    assert ids(index, [0.0, 0.0, -1.0, 0.0], None, top_k=1) == ["c0"]
    gone = len(range(3, 10_000, 7))
    assert index.delete_by_source("s3://docs/3.md") == gone
    assert index.count() == vectors_in(folder) == 10_000 - gone


def test_a_year_of_small_writes_leaves_few_fragments(tmp_path: Path) -> None:
    index = LanceIndex(tmp_path, "lore", 4)
    index.ensure()
    for day in range(60):
        index.upsert([replace(ember, id=f"{day} {n}", source=f"s3://{n}") for n in range(2)])
        index.delete_by_source("s3://1", keep=[f"{day} 1"])
    table = lancedb.connect(tmp_path / "lore").open_table("vectors-0001")
    statistics: Any = table.stats()
    assert statistics["fragment_stats"]["num_fragments"] <= 8
    assert index.count() == table.count_rows() == 61


class Bulk(ThreadingHTTPServer):
    """A stand-in that refuses items of bulk requests as `refuse(id, attempt)` says."""

    def __init__(self, refuse: Callable[[str, int], int | None]) -> None:
        self.refuse = refuse
        self.attempts: Counter[str] = Counter()
        self.written: list[str] = []
        super().__init__(("127.0.0.1", 0), BulkHandler)


class BulkHandler(BaseHTTPRequestHandler):
    server: Bulk
    protocol_version = "HTTP/1.1"
    wbufsize = -1

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        items = []
        if "_bulk" in self.path:
            for line in map(json.loads, body.splitlines()):
                if "index" in line:
                    items.append({"index": self._item(line["index"]["_id"])})
        answer = json.dumps({"items": items}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _item(self, id: str) -> dict[str, Any]:
        attempt = self.server.attempts[id] = self.server.attempts[id] + 1
        if status := self.server.refuse(id, attempt):
            kind = "rejected_execution_exception" if status == 429 else "mapper_parsing_exception"
            return {"_id": id, "status": status, "error": {"type": kind, "reason": "because"}}
        self.server.written.append(id)
        return {"_id": id, "status": 201, "result": "created"}

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def bulk(
    refuse: Callable[[str, int], int | None], patience: float = 60
) -> Iterator[tuple[Bulk, OpenSearchIndex]]:
    with Bulk(refuse) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        client = connect(f"http://127.0.0.1:{server.server_port}")
        yield server, OpenSearchIndex(client, "lore", 4, patience=patience)
        server.shutdown()


def test_items_refused_for_now_are_sent_again_and_only_they() -> None:
    chance = random.Random(4)  # noqa: S311
    with bulk(lambda id, attempt: 429 if attempt < 3 and chance.random() < 0.5 else None) as (
        server,
        index,
    ):
        index.upsert([replace(ember, id=f"c{n}") for n in range(1200)])
    assert sorted(server.written) == sorted(f"c{n}" for n in range(1200))
    assert max(server.attempts.values()) > 1


def test_items_refused_for_good_are_raised_and_the_others_written() -> None:
    with (
        bulk(lambda id, attempt: {"bad": 400, "busy": 503}.get(id), 3) as (server, index),
        pytest.raises(IndexWriteError) as caught,
    ):
        index.upsert([replace(ember, id=id) for id in ("good", "bad", "busy", "fine")])
    assert server.written == ["good", "fine"]
    assert caught.value.failures == {
        "bad": "400 mapper_parsing_exception: because",
        "busy": "503 mapper_parsing_exception: because (given up)",
    }
    assert server.attempts["bad"] == 1
    assert server.attempts["busy"] > 1


def test_a_server_that_is_away_loses_nothing_silently() -> None:
    index = OpenSearchIndex(connect("http://127.0.0.1:9"), "lore", 4, patience=0.5)
    with pytest.raises(IndexWriteError, match="2 chunks") as caught:
        index.upsert([ember, bread])
    assert set(caught.value.failures) == {"e0", "b0"}


def test_what_a_killed_writer_wrote_is_seen_by_the_next(
    opensearch: OpenSearchIndex, name: str
) -> None:
    client = connect(_server())
    client.indices.put_settings(index=name, body={"index": {"refresh_interval": "-1"}})
    lost = {"source": ember.source, "id": ember.id, "vector": [1.0, 0.0, 0.0, 0.0]}
    client.index(index=name, id=ember.id, body=lost)
    assert opensearch.count() == 0
    opensearch.ensure()
    assert opensearch.existing(ember.source) == {ember.id}
    assert opensearch.sources() == {ember.source}
    assert opensearch.count() == 1


def test_twenty_thousand_chunks_without_loss_and_nearly_exact(name: str) -> None:
    index = open_index(_server(), name, 256)
    index.ensure()
    numbers = np.random.default_rng(1)
    vectors = numbers.normal(size=(20_000, 256)).round(4)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    for start in range(0, 20_000, 4000):
        index.upsert(
            [
                Chunk(f"c{n}", f"s3://docs/{n // 20}.md", "", f"text {n}", n % 20, "", vector)
                for n, vector in enumerate(vectors[start : start + 4000].tolist(), start)
            ]
        )
    assert index.count() == 20_000
    assert index.sources() == {f"s3://docs/{n}.md" for n in range(1000)}
    recalls = []
    for query in numbers.normal(size=(100, 256)):
        exact = {f"c{n}" for n in np.argsort(vectors @ query)[-10:]}
        recalls.append(len(exact & set(ids(index, query.tolist(), None))) / 10)
    assert np.mean(recalls) >= 0.95


def test_a_replacement_takes_the_alias_only_when_it_is_full(
    opensearch: OpenSearchIndex, name: str
) -> None:
    opensearch.upsert([ember])
    with opensearch.replacement() as new:
        new.upsert([bread])
        assert ids(opensearch, ember.vector, None) == ["e0"]
    assert ids(opensearch, ember.vector, None) == ["b0"]
    assert list(connect(_server()).indices.get(index=f"{name}*")) == [f"{name}-000002"]

    with pytest.raises(IndexWriteError), opensearch.replacement() as new:
        new.upsert([moat, replace(bread, vector=[])])
    assert ids(opensearch, ember.vector, None) == ["b0"]
    assert list(connect(_server()).indices.get(index=f"{name}*")) == [f"{name}-000002"]


def test_a_replacement_is_kept_when_the_answer_to_its_taking_over_is_lost(
    opensearch: OpenSearchIndex, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opensearch.upsert([ember])
    aliases = opensearch._client.indices

    def lose_the_answer(body: Any) -> None:
        connect(_server()).indices.update_aliases(body=body)
        raise ConnectionTimeout("N/A", "timed out", "")

    monkeypatch.setattr(aliases, "update_aliases", lose_the_answer)
    with pytest.raises(ConnectionTimeout), opensearch.replacement() as new:
        new.upsert([bread])
    assert ids(opensearch, ember.vector, None) == ["b0"]


def test_reindexing_mends_an_old_mapping_and_keeps_every_chunk(name: str) -> None:
    client = connect(_server())
    index = OpenSearchIndex(client, name, 4)
    index.ensure()
    [found] = client.indices.get_mapping(index=name).values()
    old = found["mappings"]
    old["properties"]["vector"]["method"]["parameters"]["m"] = 4
    del old["properties"]["words"]["search_analyzer"]
    client.indices.delete(index=f"{name}-000001")
    client.indices.create(
        index=f"{name}-000001",
        body={
            "settings": {
                "index": {"knn": True},
                "analysis": {"analyzer": {"words": {"type": "standard"}}},
            },
            "mappings": old,
            "aliases": {name: {}},
        },
    )
    index.upsert([ember, moat, bread])
    with pytest.raises(IndexMismatchError, match=r"vector\.method\.parameters\.m is 4, not 16"):
        index.ensure()
    index.reindex()
    index.ensure()
    assert index.count() == 3
    assert ids(index, [0.0, 1.0, 0.0, 0.0], "warden")[0] == "e0"
    assert ids(index, ember.vector, None, filter={"tags": "fire"}) == ["e0", "e1"]


def test_only_what_is_there_can_be_reindexed(name: str) -> None:
    with pytest.raises(VectorIndexError, match=f"no index {name} yet"):
        OpenSearchIndex(connect(_server()), name, 4).reindex()


def test_an_index_in_the_place_of_the_alias_is_refused(name: str) -> None:
    client = connect(_server())
    client.indices.create(index=name)
    with pytest.raises(IndexMismatchError, match="must be an alias"):
        OpenSearchIndex(client, name, 4).ensure()
