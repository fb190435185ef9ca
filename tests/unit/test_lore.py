"""The example documents are what the README says, and each question names one of them."""

import json
import zipfile
from collections import Counter
from pathlib import Path

import pytest

EMBERFALL = Path(__file__).parents[2] / "examples" / "emberfall"
LORE = EMBERFALL / "lore"
SIDECAR = ".metadata.json"
SIDECARS = sorted(LORE.glob(f"*{SIDECAR}"))
DOCUMENTS = sorted(set(LORE.iterdir()) - set(SIDECARS))
TEXT_FORMATS = {".md", ".txt", ".html", ".csv", ".json", ".jsonl"}


@pytest.fixture(scope="module")
def questions() -> list[dict[str, str]]:
    lines = (EMBERFALL / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def test_there_are_at_least_40_documents_in_eight_formats() -> None:
    assert len(DOCUMENTS) >= 40
    assert {document.suffix for document in DOCUMENTS} == TEXT_FORMATS | {".pdf", ".docx"}


def test_each_document_has_its_sidecar_and_each_sidecar_its_document() -> None:
    described = [sidecar.name.removesuffix(SIDECAR) for sidecar in SIDECARS]
    assert described == [document.name for document in DOCUMENTS]


@pytest.mark.parametrize("sidecar", SIDECARS, ids=lambda path: path.name)
def test_a_sidecar_says_kind_region_and_year(sidecar: Path) -> None:
    content = json.loads(sidecar.read_text(encoding="utf-8"))
    assert set(content) == {"metadataAttributes"}
    attributes = content["metadataAttributes"]
    assert {name: type(value) for name, value in attributes.items()} == {
        "kind": str,
        "region": str,
        "year": int,
    }
    assert attributes["year"] <= 412, "the dialogues are held in the year 412"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_a_document_is_short_and_readable(document: Path) -> None:
    assert document.stat().st_size < 30_000
    if document.suffix == ".pdf":
        assert document.read_bytes().startswith(b"%PDF-")
    elif document.suffix == ".docx":
        with zipfile.ZipFile(document) as archive:
            assert "word/document.xml" in archive.namelist()
    else:
        text = document.read_text(encoding="utf-8")
        assert 120 <= len(text.split()) <= 500
        assert "\r" not in text


def test_json_documents_parse() -> None:
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8") if document.suffix in TEXT_FORMATS else ""
        if document.suffix == ".json":
            assert json.loads(text), document.name
        elif document.suffix == ".jsonl":
            assert all(json.loads(line) for line in text.splitlines()), document.name


def test_sixty_questions_ask_about_at_least_35_documents(questions: list[dict[str, str]]) -> None:
    assert len(questions) == 60
    assert all(set(question) == {"question", "document"} for question in questions)
    asked = {question["document"] for question in questions}
    assert asked <= {document.name for document in DOCUMENTS}
    assert len(asked) >= 35


def test_no_two_questions_are_the_same(questions: list[dict[str, str]]) -> None:
    asked = Counter(question["question"].casefold() for question in questions)
    assert [question for question, count in asked.items() if count > 1] == []
