"""Splitting documents into chunks whose boundaries find each other again after an edit.

Text is made of units: paragraphs, or where these are too long, their lines, sentences or words.
Where a chunk ends is decided by its units' own content (content-defined chunking): among the ends
that would do, at the best kind of boundary, and of those at the unit with the least hash. Two
versions of a text therefore agree on an end soon after the place where they differ, and from there
on all their chunks are the same.
"""

import hashlib
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import groupby

from langchain_text_splitters import RecursiveCharacterTextSplitter

from processing.documents import Block, Document
from vectors.index import Attribute, Chunk

ID_CHARACTERS = 32


@dataclass(frozen=True)
class ChunkSettings:
    """How documents are split and embedded. Sizes are in characters, headings not counted."""

    size: int
    overlap: int
    embedding_model: str
    dimensions: int


@dataclass(frozen=True)
class _Unit:
    text: str
    boundary: int
    """What it ends with: 0 for a paragraph, 1 for a line, 2 for a sentence, 3 for a word."""
    hash: bytes


def chunk_document(
    document: Document,
    source: str,
    attributes: Mapping[str, Attribute],
    settings: ChunkSettings,
) -> Iterator[Chunk]:
    """The document's chunks, without their vectors.

    A chunk's id is a hash of all that it is made from, so that it is the same chunk in the next run
    if and only if it would be embedded and found alike. Of chunks that are the same otherwise, the
    occurrence number tells them apart.
    """
    seen: set[str] = set()
    repeats: dict[str, int] = {}
    common = [source, document.title, sorted(attributes.items()), asdict(settings)]
    pieces = split_blocks(document.blocks, settings.size, settings.overlap)
    for position, piece in enumerate(pieces):
        chunk_id = _hash([*common, piece.heading, piece.text, 0])
        if chunk_id in seen:
            occurrence = repeats[chunk_id] = repeats.get(chunk_id, 0) + 1
            chunk_id = _hash([*common, piece.heading, piece.text, occurrence])
        seen.add(chunk_id)
        yield Chunk(
            id=chunk_id,
            source=source,
            title=document.title,
            text=piece.text,
            position=position,
            heading=piece.heading,
            vector=(),
            attributes=attributes,
        )


def embedding_text(chunk: Chunk) -> str:
    """What is embedded of a chunk: its text, below the title and headings it stands under."""
    context = [] if chunk.heading.startswith(chunk.title) else [chunk.title]
    return "\n".join(filter(None, [*context, chunk.heading, chunk.text]))


def split_blocks(blocks: Iterable[Block], size: int, overlap: int) -> Iterator[Block]:
    """Chunks of at most `size` characters, none across headings.

    Each begins with up to `overlap` characters of the chunk before it below the same heading.
    """
    room = size - overlap
    for heading, run in groupby(blocks, lambda block: block.heading):
        before = ""
        units = (unit for block in run for unit in _units(block.text, room))
        for group in _groups(units, room):
            text = "".join(unit.text for unit in group)
            if whole := (_tail(before, overlap) + text).strip():
                yield Block(heading, whole)
            before = text


_SEPARATORS = (
    (re.compile(r"\n(?:[ ]*\n)+"), "\n\n"),
    (re.compile(r"\n"), "\n"),
    (re.compile(r"(?<=[.!?…])[ ]+"), " "),
    (re.compile(r"(?<=[。！？])"), ""),
    (re.compile(r"[ ]+"), " "),
)


def _units(text: str, room: int, level: int = 0) -> Iterator[_Unit]:
    """Units of at most `room` characters, each with the separator that follows it."""
    if level == len(_SEPARATORS):
        splitter = RecursiveCharacterTextSplitter(
            [""], chunk_size=room, chunk_overlap=0, strip_whitespace=False
        )
        for begin in range(0, len(text), 1000 * room):
            yield from map(_unit, splitter.split_text(text[begin : begin + 1000 * room]))
        return
    for part, separator in _parts(text, *_SEPARATORS[level]):
        if not part.strip():
            continue
        if len(part) + len(separator) <= room:
            yield _unit(part + separator)
        else:
            last = _Unit("", 0, b"")
            for unit in _units(part, room - len(separator), level + 1):
                if last.text:
                    yield last
                last = unit
            yield _unit(last.text + separator)


def _parts(text: str, pattern: re.Pattern[str], separator: str) -> Iterator[tuple[str, str]]:
    """Parts with what is to stand after each, one by one: a text may hold millions of them."""
    begin = 0
    for match in pattern.finditer(text):
        yield text[begin : match.start()], separator
        begin = match.end()
    yield text[begin:], ""


def _unit(text: str) -> _Unit:
    content = text.rstrip()
    line_ends = text.count("\n", len(content))
    boundary = 2 - min(line_ends, 2)
    if not line_ends and not content.endswith((".", "!", "?", "…", "。", "！", "？")):
        boundary = 3
    return _Unit(text, boundary, hashlib.blake2b(content.encode(), digest_size=8).digest())


def _groups(units: Iterator[_Unit], room: int) -> Iterator[list[_Unit]]:
    waiting: deque[_Unit] = deque()
    size = 0
    for unit in units:
        waiting.append(unit)
        size += len(unit.text)
        while size > room:
            group = [waiting.popleft() for _ in range(_end(waiting, room))]
            size -= sum(len(unit.text) for unit in group)
            yield group
    if waiting:
        yield list(waiting)


def _end(units: Iterable[_Unit], room: int) -> int:
    """How many of the units, which are more than there is room for, go into the next chunk."""
    best: tuple[int, bytes] | None = None
    end = size = 0
    for count, unit in enumerate(units, start=1):
        size += len(unit.text)
        if size > room:
            break
        quality = (unit.boundary, unit.hash)
        if best is None or quality <= best or size * 3 < room:
            best, end = quality, count
    return end


def _tail(text: str, length: int) -> str:
    """The end of a text, from the beginning of a sentence or else of a word."""
    if not length or len(text) <= length:
        return text if length else ""
    tail = text[-length:]
    begin = re.search(r"(?<=[.!?…\n])\s+(?=\S)", tail) or re.search(r"\s+(?=\S)", tail)
    return tail[begin.end() :] if begin else ""


def _hash(parts: object) -> str:
    content = json.dumps(parts, ensure_ascii=True).encode()
    return hashlib.sha256(content).hexdigest()[:ID_CHARACTERS]
