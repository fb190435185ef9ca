"""Reads the metrics that a Bedrock model-customization job leaves in its output folder.

Files and columns: Amazon Bedrock User Guide, "Analyze the results of a model customization job".
"""

import csv
from pathlib import Path

from evaluation.errors import EvaluationError
from evaluation.metrics import perplexity
from evaluation.report import TrainingMetrics, ValidationMetrics


def job_folder(training: Path, job_arn: str) -> Path:
    """The job's own folder, `model-customization-job-<id>`, wherever it lies under the prefix.

    Raises
    ------
    EvaluationError
        There is no such folder.
    """
    name = "model-customization-job-" + job_arn.rpartition("/")[2]
    folder = next((path for path in sorted(training.rglob(name)) if path.is_dir()), None)
    if folder is None:
        raise EvaluationError(
            f"No folder {name} among the outputs of job {job_arn}. Bedrock writes it to the S3 "
            "prefix of the job's outputDataConfig; check that this prefix is the step's input."
        )
    return folder


def read_training(job: Path) -> TrainingMetrics:
    """First and last loss and the number of steps of `step_wise_training_metrics.csv`.

    Raises
    ------
    EvaluationError
        The file is missing or malformed; names it.
    """
    losses = _losses(job, "training_artifacts", "step_wise_training_metrics.csv", "training_loss")
    return TrainingMetrics(steps=len(losses), first_loss=losses[0][1], last_loss=losses[-1][1])


def read_validation(job: Path) -> ValidationMetrics | None:
    """First and last loss of `validation_metrics.csv`; None for a job without validation data.

    Bedrock writes `validation_artifacts` only for a job with validation data. A row of step 0
    followed by others is the model before training, which is to say the base model.

    Raises
    ------
    EvaluationError
        The job had validation data, but the file is missing or malformed; names it.
    """
    if not (job / "validation_artifacts").is_dir():
        return None
    losses = _losses(job, "validation_artifacts", "validation_metrics.csv", "validation_loss")
    first_step, first = losses[0]
    last = losses[-1][1]
    before_training = first if first_step == 0 and len(losses) > 1 else None
    return ValidationMetrics(
        first_loss=before_training,
        last_loss=last,
        first_perplexity=None if before_training is None else perplexity(before_training),
        last_perplexity=perplexity(last),
    )


def _losses(job: Path, artifacts: str, name: str, column: str) -> list[tuple[float, float]]:
    """Rows of one metrics file, at least one, as (step number, loss)."""
    path = next(iter(sorted((job / artifacts).rglob(name))), None)
    if path is None:
        raise EvaluationError(f"{job.name}/{artifacts} holds no {name}: the job's output is torn.")
    label = path.relative_to(job.parent)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, strict=True)
            missing = {"step_number", column} - set(rows.fieldnames or ())
            if missing:
                raise ValueError(f"it has no column {', '.join(sorted(missing))}")
            losses = [_row(row, column, rows.line_num) for row in rows]
    except (ValueError, csv.Error) as error:
        raise EvaluationError(f"{label} cannot be read: {error}.") from error
    if not losses:
        raise EvaluationError(f"{label} cannot be read: it has no rows.")
    return losses


def _row(row: dict[str, str], column: str, line: int) -> tuple[float, float]:
    try:
        step, loss = float(row["step_number"]), float(row[column])
        perplexity(loss)
    except (TypeError, ValueError) as error:
        raise ValueError(f"line {line}: {error}") from error
    return step, loss
