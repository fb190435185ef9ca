"""`quench release`: where the release pipeline stands, and what a person can do about it."""

import json
from collections.abc import Mapping
from pathlib import Path

import boto3
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cli.errors import CommandError
from cli.models import model_name
from cli.pipeline import Action, Execution, ReleasePipeline, find_failed
from cli.stacks import aws_errors, stack_outputs
from cli.synth import load_settings

STYLES = {"Succeeded": "green", "Failed": "red", "InProgress": "cyan"}


def status(settings: Path | None, console: Console) -> None:
    """Show the pipeline's newest execution, and what each action did in it, or did last."""
    with aws_errors():
        pipeline = _pipeline(settings)
        if not (executions := pipeline.executions()):
            console.print(f"{pipeline.name} has not run yet.", soft_wrap=True)
            return
        newest = executions[0]
        actions, own = pipeline.actions(), pipeline.actions_of(newest.id)
    console.print(
        Text.assemble(
            (pipeline.name, "bold"),
            f"  {newest.id}  ",
            (newest.status, STYLES.get(newest.status, "yellow")),
            (f"  since {newest.started.astimezone():%Y-%m-%d %H:%M:%S}", "dim"),
        ),
        soft_wrap=True,
    )
    console.print(table(actions, own))
    if approval := _waiting(actions):
        whose = "" if approval.execution == newest.id else f" in {approval.execution}, before this"
        console.print(
            f"{approval.place} waits{whose}: quench release approve, or approve --reject",
            soft_wrap=True,
        )
    elif newest.status == "Failed" and (failed := find_failed(own)):
        console.print(
            f"{failed.place} failed: {failed.message or 'it gave no reason'}\n", markup=False
        )
        console.print("To run it again: quench release retry")


def approve(settings: Path | None, reject: bool, comment: str, console: Console) -> None:
    """Answer the approval that waits. Raises CommandError if none does."""
    with aws_errors():
        pipeline = _pipeline(settings)
        approval = _waiting(pipeline.actions())
        if approval is None:
            raise CommandError(
                f"No approval waits in {pipeline.name}.", "See where it is: quench release status"
            )
        model = _tested_model(pipeline.actions_of(approval.execution))
        pipeline.answer(approval, not reject, comment)
        newest = _newest(pipeline)
    done = "rejected: the release ends here" if reject else "approved: the release goes on"
    console.print(f"{approval.place} {done}, with {model} ({approval.execution}).", soft_wrap=True)
    if newest.id != approval.execution:
        console.print(f"A newer release comes after it: {newest.id}", soft_wrap=True)


def retry(settings: Path | None, console: Console) -> None:
    """Run again what failed in the newest release. Raises CommandError if it has not failed."""
    with aws_errors():
        pipeline = _pipeline(settings)
        newest = _newest(pipeline)
        failed = find_failed(pipeline.actions_of(newest.id))
        if newest.status != "Failed" or failed is None:
            raise CommandError(
                f"The newest release, {newest.id}, has not failed: it is {newest.status}.",
                "See where it is: quench release status",
            )
        pipeline.retry(failed.stage, newest.id)
    console.print(f"{failed.place} runs again in {newest.id}.", soft_wrap=True)


def table(actions: list[Action], own: Mapping[str, Action]) -> Table:
    """A line for each action, as it is in an execution of its own; else dimmed, as it ran last."""
    shown = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("stage", "action", "status", "changed"):
        shown.add_column(name, no_wrap=True)
    stage = ""
    for action in actions:
        here = own.get(action.place)
        action = here or action
        style = STYLES.get(action.status, "yellow") if here else "dim"
        shown.add_row(
            "" if action.stage == stage else action.stage,
            action.name,
            Text(action.status or "–", style),
            f"{action.changed.astimezone():%H:%M:%S}" if action.changed else "",
        )
        stage = action.stage
    return shown


def _pipeline(settings: Path | None) -> ReleasePipeline:
    outputs = stack_outputs(f"{load_settings(settings).name}-release")
    return ReleasePipeline(outputs["ReleasePipelineName"], boto3.client)


def _newest(pipeline: ReleasePipeline) -> Execution:
    if not (executions := pipeline.executions()):
        raise CommandError(
            f"{pipeline.name} has not run yet.",
            f"Start it: aws codepipeline start-pipeline-execution --name {pipeline.name}",
        )
    return executions[0]


def _waiting(actions: list[Action]) -> Action | None:
    return next((a for a in actions if a.token and a.status == "InProgress"), None)


def _tested_model(actions: Mapping[str, Action]) -> str:
    """What an execution deployed QA with, by name."""
    values = (a.outputs["ServedModel"] for a in actions.values() if "ServedModel" in a.outputs)
    value = next(values, None)
    return model_name(json.loads(value)) if value else "a model that it does not tell"
