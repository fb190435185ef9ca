"""The held-out records: reading them, and choosing which are scored."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from bedrock.conversations import Message, from_record
from bedrock.models import DataFormat
from evaluation.errors import EvaluationError


@dataclass(frozen=True)
class HeldOutRecord:
    """A conversation up to the user's last turn, and the answer that is expected to it."""

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


def read_held_out(path: Path, data_format: DataFormat) -> list[HeldOutRecord]:
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


def _record(path: Path, number: int, line: bytes, data_format: DataFormat) -> HeldOutRecord:
    try:
        conversation = from_record(data_format, json.loads(line))
    except ValueError as error:
        raise EvaluationError(f"{path} line {number} is not a {data_format} record: {error}") from (
            error
        )
    turns = conversation.messages
    if [turn.role for turn in turns[-2:]] != ["user", "assistant"] or not turns[-1].text.strip():
        raise EvaluationError(f"{path} line {number} does not end with an answer to a prompt.")
    return HeldOutRecord(number, conversation.system, turns[:-1], turns[-1].text)


def choose(records: list[HeldOutRecord], count: int) -> list[HeldOutRecord]:
    """At most `count` records, by hash of their content.

    The same file gives the same choice, adding records moves few of it, and what lies together in
    the file is mixed: the first ones are a fair sample.
    """
    return sorted(records, key=_digest)[:count]


def _digest(record: HeldOutRecord) -> bytes:
    content = json.dumps([record.system, record.prompt, record.reference])
    return hashlib.sha256(content.encode()).digest()
