"""The Preprocess step through its front door: files below ML_ROOT in, files below ML_ROOT out."""

import csv
import gzip
import io
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bedrock.conversations import Conversation, from_record, to_record
from processing.preprocess import main
from processing.records import normalise

NOVA = "amazon.nova-micro-v1:0:128k"
LLAMA = "meta.llama3-1-8b-instruct-v1:0:128k"
OPTIONS = {
    "base-model": NOVA,
    "dataset-version": "latest",
    "prompt-column": "auto",
    "completion-column": "auto",
    "system-column": "auto",
    "validation-fraction": "0.2",
    "test-fraction": "0.2",
    "min-records": "20",
    "max-rejected-fraction": "0.5",
}
LENIENT = {"min-records": "1", "max-rejected-fraction": "1"}
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class Outcome:
    """What a run left below ML_ROOT."""

    code: int
    root: Path

    def lines(self, path: str) -> list[Any]:
        text = (self.root / "processing/output" / path).read_text(encoding="utf-8")
        return [json.loads(line) for line in text.split("\n")[:-1]]

    @property
    def splits(self) -> dict[str, list[Any]]:
        return {split: self.lines(f"{split}/data.jsonl") for split in SPLITS}

    @property
    def records(self) -> list[Any]:
        return [record for split in self.splits.values() for record in split]

    @property
    def rejected(self) -> list[Any]:
        return self.lines("rejected/rejected.jsonl")

    @property
    def reasons(self) -> list[tuple[int | None, str]]:
        return [(entry["line"], entry["reason"]) for entry in self.rejected]

    @property
    def report(self) -> Any:
        path = self.root / "processing/output/report/preprocess_report.json"
        return json.loads(path.read_text(encoding="utf-8"))

    @property
    def message(self) -> str:
        return (self.root / "output/message").read_text(encoding="utf-8")


def command(uri: str, **options: str) -> list[str]:
    given = OPTIONS | {"dataset-uri": uri} | {k.replace("_", "-"): v for k, v in options.items()}
    return [part for name, value in given.items() for part in (f"--{name}", value)]


def put(root: Path, files: Mapping[str, str | bytes]) -> None:
    for name, content in files.items():
        path = root / "processing/input/dataset" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def run(
    root: Path, files: Mapping[str, str | bytes], uri: str = "s3://data/set/", **options: str
) -> Outcome:
    put(root, files)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ML_ROOT", str(root))
        return Outcome(main(command(uri, **options)), root)


def lenient(root: Path, files: Mapping[str, str | bytes], **options: str) -> Outcome:
    """For what is about single records: how many are left is not judged."""
    padding = jsonl(pairs(60, "padding"))
    strict = {k.replace("-", "_"): v for k, v in LENIENT.items()}
    return run(root, {"~padding.jsonl": padding, **files}, **strict | options)


def pairs(count: int, word: str = "coins") -> list[dict[str, str]]:
    return [
        {"prompt": f"How many {word}, {n}?", "completion": f"{n} {word}."} for n in range(count)
    ]


def jsonl(records: list[Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


def csv_text(rows: list[list[str]], delimiter: str = ",") -> str:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue()


def parquet(records: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), file, row_group_size=16)
    return file.getvalue()


def nova_record(prompt: str, completion: str, system: str | None = None) -> dict[str, Any]:
    record: dict[str, Any] = {"schemaVersion": "bedrock-conversation-2024"}
    if system:
        record["system"] = [{"text": system}]
    record["messages"] = [
        {"role": "user", "content": [{"text": prompt}]},
        {"role": "assistant", "content": [{"text": completion}]},
    ]
    return record


def mine(outcome: Outcome) -> list[Any]:
    return [record for record in outcome.records if "padding" not in json.dumps(record)]


# What comes out


def test_a_dataset_becomes_training_validation_and_test_data(tmp_path: Path) -> None:
    outcome = run(tmp_path, {"a.jsonl": jsonl(pairs(200))}, "s3://data/set/a.jsonl")
    assert outcome.code == 0
    assert not (tmp_path / "output/message").exists()
    expected = [nova_record(p["prompt"], p["completion"]) for p in pairs(200)]
    assert sorted(outcome.records, key=str) == sorted(expected, key=str)
    assert all(20 <= len(outcome.splits[split]) <= 60 for split in ("validation", "test"))
    report = outcome.report
    assert report["total"]["read"] == 200
    assert {split: report["total"][split] for split in SPLITS} == {
        split: len(records) for split, records in outcome.splits.items()
    }
    assert (report["dataset_uri"], report["dataset_version"]) == ("s3://data/set/a.jsonl", "latest")


def test_it_runs_as_the_containers_entry_point(tmp_path: Path) -> None:
    put(
        tmp_path,
        {"a.csv": csv_text([["question", "answer"], *([f"q{n}", "a"] for n in range(60))])},
    )
    finished = subprocess.run(
        [sys.executable, "-m", "processing.preprocess", *command("s3://data/set/a.csv")],
        env=os.environ | {"ML_ROOT": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    assert len(Outcome(0, tmp_path).records) == 60


def test_llama_is_given_prompts_and_completions(tmp_path: Path) -> None:
    records = [{**pair, "system": "A banker."} for pair in pairs(200)]
    outcome = run(tmp_path, {"a.jsonl": jsonl(records)}, **{"base-model": LLAMA})
    assert outcome.code == 0
    assert {
        "prompt": "A banker.\n\nHow many coins, 7?",
        "completion": "7 coins.",
    } in outcome.records


FORMS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"prompt": "p", "completion": "c"}, nova_record("p", "c")),
    ({"Question ": "p", "ANSWER": "c", "system": "s"}, nova_record("p", "c", "s")),
    ({"instruction": "i", "input": "x", "output": "c"}, nova_record("i\n\nx", "c")),
    ({"instruction": "i", "input": "", "output": "c", "system": None}, nova_record("i", "c")),
    (
        {"system": "s", "messages": [*nova_record("p", "c")["messages"]]},
        nova_record("p", "c", "s"),
    ),
    (
        {
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": "p"},
                {"role": "assistant", "content": "c"},
            ]
        },
        nova_record("p", "c", "s"),
    ),
    (nova_record("p", "c", "s"), nova_record("p", "c", "s")),
]


@pytest.mark.parametrize(("form", "record"), FORMS)
@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "csv"])
def test_every_form_of_record_is_understood_in_every_type_of_file(
    tmp_path: Path, form: dict[str, Any], record: dict[str, Any], ending: str
) -> None:
    if ending == "parquet":
        content: str | bytes = parquet([form])
    elif ending == "csv":
        cells = [v if isinstance(v, str) else json.dumps(v) if v else "" for v in form.values()]
        if "schemaVersion" in form:
            pytest.skip("Bedrock's own records do not come as CSV")
        content = csv_text([list(form), cells])
    else:
        content = json.dumps([form] if ending == "json" else form)
    outcome = lenient(tmp_path, {f"one.{ending}": content})
    assert outcome.code == 0
    assert outcome.rejected == []
    assert mine(outcome) == [record]


def test_columns_are_taken_by_the_names_that_are_set(tmp_path: Path) -> None:
    rows = [["id", "Line", "Reply", "Voice"], ["1", "Who goes there?", "A friend.", "A guard."]]
    columns = {"prompt-column": "Line", "completion-column": "Reply", "system-column": "Voice"}
    outcome = lenient(tmp_path, {"a.csv": csv_text(rows)}, **columns)
    assert mine(outcome) == [nova_record("Who goes there?", "A friend.", "A guard.")]
    assert Counter(entry["reason"] for entry in outcome.rejected) == {"Voice is missing": 60}


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("ending", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_every_type_of_file_is_read_plain_and_gzipped(
    tmp_path: Path, ending: str, compressed: bool
) -> None:
    rows = pairs(100)
    table = [["prompt", "completion"], *([row["prompt"], row["completion"]] for row in rows)]
    content = {
        "jsonl": lambda: b"\xef\xbb\xbf" + jsonl(rows).encode(),
        "json": lambda: json.dumps(rows, indent=1).encode(),
        "csv": lambda: b"\xef\xbb\xbf" + csv_text(table).encode(),
        "tsv": lambda: csv_text(table, "\t").encode(),
        "parquet": lambda: parquet(rows),
    }[ending]()
    name = f"Data.{ending.upper()}{'.gz' if compressed else ''}"
    outcome = run(tmp_path, {name: gzip.compress(content) if compressed else content})
    assert outcome.code == 0
    expected = [nova_record(row["prompt"], row["completion"]) for row in rows]
    assert sorted(outcome.records, key=str) == sorted(expected, key=str)


def test_json_lines_in_a_json_file_are_read(tmp_path: Path) -> None:
    assert run(tmp_path, {"a.json": jsonl(pairs(60))}).code == 0


# Which files belong to it


def test_only_the_uploaded_object_counts(tmp_path: Path) -> None:
    files = {"a.jsonl": jsonl(pairs(60)), "a.jsonl.bak": "?", "a.jsonl2/b.jsonl": jsonl(pairs(9))}
    outcome = run(tmp_path, files, "s3://data/set/a.jsonl")
    assert [file["name"] for file in outcome.report["files"]] == ["a.jsonl"]


def test_every_file_below_a_prefix_counts(tmp_path: Path) -> None:
    files = {
        "a.jsonl": jsonl(pairs(30, "apples")),
        "deep/er/b.csv": csv_text([["prompt", "completion"], ["x", "y"]]),
        "deep/_SUCCESS": "",
        "_SUCCESS": "",
    }
    outcome = run(tmp_path, files)
    assert {file["name"]: file["read"] for file in outcome.report["files"]} == {
        "a.jsonl": 30,
        "deep/er/b.csv": 1,
    }


def test_a_file_of_unknown_type_is_reported_and_the_rest_is_used(tmp_path: Path) -> None:
    outcome = run(tmp_path, {"a.jsonl": jsonl(pairs(60)), "notes.docx": b"PK"})
    assert outcome.code == 0
    assert outcome.report["rejected_files"] == 1
    assert [(e["file"], e["line"]) for e in outcome.rejected] == [("notes.docx", None)]
    assert "unknown file type" in outcome.rejected[0]["reason"]


BROKEN = {
    "cut.jsonl.gz": gzip.compress(os.urandom(4096).hex().encode())[:-2000],
    "no.csv.gz": b"prompt,completion\nx,y\n",
    "no.parquet": b"PAR1 this is not",
    "cut.parquet": parquet(pairs(90))[:-40],
    "no.parquet.gz": gzip.compress(b"nothing"),
    "no.json": b'[{"prompt": "x", ',
    "open.csv": b'prompt,completion\nx,y\nz,"never closed\na,b\n',
    "twice.csv": b"prompt,prompt\nx,y\n",
    "header.tsv": b'"prompt\tcompletion\nx\ty\n',
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_cannot_be_read_whole_is_not_read_at_all(tmp_path: Path, name: str) -> None:
    outcome = run(tmp_path, {"a.jsonl": jsonl(pairs(60)), name: BROKEN[name]})
    assert outcome.code == 0
    report = {file["name"]: file for file in outcome.report["files"]}
    assert report[name]["error"]
    assert report[name]["read"] == 0
    assert [entry["file"] for entry in outcome.rejected] == [name]
    assert len(outcome.records) == 60


def test_an_open_quote_is_found(tmp_path: Path) -> None:
    outcome = run(tmp_path, {"open.csv": BROKEN["open.csv"]})
    assert outcome.code == 1
    assert "open.csv: not valid from line 3 on" in outcome.message


def test_a_json_array_too_large_for_memory_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processing.readers.MAXIMUM_JSON_BYTES", 2**20)
    content = json.dumps([{"prompt": "x" * 2**20, "completion": "y"}])
    outcome = run(tmp_path, {"big.json": content})
    assert outcome.code == 1
    assert "write it as JSON Lines" in outcome.message


# What is left out


def test_rejected_records_are_kept_with_file_line_and_reason(tmp_path: Path) -> None:
    lines = [
        '{"prompt": "p", "completion": "c"}',
        "",
        '{"prompt": "p"',
        '{"prompt": "", "completion": "c"}',
        '{"prompt": "p", "completion": null}',
        '{"prompt": ["p"], "completion": "c"}',
        '{"text": "a story"}',
        '["p", "c"]',
        '{"prompt": "Ask the User: what?", "completion": "c"}',
        '{"prompt": "\\ud800", "completion": "c"}',
        json.dumps({"prompt": "x" * 200_000, "completion": "c"}),
        json.dumps({"messages": [{"role": "user", "content": "p"}]}),
        json.dumps({"messages": [{"role": "bot", "content": "p"}]}),
        json.dumps({"messages": "hello"}),
        json.dumps({"messages": [{"role": "user", "content": [{"image": "x"}]}]}),
        json.dumps({"system": "s", "messages": [{"role": "system", "content": "t"}]}),
        "[" * 100_000,
    ]
    content = "\n".join(lines).encode() + b'\n{"prompt": "\xff", "completion": "c"}'
    outcome = lenient(tmp_path, {"bad.jsonl": content})
    alternate = "turns must alternate between user and assistant, from a user to an assistant"
    assert outcome.reasons == [
        (3, "not valid JSON"),
        (4, "a turn is empty"),
        (5, "completion is missing"),
        (6, 'prompt must be text, or a list of {"text": …}'),
        (
            7,
            "of no known form (prompt and completion, question and answer, "
            "instruction and output, or messages)",
        ),
        (8, "not an object"),
        (9, "holds the reserved word 'User:'"),
        (10, "not valid UTF-8"),
        (11, "longer than 196,608 characters"),
        (12, alternate),
        (13, "a message's role must be user or assistant"),
        (14, "messages is not valid JSON"),
        (15, 'content must be text, or a list of {"text": …}'),
        (16, "two system prompts"),
        (17, "not valid JSON"),
        (18, "not valid UTF-8"),
    ]
    assert {entry["file"] for entry in outcome.rejected} == {"bad.jsonl"}
    by_line = {entry["line"]: entry for entry in outcome.rejected}
    assert by_line[4]["record"] == {"prompt": "", "completion": "c"}
    assert len(by_line[11]["record"]) == 4_000
    assert by_line[11]["record_cut_from_characters"] > 200_000
    file = next(f for f in outcome.report["files"] if f["name"] == "bad.jsonl")
    assert (file["read"], file["rejected"]) == (17, 16)
    assert file["rejected_reasons"]["not valid JSON"] == 2


def test_a_line_that_never_ends_is_not_held_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processing.readers.MAXIMUM_ROW_BYTES", 1_000)
    content = "x" * 5_000 + "\n" + jsonl([{"prompt": "p", "completion": "c"}]) + "y" * 3_000
    outcome = lenient(tmp_path, {"long.jsonl": content})
    assert outcome.reasons == [(1, "longer than 1,000 bytes"), (3, "longer than 1,000 bytes")]
    assert mine(outcome) == [nova_record("p", "c")]


def test_csv_lines_are_counted_through_quoted_fields(tmp_path: Path) -> None:
    content = (
        'prompt,completion\r\n"two\r\nlines","two\nmore"\r\n\r\nshort\r\na,b,c\r\n'
        '"a" b,c\r\n"",empty\r\nlast,one\r\n'
    )
    outcome = lenient(tmp_path, {"a.csv": content})
    assert outcome.reasons == [
        (6, "fewer columns than the header"),
        (7, "more columns than the header"),
        (8, "text after a closing quote"),
        (9, "a turn is empty"),
    ]
    assert mine(outcome) == [nova_record("two\nlines", "two\nmore"), nova_record("last", "one")]


def test_bytes_that_are_no_utf8_reject_their_row_alone(tmp_path: Path) -> None:
    outcome = lenient(tmp_path, {"a.csv": b"prompt,completion\ncaf\xe9,x\ncaf\xc3\xa9,y\n"})
    assert outcome.reasons == [(2, "not valid UTF-8")]
    assert mine(outcome) == [nova_record("café", "y")]


def test_exact_duplicates_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [{"prompt": "p ", "completion": "c"}, {"question": "p", "answer": "c\r\n"}]
    files = {"a.jsonl": jsonl(rows), "b.jsonl": jsonl([*rows, {"prompt": "p", "completion": "d"}])}
    outcome = lenient(tmp_path, files)
    assert len(mine(outcome)) == 2
    assert [file["duplicates"] for file in outcome.report["files"]] == [1, 2, 0]


def test_what_is_known_and_in_which_order_outlasts_a_chunk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("processing.sorting.CHUNK_ROWS", 7)
    rows = pairs(60)
    mixed = [row for pair in zip(rows, [{"a": n} for n in range(60)], strict=True) for row in pair]
    outcome = run(tmp_path, {"a.jsonl": jsonl([*mixed, *rows])}, max_rejected_fraction="1")
    assert outcome.code == 0
    (file,) = outcome.report["files"]
    assert (file["read"], file["duplicates"], file["rejected"]) == (180, 60, 60)
    order = [nova_record(row["prompt"], row["completion"]) for row in rows]
    for records in outcome.splits.values():
        assert records == [record for record in order if record in records]
    assert [entry["line"] for entry in outcome.rejected] == list(range(2, 121, 2))


def test_text_is_normalised(tmp_path: Path) -> None:
    row = {
        "prompt": "\ufeff  cafe\u0301\xa0now  \r\n\r\n\r\n\r\n    code\t\n",
        "completion": "a\x00b\u200bc",
    }
    outcome = lenient(tmp_path, {"a.jsonl": jsonl([row])})
    assert mine(outcome) == [nova_record("café now\n\n    code", "abc")]


# When the job fails


def test_an_empty_dataset_fails(tmp_path: Path) -> None:
    outcome = run(tmp_path, {"a.jsonl": ""}, "s3://data/set/a.jsonl")
    assert outcome.code == 1
    assert outcome.message.startswith("No record could be read from s3://data/set/a.jsonl.")


def test_no_file_fails(tmp_path: Path) -> None:
    assert "There is no file below s3://data/set/" in run(tmp_path, {"_SUCCESS": ""}).message
    assert "was not among" in run(tmp_path, {"b.jsonl": ""}, "s3://data/set/a.jsonl").message


def test_a_wrong_type_of_file_fails(tmp_path: Path) -> None:
    outcome = run(tmp_path, {"a.docx": "PK"}, "s3://data/set/a.docx")
    assert outcome.code == 1
    assert "a.docx: unknown file type; known are .jsonl, .json, .csv" in outcome.message


def test_too_many_rejected_fails_with_the_reasons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [*pairs(40), *({"prompt": f"User: {n}", "completion": "x"} for n in range(41)), {"a": 1}]
    outcome = run(tmp_path, {"a.jsonl": jsonl(rows)})
    assert outcome.code == 1
    assert "42 of 82 records were rejected, more than 50%" in outcome.message
    assert "41 × holds the reserved word 'User:'; 1 × of no known form" in outcome.message
    assert outcome.message in capsys.readouterr().err
    assert outcome.report["total"]["rejected"] == 42


def test_exactly_half_rejected_is_not_too_many(tmp_path: Path) -> None:
    assert run(tmp_path, {"a.jsonl": jsonl([*pairs(60), *({"a": n} for n in range(60))])}).code == 0


def test_too_few_records_fail(tmp_path: Path) -> None:
    outcome = run(tmp_path, {"a.jsonl": jsonl([*pairs(15), *pairs(5), {"a": 1}])})
    assert outcome.code == 1
    assert (
        "15 of 21 can be used, at least 20 are needed (5 duplicates, 1 rejected)" in outcome.message
    )


def test_a_split_without_records_fails(tmp_path: Path) -> None:
    outcome = run(tmp_path, {"a.jsonl": jsonl(pairs(25))}, test_fraction="0.000001")
    assert outcome.code == 1
    assert "Too few records: of 25" in outcome.message
    assert "0 fell to test" in outcome.message


def test_the_services_own_bounds_are_kept(tmp_path: Path) -> None:
    few = run(tmp_path / "few", {"a.jsonl": jsonl(pairs(60))}, **{"base-model": LLAMA})
    assert few.code == 1
    assert f"{LLAMA} takes 100 at least" in few.message
    many = run(tmp_path / "many", {"a.jsonl": jsonl(pairs(13_000))}, **{"base-model": LLAMA})
    assert many.code == 1
    assert f"{LLAMA} takes 10,000 at most" in many.message


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base-model": "amazon.nova-micro-v1:0"}, f"cannot be fine-tuned. These can: {NOVA}"),
        ({"base-model": "gpt-4"}, "Unknown model 'gpt-4'"),
        ({"base-model": "meta.llama3-2-1b-instruct-v1:0:128k"}, "reached its end of life"),
        ({"test-fraction": "2"}, "test_fraction: Input should be less than 1"),
        ({"test-fraction": "0.5", "validation-fraction": "0.5"}, "nothing to train on"),
        ({"min-records": "many"}, "min_records: Input should be a valid integer"),
        ({"prompt-column": "line"}, "must be given together"),
        ({"dataset-uri": "/tmp/a"}, "dataset_uri"),
        ({"colour": "red"}, "unrecognized arguments: --colour red"),
    ],
)
def test_a_wrong_argument_is_named(tmp_path: Path, options: dict[str, str], message: str) -> None:
    outcome = run(tmp_path, {"a.jsonl": jsonl(pairs(60))}, **options)
    assert outcome.code == 1
    assert message in outcome.message


def test_a_long_message_is_cut_to_what_sagemaker_keeps(tmp_path: Path) -> None:
    outcome = run(
        tmp_path, {"ä" * 100 + f"{n}.docx": "" for n in range(9)}, "s3://data/" + "ö" * 900 + "/"
    )
    assert outcome.code == 1
    assert len(outcome.message.encode()) <= 1024
    assert outcome.message.endswith("…")


# What always holds

words = st.text(max_size=12) | st.sampled_from(["User: hi", "same", " same", "same\r\n", ""])
forms = st.one_of(
    st.builds(lambda p, c: {"prompt": p, "completion": c}, words, words),
    st.builds(lambda q, a, s: {"question": q, "answer": a, "system": s}, words, words, words),
    st.builds(
        lambda system, turns: {
            "system": system,
            "messages": [{"role": role, "content": text} for role, text in turns],
        },
        words,
        st.lists(st.tuples(st.sampled_from(["user", "assistant"]), words), max_size=4),
    ),
    st.recursive(st.none() | st.integers() | words, lambda inner: st.lists(inner, max_size=2)),
)
datasets = st.lists(st.lists(forms, max_size=12), min_size=1, max_size=3)
few_examples = settings(max_examples=settings.default.max_examples * 3 // 5)


def process(dataset: list[list[Any]], model: str = NOVA) -> Iterator[Outcome]:
    with tempfile.TemporaryDirectory() as folder:
        files = {f"{number}.jsonl": jsonl(rows) for number, rows in enumerate(dataset)}
        yield run(
            Path(folder), files, min_records="1", max_rejected_fraction="1", **{"base-model": model}
        )


def prompt_of(record: Any) -> str:
    if "prompt" in record:
        return str(record["prompt"])
    return json.dumps([record.get("system"), record["messages"][:-1]])


@few_examples
@given(datasets, st.sampled_from([NOVA, LLAMA]))
def test_every_record_is_written_dropped_or_rejected(dataset: list[list[Any]], model: str) -> None:
    for outcome in process(dataset, model):
        report = outcome.report
        for counts, rows in zip(report["files"], dataset, strict=True):
            assert counts["read"] == len(rows)
        for counts in (report["total"], *report["files"]):
            written = sum(counts[split] for split in SPLITS)
            assert counts["read"] == written + counts["duplicates"] + counts["rejected"]
            assert counts["rejected"] == sum(counts["rejected_reasons"].values())
        assert len(outcome.records) == sum(report["total"][split] for split in SPLITS)
        assert len(outcome.rejected) == report["total"]["rejected"]


@few_examples
@given(datasets, st.sampled_from([NOVA, LLAMA]))
def test_a_prompt_is_in_one_split_only(dataset: list[list[Any]], model: str) -> None:
    for outcome in process(dataset, model):
        prompts = [{prompt_of(record) for record in records} for records in outcome.splits.values()]
        assert len(set.union(*prompts)) == sum(map(len, prompts))


@few_examples
@given(datasets, st.integers(1, 4))
def test_the_size_of_a_chunk_changes_nothing(dataset: list[list[Any]], rows: int) -> None:
    for whole in process(dataset):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("processing.sorting.CHUNK_ROWS", rows)
            for chunked in process(dataset):
                assert chunked.splits == whole.splits
                assert chunked.rejected == whole.rejected
                assert chunked.report == whole.report


@few_examples
@given(datasets, datasets)
def test_more_rows_move_no_record(dataset: list[list[Any]], more: list[list[Any]]) -> None:
    for before in process(dataset):
        for after in process([*more, *dataset]):
            for split, records in before.splits.items():
                assert all(record in after.splits[split] for record in records)


@few_examples
@given(
    datasets, st.sampled_from([(NOVA, "bedrock-conversation-2024"), (LLAMA, "prompt-completion")])
)
def test_what_is_written_can_be_read_again(dataset: list[list[Any]], target: Any) -> None:
    model, data_format = target
    for outcome in process(dataset, model):
        for record in outcome.records:
            conversation = from_record(data_format, record)
            assert isinstance(conversation, Conversation)
            assert to_record(data_format, conversation) == record


@given(st.text())
def test_normalised_text_is_normal(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)


# Not getrusage, whose maximum a process inherits from the one that starts it.
PEAK = """
import re, sys
from pathlib import Path
from processing.preprocess import main
code = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
sys.exit(code)
"""


def peak_memory(root: Path, rows: int, ending: str) -> int:
    path = root / f"processing/input/dataset/a.{ending}"
    path.parent.mkdir(parents=True)
    records = ({"prompt": f"{n} " + "x" * 4_000, "completion": "y" * 4_000} for n in range(rows))
    if ending == "parquet":
        schema = pa.schema({"prompt": pa.string(), "completion": pa.string()})
        with pq.ParquetWriter(path, schema) as writer:
            for _ in range(0, rows, 500):
                group = [next(records) for _ in range(500)]
                writer.write_table(pa.Table.from_pylist(group, schema))
    else:
        with path.open("w", encoding="utf-8", newline="") as file:
            if ending == "csv":
                csv.writer(file).writerow(["prompt", "completion"])
                csv.writer(file).writerows(record.values() for record in records)
            else:
                file.writelines(json.dumps(record) + "\n" for record in records)
    finished = subprocess.run(
        [sys.executable, "-c", PEAK, *command("s3://data/set/")],
        env=os.environ | {"ML_ROOT": str(root)},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(finished.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc")
@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_memory_does_not_grow_with_the_dataset(tmp_path: Path, ending: str) -> None:
    small = peak_memory(tmp_path / "small", 1_000, ending)
    large = peak_memory(tmp_path / "large", 5_000, ending)
    assert large < 1.3 * small
