"""`quench ask` and `quench chat`: the deployed API in the terminal."""

from pathlib import Path
from typing import Any

import boto3
from rich.console import Console
from rich.markup import escape

from cli.api import Api, Mode, Reply, deployed_api
from cli.errors import CommandError
from cli.stacks import aws_errors, stack_outputs
from cli.synth import load_settings

MOST_TURNS = 50  # of a conversation's history, as the API takes it


def ask(
    question: str,
    mode: Mode,
    persona: str | None,
    max_tokens: int,
    stage: str,
    settings: Path | None,
    console: Console,
) -> None:
    """Ask once, and show the answer with its sources. Raises CommandError for an error response."""
    with aws_errors():
        api = _api(settings, stage)
        with console.status("Waiting for an answer…"):
            reply = api.ask(mode, question, max_tokens, persona)
    _show(_succeeded(reply), console)


def chat(
    mode: Mode,
    persona: str | None,
    max_tokens: int,
    stage: str,
    settings: Path | None,
    console: Console,
) -> None:
    """A conversation, until the input ends; an error ends one turn only."""
    with aws_errors():
        api = _api(settings, stage)
        history: list[dict[str, str]] = []
        console.print("[dim]Ctrl-D ends the conversation.[/]")
        while (question := _read(console)) is not None:
            with console.status("Waiting for an answer…"):
                reply = api.ask(mode, question, max_tokens, persona, history[-MOST_TURNS:])
            if reply.status != 200:
                console.print(f"[red]error[/]: {escape(reply.problem)}", soft_wrap=True)
                continue
            _show(reply.body, console)
            if reply.body["response"].strip():  # the API takes no blank turns
                history += [
                    {"role": "user", "text": question},
                    {"role": "assistant", "text": reply.body["response"]},
                ]


def _api(settings: Path | None, stage: str) -> Api:
    loaded = load_settings(settings)
    # Who asks production elsewhere has credentials of there: its API takes no others.
    elsewhere = stage == "prod" and loaded.production_elsewhere
    session = boto3.Session(region_name=loaded.production.region if elsewhere else None)
    return deployed_api(stack_outputs(f"{loaded.name}-{stage}-inference", session), session)


def _succeeded(reply: Reply) -> dict[str, Any]:
    if reply.status != 200:
        raise CommandError(reply.problem, f"Request {reply.request_id}")
    return reply.body


def _read(console: Console) -> str | None:
    """The next line that is not blank; None at the end of the input."""
    while True:
        try:
            line = console.input("[bold cyan]you[/] ").strip()
        except EOFError:
            console.print()
            return None
        if line:
            return line


def _show(answer: dict[str, Any], console: Console) -> None:
    console.print(escape(answer["response"]), soft_wrap=True, highlight=False)
    if note := answer.get("note"):
        console.print(f"[yellow]{escape(note)}[/]", soft_wrap=True)
    for number, source in enumerate(answer.get("sources", []), start=1):
        console.print(
            f"[dim]\\[{number}] {escape(source['title'])}  {escape(source['uri'])}  "
            f"{source['score']:.2f}[/]",
            soft_wrap=True,
            highlight=False,
        )
    console.print(f"[dim]{escape(answer['model_id'])}[/]", soft_wrap=True, highlight=False)
