"""`quench documents sync`: the index made true to the documents bucket, whatever happened."""

import time
from collections.abc import Sequence
from pathlib import Path

import boto3
from rich.console import Console
from rich.table import Table

from cli.errors import CommandError
from cli.knowledge import Knowledge, wait_until_ended
from cli.stacks import aws_errors, stack_outputs
from cli.synth import load_settings
from processing.hydration_report import Failure, HydrationReport

LOOK_SECONDS = 2.0
FAILURES_SHOWN = 20


def sync(settings: Path | None, timeout_minutes: float, console: Console) -> None:
    """Start a full reconciliation, follow it to its end and show its report.

    Raises
    ------
    CommandError
        There is no knowledge stack, the job could not be started or did not end in time, or
        documents failed.
    """
    loaded = load_settings(settings)
    deadline = time.monotonic() + timeout_minutes * 60
    with aws_errors():
        outputs = stack_outputs(f"{loaded.name}-knowledge")
        knowledge = Knowledge(loaded.name, outputs, boto3.client)
        with console.status("Starting a hydration job…") as status:
            job = knowledge.start_sync()
            while job.running:  # another one, which must end first
                status.update(f"Waiting for {job.name}, which runs already…")
                wait_until_ended(knowledge, job.name, deadline, LOOK_SECONDS)
                job = knowledge.start_sync()
            status.update(f"{job.name} compares the bucket and the index…")
            job = wait_until_ended(knowledge, job.name, deadline, LOOK_SECONDS)
    reports = knowledge.reports(job.name)
    if reports:
        console.print(summary(reports))
    if job.status != "Completed":
        failures = [failure for report in reports for failure in report.failures]
        bucket = knowledge.outputs["HydrationBucketName"]
        raise CommandError(
            _failed(failures) if failures else f"{job.name} {job.status.lower()}: {job.reason}",
            f"The reports of {job.name} are in s3://{bucket}/reports/{job.name}/",
        )
    true = f"[green]✓[/] The index is true to s3://{knowledge.documents_bucket}/"
    console.print(true, soft_wrap=True)


def summary(reports: Sequence[HydrationReport]) -> Table:
    """Documents and chunks by what became of them, over all hosts, and what failed."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("")
    for name in ("added", "changed", "unchanged", "removed", "failed"):
        table.add_column(name, justify="right")
    for kind in ("documents", "chunks"):
        counts = [getattr(report, kind).model_dump() for report in reports]
        table.add_row(
            kind,
            *(
                str(sum(count[name] for count in counts)) if name in counts[0] else ""
                for name in ("added", "changed", "unchanged", "removed", "failed")
            ),
        )
    return table


def _failed(failures: Sequence[Failure]) -> str:
    lines = [f"  {failure.document}: {failure.reason}" for failure in failures[:FAILURES_SHOWN]]
    if len(failures) > FAILURES_SHOWN:
        lines.append(f"  … and {len(failures) - FAILURES_SHOWN} more")
    what = "documents could not be hydrated. Mend or delete them; every job tries them again."
    return "\n".join([f"{len(failures)} {what}", *lines])
