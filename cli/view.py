"""What the demo shows: a live view on a terminal, a line for each change elsewhere."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from cli.lore import Question
from cli.progress import Phase, Progress, Step, now
from cli.result import Answer, Picture, Release
from evaluation.report import Evaluation, ModelScores, Sample

SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
EIGHTHS = " ▁▂▃▄▅▆▇█"
PLOT_WIDTH, PLOT_HEIGHT = 64, 6
LOSS_LINE_EVERY = 10
ANSWERS_SHOWN = 3
QUESTIONS_SHOWN = 3
SCORE_NAMES = {
    "rouge_l": "ROUGE-L (0 to 1)",
    "chrf": "chrF (0 to 100)",
    "embedding_similarity": "Embedding similarity",
}


@contextmanager
def shown(progress: Progress, console: Console, plain: bool) -> Iterator[None]:
    """Show progress, as it changes, until left."""
    if plain:
        progress.on_change = PlainView(progress, console).update
        yield
        return
    with Live(
        console=console,
        get_renderable=lambda: render(progress, now()),
        refresh_per_second=8,
        redirect_stderr=False,
    ):
        yield


def render(progress: Progress, at: datetime) -> RenderableType:
    """Everything that is known at a moment, in less than 30 lines."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(overflow="ellipsis", no_wrap=True, ratio=1)
    table.add_column(justify="right", no_wrap=True)
    table.expand = True
    for phase in progress.phases:
        table.add_row(_phase_mark(phase, at), Text(phase.note, "dim"), _seconds(phase, at))
        if phase.name == "tune":
            for step in progress.steps:
                table.add_row(_step_mark(step, at), _step_note(step, progress), _seconds(step, at))
    parts: list[RenderableType] = [Text(), table]
    if progress.losses:
        parts += [Text(), _loss_chart(progress.losses)]
    return Padding(Group(*parts, Text()), (0, 2))


def _phase_mark(phase: Phase, at: datetime) -> Text:
    if phase.failed:
        return Text.assemble(("✗ ", "red"), (phase.name, "bold red"))
    if phase.ended:
        return Text.assemble(("✓ ", "green"), phase.name)
    if phase.started:
        return Text.assemble((f"{_spin(at)} ", "cyan"), (phase.name, "bold"))
    return Text(f"· {phase.name}", "dim")


def _step_mark(step: Step, at: datetime) -> Text:
    if step.status == "Succeeded":
        return Text.assemble(("    ✓ ", "green"), step.name)
    if step.running:
        return Text.assemble((f"    {_spin(at)} ", "cyan"), step.name)
    if step.failed:
        return Text.assemble(("    ✗ ", "red"), (step.name, "red"))
    return Text(f"    · {step.name}", "dim")


def _step_note(step: Step, progress: Progress) -> Text:
    note = Text(step.status.lower() if not step.started else step.status, "dim")
    if step.failure_reason:
        note.append(f": {step.failure_reason}", "red")
    elif step.type == "Callback" and step.running and progress.machine_state:
        note.append(" · state machine in ")
        note.append(progress.machine_state, "not dim cyan")
    return note


def _spin(at: datetime) -> str:
    return SPINNER[int(at.timestamp() * 8) % len(SPINNER)]


def _seconds(part: Phase | Step, at: datetime) -> Text:
    return Text(f"{part.seconds(at):.0f} s" if part.started else "", "dim")


def _loss_chart(losses: Sequence[float]) -> RenderableType:
    title = Text.assemble(
        ("training loss  ", "bold"),
        f"{losses[0]:.2f} → {losses[-1]:.2f}",
        (f"   step {len(losses)}", "dim"),
    )
    columns = averaged(losses, PLOT_WIDTH)
    labels = [f"{max(columns):.2f}", *[""] * (PLOT_HEIGHT - 2), f"{min(columns):.2f}"]
    chart = Text("\n").join(
        Text.assemble((f"{label:>6} ", "dim"), (line, "cyan"))
        for label, line in zip(labels, plot(columns, PLOT_HEIGHT), strict=True)
    )
    return Group(title, chart)


def averaged(values: Sequence[float], columns: int) -> list[float]:
    """Means of at most `columns` runs of neighbours, as equal in length as can be."""
    columns = min(columns, len(values))
    edges = [round(i * len(values) / columns) for i in range(columns + 1)]
    return [sum(values[a:b]) / (b - a) for a, b in pairwise(edges)]


def plot(values: Sequence[float], height: int) -> list[str]:
    """A bar chart in block characters: `height` lines, a column for each value.

    The lines span the values' range; the smallest still shows as an eighth of a line.
    """
    low, high = min(values), max(values)
    scale = (height * 8 - 1) / (high - low) if high > low else 0.0
    bars = [1 + round((value - low) * scale) for value in values]
    return [
        "".join(EIGHTHS[min(8, max(0, bar - 8 * line))] for bar in bars)
        for line in reversed(range(height))
    ]


class PlainView:
    """A line for each change, for logs. A state of the state machine is told once."""

    def __init__(self, progress: Progress, console: Console) -> None:
        self._progress = progress
        self._console = console
        self._told: set[str] = set()

    def update(self) -> None:
        at = now()
        for phase in self._progress.phases:
            if phase.ended:
                ending = "failed" if phase.failed else "done"
                self._tell(f"{phase.name}: {ending}", f"after {phase.seconds(at):.1f} s")
            elif phase.started:
                self._tell(f"{phase.name}: {phase.note or 'started'}")
        for step in self._progress.steps:
            if step.started:
                after = f"after {step.seconds(at):.1f} s" if step.ended else ""
                reason = f": {step.failure_reason}" if step.failure_reason else ""
                self._tell(f"  {step.name}: {step.status}", after + reason)
        if self._progress.machine_state:
            self._tell(f"    state machine: {self._progress.machine_state}")
        losses = self._progress.losses
        if losses:
            count = max(1, len(losses) // LOSS_LINE_EVERY * LOSS_LINE_EVERY)
            self._tell(f"    training loss: step {count}", f"{losses[count - 1]:.3f}")

    def _tell(self, what: str, more: str = "") -> None:
        if what not in self._told:
            self._told.add(what)
            self._console.print(f"{what} {more}".rstrip(), markup=False, soft_wrap=True)


def comparison(evaluation: Evaluation) -> RenderableType:
    """Base against tuned, as `evaluation.json` has them."""
    base, tuned = evaluation.base, evaluation.tuned
    if base is None or tuned is None:
        return Text("The tuned model has no serving capacity: nothing was answered or compared.")
    table = Table(
        title=f"Base against tuned, {evaluation.scored_records} of "
        f"{evaluation.test_records} held-out records",
        title_justify="left",
        title_style="bold",
        header_style="dim",
        box=None,
        padding=(0, 2, 0, 0),
    )
    table.add_column("", no_wrap=True)
    for name in ("base", "tuned", "change"):
        table.add_column(name, justify="right", no_wrap=True)

    if base.perplexity and tuned.perplexity:
        table.add_row(
            "Perplexity (validation)",
            f"{base.perplexity:.2f}",
            f"{tuned.perplexity:.2f}",
            _change(tuned.perplexity / base.perplexity - 1, ".0%", better=-1),
        )
    for name, form in (("rouge_l", ".3f"), ("chrf", ".1f"), ("embedding_similarity", ".3f")):
        before, after = getattr(base, name), getattr(tuned, name)
        table.add_row(
            SCORE_NAMES[name],
            _score(base, name, form),
            _score(tuned, name, form),
            _change(after - before, form, better=1),
        )
    table.add_row("Length, of reference's", f"{base.length_ratio:.2f}", f"{tuned.length_ratio:.2f}")
    table.add_row("Seconds, p50 / p95", _latency(base), _latency(tuned))
    return Group(table, Text("[…] is the 95 % confidence interval of the mean.", "dim"))


def _score(scores: ModelScores, name: str, form: str) -> Text:
    text = Text(f"{getattr(scores, name):{form}}")
    interval = getattr(scores.intervals, name, None)
    if interval:
        text.append(f" [{interval[0]:{form}}, {interval[1]:{form}}]", "dim")
    return text


def _latency(scores: ModelScores) -> str:
    return f"{scores.latency_seconds.p50:.2f} / {scores.latency_seconds.p95:.2f}"


def _change(change: float, form: str, better: int) -> Text:
    gain = change * better
    return Text(f"{change:+{form}}", "green" if gain > 0 else "red" if gain < 0 else "dim")


def answers(samples: Sequence[Sample]) -> RenderableType:
    """Three samples side by side: the first of each persona, as far as there are that many."""
    parts: list[RenderableType] = [Text("Answers to held-out prompts", "bold")]
    for sample in _one_of_each_persona(samples)[:ANSWERS_SHOWN]:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", expand=True)
        for name in ("reference", "base", "tuned"):
            table.add_column(name, ratio=1, overflow="fold")
        table.add_row(
            *(Text(text or "–") for text in (sample.reference, sample.base, sample.tuned))
        )
        question = Text.assemble((persona(sample.system), "cyan"), "  ", (sample.prompt, "italic"))
        parts += [Text(), question, table]
    return Group(*parts)


def _one_of_each_persona(samples: Sequence[Sample]) -> list[Sample]:
    """The report's order, but with the first sample of each persona before all others."""
    seen: set[str | None] = set()
    firsts: list[Sample] = []
    others: list[Sample] = []
    for sample in samples:
        (others if sample.system in seen else firsts).append(sample)
        seen.add(sample.system)
    return firsts + others


def persona(system: str | None) -> str:
    """`You are Maren Vale, a smith of …` → `Maren Vale`; else the system prompt's beginning."""
    if not system:
        return "No system prompt"
    named = re.match(r"You are ([^,.;:(]+)", system)
    return named[1].strip() if named else system.split(".")[0][:40]


def found_passages(questions: Sequence[Question]) -> RenderableType:
    """What some questions found, spread over all of them; the document that answers has a mark."""
    found = sum(question.found for question in questions)
    parts: list[RenderableType] = [
        Text.assemble(
            ("Passages found in the lore", "bold"),
            (f"   {found} of {len(questions)} questions found their document", "dim"),
        )
    ]
    for question in questions[:: max(1, len(questions) // QUESTIONS_SHOWN)][:QUESTIONS_SHOWN]:
        table = Table.grid(padding=(0, 2))
        table.add_column(no_wrap=True)
        table.add_column(no_wrap=True, overflow="ellipsis", ratio=1)
        table.expand = True
        for passage in question.passages:
            name = passage.source.rpartition("/")[2]
            answers = name == question.document
            table.add_row(
                Text.assemble(
                    ("✓ " if answers else "  ", "green"), (name, "" if answers else "dim")
                ),
                Text(" ".join(passage.text.split()), "" if answers else "dim"),
            )
        parts += [Text(), Text(question.text, "italic"), table]
    return Group(*parts)


def release(released: Release) -> RenderableType:
    """Which model each stage served before and after."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("stage", no_wrap=True)
    for name in ("before", "after"):
        table.add_column(name, overflow="fold")
    table.add_column("system tests", no_wrap=True)
    for stage in released.stages:
        table.add_row(
            Text(stage.name, "cyan"),
            Text(_model(stage.model_before), "dim"),
            _model(stage.model_after),
            Text(
                stage.system_tests or "–", "green" if stage.system_tests == "Succeeded" else "dim"
            ),
        )
    title = Text.assemble(
        ("Released  ", "bold"),
        f"{released.pipeline}, {released.seconds:.0f} s",
        (f"   {released.execution}", "dim"),
    )
    return Group(title, Text(), table)


def _model(arn: str | None) -> str:
    return arn.rpartition(":")[2] if arn else "base model"


def api_answers(question: str, given: Sequence[Answer], picture: Picture | None) -> RenderableType:
    """One question answered by each mode of the API, with its sources, and what was drawn."""
    table = Table.grid(padding=(0, 2))
    table.add_column(no_wrap=True)
    table.add_column(ratio=1, overflow="fold")
    table.add_column(justify="right", no_wrap=True)
    table.expand = True
    for answer in given:
        said = Text(answer.response, "" if answer.status == 200 else "red")
        for number, source in enumerate(answer.sources, start=1):
            name = source.uri.rpartition("/")[2]
            said.append(f"\n[{number}] {source.title}  {name}  {source.score:.2f}", "dim")
        table.add_row(Text(answer.mode, "cyan"), said, Text(f"{answer.seconds:.1f} s", "dim"))
    if picture:
        kind = "a placeholder, " if picture.placeholder else ""
        drawn = Text.assemble(picture.path, (f"  {kind}by {picture.model_id}", "dim"))
        table.add_row(Text("image", "cyan"), drawn, Text(f"{picture.seconds:.1f} s", "dim"))
    return Group(
        Text.assemble(("Asked through the API  ", "bold"), (question, "italic")), Text(), table
    )


def listing(places: dict[str, str]) -> Text:
    """A line for each name."""
    width = max(map(len, places)) + 3
    return Text("\n").join(
        Text.assemble((f"{name:<{width}}", "dim"), place) for name, place in places.items()
    )
