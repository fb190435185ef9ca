"""Where each record of a dataset goes: to a split, to the duplicates, or to the rejected."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Literal

from bedrock.conversations import Conversation, RecordError, problem, to_record
from bedrock.models import TuningRules
from processing.readers import Row, UnreadableFileError, read_rows
from processing.records import Columns, conversation_of
from processing.report import FileReport, Split

MAXIMUM_REJECTED_CHARACTERS = 4_000


def split_of(conversation: Conversation, validation_fraction: float, test_fraction: float) -> Split:
    """The split a conversation belongs to, by a hash of all of it but its last answer.

    The same prompt always lands in the same split, whatever else is in the dataset and whichever
    model it is for.
    """
    prompt = to_record("prompt-completion", conversation)["prompt"]
    position = int.from_bytes(_digest(prompt)[:8], "big") / 2**64
    if position < test_fraction:
        return "test"
    if position < test_fraction + validation_fraction:
        return "validation"
    return "train"


class Sorter:
    """Sorts records into files of JSON Lines; of each it keeps a digest, to know duplicates.

    `fractions` are those of validation and of test records.
    """

    def __init__(
        self,
        rules: TuningRules,
        columns: Columns,
        fractions: tuple[float, float],
        writers: Mapping[Split, IO[str]],
        rejected: IO[str],
    ) -> None:
        self._rules = rules
        self._columns = columns
        self._fractions = fractions
        self._writers = writers
        self._rejected = rejected
        self._seen: set[bytes] = set()

    def sort_file(self, path: Path, name: str) -> FileReport:
        """Sort the records of a file; `name` is what reports call it."""
        counts: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        try:
            for row in read_rows(path):
                counts["read"] += 1
                try:
                    counts[self._sort(row)] += 1
                except RecordError as error:
                    counts["rejected"] += 1
                    reasons[error.reason] += 1
                    self._reject(name, row.line, error.reason, row.value)
        except UnreadableFileError as error:
            self._reject(name, None, str(error), None)
            return FileReport(name=name, error=str(error))
        return FileReport(name=name, **counts, rejected_reasons=dict(reasons.most_common()))

    def _sort(self, row: Row) -> Split | Literal["duplicates"]:
        if row.error is not None:
            raise RecordError(row.error)
        conversation = conversation_of(row.value, self._columns)
        if reason := problem(self._rules, conversation):
            raise RecordError(reason)
        record = json.dumps(to_record(self._rules.data_format, conversation), ensure_ascii=False)
        digest = _digest(record)
        if digest in self._seen:
            return "duplicates"
        self._seen.add(digest)
        split = split_of(conversation, *self._fractions)
        self._writers[split].write(record + "\n")
        return split

    def _reject(self, name: str, line: int | None, reason: str, value: object) -> None:
        entry: dict[str, Any] = {"file": name, "line": line, "reason": reason, "record": value}
        text = json.dumps(value, default=str)
        if len(text) > MAXIMUM_REJECTED_CHARACTERS:
            entry["record"] = text[:MAXIMUM_REJECTED_CHARACTERS]
            entry["record_cut_from_characters"] = len(text)
        # ASCII, as a rejected record may hold what is no Unicode.
        self._rejected.write(json.dumps(entry, default=str) + "\n")


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
