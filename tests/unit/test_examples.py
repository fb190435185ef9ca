"""The example dataset is what its README says, and what a tuning job accepts."""

import json
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

DIALOGUES = Path(__file__).parents[2] / "examples" / "emberfall" / "dialogues.jsonl"
RESERVED_WORDS = ("User:", "Bot:", "Assistant:", "System:", "<image>", "<video>", "[EOS]")


@pytest.fixture(scope="module")
def text() -> str:
    return DIALOGUES.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def records(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_there_are_at_least_300_records(records: list[dict[str, Any]]) -> None:
    assert len(records) >= 300


def test_four_characters_speak_at_least_60_times_each(records: list[dict[str, Any]]) -> None:
    by_character = Counter(record["system"] for record in records)
    assert len(by_character) == 4
    assert min(by_character.values()) >= 60


def test_user_and_assistant_take_turns(records: list[dict[str, Any]]) -> None:
    for record in records:
        assert set(record) == {"system", "messages"}
        roles = [message["role"] for message in record["messages"]]
        assert roles in (["user", "assistant"] * exchanges for exchanges in (1, 2, 3)), record
        assert all(message["content"].strip() for message in record["messages"]), record


def test_some_dialogues_go_on_for_several_exchanges(records: list[dict[str, Any]]) -> None:
    assert sum(len(record["messages"]) > 2 for record in records) >= 20


def test_answers_hold_15_to_45_words(records: list[dict[str, Any]]) -> None:
    for record in records:
        for message in record["messages"]:
            if message["role"] == "assistant":
                assert 15 <= len(message["content"].split()) <= 45, message["content"]


def test_no_two_records_ask_the_same(records: list[dict[str, Any]]) -> None:
    prompts = Counter(record["messages"][0]["content"].casefold() for record in records)
    assert [prompt for prompt, count in prompts.items() if count > 1] == []


def test_no_reserved_words(text: str) -> None:
    assert [word for word in RESERVED_WORDS if word.casefold() in text.casefold()] == []


def test_text_is_normalised(text: str) -> None:
    assert unicodedata.is_normalized("NFC", text)
    assert "\r" not in text
