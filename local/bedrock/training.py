"""Runs one model customization job: `python -m local.bedrock.training <folder>/job.json`.

Everything it makes lies in the job's folder: the metrics, appended as it trains, the adapter, and,
should it fail, why (`message`). At its end the metrics go to the job's output prefix in S3.
Where S3 is comes from the environment (AWS_ENDPOINT_URL and so on).
"""

import csv
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import boto3

from bedrock.conversations import Conversation
from bedrock.models import TuningRules, find_model, require_tunable
from local.bedrock.records import JobError, check_count, read_conversations, split_uri

if TYPE_CHECKING:
    from local.bedrock.chat import Example
    from local.bedrock.lora import Plan, Step
    from local.bedrock.weights import ModelName

TRAINING_METRICS = "step_wise_training_metrics.csv"
VALIDATION_METRICS = "validation_metrics.csv"
ADAPTER = "adapter"
MESSAGE = "message"

BATCH_SIZE = 8  # where the service lets nobody choose
MAX_TOKENS = 2_048  # of a record: what a laptop's memory can train on
# LoRA's learning rate for the service's own default, and the highest that is stable.
DEFAULT_RATE = 1e-3
HIGHEST_RATE = 5e-3


@dataclass(frozen=True)
class TrainingJob:
    """What a job is to do; job.json. Hyperparameters are the service's."""

    id: str
    model: "ModelName"
    weights_cache: str
    base_model: str
    training_uri: str
    validation_uri: str | None
    output_uri: str
    hyperparameters: dict[str, float]

    def save(self, folder: Path) -> Path:
        """Write job.json into the job's folder. Returns its path."""
        path = folder / "job.json"
        path.write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")
        return path


def main(path: Path) -> None:
    """Run the job whose job.json this is. Raises JobError."""
    job = TrainingJob(**json.loads(path.read_text(encoding="utf-8")))
    rules = require_tunable(find_model(job.base_model))
    s3 = boto3.client("s3")
    training = read_conversations(s3, job.training_uri, rules)
    validation = read_conversations(s3, job.validation_uri, rules) if job.validation_uri else []
    check_count(rules, training, validation)
    _train(job, path.parent, rules, training, validation)
    _upload(s3, job, path.parent)


def _train(
    job: TrainingJob,
    folder: Path,
    rules: TuningRules,
    training: Sequence[Conversation],
    validation: Sequence[Conversation],
) -> None:
    # Imported only now: torch takes seconds, and bad data should fail at once.
    from local.bedrock import lora, weights

    try:
        loaded = weights.load(job.model, Path(job.weights_cache))
    except weights.WeightsMissingError as error:
        raise JobError(str(error)) from error
    model, steps = lora.tune(
        loaded,
        _examples(loaded.tokenizer, training, job.training_uri),
        _examples(loaded.tokenizer, validation, job.validation_uri or ""),
        plan_of(rules, job.hyperparameters),
    )
    with (
        (folder / TRAINING_METRICS).open("w", encoding="utf-8", newline="") as training_metrics,
        (folder / VALIDATION_METRICS).open("w", encoding="utf-8", newline="") as validation_metrics,
    ):
        _record(steps, training_metrics, validation_metrics)
    model.save_pretrained(folder / ADAPTER)


def plan_of(rules: TuningRules, hyperparameters: dict[str, float]) -> "Plan":
    """LoRA's settings for the service's hyperparameters; see docs/local-bedrock.md."""
    from local.bedrock.lora import Plan

    share = hyperparameters["learningRate"] / rules.hyperparameters["learningRate"].default
    return Plan(
        epochs=int(hyperparameters["epochCount"]),
        batch_size=int(hyperparameters.get("batchSize", BATCH_SIZE)),
        learning_rate=min(HIGHEST_RATE, DEFAULT_RATE * share),
        warmup_steps=int(hyperparameters.get("learningRateWarmupSteps", 0)),
    )


def _examples(tokenizer: Any, conversations: Iterable[Conversation], uri: str) -> "list[Example]":
    from local.bedrock.chat import example

    examples = [example(tokenizer, conversation) for conversation in conversations]
    for number, one in enumerate(examples, 1):
        if len(one.tokens) > MAX_TOKENS:
            raise JobError(
                f"The record in line {number} of {uri} is {len(one.tokens):,} tokens long: "
                f"the embedded cloud trains on {MAX_TOKENS:,} at most."
            )
    return examples


def _record(steps: "Iterable[Step]", training: IO[str], validation: IO[str]) -> None:
    """Write each step's losses as it is taken, in Bedrock's columns."""
    training_rows, validation_rows = csv.writer(training), csv.writer(validation)
    training_rows.writerow(["step_number", "epoch_number", "training_loss", "perplexity"])
    validation_rows.writerow(["step_number", "epoch_number", "validation_loss", "perplexity"])
    for step in steps:
        if not math.isfinite(step.loss):
            raise JobError(
                f"Training diverged at step {step.number}: the loss is no longer a number. "
                "Lower learningRate."
            )
        if step.number:
            training_rows.writerow([step.number, step.epoch, step.loss, math.exp(step.loss)])
            training.flush()
        if (loss := step.validation_loss) is not None:
            validation_rows.writerow([step.number, step.epoch, loss, math.exp(loss)])
            validation.flush()


def _upload(s3: Any, job: TrainingJob, folder: Path) -> None:
    """Leave the metrics where Bedrock does.

    https://docs.aws.amazon.com/bedrock/latest/userguide/model-customization-analyze.html
    """
    bucket, prefix = split_uri(job.output_uri.rstrip("/"))
    root = "/".join(filter(None, [prefix, f"model-customization-job-{job.id}"]))
    files = {TRAINING_METRICS: f"training_artifacts/{TRAINING_METRICS}"}
    if job.validation_uri:
        files[VALIDATION_METRICS] = (
            f"validation_artifacts/post_fine_tuning_validation/validation/{VALIDATION_METRICS}"
        )
    for name, key in files.items():
        s3.put_object(Bucket=bucket, Key=f"{root}/{key}", Body=(folder / name).read_bytes())


if __name__ == "__main__":
    job_file = Path(sys.argv[1])
    try:
        main(job_file)
    except JobError as failure:
        (job_file.parent / MESSAGE).write_text(str(failure), encoding="utf-8")
        sys.exit(1)
    except Exception as failure:
        (job_file.parent / MESSAGE).write_text(
            f"The job failed in the embedded cloud: {failure!r}", encoding="utf-8"
        )
        raise
