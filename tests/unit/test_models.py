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
    resolve_model,
)

MICRO = "amazon.nova-micro-v1:0:128k"
ARN = "arn:aws:bedrock:us-east-1:123456789012:"


@pytest.mark.parametrize(
    ("model_id", "found"),
    [
        (MICRO, MICRO),
        ("amazon.nova-micro-v1:0", "amazon.nova-micro-v1:0"),
        ("us.amazon.nova-micro-v1:0", "amazon.nova-micro-v1:0"),
        ("apac.amazon.nova-lite-v1:0", "amazon.nova-lite-v1:0"),
        ("global.amazon.nova-2-lite-v1:0", "amazon.nova-2-lite-v1:0"),
        ("jp.anthropic.claude-sonnet-4-6", "anthropic.claude-sonnet-4-6"),
        ("au.anthropic.claude-sonnet-4-6", "anthropic.claude-sonnet-4-6"),
        ("ca.amazon.nova-lite-v1:0", "amazon.nova-lite-v1:0"),
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


@pytest.mark.parametrize(
    ("model_id", "base_model", "family"),
    [
        ("openai.gpt-oss-20b-1:0", None, "gpt-oss"),
        ("us.meta.llama4-scout-17b-instruct-v1:0", None, "llama-4"),
        (f"{ARN}inference-profile/eu.mistral.mistral-7b-instruct-v0:2", None, "mistral-instruct"),
        (f"{ARN}provisioned-model/abcdef123456", MICRO, "nova"),
        (f"{ARN}custom-model-deployment/abcdef123456", "us.amazon.nova-2-lite-v1:0", "nova"),
        (f"{ARN}custom-model/{MICRO}/abcdef123456", None, "nova"),
        (f"{ARN}custom-model/amazon.titan-text-express-v1:0:8k/abcdef123456", None, "titan-text"),
        (f"{ARN}custom-model/imported/abcdef123456", "meta.llama3-1-8b-instruct-v1:0", "llama"),
        (f"{ARN}imported-model/abcdef123456", "meta.llama3-1-8b-instruct-v1:0", "llama"),
        (
            f"{ARN}application-inference-profile/abcdef123456",
            "arn:aws:bedrock:us-east-1::foundation-model/anthropic.claude-sonnet-5",
            "claude-adaptive",
        ),
        # A model that says itself what it is needs no base, and is of no other.
        ("stability.sd3-5-large-v1:0", MICRO, "stability"),
    ],
)
def test_the_family_follows_from_what_is_invoked(
    model_id: str, base_model: str | None, family: str
) -> None:
    assert resolve_model(model_id, base_model).family == family


@pytest.mark.parametrize(
    ("model_id", "base_model"),
    [
        ("gpt-4", None),
        ("gpt-4", MICRO),
        (f"{ARN}provisioned-model/abcdef123456", None),
        (f"{ARN}provisioned-model/abcdef123456", "gpt-4"),
        (f"{ARN}custom-model-deployment/abcdef123456", None),
        (f"{ARN}custom-model/imported/abcdef123456", None),
        (f"{ARN}custom-model/example.unheard-of-v1:0/abcdef123456", None),
    ],
)
def test_a_model_of_no_known_family_is_answered_with_those_that_are_known(
    model_id: str, base_model: str | None
) -> None:
    with pytest.raises(UnknownModelError, match=r"Known: .*amazon\.nova-micro-v1:0"):
        resolve_model(model_id, base_model)


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
    assert (model.replaced_by is None) == (model.end_of_life is None)
    if model.replaced_by:
        replacement = find_model(model.replaced_by)
        require_usable(replacement, date.max)
        assert replacement.tasks == model.tasks
    else:
        assert model.regions or model.invoke_id != model.id
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


@pytest.mark.parametrize(
    ("model_id", "instead"),
    [
        ("amazon.titan-text-express-v1", "amazon.nova-lite-v1:0"),
        ("amazon.titan-image-generator-v2:0", "stability.stable-image-core-v1:1"),
        ("amazon.nova-canvas-v1:0", "stability.stable-image-core-v1:1"),
        ("us.amazon.nova-premier-v1:0", "amazon.nova-pro-v1:0"),
        ("anthropic.claude-3-haiku-20240307-v1:0", "anthropic.claude-haiku-4-5-20251001-v1:0"),
        ("meta.llama3-2-90b-instruct-v1:0", "meta.llama3-3-70b-instruct-v1:0"),
        ("cohere.command-r-plus-v1:0", "mistral.mistral-large-3-675b-instruct"),
    ],
)
def test_models_that_are_gone_say_what_to_use(model_id: str, instead: str) -> None:
    with pytest.raises(UnusableModelError, match=f"Use {instead} instead"):
        require_usable(find_model(model_id), date(2026, 11, 1))


def test_pictures_are_drawn_in_oregon() -> None:
    drawing = {m.id: m.regions for m in all_models() if m.tasks == ("image",) and not m.replaced_by}
    assert set(drawing.values()) == {("us-west-2",)}
    assert {"stability.stable-image-core-v1:1", "stability.sd3-5-large-v1:0"} <= set(drawing)


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
