"""Reading documents: files of every kind, in every state."""

# ruff: noqa: E501

import io
import json
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import docx
import pypdf
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pypdf.generic import DecodedStreamObject, DictionaryObject, NameObject

from processing.documents import MAXIMUM_BYTES, DocumentError, read_document
from processing.isolation import DocumentReader
from processing.sidecars import SidecarError, read_sidecar


@pytest.fixture(scope="module")
def reader() -> Iterator[DocumentReader]:
    with DocumentReader() as reader:
        yield reader


def pdf(text: str, password: str | None = None) -> bytes:
    """A PDF of one page, with one line of text."""
    writer = pypdf.PdfWriter()
    page = writer.add_blank_page(300, 300)
    font = DictionaryObject(
        {
            NameObject("/Type"): NameObject("/Font"),
            NameObject("/Subtype"): NameObject("/Type1"),
            NameObject("/BaseFont"): NameObject("/Helvetica"),
        }
    )
    fonts = DictionaryObject({NameObject("/F1"): font})
    page[NameObject("/Resources")] = DictionaryObject({NameObject("/Font"): fonts})
    stream = DecodedStreamObject()
    stream.set_data(f"BT /F1 12 Tf 20 200 Td ({text}) Tj ET".encode("latin-1"))
    page[NameObject("/Contents")] = writer._add_object(stream)
    if password is not None:
        writer.encrypt(password, algorithm="AES-256")
    content = io.BytesIO()
    writer.write(content)
    return content.getvalue()


def word_document() -> bytes:
    document = docx.Document()
    document.add_heading("Emberfall", 0)
    document.add_paragraph("A city of ash.")
    document.add_heading("The Gate", 1)
    document.add_paragraph("It is shut.")
    table = document.add_table(1, 2)
    table.rows[0].cells[0].text, table.rows[0].cells[1].text = "Keeper", "Mira"
    document.add_heading("The Well", 1)
    document.add_paragraph("It is dry.")
    content = io.BytesIO()
    document.save(content)
    return content.getvalue()


HTML = """<!doctype html><html><head><title>The Gate &amp; its keeper</title>
<style>p { color: red }</style></head><body><script>alert("no")</script><!-- nor this -->
<h1>Emberfall</h1><p>A city of <b>grey</b> ash.<br>And <i>embers</i>.</p>
<h2><a href="#">The <em>Gate</em></a></h2><ul><li>shut</li><li>guarded</li></ul>
<table><tr><td>Keeper</td><td>Mira</td></tr></table>
<h2>The Well</h2>It is dry.</body></html>"""

MARKDOWN = """# Emberfall

A city of ash.

## The Gate

It is shut.

```
# no heading
```

## The Well
It\u00a0is\tdry.
"""

UNDER_HEADINGS = [
    ("Emberfall", "A city of ash."),
    ("Emberfall > The Gate", "It is shut."),
    ("Emberfall > The Well", "It is dry."),
]


@pytest.mark.parametrize(
    ("name", "content", "blocks"),
    [
        ("a.txt", b"One.\r\n\r\nTwo.\r\n", [("", "One."), ("", "Two.")]),
        ("a.csv", b"name;home\nMira;Ash Gate\n\nTam;\n", [("", "name: Mira\nhome: Ash Gate"), ("", "name: Tam")]),
        ("a.csv", b'name,home\n"Mi\nra",Gate,more\n', [("", "name: Mi\nra\nhome: Gate\nmore")]),
        ("a.jsonl", b'{"name": "Mira", "age": 3}\n\n"Tam"\n', [("", "name: Mira\nage: 3"), ("", "Tam")]),
        (
            "a.json",
            b'[{"a": {"b": "c"}, "d": [1, 2], "e": null}, {"f": true, "g": "\\ud800"}]',
            [("", "a.b: c\nd: 1\nd: 2"), ("", "f: true\ng: ?")],
        ),
        ("a.json", b'{"people": [{"name": "Mira"}, {"name": "Tam"}]}', [("", "people.name: Mira\n\npeople.name: Tam")]),
        ("a.md", MARKDOWN.encode(), [*UNDER_HEADINGS[:2], ("Emberfall > The Gate", "```\n# no heading\n```"), UNDER_HEADINGS[2]]),
        ("a.md", b"# Alone", [("", "# Alone")]),
        (
            "a.HTML",
            HTML.encode(),
            [
                ("Emberfall", "A city of grey ash.\nAnd embers."),
                ("Emberfall > The Gate", "shut"),
                ("Emberfall > The Gate", "guarded"),
                ("Emberfall > The Gate", "Keeper | Mira"),
                ("Emberfall > The Well", "It is dry."),
            ],
        ),
        ("a.pdf", pdf("The gate is shut."), [("", "The gate is shut.")]),
        ("a.pdf", pdf("The gate is shut.", password=""), [("", "The gate is shut.")]),
        ("a.docx", word_document(), [*UNDER_HEADINGS[:2], ("Emberfall > The Gate", "Keeper | Mira"), UNDER_HEADINGS[2]]),
    ],
)  # fmt: skip
def test_reads_every_kind(
    tmp_path: Path,
    reader: DocumentReader,
    name: str,
    content: bytes,
    blocks: list[tuple[str, str]],
) -> None:
    (tmp_path / name).write_bytes(content)
    document = reader.read(tmp_path / name, name)
    assert [(block.heading, block.text.strip()) for block in document.blocks] == blocks


@pytest.mark.parametrize("kind", ["txt", "md", "html", "csv", "jsonl", "json"])
@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1", "utf-32"]
)
def test_reads_encodings(tmp_path: Path, reader: DocumentReader, kind: str, encoding: str) -> None:
    text = "Das Tor der Asche ist für immer verschlossen: niemand öffnet es. Überall Glut."
    content = {
        "csv": f"satz\n{text}\n",
        "json": json.dumps({"satz": text}, ensure_ascii=False),
        "jsonl": json.dumps({"satz": text}, ensure_ascii=False),
    }.get(kind, text)
    path = tmp_path / f"a.{kind}"
    path.write_bytes(content.encode(encoding))
    assert text in "".join(block.text for block in reader.read(path, path.name).blocks)


def test_titles_come_from_the_document_or_its_name(tmp_path: Path, reader: DocumentReader) -> None:
    files = {"a.html": HTML.encode(), "a.md": MARKDOWN.encode(), "a.docx": word_document()}
    for name, content in {**files, "the-ash_gate.txt": b"shut"}.items():
        (tmp_path / name).write_bytes(content)
    titles = [reader.read(path, path.name).title for path in sorted(tmp_path.iterdir())]
    assert titles == ["Emberfall", "The Gate & its keeper", "Emberfall", "the ash gate"]


def zip_bomb() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("word/document.xml", b"\0" * (MAXIMUM_BYTES + 1))
    return content.getvalue()


def pdf_bomb() -> bytes:
    """A page whose content decompresses to 300 MB."""
    writer = pypdf.PdfWriter()
    page = writer.add_blank_page(10, 10)
    stream = DecodedStreamObject()
    stream.set_data(b" " * 300_000_000)
    page[NameObject("/Contents")] = writer._add_object(stream.flate_encode())
    content = io.BytesIO()
    writer.write(content)
    return content.getvalue()


def repeating(times: int) -> bytes:
    """A small record of much text: every value is told with its name."""
    return b'{"' + b"k" * 10_000 + b'": [' + b"1," * times + b"1]}"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.png", b"\x89PNG", "unknown file type"),
        ("a.txt", b"", "no text"),
        ("a.txt", b" \n\t ", "no text"),
        ("a.txt", b"text\x00\x01more text than zeros", "binary"),
        ("a.md", b"\n\n", "no text"),
        ("a.html", b"<html><script>var a</script></html>", "no text"),
        ("a.html", b"<b>" * 10_000 + b"deep", "nested"),
        ("a.csv", b"name,home\n", "no text"),
        ("a.csv", b'name\n"never closed', "damaged"),
        ("a.csv", b"name\n" + b"," * 9_000_000, "row is longer"),
        ("a.csv", b"name\n" + b'"\n",' * 3_000_000, "row is longer"),
        ("a.json", b'{"a": ', "not valid JSON"),
        ("a.json", b"[" * 100_000, "nested"),
        ("a.json", b'{"a":' * 300 + b"1" + b"}" * 300, "nested"),
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "line 2 is not valid JSON"),
        ("a.jsonl", b"[" * 100_000, "nested"),
        ("a.jsonl", repeating(10_000), "record makes more than 64 MiB of text"),
        ("a.json", repeating(10_000), "record makes more than 64 MiB of text"),
        ("a.json", b"[" + b",".join([repeating(1_000)] * 9) + b"]", "makes more than 64 MiB of"),
        ("a.pdf", b"%PDF-1.7\nnonsense", "damaged"),
        ("a.pdf", pdf("The gate is shut.")[:300], "damaged"),
        ("a.pdf", pdf("The gate is shut.", password="secret"), "encrypted"),
        ("a.pdf", pdf(""), "scanned"),
        ("a.docx", b"no archive", "damaged"),
        ("a.docx", bytes.fromhex("d0cf11e0a1b11ae1") + bytes(600), "encrypted"),
        ("a.docx", zip_bomb(), "decompresses"),
    ],
)  # fmt: skip
def test_says_why_a_document_cannot_be_read(
    tmp_path: Path, reader: DocumentReader, name: str, content: bytes, reason: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DocumentError, match=reason):
        reader.read(tmp_path / name, name)


@pytest.mark.slow
def test_a_file_that_decompresses_without_end_costs_little(
    tmp_path: Path, reader: DocumentReader
) -> None:
    (tmp_path / "a.pdf").write_bytes(pdf_bomb())
    with pytest.raises(DocumentError):
        reader.read(tmp_path / "a.pdf", "a.pdf")


def test_text_that_grows_with_every_row_is_limited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processing.documents.MAXIMUM_STREAMED_CHARACTERS", 3 * 2**20)
    (tmp_path / "a.csv").write_bytes(b"n" * 2**20 + b"\na" * 4)
    with pytest.raises(DocumentError, match="makes more than 3 MiB of text"):
        read_document(tmp_path / "a.csv", "a.csv")


@pytest.mark.slow
def test_a_reader_that_hangs_or_dies_is_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "slow.pdf")  # reading it never ends
    (tmp_path / "good.md").write_bytes(b"# Gate\nshut")
    with DocumentReader(seconds=0.5) as reader, pytest.raises(DocumentError, match="longer than"):
        reader.read(tmp_path / "slow.pdf", "slow.pdf")
    with DocumentReader() as reader:
        assert reader.read(tmp_path / "good.md", "good.md").title == "Gate"
        assert reader._process is not None
        reader._process.kill()
        with pytest.raises(DocumentError, match="crashed"):
            reader.read(tmp_path / "good.md", "good.md")
        assert reader.read(tmp_path / "good.md", "good.md").title == "Gate"


@pytest.mark.slow
def test_memory_is_limited(tmp_path: Path) -> None:
    (tmp_path / "big.json").write_bytes(b"[" + b"[]," * 20_000_000 + b"[]]")
    limits, reason = DocumentReader(memory_bytes=2**29), r"too much memory|crashed"
    with limits as reader, pytest.raises(DocumentError, match=reason):
        reader.read(tmp_path / "big.json", "big.json")


@given(
    st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1), min_size=1),
    st.sampled_from(["\n\n", "\n", " ", ""]),
)
@settings(
    max_examples=settings.default.max_examples // 2,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
def test_plain_text_of_any_size_is_read_whole(
    tmp_path: Path, lines: list[str], separator: str
) -> None:
    text = separator.join([*lines, "ash"] * (400_000 // len("".join([*lines, "ash"]))))
    path = tmp_path / "a.txt"
    path.write_text(text, encoding="utf-8")
    blocks = list(read_document(path, "a.txt").blocks)
    assert "".join("".join(block.text for block in blocks).split()) == "".join(text.split())
    assert max(len(block.text) for block in blocks) <= 2**17


@pytest.mark.parametrize(
    ("content", "attributes"),
    [
        (
            '{"metadataAttributes": {"region": "ash", "year": 812, "secret": false, "tags": ["a"]}}',
            {"region": "ash", "year": 812.0, "secret": False, "tags": ["a"]},
        ),
        (
            '\ufeff{"metadataAttributes": {'
            '"region": {"value": {"type": "STRING", "stringValue": "ash"}},'
            '"year": {"value": {"type": "NUMBER", "numberValue": 812}, "includeForEmbedding": true},'
            '"secret": {"value": {"type": "BOOLEAN", "booleanValue": true}},'
            '"tags": {"value": {"type": "STRING_LIST", "stringListValue": ["a", "b"]}}}}',
            {"region": "ash", "year": 812.0, "secret": True, "tags": ["a", "b"]},
        ),
    ],
)
def test_reads_sidecars(content: str, attributes: dict[str, object]) -> None:
    found = read_sidecar(content.encode())
    assert found == attributes
    assert [type(value) for value in found.values()] == [type(v) for v in attributes.values()]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"metadataAttributes": {"a": null}}',
        '{"metadataAttributes": {"a": {"b": "c"}}}',
        '{"metadataAttributes": {"a": [1]}}',
        '{"metadataAttributes": {"a": "' + "x" * 20_000 + '"}}',
        "[" * 5_000,
    ],
)
def test_says_what_is_wrong_with_a_sidecar(content: str) -> None:
    with pytest.raises(SidecarError):
        read_sidecar(content.encode())
