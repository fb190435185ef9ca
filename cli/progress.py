"""How far the demo is: what happens in it writes this, what shows it reads it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

PHASES = ("start", "hydrate", "upload", "tune", "approve", "promote", "release", "answer")
WAITING = "Waiting"


def now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Phase:
    name: str
    started: datetime | None = None
    ended: datetime | None = None
    note: str = ""
    failed: bool = False

    def seconds(self, at: datetime) -> float:
        return ((self.ended or at) - self.started).total_seconds() if self.started else 0.0


@dataclass(frozen=True)
class Step:
    """A step of the pipeline; `Waiting` until the service lists it, then the service's status."""

    name: str
    type: str
    status: str = WAITING
    started: datetime | None = None
    ended: datetime | None = None
    failure_reason: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)

    @property
    def running(self) -> bool:
        return self.status in ("Starting", "Executing", "Stopping")

    @property
    def failed(self) -> bool:
        return self.status in ("Failed", "Stopped")

    def seconds(self, at: datetime) -> float:
        if self.started is None:
            return 0.0
        return max(0.0, ((self.ended or at) - self.started).total_seconds())


@dataclass
class Progress:
    """Parts are replaced whole, never changed in place: a view may read from its own thread."""

    phases: tuple[Phase, ...] = tuple(Phase(name) for name in PHASES)
    steps: tuple[Step, ...] = ()
    machine_state: str = ""
    losses: tuple[float, ...] = ()
    on_change: Callable[[], None] = lambda: None

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time a phase; an error in it marks it as failed."""
        self._change(name, started=now())
        try:
            yield
        except BaseException:
            self._change(name, ended=now(), failed=True)
            raise
        self._change(name, ended=now())

    def note(self, name: str, note: str) -> None:
        """Say where or on what a phase works."""
        self._change(name, note=note)

    def update(
        self,
        steps: tuple[Step, ...] | None = None,
        machine_state: str | None = None,
        losses: tuple[float, ...] | None = None,
    ) -> None:
        """Take over what is newly known."""
        if steps is not None:
            self.steps = steps
        if machine_state is not None:
            self.machine_state = machine_state
        if losses is not None:
            self.losses = losses
        self.on_change()

    def _change(self, name: str, **changes: Any) -> None:
        self.phases = tuple(replace(p, **changes) if p.name == name else p for p in self.phases)
        self.on_change()


def expected_steps(definition: dict[str, Any]) -> tuple[Step, ...]:
    """The steps of a pipeline definition that run if all goes well, in order.

    Of a condition's branches that is the first, `IfSteps`.
    """
    steps: list[Step] = []
    for step in definition["Steps"]:
        steps.append(Step(step["Name"], step["Type"]))
        if step["Type"] == "Condition":
            steps.extend(expected_steps({"Steps": step["Arguments"]["IfSteps"]}))
    return tuple(steps)


def merge_steps(expected: tuple[Step, ...], listed: list[dict[str, Any]]) -> tuple[Step, ...]:
    """Expected steps with what ListPipelineExecutionSteps says of them; others follow."""
    types = {step.name: step.type for step in expected}
    found = {
        entry["StepName"]: Step(
            name=entry["StepName"],
            type=types.get(entry["StepName"]) or next(iter(entry.get("Metadata", {})), "Step"),
            status=entry["StepStatus"],
            started=entry.get("StartTime"),
            ended=entry.get("EndTime"),
            failure_reason=entry.get("FailureReason", ""),
            metadata=entry.get("Metadata", {}),
        )
        for entry in sorted(listed, key=lambda entry: str(entry.get("StartTime")))
    }
    merged = tuple(found.pop(step.name, step) for step in expected)
    return merged + tuple(found.values())
