"""Settings: `quench.toml`, overridden by `QUENCH_…` environment variables.

A nested key is reached with a double underscore: `QUENCH_TUNING__CHECK_SECONDS=300`.
"""

import math
import os
import re
from dataclasses import dataclass
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)
from pydantic_settings import SettingsError as UnreadableVariableError

from bedrock.models import (
    TuningRules,
    UnknownModelError,
    all_models,
    find_model,
    require_tunable,
    require_usable,
)


def _embeds(model_id: str) -> str:
    known = [model.id for model in all_models() if "embedding" in model.tasks]
    if model_id not in known:
        raise ValueError(f"{model_id} is not an embedding model; known are {', '.join(known)}")
    return model_id


def _draws(model_id: str) -> str:
    known = {model.id: model for model in all_models() if "image" in model.tasks}
    if model_id not in known:
        raise ValueError(f"{model_id} is not an image model; known are {', '.join(known)}")
    require_usable(known[model_id], date.today())
    return model_id


def _answers(model_id: str) -> str:
    if not model_id:
        return model_id
    try:
        model = find_model(model_id)
    except UnknownModelError as error:
        raise ValueError(str(error)) from error
    if "text" not in model.tasks:
        raise ValueError(f"{model_id} is not a text model")
    require_usable(model, date.today())
    return model_id


ENVIRONMENT_PREFIX = "QUENCH_"
FILE_VARIABLE = "QUENCH_SETTINGS"
"""Names the settings file where nobody can say `--settings`: in a build of the pipeline."""
EmbeddingModel = Annotated[str, AfterValidator(_embeds)]
ImageModel = Annotated[str, AfterValidator(_draws)]
TextModel = Annotated[str, AfterValidator(_answers)]
Guardrail = Annotated[str, Field(pattern=r"^$|^[a-z0-9]+:([1-9][0-9]{0,7}|DRAFT)$")]
Region = Annotated[str, Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$")]
Account = Annotated[str, Field(pattern=r"^(\d{12})?$")]
InstanceType = Annotated[str, Field(pattern=r"^ml\.")]
Fraction = Annotated[float, Field(gt=0, lt=0.5)]
# The numbers of evaluation.json (docs/evaluation.md) that a gate can read.
METRIC = (
    r"^((gain|base|tuned)\.(perplexity|rouge_l|chrf|embedding_similarity)"
    r"|(base|tuned)\.(length_ratio|latency_seconds\.p50|latency_seconds\.p95)"
    r"|training\.(steps|first_loss|last_loss)"
    r"|validation\.(first|last)_(loss|perplexity)"
    r"|test_records|scored_records)$"
)


# Those of them that need no answers, which a model without serving capacity cannot give.
METRIC_WITHOUT_ANSWERS = r"^(training|validation)\.|^gain\.perplexity$|_records$"
MAXIMUM_LOOKS = 2_500  # each adds 9 events to a state machine's history, which holds 25,000


class SettingsError(ValueError):
    """A setting that is unknown or has a value that is not allowed; the message names it."""


@dataclass(frozen=True)
class Place:
    """Where stacks are deployed to. The account is "" where that of the credentials is meant."""

    account: str
    region: str


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Dataset(Section):
    prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_\-.][A-Za-z0-9_\-./]*/$")] = "datasets/"
    prompt_column: str = "auto"
    completion_column: str = "auto"
    system_column: str = "auto"
    validation_fraction: Fraction = 0.1
    test_fraction: Fraction = 0.1
    min_records: Annotated[int, Field(ge=3)] = 20
    max_rejected_fraction: Annotated[float, Field(ge=0, le=1)] = 0.5

    @model_validator(mode="after")
    def _columns_belong_together(self) -> "Dataset":
        if (self.prompt_column == "auto") != (self.completion_column == "auto"):
            raise ValueError(
                "prompt_column and completion_column must both be named, or both be auto"
            )
        return self


class Tuning(Section):
    base_model: str = "amazon.nova-micro-v1:0:128k"
    serving: Literal["on-demand", "provisioned"] = "on-demand"
    check_seconds: Annotated[int, Field(ge=1, le=86_400)] = 600
    timeout_hours: Annotated[float, Field(gt=0, le=24 * 7)] = 24
    schedule: Annotated[str, Field(pattern=r"^$|^(rate|cron)\(.+\)$")] = ""
    instance_type: InstanceType = "ml.m5.large"
    hyperparameters: dict[str, float] = {}

    @field_validator("hyperparameters", mode="before")
    @classmethod
    def _names_in_their_own_case(cls, values: Any, info: ValidationInfo) -> Any:
        """A variable's name says nothing of case: `QUENCH_…__EPOCHCOUNT` is `epochCount`."""
        try:
            rules = require_tunable(find_model(info.data["base_model"]))
        except (KeyError, UnknownModelError):
            return values  # what is wrong with the base model is said of that
        if not isinstance(values, dict):
            return values
        known = {name.casefold(): name for name in rules.hyperparameters}
        return {known.get(name.casefold(), name): value for name, value in values.items()}

    @property
    def rules(self) -> TuningRules:
        """What the service asks of tuning the base model."""
        return require_tunable(find_model(self.base_model))

    @model_validator(mode="after")
    def _known_model(self) -> "Tuning":
        try:
            rules = self.rules
        except UnknownModelError as error:
            raise ValueError(str(error)) from error
        if self.serving == "on-demand" and not rules.on_demand:
            raise ValueError(
                f"serving is on-demand, but {self.base_model} cannot be deployed on demand once "
                "tuned; choose provisioned"
            )
        for name, value in self.hyperparameters.items():
            if name not in rules.hyperparameters:
                allowed = ", ".join(sorted(rules.hyperparameters))
                raise ValueError(
                    f"hyperparameters.{name} is not one of {self.base_model}'s: {allowed}"
                )
            known = rules.hyperparameters[name]
            if not known.minimum <= value <= known.maximum:
                raise ValueError(
                    f"hyperparameters.{name} is {value:g}, "
                    f"allowed are {known.minimum:g} to {known.maximum:g}"
                )
            if known.kind == "int" and value != int(value):
                raise ValueError(f"hyperparameters.{name} is {value:g}, it must be a whole number")
        return self

    @model_validator(mode="after")
    def _history_suffices(self) -> "Tuning":
        least = math.ceil(self.timeout_hours * 3600 / MAXIMUM_LOOKS)
        if self.check_seconds < least:
            raise ValueError(
                f"check_seconds is {self.check_seconds}: a state machine cannot look so often for "
                f"timeout_hours of {self.timeout_hours:g}; choose {least} or more"
            )
        return self

    def hyperparameter_defaults(self) -> dict[str, str]:
        """Every hyperparameter of the base model, as the service takes them: text."""
        values = {name: known.default for name, known in self.rules.hyperparameters.items()}
        values.update(self.hyperparameters)
        return {name: _decimal(value) for name, value in values.items()}


class Evaluation(Section):
    embedding_model: EmbeddingModel = "amazon.titan-embed-text-v2:0"
    max_records: Annotated[int, Field(ge=1, le=10_000)] = 40
    max_tokens: Annotated[int, Field(ge=1, le=4_096)] = 64
    concurrency: Annotated[int, Field(ge=1, le=64)] = 8


class QualityGate(Section):
    metric: Annotated[str, Field(pattern=METRIC)] = "gain.rouge_l"
    comparison: Literal["at_least", "at_most"] = "at_least"
    threshold: Annotated[float, Field(allow_inf_nan=False)] = 0.0


class Release(Section):
    parameter: Annotated[str, Field(pattern=r"^/[A-Za-z0-9_.\-/]+$")] = "/quench/model"
    repository: Annotated[str, Field(pattern=r"^[A-Za-z0-9_.\-]+(/[A-Za-z0-9_.\-]+)*$")] = "quench"
    branch: Annotated[str, Field(pattern=r"^[^\s#{}]+$")] = "main"
    connection: Annotated[
        str,
        Field(pattern=r"^$|^arn:aws[a-z-]*:code(star-)?connections:[a-z0-9-]+:\d{12}:connection/"),
    ] = ""
    production_account: Account = ""
    production_region: Region | Literal[""] = ""
    production_approval: bool = False
    approval_retry_seconds: Annotated[int, Field(ge=60, le=43_200)] = 300

    @property
    def production_parameter(self) -> str:
        """Names the model that production is deployed with; only the release pipeline writes it."""
        return f"{self.parameter}-prod"

    @model_validator(mode="after")
    def _repository_where_it_is(self) -> "Release":
        if self.connection and "/" not in self.repository:
            raise ValueError(
                f"repository is {self.repository}, but behind a connection it is named with its "
                "owner: owner/name"
            )
        if not self.connection and "/" in self.repository:
            raise ValueError(
                f"repository is {self.repository}: a CodeCommit repository's name has no slash; "
                "for GitHub, GitLab or Bitbucket set connection to the ARN of a connection"
            )
        return self


class OpenSearch(Section):
    endpoint: Annotated[str, Field(pattern=r"^$|^https://[A-Za-z0-9.\-]+(:\d+)?$")] = ""
    instance_type: Annotated[str, Field(pattern=r"^[a-z0-9]+\.[a-z0-9]+\.search$")] = (
        "t3.medium.search"
    )
    instance_count: Annotated[int, Field(ge=1, le=40)] = 1
    volume_gb: Annotated[int, Field(ge=10, le=24_576)] = 20

    @field_validator("endpoint")
    @classmethod
    def _within_reach(cls, endpoint: str) -> str:
        host = urlsplit(endpoint).hostname or ""
        if re.search(r"\.aoss\.(amazonaws\.com|on\.aws)$", host):
            raise ValueError(
                f"{host} is OpenSearch Serverless, whose vector collections take no document ids; "
                "name the endpoint of a domain"
            )
        if re.search(r"^vpc-.*\.(amazonaws\.com|amazonaws\.com\.cn|on\.aws)$", host):
            raise ValueError(
                f"{host} is inside a VPC, which hydration jobs cannot reach; name the endpoint of "
                "a domain with public access"
            )
        return endpoint


class Knowledge(Section):
    embedding_model: EmbeddingModel = "amazon.titan-embed-text-v2:0"
    dimensions: int = 256
    index: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_\-]{0,99}$")] = "documents"
    chunk_size: Annotated[int, Field(ge=100, le=8_000)] = 1_000
    chunk_overlap: Annotated[int, Field(ge=0)] = 100
    concurrency: Annotated[int, Field(ge=1, le=256)] = 16
    requests_per_second: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0
    batch_window_seconds: Annotated[int, Field(ge=1, le=300)] = 20
    instance_type: InstanceType = "ml.m5.large"
    instance_count: Annotated[int, Field(ge=1, le=20)] = 1
    timeout_hours: Annotated[float, Field(gt=0, le=48)] = 12
    opensearch: OpenSearch = OpenSearch()

    @model_validator(mode="after")
    def _dimensions_of_the_model(self) -> "Knowledge":
        sizes = find_model(self.embedding_model).dimensions
        if self.dimensions not in sizes:
            raise ValueError(
                f"dimensions is {self.dimensions}; vectors of {self.embedding_model} have "
                f"{' or '.join(map(str, sizes))}"
            )
        return self

    @model_validator(mode="after")
    def _overlap_leaves_progress(self) -> "Knowledge":
        if self.chunk_overlap > self.chunk_size / 2:
            raise ValueError(
                f"chunk_overlap is {self.chunk_overlap}, at most half of chunk_size "
                f"({self.chunk_size}) is allowed"
            )
        return self


class Api(Section):
    text_model: TextModel = ""
    image_model: ImageModel = "stability.stable-image-core-v1:1"
    image_region: Region = "us-west-2"
    authorization: Literal["iam", "api-key"] = "iam"
    rate_limit: Annotated[int, Field(ge=1, le=10_000)] = 50
    burst_limit: Annotated[int, Field(ge=1, le=5_000)] = 100
    personas_uri: Annotated[
        str, Field(pattern=r"^$|^s3://[a-z0-9][a-z0-9.\-]{1,61}[a-z0-9]/([A-Za-z0-9_\-./]+/)?$")
    ] = ""
    guardrail: Guardrail = ""
    image_guardrail: Guardrail = ""
    log_prompts: bool = False

    @model_validator(mode="after")
    def _draws_where_the_model_is(self) -> "Api":
        regions = find_model(self.image_model).regions
        if self.image_region not in regions:
            raise ValueError(
                f"image_region is {self.image_region}, but {self.image_model} can be invoked only "
                f"in {', '.join(regions)}"
            )
        return self


class Alarms(Section):
    email: str = ""


class Local(Section):
    port: Annotated[int, Field(ge=0, le=65_535)] = 4566
    state_dir: Path = Path(".quench/cloud")
    wait_scale: Annotated[float, Field(gt=0, le=1)] = 0.005
    model: Literal["smollm2", "tiny"] = "smollm2"
    opensearch: Annotated[str, Field(pattern=r"^$|^https?://[^/\s]+$")] = ""


class Settings(BaseSettings):
    """Everything that can be set. `Settings.load` reads it; a bare `Settings()` has no file."""

    model_config = SettingsConfigDict(
        env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9\-]{1,19}$")] = "quench"
    account: Account = ""
    region: Region = "us-east-1"
    dataset: Dataset = Dataset()
    tuning: Tuning = Tuning()
    evaluation: Evaluation = Evaluation()
    quality_gate: QualityGate = QualityGate()
    release: Release = Release()
    knowledge: Knowledge = Knowledge()
    api: Api = Api()
    alarms: Alarms = Alarms()
    local: Local = Local()

    @model_validator(mode="after")
    def _region_tunes(self) -> "Settings":
        regions = self.tuning.rules.regions
        if self.region not in regions:
            raise ValueError(
                f"region is {self.region}, but {self.tuning.base_model} is fine-tuned "
                f"only in {', '.join(regions)}"
            )
        return self

    @model_validator(mode="after")
    def _region_embeds(self) -> "Settings":
        model_id = self.knowledge.embedding_model
        regions = find_model(model_id).regions
        if self.region not in regions:
            raise ValueError(
                f"region is {self.region}, but knowledge.embedding_model {model_id} can be invoked "
                f"only in {', '.join(regions)}"
            )
        return self

    @property
    def home(self) -> Place:
        """Where everything is but, perhaps, production."""
        return Place(self.account, self.region)

    @property
    def production(self) -> Place:
        release = self.release
        return Place(
            release.production_account or self.account, release.production_region or self.region
        )

    @property
    def production_elsewhere(self) -> bool:
        return self.production != self.home

    @model_validator(mode="after")
    def _knows_both_accounts(self) -> "Settings":
        if self.production_elsewhere and not self.account:
            raise ValueError(
                "account must name this account, since release.production_account or "
                "release.production_region puts production elsewhere, and each side names the "
                "other in what it allows"
            )
        return self

    @property
    def text_model_id(self) -> str:
        """What the APIs invoke until a tuned model is approved: an inference profile where one is
        named, or where the model can only be invoked by one."""
        model_id = self.api.text_model or self.tuning.base_model
        model = find_model(model_id)
        return model.invoke_id if model_id == model.id else model_id

    @model_validator(mode="after")
    def _region_answers(self) -> "Settings":
        model = find_model(self.text_model_id)
        if self.text_model_id == model.id and self.region not in model.regions:
            raise ValueError(
                f"region is {self.region}, but api.text_model {model.id} can be invoked only in "
                f"{', '.join(model.regions)}"
            )
        return self

    @model_validator(mode="after")
    def _gate_has_a_number(self) -> "Settings":
        metric = self.quality_gate.metric
        if self.tuning.serving == "provisioned" and not re.search(METRIC_WITHOUT_ANSWERS, metric):
            raise ValueError(
                f"quality_gate.metric is {metric}, but tuning.serving is provisioned: nothing "
                "serves the tuned model yet when it is evaluated, so it answers nothing. Choose "
                "a metric of training or validation, such as validation.last_perplexity, or "
                "gain.perplexity"
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, TomlConfigSettingsSource(settings_cls)

    @classmethod
    def load(cls, path: Path | str | None = None, **overrides: Any) -> "Settings":
        """Read the settings of a file, environment on top.

        Without a path it is the one that `QUENCH_SETTINGS` names, or `quench.toml` here, if there
        is one.

        Raises
        ------
        SettingsError
            Names each unknown key or bad value, where it came from and what is allowed.
        """
        named = path or os.environ.get(FILE_VARIABLE)
        file = Path(named or "quench.toml")
        if named and not file.is_file():
            raise SettingsError(f"{file}: there is no such settings file")
        unknown = _unknown_variables(cls)
        if unknown:
            raise SettingsError("\n".join(unknown))
        reader = type(
            cls.__name__, (cls,), {"model_config": {**cls.model_config, "toml_file": file}}
        )
        try:
            settings: Settings = reader(**overrides)
        except ValidationError as error:
            raise SettingsError(_explain(cls, error, file)) from error
        except UnreadableVariableError as error:  # not the JSON that a whole section must be
            raise SettingsError(f"{ENVIRONMENT_PREFIX}… variables: {error}") from error
        except ValueError as error:  # not TOML at all
            raise SettingsError(f"{file}: {error}") from error
        return settings


def _decimal(value: float) -> str:
    """Without an exponent: 1e-05 is written 0.00001, as in the service's documentation."""
    return format(Decimal(str(value)).normalize(), "f")


def _unknown_variables(cls: type[Settings]) -> list[str]:
    """pydantic-settings passes over variables that it does not know; a typo must be heard."""
    problems = []
    for variable in sorted(os.environ):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable == FILE_VARIABLE:
            continue
        path = variable.removeprefix(ENVIRONMENT_PREFIX).lower().split("__")
        if path[0] not in cls.model_fields:
            problems.append(f"{variable}: unknown setting; {_allowed(cls, ())}")
    return problems


def _explain(cls: type[Settings], error: ValidationError, file: Path) -> str:
    lines = []
    for problem in error.errors():
        location = tuple(str(part) for part in problem["loc"])
        key = ".".join(location)
        variable = ENVIRONMENT_PREFIX + "__".join(location).upper()
        source = variable if variable in os.environ else str(file)
        if problem["type"] == "extra_forbidden":
            reason = f"unknown setting; {_allowed(cls, location[:-1])}"
        elif problem["type"] == "value_error":
            reason = str(problem["ctx"]["error"])
        else:
            reason = f"{problem['msg']} (it is {problem['input']!r})"
        lines.append(f"{source}: {key + ': ' if key else ''}{reason}")
    return "\n".join(lines)


def _allowed(cls: type[BaseModel], section: tuple[str, ...]) -> str:
    """The keys that a section knows."""
    for name in section:
        cls = cls.model_fields[name].annotation  # type: ignore[assignment]
    return f"allowed are: {', '.join(cls.model_fields)}"
