"""Reading documents: a file becomes blocks of text, each under the heading that it stands below.

Plain text, CSV and JSON Lines are streamed. The other formats must be held whole, within limits;
they are meant to be read in a process apart (`processing/isolation.py`), since a file can be made
to keep its reader busy forever.
"""

import csv
import json
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import TextIO

import docx
import pypdf
from bs4 import BeautifulSoup
from bs4.element import CData, NavigableString, PageElement, Tag
from charset_normalizer import from_bytes
from docx.table import Table
from langchain_text_splitters import MarkdownHeaderTextSplitter

MAXIMUM_BYTES = 64 * 2**20
"""Of a file that must be held whole, of what it decompresses to, and of its text."""
MAXIMUM_STREAMED_BYTES = 2**30
MAXIMUM_STREAMED_CHARACTERS = 4 * MAXIMUM_STREAMED_BYTES
"""Of a streamed file's text, which is longer than the file where each record repeats the names."""
MAXIMUM_DEPTH = 200
MAXIMUM_LINE_CHARACTERS = 8 * 2**20
"""Of a line of JSON, or of a row of CSV. Its text may have up to MAXIMUM_BYTES."""
MAXIMUM_HEADING_CHARACTERS = 400
MAXIMUM_REASON_CHARACTERS = 400
PIECE_CHARACTERS = 2**16


class DocumentError(Exception):
    """The document cannot be read; the message says why."""


@dataclass(frozen=True)
class Block:
    """Text below a heading, which names the headings above it too: `Emberfall > The Ash Gate`.

    A block ends as its text does: after a blank line, a line, or in the middle of one.
    """

    heading: str
    text: str


@dataclass(frozen=True)
class Document:
    """A document's title and text; `blocks` can be gone through once."""

    title: str
    blocks: Iterable[Block]


def is_streamed(name: str) -> bool:
    """Whether a file of that name is read bit by bit."""
    return _suffix(name) in _STREAMED


def require_readable(name: str, size: int) -> None:
    """Raises DocumentError if a file of that name and size (bytes) would not be read anyway."""
    if not is_streamed(name) and _suffix(name) not in _WHOLE:
        known = ", ".join([*_STREAMED, *_WHOLE])
        raise DocumentError(f"unknown file type; known are {known}")
    maximum = MAXIMUM_STREAMED_BYTES if is_streamed(name) else MAXIMUM_BYTES
    if size > maximum:
        raise DocumentError(f"larger than {_megabytes(maximum)}")


def read_document(path: Path, name: str) -> Document:
    """Read a file, whose name says what it is and, if it has no other, its title.

    It is known to be readable to its end. Raises DocumentError.
    """
    suffix = _suffix(name)
    title = re.sub(r"[-_\s]+", " ", PurePosixPath(name).stem).strip()
    require_readable(name, path.stat().st_size)
    try:
        if reader := _STREAMED.get(suffix):
            if not _characters(reader(path), MAXIMUM_STREAMED_CHARACTERS):
                raise DocumentError("it holds no text")
            return Document(title, reader(path))
        own_title, blocks = _WHOLE[suffix](path)
    except DocumentError:
        raise
    except RecursionError as error:
        raise DocumentError("nested too deeply") from error
    except MemoryError as error:
        raise DocumentError("reading it takes too much memory") from error
    except Exception as error:  # a reader may fail in any way at all on a file made to break it
        reason = f"damaged, or not {suffix}: {type(error).__name__}: {error}"
        raise DocumentError(reason[:MAXIMUM_REASON_CHARACTERS]) from error
    blocks = [block for block in blocks if block.text.strip()]
    if not _characters(blocks, MAXIMUM_BYTES):
        scanned = " (scanned pages must go through OCR first)" if suffix == ".pdf" else ""
        raise DocumentError(f"it holds no text{scanned}")
    return Document(_one_line(own_title) or title, blocks)


def _characters(blocks: Iterable[Block], maximum: int) -> int:
    size = 0
    for block in blocks:
        size += len(block.text.strip())
        if size > maximum:
            raise DocumentError(f"makes more than {_megabytes(maximum)} of text")
    return size


def _suffix(name: str) -> str:
    return PurePosixPath(name).suffix.lower()


def _read_text(path: Path) -> Iterator[Block]:
    """Pieces that end at a blank line, or else a line, or else a word."""
    rest = ""
    with path.open(encoding=_encoding(path)) as file:
        while piece := file.read(PIECE_CHARACTERS):
            rest += piece
            cut = max(rest.rfind("\n\n") + 2, 2)
            if cut == 2 and len(rest) > PIECE_CHARACTERS:
                cut = max(rest.rfind("\n"), 0) or max(rest.rfind(" "), 0) or len(rest) - 1
                cut += 1
            elif cut == 2:
                continue
            yield Block("", _clean(rest[:cut]))
            rest = rest[cut:]
    yield Block("", _clean(rest))


def _read_csv(path: Path) -> Iterator[Block]:
    csv.field_size_limit(MAXIMUM_LINE_CHARACTERS)
    with path.open(encoding=_encoding(path), newline="") as file:
        first = file.readline(MAXIMUM_LINE_CHARACTERS)
        file.seek(0)
        delimiter = max(",;\t|", key=first.count)
        columns: list[str] = []
        for row in _csv_rows(file, delimiter):
            if not columns:
                columns = row
                continue
            # A field beyond the header is kept, without a name
            names = columns + [""] * (len(row) - len(columns))
            named = zip(names, row, strict=False)
            yield _record(_labelled(name, value) for name, value in named)


def _csv_rows(file: TextIO, delimiter: str) -> Iterator[list[str]]:
    """Rows that hold anything. The csv module limits a field, but not how many a row has."""
    size = 0

    def lines() -> Iterator[str]:
        nonlocal size
        while line := file.readline(MAXIMUM_LINE_CHARACTERS + 1):
            size += len(line)
            if size > MAXIMUM_LINE_CHARACTERS:
                raise DocumentError(f"a row is longer than {MAXIMUM_LINE_CHARACTERS:,} characters")
            yield line

    for row in csv.reader(lines(), delimiter=delimiter, strict=True):
        size = 0
        if row:
            yield row


def _read_json_lines(path: Path) -> Iterator[Block]:
    with path.open(encoding=_encoding(path)) as file:
        number = 0
        while line := file.readline(MAXIMUM_LINE_CHARACTERS + 1):
            number += 1
            if len(line) > MAXIMUM_LINE_CHARACTERS:
                raise DocumentError(
                    f"line {number} is longer than {MAXIMUM_LINE_CHARACTERS:,} characters"
                )
            if line.strip():
                try:
                    record = json.loads(line)
                except ValueError as error:
                    raise DocumentError(f"line {number} is not valid JSON: {error}") from error
                yield _record(_json_lines(record))


def _read_json(path: Path) -> tuple[str, list[Block]]:
    try:
        content = json.loads(_whole_text(path))
    except ValueError as error:
        raise DocumentError(f"not valid JSON: {error}") from error
    records = content if isinstance(content, list) else [content]
    return "", [_record(_json_lines(record)) for record in records]


def _json_lines(value: object, label: str = "", depth: int = 0) -> Iterator[str]:
    """`name: value` for each leaf; records of a list are set apart by a blank line."""
    if depth > MAXIMUM_DEPTH:
        raise DocumentError(f"nested deeper than {MAXIMUM_DEPTH} levels")
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _json_lines(item, f"{label}.{key}" if label else key, depth + 1)
    elif isinstance(value, list):
        for item in value:
            yield from _json_lines(item, label, depth + 1)
            if isinstance(item, dict):
                yield ""
    elif value is not None:
        yield _labelled(label, value if isinstance(value, str) else json.dumps(value))


def _record(lines: Iterable[str]) -> Block:
    """A paragraph of a record's lines, each of which repeats names, and so may grow many times."""
    kept, size = [], 0
    for line in lines:
        kept.append(line)
        size += len(line)
        if size > MAXIMUM_BYTES:
            raise DocumentError(f"a record makes more than {_megabytes(MAXIMUM_BYTES)} of text")
    return _paragraph("", "\n".join(kept))


def _labelled(name: str, value: str) -> str:
    return f"{name}: {value}" if name and value else value


def _read_markdown(path: Path) -> tuple[str, list[Block]]:
    names = [f"h{level}" for level in range(1, 7)]
    splitter = MarkdownHeaderTextSplitter(
        [("#" * level, name) for level, name in enumerate(names, start=1)], return_each_line=True
    )
    text = _whole_text(path)
    blocks, title = [], ""
    for piece in splitter.split_text(text):
        trail = [piece.metadata[name] for name in names if name in piece.metadata]
        title = title or piece.metadata.get("h1", "")
        blocks.append(_paragraph(_heading(trail), piece.page_content))
    return title, blocks or [_paragraph("", text)]  # headings alone


# Not langchain's HTMLHeaderTextSplitter, which takes text out of its order: of
# <p>a <b>b</b> c</p> it makes "a c", "b".
def _read_html(path: Path) -> tuple[str, list[Block]]:
    content = path.read_bytes()
    declared = re.search(rb"<meta[^>]{,200}charset|^\s*<\?xml[^>]{,200}encoding", content[:4096])
    encoding = None if declared else _encoding(path)
    soup = BeautifulSoup(content, "html.parser", from_encoding=encoding)
    title = soup.title.get_text() if soup.title else ""
    for line_break in soup.find_all("br"):
        line_break.replace_with("\n")
    blocks: list[Block] = []
    trail: dict[int, str] = {}
    texts = (text for text in soup.find_all(string=True) if type(text) in (NavigableString, CData))
    for element, run in groupby(texts, _block_element):
        name, strings = element.name if element else "", list(run)
        text = " | ".join(filter(str.strip, strings)) if name == "tr" else "".join(strings)
        if not text.strip() or name in {"title", "head"}:
            continue
        if level := _HTML_HEADINGS.get(name):
            trail = {above: heading for above, heading in trail.items() if above < level}
            trail[level] = _one_line(text)
        else:
            blocks.append(_paragraph(_heading(trail.values()), text))
    return title, blocks or [_paragraph("", heading) for heading in trail.values()]


_HTML_HEADINGS = {f"h{level}": level for level in range(1, 7)}
_HTML_INLINE = re.compile(
    "abbr|acronym|bd[io]|big|button|cite|code|data|del|dfn|font|ins|kbd|label|mark|samp|small|span"
    "|strike|strong|su[bp]|t[dht]|time|var|em|[abiqsu]"
)


def _block_element(text: PageElement) -> Tag | None:
    for depth, element in enumerate(text.parents):
        if depth > MAXIMUM_DEPTH:
            raise DocumentError(f"nested deeper than {MAXIMUM_DEPTH} levels")
        if not _HTML_INLINE.fullmatch(element.name):
            return element
    return None


def _read_pdf(path: Path) -> tuple[str, list[Block]]:
    reader = pypdf.PdfReader(path)
    if reader.is_encrypted and not reader.decrypt(""):
        raise DocumentError("encrypted: it opens with a password only")
    blocks, size = [], 0
    for page in reader.pages:
        text = page.extract_text()
        size += len(text)
        if size > MAXIMUM_BYTES:
            raise DocumentError(f"decompresses to more than {_megabytes(MAXIMUM_BYTES)} of text")
        blocks.append(_paragraph("", text))
    return "", blocks


def _read_docx(path: Path) -> tuple[str, list[Block]]:
    with path.open("rb") as file:
        if file.read(8) == b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1":
            raise DocumentError("encrypted, or a .doc of old")
    with zipfile.ZipFile(path) as archive:
        if sum(part.file_size for part in archive.infolist()) > MAXIMUM_BYTES:
            raise DocumentError(f"decompresses to more than {_megabytes(MAXIMUM_BYTES)}")
    document = docx.Document(str(path))
    blocks: list[Block] = []
    trail: dict[int, str] = {}
    for item in document.iter_inner_content():
        if isinstance(item, Table):
            rows = (" | ".join(cell.text for cell in row.cells) for row in item.rows)
            blocks.append(_paragraph(_heading(trail.values()), "\n".join(rows)))
            continue
        style = re.fullmatch(r"Title|Heading (\d)", (item.style and item.style.name) or "")
        if style and item.text.strip():
            level = int(style[1] or 0)
            trail = {above: heading for above, heading in trail.items() if above < level}
            trail[level] = _one_line(item.text)
        else:
            blocks.append(_paragraph(_heading(trail.values()), item.text))
    title = document.core_properties.title or trail.get(0, "")
    return title, blocks


def _encoding(path: Path) -> str:
    """The encoding of a text file, which can be decoded so to its end. Raises DocumentError."""
    with path.open("rb") as file:
        start = file.read(PIECE_CHARACTERS)
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if start.startswith(mark):
            return _checked(path, encoding)
    if start.count(0) > len(start) / 5:  # a zero in about every second byte: UTF-16, most likely
        return _checked(
            path, "utf-16-le" if start[1::2].count(0) > start[::2].count(0) else "utf-16-be"
        )
    if 0 in start:
        raise DocumentError("it is binary, not text")
    try:
        return _checked(path, "utf-8")
    except DocumentError:
        # Western texts have few letters beyond ASCII, and statistics of few letters mislead
        beyond_ascii = sum(byte > 127 for byte in start)
        best = from_bytes(start).best() if beyond_ascii > len(start) / 5 else None
        for encoding in ([best.encoding] if best else []) + ["cp1252"]:
            try:
                return _checked(path, encoding)
            except DocumentError:
                continue
        return "latin-1"


_BYTE_ORDER_MARKS = {
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}


def _checked(path: Path, encoding: str) -> str:
    try:
        with path.open(encoding=encoding) as file:
            while file.read(PIECE_CHARACTERS):
                pass
    except UnicodeError as error:
        raise DocumentError(f"it is not {encoding} to its end: {error}") from error
    return encoding


def _whole_text(path: Path) -> str:
    return _clean(path.read_text(encoding=_encoding(path)))


def _paragraph(heading: str, text: str) -> Block:
    return Block(heading, f"{_clean(text).strip()}\n\n")


def _clean(text: str) -> str:
    """Every space a plain one, lone surrogates replaced, control characters gone."""
    text = re.sub(r"[^\S\n]", " ", text.replace("\r\n", "\n"))
    text = re.sub(r"[\x00-\x08\x0e-\x1f\x7f]", "", text)
    return text.encode("utf-8", "replace").decode()


def _one_line(text: str) -> str:
    return " ".join(_clean(text).split())[:MAXIMUM_HEADING_CHARACTERS]


def _heading(trail: Iterable[str]) -> str:
    return _one_line(" > ".join(trail))


def _megabytes(size: int) -> str:
    return f"{size // 2**20} MiB"


_STREAMED: Mapping[str, Callable[[Path], Iterator[Block]]] = {
    ".txt": _read_text,
    ".csv": _read_csv,
    ".jsonl": _read_json_lines,
}
_WHOLE: Mapping[str, Callable[[Path], tuple[str, list[Block]]]] = {
    ".md": _read_markdown,
    ".html": _read_html,
    ".pdf": _read_pdf,
    ".docx": _read_docx,
    ".json": _read_json,
}
