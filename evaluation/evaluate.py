"""Entry point of the Evaluate step: scores the tuned model against its base model.

python -m evaluation.evaluate --base-model ID --serving-model ARN|none --custom-model ARN
    --job-arn ARN --embedding-model ID --max-records N --max-tokens N --concurrency N
    --gate-metric gain.rouge_l

Reads `processing/input/{test,training}` and writes `processing/output/{evaluation,model}` under
ML_ROOT (/opt/ml). A failing job leaves its message in ML_ROOT/output/message and exits with 1.
"""

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, get_args

from pydantic import BaseModel, PositiveInt, ValidationError

from bedrock.models import UnknownModelError, UnusableModelError, find_model, require_tunable
from bedrock.text import Limits
from evaluation.answers import AnswerPair, Models, answer_all, runtime_client
from evaluation.errors import EvaluationError
from evaluation.held_out import HeldOutRecord, choose, read_held_out
from evaluation.model_archive import write_model_archive
from evaluation.report import Evaluation, FailedAnswer, Gain, Sample, Step, gate_value
from evaluation.scores import compare, perplexity_gain
from evaluation.training_metrics import job_folder, read_training, read_validation

MESSAGE_BYTES = 1024  # what SageMaker keeps of a job's failure reason
SAMPLES = 10


class Arguments(BaseModel):
    """The command line. `serving_model` is None for a model without serving capacity."""

    base_model: str
    serving_model: str | None
    custom_model: str
    job_arn: str
    embedding_model: str
    max_records: PositiveInt
    max_tokens: PositiveInt
    concurrency: PositiveInt
    gate_metric: str


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the job; the exit status: 0, or 1 with the failure's message left for SageMaker."""
    root = Path(os.environ.get("ML_ROOT", "/opt/ml"))
    try:
        run(_parse(arguments), root / "processing")
    except (EvaluationError, UnknownModelError, UnusableModelError) as error:
        return _fail(root, str(error))
    except Exception as error:  # noqa: BLE001 - whatever stops the job must leave its message
        traceback.print_exc()
        return _fail(root, f"{type(error).__name__}: {error}")
    return 0


def run(arguments: Arguments, processing: Path) -> None:
    """Score, and write evaluation.json and model.tar.gz.

    Raises
    ------
    EvaluationError
        The inputs are missing or malformed, too many answers failed, or the gate's metric has no
        value.
    """
    evaluation = evaluate(arguments, processing / "input")
    output = processing / "output"
    report = output / "evaluation" / "evaluation.json"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(evaluation.model_dump_json(indent=2) + "\n", encoding="utf-8")
    write_model_archive(
        output / "model" / "model.tar.gz",
        {
            "custom_model": arguments.custom_model,
            "serving_model": arguments.serving_model,
            "base_model": arguments.base_model,
            "job": arguments.job_arn,
        },
    )
    value = gate_value(evaluation, arguments.gate_metric)
    print(f"{arguments.gate_metric} = {value:g}; report in {report}", flush=True)


def evaluate(arguments: Arguments, inputs: Path) -> Evaluation:
    """The evaluation of one tuned model, from the step's inputs and the models' answers."""
    base_model = find_model(arguments.base_model)
    job = job_folder(inputs / "training", arguments.job_arn)
    training, validation = read_training(job), read_validation(job)
    data_format = require_tunable(base_model).data_format
    records = read_held_out(inputs / "test" / "data.jsonl", data_format)
    pairs, failed = _ask(arguments, records)
    base = tuned = None
    gain = Gain(perplexity=perplexity_gain(validation))
    if pairs:
        base, tuned, gain = compare(pairs, validation)
    return Evaluation(
        base_model=arguments.base_model,
        custom_model=arguments.custom_model,
        serving_model=arguments.serving_model,
        job=arguments.job_arn,
        test_records=len(records),
        scored_records=len(pairs),
        training=training,
        validation=validation,
        base=base,
        tuned=tuned,
        gain=gain,
        failed_answers=failed,
        samples=[_sample(pair) for pair in pairs[:SAMPLES]],
    )


def _ask(
    arguments: Arguments, records: list[HeldOutRecord]
) -> tuple[list[AnswerPair], list[FailedAnswer]]:
    if arguments.serving_model is None:
        print("The tuned model has no serving capacity: no answers are scored.", flush=True)
        return [], []
    models = Models(
        base=find_model(arguments.base_model),
        serving_model=arguments.serving_model,
        embedding=find_model(arguments.embedding_model),
        limits=Limits(max_tokens=arguments.max_tokens, temperature=0.0),
        clients={step: runtime_client(arguments.concurrency) for step in get_args(Step)},
    )
    chosen = choose(records, arguments.max_records)
    print(f"Scoring {len(chosen)} of {len(records)} test records.", flush=True)
    pairs, failed = answer_all(chosen, models, arguments.concurrency)
    if failed:
        print(f"{len(failed)} records failed and are left out, see failed_answers.", flush=True)
    return pairs, failed


def _sample(pair: AnswerPair) -> Sample:
    return Sample(
        system=pair.record.system,
        prompt=pair.record.prompt,
        reference=pair.record.reference,
        base=pair.base.text,
        tuned=pair.tuned.text,
    )


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise EvaluationError(f"Bad arguments: {message}. {self.format_usage()}")


def _parse(arguments: Sequence[str] | None) -> Arguments:
    parser = _Parser(prog="python -m evaluation.evaluate")
    for name in Arguments.model_fields:
        parser.add_argument("--" + name.replace("_", "-"), required=True)
    values = vars(parser.parse_args(arguments))
    if values["serving_model"] == "none":
        values["serving_model"] = None
    try:
        return Arguments.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("_", "-")
        raise EvaluationError(f"Bad argument --{name} {first['input']!r}: {first['msg']}") from (
            error
        )


def _fail(root: Path, message: str) -> int:
    print(message, file=sys.stderr)
    target = root / "output" / "message"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(message.encode()[:MESSAGE_BYTES].decode(errors="ignore"), encoding="utf-8")
    return 1


if __name__ == "__main__":
    sys.exit(main())
