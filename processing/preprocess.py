"""The Preprocess step: an uploaded dataset becomes training, validation and test data for Bedrock.

Runs in the processing container, as `python -m processing.preprocess`. Below ML_ROOT (`/opt/ml`):

    processing/input/dataset/**                           the dataset's files
    processing/output/{train,validation,test}/data.jsonl  records in the base model's format
    processing/output/rejected/rejected.jsonl             what was left out, from where, and why
    processing/output/report/preprocess_report.json       counts of everything (report.py)
    output/message                                        why the job failed, if it did
"""

import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Self

import boto3
import pandas as pd
from botocore.exceptions import ClientError
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from bedrock.models import (
    UnknownModelError,
    UnusableModelError,
    find_model,
    require_tunable,
    require_usable,
)
from processing.job import ArgumentsError, leave_message, parse_arguments
from processing.records import Columns
from processing.report import SPLITS, Counts, FileReport, PreprocessReport
from processing.sorting import Sorter
from processing.verdict import PreprocessError, judge

LATEST = "latest"  # instead of an object's version: whichever is there


class Arguments(BaseModel):
    """What the job was started with; a column that is `auto` is found by its name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    base_model: str
    dataset_uri: str = Field(pattern=r"^s3://[^/]+/.")
    dataset_version: str
    prompt_column: str | None = None
    completion_column: str | None = None
    system_column: str | None = None
    validation_fraction: float = Field(gt=0, lt=1)
    test_fraction: float = Field(gt=0, lt=1)
    min_records: int = Field(ge=1)
    max_rejected_fraction: float = Field(ge=0, le=1)

    @property
    def columns(self) -> Columns:
        return Columns(self.prompt_column, self.completion_column, self.system_column)

    @property
    def fractions(self) -> tuple[float, float]:
        return self.validation_fraction, self.test_fraction

    @field_validator("prompt_column", "completion_column", "system_column")
    @classmethod
    def _auto_is_none(cls, column: str | None) -> str | None:
        return None if column == "auto" else column

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if (self.prompt_column is None) != (self.completion_column is None):
            raise ValueError("prompt-column and completion-column must be given together")
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation-fraction and test-fraction leave nothing to train on")
        return self


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job; returns its exit code."""
    root = Path(os.environ.get("ML_ROOT", "/opt/ml"))
    try:
        report = preprocess(
            parse_arguments(Arguments, "processing.preprocess", __doc__, argv), root
        )
    except (ArgumentsError, PreprocessError, UnknownModelError, UnusableModelError) as error:
        leave_message(root, str(error))
        print(error, file=sys.stderr)
        return 1
    except Exception as error:
        leave_message(root, f"Preprocessing broke off: {type(error).__name__}: {error}")
        raise
    for file in report.files:
        print(file.model_dump_json())
    return 0


def preprocess(arguments: Arguments, root: Path) -> PreprocessReport:
    """Write the splits, the rejected records and the report below `root`. Raises PreprocessError.

    The report is complete before anything is judged, so that a job that fails leaves it too.
    """
    model = find_model(arguments.base_model)
    require_usable(model, datetime.now(UTC).date())
    rules = require_tunable(model)
    dataset = root / "processing/input/dataset"
    paths = _dataset_files(dataset, arguments.dataset_uri)
    if len(paths) == 1 and not arguments.dataset_uri.endswith("/"):
        _fetch_version(arguments.dataset_uri, arguments.dataset_version, paths[0])
    output = root / "processing/output"
    destinations = {"rejected": output / "rejected/rejected.jsonl"}
    destinations |= {split: output / split / "data.jsonl" for split in SPLITS}
    with ExitStack() as stack:
        writers = {name: stack.enter_context(_writer(path)) for name, path in destinations.items()}
        sorter = Sorter(rules, arguments.columns, arguments.fractions, writers)
        files = [sorter.sort_file(path, str(path.relative_to(dataset))) for path in paths]
    report = PreprocessReport(
        dataset_uri=arguments.dataset_uri,
        dataset_version=arguments.dataset_version,
        base_model=model.id,
        data_format=rules.data_format,
        total=_total(files),
        rejected_files=sum(file.error is not None for file in files),
        files=files,
    )
    report_file = output / "report/preprocess_report.json"
    report_file.parent.mkdir(parents=True, exist_ok=True)
    report_file.write_text(report.model_dump_json(indent=2), encoding="utf-8")
    judge(report, rules, arguments.min_records, arguments.max_rejected_fraction)
    return report


def _dataset_files(dataset: Path, uri: str) -> list[Path]:
    """The files that belong to the dataset: SageMaker also copies keys that only begin with its."""
    if not uri.endswith("/"):
        path = dataset / uri.rsplit("/", 1)[-1]
        if not path.is_file():
            raise PreprocessError(f"{uri} was not among the job's input in {dataset}.")
        return [path]
    paths = [path for path in sorted(dataset.rglob("*")) if path.is_file()]
    paths = [path for path in paths if path.name != "_SUCCESS"]
    if not paths:
        raise PreprocessError(
            f"There is no file below {uri}. "
            "Upload the dataset's files, and after them an object named _SUCCESS."
        )
    return paths


def _fetch_version(uri: str, version: str, path: Path) -> None:
    """Replace the file by the very version that the run is for: a newer one may have come since.

    A processing job's input is always an object's latest version. Raises PreprocessError.
    """
    if version == LATEST:
        return
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    try:
        boto3.client("s3").download_file(bucket, key, str(path), ExtraArgs={"VersionId": version})
    except ClientError as error:
        raise PreprocessError(f"Version {version} of {uri} could not be read: {error}") from error


def _total(files: Sequence[FileReport]) -> Counts:
    table = pd.DataFrame([file.model_dump() for file in files])
    counts = table.sum(numeric_only=True)
    reasons = pd.DataFrame(table["rejected_reasons"].tolist()).sum().astype(int)
    ranked = reasons.sort_values(ascending=False, kind="stable")
    return Counts.model_validate({**counts.to_dict(), "rejected_reasons": ranked.to_dict()})


def _writer(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("w", encoding="utf-8", newline="\n")


if __name__ == "__main__":
    sys.exit(main())
