"""`.quench/demo.json`: what a run of the demo came to, for machines."""

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

RESULT_FILE = Path(".quench/demo.json")


class Record(BaseModel):
    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Phase(Record):
    name: str
    seconds: float


class Step(Record):
    name: str
    type: str
    status: str


class Execution(Record):
    arn: str
    status: str
    steps: list[Step]


class StateMachine(Record):
    execution_arn: str
    status: str


class Training(Record):
    """Taken from the step-wise metrics that Bedrock left in S3. Losses are nats per token."""

    job_arn: str
    steps: int
    first_loss: float
    last_loss: float


class Scores(Record):
    """Perplexity of the validation split; mean ROUGE-L (0 to 1) and chrF (0 to 100) of answers."""

    perplexity: float | None
    rouge_l: float
    chrf: float


class Evaluation(Record):
    test_records: int
    base: Scores | None
    tuned: Scores | None


class ModelPackage(Record):
    arn: str
    approval_status: str


class Parameter(Record):
    """`value` is the text that Parameter Store holds: JSON."""

    name: str
    value: str


class Knowledge(Record):
    """Documents and chunks in the index, and how many questions found their document among the
    first five passages (0 to 1). `seconds` pass from the first upload to the last chunk indexed."""

    documents: int
    chunks: int
    failed: int
    embedding_calls: int
    questions: int
    recall_at_5: float
    seconds: float


class Source(Record):
    uri: str
    title: str
    score: float


class Answer(Record):
    """What the API said to the demo's question."""

    mode: Literal["base", "tuned", "rag"]
    status: int
    model_id: str
    response: str
    sources: list[Source]
    seconds: float


class Picture(Record):
    """What the API drew; `path` is where it is kept."""

    status: int
    model_id: str
    placeholder: bool
    path: str
    seconds: float


class Stage(Record):
    """What a stage answered with, by its `/health`; null is the base model. `system_tests` is the
    status of those that asked this stage."""

    name: str
    model_before: str | None
    model_after: str | None
    system_tests: str | None


class Release(Record):
    """The execution of the release pipeline that brought the approved model to the stages."""

    pipeline: str
    execution: str
    status: str
    seconds: float
    stages: list[Stage]


class DemoResult(Record):
    """A part is null when the run ended before it was known; `error` is there only if not `ok`."""

    ok: bool = False
    phases: list[Phase] = []
    knowledge: Knowledge | None = None
    execution: Execution | None = None
    state_machine: StateMachine | None = None
    training: Training | None = None
    evaluation: Evaluation | None = None
    model_package: ModelPackage | None = None
    parameter: Parameter | None = None
    release: Release | None = None
    answers: list[Answer] = []
    picture: Picture | None = None
    peak_memory_mb: float = 0.0
    error: str | None = None

    def write(self, path: Path = RESULT_FILE) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        absent = {"error"} if self.error is None else None
        path.write_text(self.model_dump_json(indent=2, exclude=absent) + "\n", encoding="utf-8")
