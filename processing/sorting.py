"""Where each record of a dataset goes: to a split, to the duplicates, or to the rejected."""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import IO, Any, NamedTuple

import pandas as pd

from bedrock.conversations import Conversation, RecordError, problem, to_record
from bedrock.models import TuningRules
from processing.readers import Row, UnreadableFileError, read_rows
from processing.records import Columns, conversation_of
from processing.report import FileReport, Split

CHUNK_ROWS = 1_000
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


class Judgement(NamedTuple):
    """What a row comes to: a split or `rejected`, and the line of JSON to write there.

    A record has a digest, a rejected row has a reason.
    """

    goes_to: str
    text: str
    digest: bytes | None = None
    reason: str | None = None


class Sorter:
    """Sorts records, a chunk at a time, into files of JSON Lines: the splits' and the rejected.

    Of each record it keeps a digest, to know duplicates. `fractions` are those of validation and of
    test records; `writers` has one for each split, and one for `rejected`.
    """

    def __init__(
        self,
        rules: TuningRules,
        columns: Columns,
        fractions: tuple[float, float],
        writers: Mapping[str, IO[str]],
    ) -> None:
        self._rules = rules
        self._columns = columns
        self._fractions = fractions
        self._writers = writers
        self._seen: set[bytes] = set()

    def sort_file(self, path: Path, name: str) -> FileReport:
        """Sort the records of a file; `name` is what reports call it."""
        try:
            rows = read_rows(path)
        except UnreadableFileError as error:
            self._writers["rejected"].write(_rejection(name, None, str(error), None))
            return FileReport(name=name, error=str(error))
        counts: Counter[str] = Counter()
        reasons: Counter[str] = Counter()
        judgements = (self._judge(row, name) for row in rows)
        while judged := list(islice(judgements, CHUNK_ROWS)):
            chunk = pd.DataFrame(judged, dtype=object)  # text is not copied, None stays None
            self._sort(chunk)
            counts.update(chunk["goes_to"])
            reasons.update(chunk["reason"].dropna())
        ranked = dict(reasons.most_common())
        return FileReport(name=name, read=counts.total(), **counts, rejected_reasons=ranked)

    def _judge(self, row: Row, name: str) -> Judgement:
        try:
            if row.error is not None:
                raise RecordError(row.error)
            conversation = conversation_of(row.value, self._columns)
            if reason := problem(self._rules, conversation):
                raise RecordError(reason)
        except RecordError as error:
            text = _rejection(name, row.line, error.reason, row.value)
            return Judgement("rejected", text, reason=error.reason)
        record = json.dumps(to_record(self._rules.data_format, conversation), ensure_ascii=False)
        split = split_of(conversation, *self._fractions)
        return Judgement(split, record + "\n", digest=_digest(record))

    def _sort(self, chunk: pd.DataFrame) -> None:
        """Mark a chunk's duplicates, and write the rest of it."""
        known = chunk["digest"].duplicated() | chunk["digest"].map(self._seen.__contains__)
        chunk.loc[known & chunk["digest"].notna(), "goes_to"] = "duplicates"
        self._seen.update(chunk["digest"].dropna())
        for name, writer in self._writers.items():
            writer.writelines(chunk.loc[chunk["goes_to"] == name, "text"])


def _rejection(name: str, line: int | None, reason: str, value: object) -> str:
    entry: dict[str, Any] = {"file": name, "line": line, "reason": reason, "record": value}
    text = json.dumps(value, default=str)
    if len(text) > MAXIMUM_REJECTED_CHARACTERS:
        entry["record"] = text[:MAXIMUM_REJECTED_CHARACTERS]
        entry["record_cut_from_characters"] = len(text)
    # ASCII, as a rejected record may hold what is no Unicode.
    return json.dumps(entry, default=str) + "\n"


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()
