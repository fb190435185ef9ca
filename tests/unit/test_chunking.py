"""Chunks: nothing lost, none too long, and the same ones again after an edit."""

import random
import tracemalloc
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from processing.chunking import ChunkSettings, chunk_document, embedding_text, split_blocks
from processing.documents import Block, Document
from vectors.index import Chunk

SETTINGS = ChunkSettings(
    size=1_000, overlap=100, embedding_model="amazon.titan-embed-text-v2:0", dimensions=256
)
WORDS = [f"{a}{b}{c}" for a in ("em", "ash", "fall") for b in "aeiou" for c in ("st", "r", "ght")]


def chunks(text: str, settings: ChunkSettings = SETTINGS, heading: str = "") -> list[Chunk]:
    document = Document("Lore", [Block(heading, text)])
    return list(chunk_document(document, "s3://b/lore.txt", {}, settings))


@cache
def prose(seed: int, characters: int, words: tuple[int, int]) -> list[str]:
    """Paragraphs of so many words."""
    rng = random.Random(seed)  # noqa: S311
    paragraphs: list[str] = []
    while characters > 0:
        count = rng.randint(*words)
        paragraph = " ".join(
            rng.choice(WORDS) + ("." if rng.random() < 0.1 else "") for _ in range(count)
        )
        paragraphs.append(paragraph)
        characters -= len(paragraph) + 2
    return paragraphs


texts = st.text(
    st.one_of(st.sampled_from("\n\n  .!。…"), st.characters(exclude_categories=["Cs", "Cc"])),
    max_size=600,
)


@given(
    st.lists(st.tuples(st.sampled_from(["", "A", "A > B"]), texts), max_size=8),
    st.integers(40, 200),
    st.integers(0, 20),
)
@settings(max_examples=settings.default.max_examples * 2)
def test_every_character_is_in_a_chunk_and_none_is_too_long(
    blocks: list[tuple[str, str]], size: int, overlap: int
) -> None:
    given_blocks = [Block(heading, text) for heading, text in blocks]
    pieces = list(split_blocks(given_blocks, size, overlap))
    assert all(piece.text.strip() and len(piece.text) <= size for piece in pieces)
    if not overlap:
        for heading in {heading for heading, _ in blocks}:
            before = "".join(block.text for block in given_blocks if block.heading == heading)
            after = "".join(piece.text for piece in pieces if piece.heading == heading)
            assert "".join(before.split()) == "".join(after.split())


@given(texts)
def test_ids_are_unique_and_the_same_again(text: str) -> None:
    small = ChunkSettings(100, 0, "amazon.titan-embed-text-v2:0", 256)
    first, second = chunks(text, small), chunks(text, small)
    assert [chunk.id for chunk in first] == [chunk.id for chunk in second]
    assert len({chunk.id for chunk in first}) == len(first)
    assert [chunk.position for chunk in first] == list(range(len(first)))


def test_ids_tell_apart_what_is_embedded_or_found_differently() -> None:
    text, document = "The gate is shut.", Document
    variants = [
        chunk_document(document(title, [Block(heading, text)]), source, attributes, settings)
        for title, heading, source, attributes, settings in [
            ("Lore", "", "s3://b/a", {}, SETTINGS),
            ("Saga", "", "s3://b/a", {}, SETTINGS),
            ("Lore", "Gate", "s3://b/a", {}, SETTINGS),
            ("Lore", "", "s3://b/c", {}, SETTINGS),
            ("Lore", "", "s3://b/a", {"year": 1.0}, SETTINGS),
            ("Lore", "", "s3://b/a", {}, ChunkSettings(999, 100, SETTINGS.embedding_model, 256)),
            ("Lore", "", "s3://b/a", {}, ChunkSettings(1000, 99, SETTINGS.embedding_model, 256)),
            ("Lore", "", "s3://b/a", {}, ChunkSettings(1000, 100, "cohere.embed-v4:0", 256)),
            ("Lore", "", "s3://b/a", {}, ChunkSettings(1000, 100, SETTINGS.embedding_model, 512)),
        ]
    ]
    assert len({chunk.id for variant in variants for chunk in variant}) == len(variants)


@pytest.mark.slow
@pytest.mark.parametrize("words", [(5, 30), (40, 120), (150, 400)], ids=["short", "usual", "long"])
@pytest.mark.parametrize("separator", ["\n\n", "\n", " "], ids=["blank", "line", "none"])
@pytest.mark.parametrize(
    "seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2, 3))]
)
def test_an_edit_amid_a_megabyte_changes_few_chunks(
    words: tuple[int, int], separator: str, seed: int
) -> None:
    before = prose(seed, 1_000_000, words)
    after, place = list(before), len(before) // 2
    edit = ["changed", "inserted", "removed"][seed % 3]
    after[place : place + (edit != "inserted")] = (
        [] if edit == "removed" else ["A wholly new paragraph. " * 8]
    )
    old = {chunk.id for chunk in chunks(separator.join(before))}
    new = {chunk.id for chunk in chunks(separator.join(after))}
    assert len(old) > 1_000
    assert 0 < len(new - old) <= len(old) / 100


def test_the_overlap_begins_at_a_word_and_keeps_to_the_heading() -> None:
    sentences = " ".join(f"Sentence number {number} tells of embers." for number in range(100))
    pieces = list(split_blocks([Block("A", sentences), Block("B", sentences)], 500, 100))
    for before, after in pairwise(pieces):
        if before.heading == after.heading:
            begin = after.text.split(".")[0]
            assert begin in before.text
        else:
            assert after.text.startswith("Sentence number 0 ")


def test_headings_are_embedded_with_the_text() -> None:
    (chunk,) = chunks("The gate is shut.", heading="Emberfall > Gate")
    assert embedding_text(chunk) == "Lore\nEmberfall > Gate\nThe gate is shut."
    (chunk,) = chunks("The gate is shut.", heading="Lore > Gate")
    assert embedding_text(chunk) == "Lore > Gate\nThe gate is shut."


@pytest.mark.slow
@pytest.mark.parametrize("text", ["12345 " * 50_000, "12345\n" * 50_000])
def test_a_paragraph_without_end_is_not_held_in_pieces(text: str) -> None:
    tracemalloc.start()
    try:
        count = sum(1 for _ in split_blocks([Block("", text)], 1_000, 100))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert count >= len(text) / 1_000
    assert peak < 20 * len(text)
