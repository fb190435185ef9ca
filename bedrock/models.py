"""What is known of Bedrock's foundation models, read from `models.toml` beside this file."""

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import cache
from pathlib import Path
from typing import Any, Literal

DataFormat = Literal["bedrock-conversation-2024", "prompt-completion"]
Task = Literal["text", "image", "embedding"]

_MODELS_FILE = Path(__file__).with_name("models.toml")
_ARN_PREFIX = re.compile(r"^arn:aws[^:]*:bedrock:[^:]*:[^:]*:(foundation-model|inference-profile)/")
_CUSTOM_MODEL_ARN = re.compile(
    r"^arn:aws[^:]*:bedrock:[^:]*:[^:]*:custom-model/(?!imported/)(.+)/\w+$"
)
_OPAQUE_ARN = re.compile(
    r"^arn:aws[^:]*:bedrock:[^:]*:[^:]*:(provisioned-model|custom-model-deployment|custom-model"
    r"|imported-model|application-inference-profile)/"
)
_INFERENCE_PROFILE_PREFIX = re.compile(r"^(us-gov|us|eu|apac|ap|jp|au|ca|global)\.")


class UnknownModelError(LookupError):
    """No model of that id is known; the message lists those that are."""


class UnusableModelError(ValueError):
    """The model is known but must not be used; the message says why, and what to use instead."""


class HyperparameterError(ValueError):
    """A hyperparameter's value is outside what the service takes."""


@dataclass(frozen=True)
class Hyperparameter:
    """One hyperparameter of a fine-tuning job; both ends of its range are allowed."""

    name: str
    kind: Literal["int", "float"]
    minimum: float
    maximum: float
    default: float

    def parse(self, text: str) -> int | float:
        """Read a value as the service takes it (a string). Raises HyperparameterError."""
        try:
            value = int(text) if self.kind == "int" else float(text)
        except ValueError:
            value = None
        if value is None or not self.minimum <= value <= self.maximum:
            kind = "a whole number" if self.kind == "int" else "a number"
            raise HyperparameterError(
                f"{self.name} must be {kind} from {self.minimum:g} to {self.maximum:g}, "
                f"not {text!r}."
            )
        return value


@dataclass(frozen=True)
class TuningRules:
    """What a fine-tuning job of a model asks of its data, and which hyperparameters it takes.

    Counts of records are of the training and validation files together; `maximum_characters` is of
    one record. Reserved words are matched without regard to case.
    """

    data_format: DataFormat
    regions: tuple[str, ...]
    hyperparameters: Mapping[str, Hyperparameter]
    minimum_records: int
    maximum_records: int
    maximum_characters: int
    reserved_words: tuple[str, ...]
    on_demand: bool


@dataclass(frozen=True)
class FoundationModel:
    """A foundation model under one of its ids.

    A model that can be tuned has two, as in `ListFoundationModels`: a plain one to invoke
    (`amazon.nova-micro-v1:0`), and one with its context length to tune
    (`amazon.nova-micro-v1:0:128k`). Only the latter has `tuning` rules; `invoke_id` is what
    InvokeModel takes for either.
    """

    id: str
    invoke_id: str
    name: str
    provider: str
    family: str
    tasks: tuple[Task, ...]
    regions: tuple[str, ...]
    end_of_life: date | None
    replaced_by: str | None
    dimensions: tuple[int, ...]
    tuning: TuningRules | None


def find_model(model_id: str) -> FoundationModel:
    """The model of an id, an ARN of a foundation model, or an inference profile (`us.`, `eu.`, …).

    Raises UnknownModelError, which lists the ids that are known.
    """
    models = _models()
    bare = _ARN_PREFIX.sub("", model_id)
    model = models.get(bare) or models.get(_INFERENCE_PROFILE_PREFIX.sub("", bare))
    if model is None:
        raise UnknownModelError(
            f"Unknown model {model_id!r}. Known: {', '.join(models)}. "
            f"A new model is added in bedrock/{_MODELS_FILE.name}."
        )
    return model


def resolve_model(model_id: str, base_model: str | None = None) -> FoundationModel:
    """The foundation model behind whatever can be invoked; bodies follow from its family.

    Besides what `find_model` takes, `model_id` may be the ARN of a provisioned throughput, a custom
    model deployment, a custom or imported model, or an application inference profile. Such an ARN
    does not say what is behind it (only a custom model's does): `base_model` must.

    Raises UnknownModelError, which lists the ids that are known.
    """
    if not _OPAQUE_ARN.match(model_id):
        return find_model(model_id)
    if base_model is None and (arn := _CUSTOM_MODEL_ARN.match(model_id)):
        base_model = arn[1]
    if base_model is None:
        raise UnknownModelError(
            f"{model_id} does not say which model it serves: give its base model beside it. "
            f"Known: {', '.join(_models())}."
        )
    return find_model(base_model)


def all_models() -> tuple[FoundationModel, ...]:
    """Every known model, those past their end of life too; a tunable one under both its ids."""
    return tuple(_models().values())


def require_usable(model: FoundationModel, today: date) -> None:
    """Raise UnusableModelError if the model's end of life has come, naming its replacement."""
    if model.end_of_life is not None and model.end_of_life <= today:
        instead = f" Use {model.replaced_by} instead." if model.replaced_by else ""
        raise UnusableModelError(
            f"{model.name} ({model.id}) reached its end of life by {model.end_of_life}.{instead}"
        )


def require_tunable(model: FoundationModel) -> TuningRules:
    """The model's tuning rules. Raises UnusableModelError naming the models that can be tuned."""
    if model.tuning is None:
        tunable = ", ".join(other.id for other in all_models() if other.tuning)
        raise UnusableModelError(f"{model.id} cannot be fine-tuned. These can: {tunable}.")
    return model.tuning


@cache
def _models() -> dict[str, FoundationModel]:
    content = tomllib.loads(_MODELS_FILE.read_text(encoding="utf-8"))
    models = {}
    for entry in content["models"]:
        models[entry["id"]] = _foundation_model(entry, entry["id"], None)
        if tuning_id := entry.get("tuning_id"):
            rules = content["tuning"].get(entry.get("tuning"))
            tuning = rules and _tuning_rules(rules, entry["tuning_regions"])
            models[tuning_id] = _foundation_model(entry, tuning_id, tuning)
    return models


def _foundation_model(
    entry: Mapping[str, Any], model_id: str, tuning: TuningRules | None
) -> FoundationModel:
    return FoundationModel(
        id=model_id,
        invoke_id=entry.get("inference_profile", entry["id"]),
        name=entry["name"],
        provider=entry["provider"],
        family=entry["family"],
        tasks=tuple(entry["tasks"]),
        regions=tuple(entry["regions"]),
        end_of_life=entry.get("end_of_life"),
        replaced_by=entry.get("replaced_by"),
        dimensions=tuple(entry.get("dimensions", ())),
        tuning=tuning,
    )


def _tuning_rules(rules: Mapping[str, Any], regions: list[str]) -> TuningRules:
    return TuningRules(
        data_format=rules["data_format"],
        regions=tuple(regions),
        hyperparameters={
            name: Hyperparameter(name=name, **values)
            for name, values in rules["hyperparameters"].items()
        },
        minimum_records=rules["minimum_records"],
        maximum_records=rules["maximum_records"],
        maximum_characters=rules["maximum_characters"],
        reserved_words=tuple(rules["reserved_words"]),
        on_demand=rules["on_demand"],
    )
