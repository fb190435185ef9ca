"""The `quench` command."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from cli import ask as asking
from cli import documents, models, release
from cli.demo import DemoOptions, run
from cli.errors import CommandError, write_trace
from cli.synth import write_assembly
from cli.up import EXAMPLE, UpOptions, serve

app = typer.Typer(
    help="Keep a generative application on AWS fine-tuned and well fed: whole, on this machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)


documents_app = typer.Typer(help="What is done with documents.", no_args_is_help=True)
app.add_typer(documents_app, name="documents")
models_app = typer.Typer(help="Which models there are, and the way back.", no_args_is_help=True)
app.add_typer(models_app, name="models")
release_app = typer.Typer(help="Where the release pipeline stands.", no_args_is_help=True)
app.add_typer(release_app, name="release")


class Model(StrEnum):
    smollm2 = "smollm2"
    tiny = "tiny"


class Mode(StrEnum):
    base = "base"
    tuned = "tuned"
    rag = "rag"


class Stage(StrEnum):
    qa = "qa"
    prod = "prod"


PORT = typer.Option(min=0, max=65535, help="Port on 127.0.0.1; 0 takes a free one.")
SettingsFile = Annotated[
    Path | None,
    typer.Option("--settings", help="Settings file; quench.toml here, if there is one."),
]
Source = Annotated[
    Path | None,
    typer.Option(help="Working tree that releases are made of; Quench's own.", file_okay=False),
]
LocalModel = Annotated[
    Model | None,
    typer.Option(
        "--model", help="What stands in for every foundation model: SmolLM2, or random weights."
    ),
]


@contextmanager
def shown_errors() -> Iterator[None]:
    """Errors that people can act on end the command with a message instead of a stack trace."""
    try:
        yield
    except CommandError as error:
        _fail(str(error), error.hint)
    except KeyboardInterrupt:
        _fail("Interrupted; everything was stopped.", code=130)
    except Exception as error:  # noqa: BLE001 - a defect, or a call that AWS refused
        _fail(f"{type(error).__name__}: {error}", f"The stack trace is in {write_trace(error)}")


def _fail(message: str, hint: str = "", code: int = 1) -> None:
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    console.print(f"[red]error[/]: {escape(message)}")
    if hint:
        console.print(escape(hint))
    raise typer.Exit(code)


def _version(wanted: bool) -> None:
    if wanted:
        try:
            typer.echo(f"quench {version('quench')}")
        except PackageNotFoundError:
            typer.echo("quench, run from its source without being installed")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)


@app.command()
def up(
    port: Annotated[int | None, PORT] = None,
    state_dir: Annotated[
        Path | None, typer.Option(help="Where logs and jobs' files are kept.")
    ] = None,
    model: LocalModel = None,
    source: Source = None,
    settings: SettingsFile = None,
) -> None:
    """Serve the embedded cloud, with the stacks deployed, until Ctrl-C."""
    with shown_errors():
        serve(
            UpOptions(settings, port, state_dir, model.value if model else None, source), Console()
        )


@app.command()
def synth(
    output: Annotated[Path, typer.Option(help="Folder of the cloud assembly.")] = Path("cdk.out"),
    settings: SettingsFile = None,
) -> None:
    """Write the CloudFormation templates; needs no AWS account."""
    with shown_errors():
        typer.echo(f"Written to {write_assembly(settings, output)}")


@app.command()
def demo(
    dataset: Annotated[Path, typer.Option(help="The dataset to tune on: one file.")] = EXAMPLE,
    port: Annotated[int, PORT] = 0,
    model: LocalModel = None,
    source: Source = None,
    settings: SettingsFile = None,
    timeout: Annotated[float, typer.Option(help="Minutes after which the demo gives up.")] = 30,
    plain: Annotated[bool, typer.Option("--plain", help="One line for each change.")] = False,
) -> None:
    """Hydrate the example's lore, tune on a dataset, release the model, ask the API."""
    options = DemoOptions(
        dataset=dataset,
        settings=settings,
        port=port,
        model=model.value if model else None,
        source=source,
        timeout_seconds=timeout * 60,
    )
    console = Console()
    with shown_errors():
        run(options, console, plain=plain or not console.is_terminal)


ModeOption = Annotated[
    Mode, typer.Option(help="The base model, the tuned one, or the base model with knowledge.")
]
MaxTokens = Annotated[
    int,
    typer.Option(min=1, help="How long an answer may get; a laptop makes about 12 a second."),
]
Persona = Annotated[str | None, typer.Option(help="Who answers: a persona's file name.")]
StageOption = Annotated[Stage, typer.Option(help="The stage that is asked.")]


@app.command()
def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    mode: ModeOption = Mode.base,
    persona: Persona = None,
    max_tokens: MaxTokens = 100,
    stage: StageOption = Stage.prod,
    settings: SettingsFile = None,
) -> None:
    """Ask the deployed API one question."""
    with shown_errors():
        asking.ask(question, mode.value, persona, max_tokens, stage.value, settings, Console())


@app.command()
def chat(
    mode: ModeOption = Mode.base,
    persona: Persona = None,
    max_tokens: MaxTokens = 100,
    stage: StageOption = Stage.prod,
    settings: SettingsFile = None,
) -> None:
    """Talk with the deployed API."""
    with shown_errors():
        asking.chat(mode.value, persona, max_tokens, stage.value, settings, Console())


@documents_app.command()
def sync(
    settings: SettingsFile = None,
    timeout: Annotated[
        float, typer.Option(help="Minutes after which nobody waits any longer; the job goes on.")
    ] = 60,
) -> None:
    """Compare the documents bucket with the index, and repair the index either way."""
    with shown_errors():
        documents.sync(settings, timeout, Console())


@models_app.command("list")
def list_models(settings: SettingsFile = None) -> None:
    """Every registered model, and which one each stage serves."""
    with shown_errors():
        models.list_models(settings, Console())


@models_app.command()
def rollback(settings: SettingsFile = None) -> None:
    """Put the model before this one back, and release it."""
    with shown_errors():
        models.rollback(settings, Console())


@release_app.command()
def status(settings: SettingsFile = None) -> None:
    """Every stage and action, as it ran last."""
    with shown_errors():
        release.status(settings, Console())


@release_app.command()
def approve(
    reject: Annotated[bool, typer.Option("--reject", help="Do not let it pass.")] = False,
    comment: Annotated[str, typer.Option(help="Why, for those who read it later.")] = "",
    settings: SettingsFile = None,
) -> None:
    """Let the release that waits pass to production."""
    with shown_errors():
        release.approve(settings, reject, comment, Console())


@release_app.command()
def retry(settings: SettingsFile = None) -> None:
    """Run again what failed in the newest release."""
    with shown_errors():
        release.retry(settings, Console())


if __name__ == "__main__":
    sys.exit(app())
