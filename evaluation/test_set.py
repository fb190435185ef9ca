"""The held-out records: reading them, and choosing which are scored."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from bedrock.conversations import Message, from_record
from bedrock.models import DataFormat
from evaluation.errors import EvaluationError


@dataclass(frozen=True)
class TestRecord:
    """A conversation up to the user's last turn, and the answer that is expected to it."""

    __test__ = False  # not a test case, whatever pytest thinks of the name

    line: int
    system: str | None
    messages: tuple[Message, ...]
    reference: str

    @property
    def prompt(self) -> str:
        """The turns as one text; a single turn is just its text."""
        if len(self.messages) == 1:
            return self.messages[0].text
        return "\n".join(f"{message.role}: {message.text}" for message in self.messages)


def read_test_set(path: Path, data_format: DataFormat) -> list[TestRecord]:
    """All records of a JSON Lines file in a base model's data format.

    Raises
    ------
    EvaluationError
        The file is missing, empty or malformed; names the file and the line.
    """
    if not path.is_file():
        raise EvaluationError(f"The test set {path} is missing: Preprocess should have written it.")
    with path.open("rb") as file:
        records = [
            _record(path, number, line, data_format)
            for number, line in enumerate(file, start=1)
            if line.strip()
        ]
    if not records:
        raise EvaluationError(
            f"The test set {path} holds no records, so there is nothing to score: add records to "
            "the dataset, or raise test_fraction."
        )
    return records


def _record(path: Path, number: int, line: bytes, data_format: DataFormat) -> TestRecord:
    try:
        conversation = from_record(data_format, json.loads(line))
    except ValueError as error:
        raise EvaluationError(f"{path} line {number} is not a {data_format} record: {error}") from (
            error
        )
    turns = conversation.messages
    if [turn.role for turn in turns[-2:]] != ["user", "assistant"] or not turns[-1].text.strip():
        raise EvaluationError(f"{path} line {number} does not end with an answer to a prompt.")
    return TestRecord(number, conversation.system, turns[:-1], turns[-1].text)


def choose(records: list[TestRecord], count: int) -> list[TestRecord]:
    """At most `count` records, in the file's order.

    Those with the smallest hashes of their content: the same file gives the same choice, and
    adding records moves few of it.
    """
    return sorted(sorted(records, key=_digest)[:count], key=lambda record: record.line)


def _digest(record: TestRecord) -> bytes:
    content = json.dumps([record.system, record.prompt, record.reference])
    return hashlib.sha256(content.encode()).digest()
