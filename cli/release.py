"""`quench release`: where the release pipeline stands, and what a person can do about it."""

from pathlib import Path

import boto3
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.errors import CommandError
from cli.pipeline import Action, ReleasePipeline
from cli.stacks import aws_errors, stack_outputs
from cli.synth import load_settings

STYLES = {"Succeeded": "green", "Failed": "red", "InProgress": "cyan"}


def status(settings: Path | None, console: Console) -> None:
    """Show the pipeline's newest execution, and every action as it ran last."""
    with aws_errors():
        pipeline = _pipeline(settings)
        executions, actions = pipeline.executions(), pipeline.actions()
    if not executions:
        console.print(f"{pipeline.name} has not run yet.", soft_wrap=True)
        return
    newest = executions[0]
    console.print(
        Text.assemble(
            (pipeline.name, "bold"),
            f"  {newest.id}  ",
            (newest.status, STYLES.get(newest.status, "yellow")),
            (f"  since {newest.started.astimezone():%Y-%m-%d %H:%M:%S}", "dim"),
        ),
        soft_wrap=True,
    )
    console.print(table(actions, newest.id))
    if approval := _waiting(actions):
        console.print(f"{approval.place} waits: quench release approve, or approve --reject")
    elif failed := _failed(actions):
        console.print(f"{failed.place} failed. To run it again: quench release retry")


def approve(settings: Path | None, reject: bool, comment: str, console: Console) -> None:
    """Answer the approval that waits. Raises CommandError if none does."""
    with aws_errors():
        pipeline = _pipeline(settings)
        approval = _waiting(pipeline.actions())
        if approval is None:
            raise CommandError(
                f"No approval waits in {pipeline.name}.", "See where it is: quench release status"
            )
        pipeline.answer(approval, not reject, comment)
    done = "rejected: the release ends here" if reject else "approved: the release goes on"
    console.print(f"{approval.place} {done}.", soft_wrap=True)


def retry(settings: Path | None, console: Console) -> None:
    """Run the failed actions again, or release once more. Raises CommandError if all is well."""
    with aws_errors():
        pipeline = _pipeline(settings)
        failed = _failed(pipeline.actions())
        if failed is None:
            raise CommandError(
                f"Nothing of {pipeline.name} has failed.", "See where it is: quench release status"
            )
        newest = pipeline.executions()[0]
        if failed.execution == newest.id:
            pipeline.retry(failed.stage, failed.execution)
            console.print(f"{failed.place} runs again in {failed.execution}.", soft_wrap=True)
        else:
            console.print(
                f"{newest.id} came after the release that failed in {failed.place}; it decides.",
                soft_wrap=True,
            )


def table(actions: list[Action], execution: str) -> Table:
    """A line for each action; what an earlier release did is dimmed."""
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("stage", "action", "status", "changed"):
        shown.add_column(name, no_wrap=True)
    shown.add_column("", overflow="fold")
    stage = ""
    for action in actions:
        style = STYLES.get(action.status, "yellow") if action.execution == execution else "dim"
        shown.add_row(
            "" if action.stage == stage else action.stage,
            action.name,
            Text(action.status or "–", style),
            f"{action.changed.astimezone():%H:%M:%S}" if action.changed else "",
            Text(action.message if action.status == "Failed" else "", "dim"),
        )
        stage = action.stage
    return shown


def _pipeline(settings: Path | None) -> ReleasePipeline:
    outputs = stack_outputs(f"{load_settings(settings).name}-release")
    return ReleasePipeline(outputs["ReleasePipelineName"], boto3.client)


def _waiting(actions: list[Action]) -> Action | None:
    return next((a for a in actions if a.token and a.status == "InProgress"), None)


def _failed(actions: list[Action]) -> Action | None:
    """The last of those that failed: what failed before it was passed by a later release."""
    return next((a for a in reversed(actions) if a.status == "Failed"), None)
