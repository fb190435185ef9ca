from datetime import date, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedrock.models import (
    FoundationModel,
    HyperparameterError,
    UnknownModelError,
    UnusableModelError,
    all_models,
    find_model,
    require_tunable,
    require_usable,
)

MICRO = "amazon.nova-micro-v1:0:128k"


@pytest.mark.parametrize(
    ("model_id", "found"),
    [
        (MICRO, MICRO),
        ("amazon.nova-micro-v1:0", "amazon.nova-micro-v1:0"),
        ("us.amazon.nova-micro-v1:0", "amazon.nova-micro-v1:0"),
        ("apac.amazon.nova-lite-v1:0", "amazon.nova-lite-v1:0"),
        ("global.amazon.nova-2-lite-v1:0", "amazon.nova-2-lite-v1:0"),
        (f"arn:aws:bedrock:us-east-1::foundation-model/{MICRO}", MICRO),
        (
            "arn:aws:bedrock:us-east-1:123456789012:inference-profile/us.amazon.nova-pro-v1:0",
            "amazon.nova-pro-v1:0",
        ),
    ],
)
def test_a_model_is_found_by_every_name_it_has(model_id: str, found: str) -> None:
    assert find_model(model_id).id == found


@pytest.mark.parametrize("model_id", ["", "us.", "gpt-4", "arn:aws:s3:::bucket", "us.us." + MICRO])
def test_an_unknown_model_is_answered_with_those_that_are_known(model_id: str) -> None:
    with pytest.raises(UnknownModelError, match=r"Known: .*amazon\.nova-micro-v1:0:128k"):
        find_model(model_id)


def test_what_is_tuned_is_invoked_under_another_id() -> None:
    assert find_model(MICRO).invoke_id == "amazon.nova-micro-v1:0"
    assert find_model("amazon.nova-2-lite-v1:0:256k").invoke_id == "us.amazon.nova-2-lite-v1:0"


def test_only_ids_to_tune_have_tuning_rules() -> None:
    assert require_tunable(find_model(MICRO)).data_format == "bedrock-conversation-2024"
    for model_id in ("amazon.nova-micro-v1:0", "amazon.titan-embed-text-v2:0"):
        with pytest.raises(UnusableModelError, match=MICRO):
            require_tunable(find_model(model_id))


def test_formats_follow_the_model() -> None:
    formats = {m.id: m.tuning.data_format for m in all_models() if m.tuning and m.family == "llama"}
    assert formats == {
        "meta.llama3-1-8b-instruct-v1:0:128k": "prompt-completion",
        "meta.llama3-1-70b-instruct-v1:0:128k": "prompt-completion",
        "meta.llama3-3-70b-instruct-v1:0:128k": "bedrock-conversation-2024",
    }


@pytest.mark.parametrize("model", all_models(), ids=lambda model: model.id)
def test_what_is_written_of_a_model_is_sound(model: FoundationModel) -> None:
    assert model.tasks
    if model.replaced_by:
        require_usable(find_model(model.replaced_by), date.max)
    if "embedding" in model.tasks:
        assert model.dimensions
    if model.tuning:
        assert model.id.startswith(f"{find_model(model.id.rsplit(':', 1)[0]).id}:")
        assert model.tuning.minimum_records < model.tuning.maximum_records
        for hyperparameter in model.tuning.hyperparameters.values():
            assert hyperparameter.parse(str(hyperparameter.default)) == hyperparameter.default


def test_a_model_past_its_end_of_life_names_its_replacement() -> None:
    old = find_model("meta.llama3-2-1b-instruct-v1:0")
    assert old.end_of_life is not None
    require_usable(old, old.end_of_life - timedelta(days=1))
    with pytest.raises(UnusableModelError, match=r"2026-07-07.*llama3-1-8b"):
        require_usable(old, old.end_of_life)


@pytest.mark.parametrize("text", ["", "two", "1.5", "0", "6", "nan"])
def test_a_hyperparameter_outside_its_range_is_refused(text: str) -> None:
    with pytest.raises(HyperparameterError, match="epochCount must be a whole number from 1 to 5"):
        require_tunable(find_model(MICRO)).hyperparameters["epochCount"].parse(text)


@given(st.floats() | st.integers())
def test_a_hyperparameter_is_within_its_range_or_refused(value: float) -> None:
    learning_rate = require_tunable(find_model(MICRO)).hyperparameters["learningRate"]
    try:
        parsed = learning_rate.parse(str(value))
    except HyperparameterError:
        assert not 1e-6 <= value <= 1e-4
    else:
        assert parsed == value
        assert 1e-6 <= value <= 1e-4
