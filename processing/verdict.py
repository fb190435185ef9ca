"""Whether a preprocessed dataset is fit to tune on, said so that an engineer can act on it."""

from collections import Counter

from bedrock.models import TuningRules
from processing.report import SPLITS, PreprocessReport


class PreprocessError(Exception):
    """The dataset cannot be used; the message says why, and what to do."""


def judge(
    report: PreprocessReport,
    rules: TuningRules,
    min_records: int,
    max_rejected_fraction: float,
) -> None:
    """Raise PreprocessError if the model cannot, or should not, be tuned on what was written."""
    total = report.total
    if total.read == 0:
        raise PreprocessError(
            f"No record could be read from {report.dataset_uri}."
            f"{_file_errors(report)} Upload a dataset of at least {min_records} records."
        )
    if total.rejected > max_rejected_fraction * total.read:
        raise PreprocessError(
            f"{total.rejected} of {total.read} records were rejected, more than "
            f"{max_rejected_fraction:.0%}.{_top_reasons(report)}{_file_errors(report)} "
            "Correct them (rejected/rejected.jsonl of this run names file and line of each) and "
            "upload again."
        )
    if total.written < min_records:
        raise PreprocessError(
            f"Too few records: {total.written} of {total.read} can be used, at least "
            f"{min_records} are needed ({total.duplicates} duplicates, {total.rejected} "
            f"rejected).{_top_reasons(report)}{_file_errors(report)} Add records."
        )
    counts = {split: getattr(total, split) for split in SPLITS}
    if not all(counts.values()):
        raise PreprocessError(
            f"Too few records: of {total.written}, "
            + ", ".join(f"{count} fell to {split}" for split, count in counts.items())
            + ". Each needs one at least: add records, or raise the fractions."
        )
    tuned_on = total.train + total.validation
    if tuned_on < rules.minimum_records:
        raise PreprocessError(
            f"Too few records: {tuned_on} are left for training and validation, and fine-tuning "
            f"{report.base_model} takes {rules.minimum_records:,} at least.{_top_reasons(report)} "
            "Add records."
        )
    if tuned_on > rules.maximum_records:
        raise PreprocessError(
            f"Too many records: {tuned_on:,} for training and validation, and fine-tuning "
            f"{report.base_model} takes {rules.maximum_records:,} at most. Take records "
            "out of the dataset, or have the quota raised and change it in bedrock/models.toml."
        )


def _top_reasons(report: PreprocessReport) -> str:
    if not report.total.rejected:
        return ""
    reasons = Counter(report.total.rejected_reasons).most_common(3)
    return " Most often: " + "; ".join(f"{count} × {reason}" for reason, count in reasons) + "."


def _file_errors(report: PreprocessReport) -> str:
    errors = [f"{file.name}: {file.error}" for file in report.files if file.error]
    if not errors:
        return ""
    more = f"; and {len(errors) - 2} more" if len(errors) > 2 else ""
    return f" Files that could not be used: {'; '.join(errors[:2])}{more}."
