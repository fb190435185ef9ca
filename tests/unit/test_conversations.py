import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedrock.conversations import (
    Conversation,
    Message,
    RecordError,
    from_record,
    problem,
    to_record,
)
from bedrock.models import find_model, require_tunable

NOVA = require_tunable(find_model("amazon.nova-micro-v1:0:128k"))
LLAMA = require_tunable(find_model("meta.llama3-1-8b-instruct-v1:0:128k"))
CONVERSATION = "bedrock-conversation-2024"


def dialogue(*texts: str, system: str | None = None) -> Conversation:
    roles = ("user", "assistant")
    return Conversation(system, tuple(Message(roles[i % 2], t) for i, t in enumerate(texts)))


texts = st.text(min_size=1)
dialogues = st.builds(
    lambda pairs, system: dialogue(*(text for pair in pairs for text in pair), system=system),
    st.lists(st.tuples(texts, texts), min_size=1, max_size=3),
    st.none() | texts,
)


def test_the_record_of_a_conversation_is_as_bedrock_documents_it() -> None:
    assert to_record(CONVERSATION, dialogue("Who goes there?", "A friend.", system="A guard.")) == {
        "schemaVersion": "bedrock-conversation-2024",
        "system": [{"text": "A guard."}],
        "messages": [
            {"role": "user", "content": [{"text": "Who goes there?"}]},
            {"role": "assistant", "content": [{"text": "A friend."}]},
        ],
    }


def test_without_a_system_prompt_there_is_no_system() -> None:
    assert "system" not in to_record(CONVERSATION, dialogue("Hello", "Hail"))


def test_a_prompt_holds_all_that_came_before_the_answer() -> None:
    conversation = dialogue("Hello", "Hail", "Bread?", "Two coins.", system="A baker.")
    assert to_record("prompt-completion", conversation) == {
        "prompt": "A baker.\n\nUser: Hello\n\nAssistant: Hail\n\nUser: Bread?",
        "completion": "Two coins.",
    }
    assert to_record("prompt-completion", dialogue("Hello", "Hail")) == {
        "prompt": "Hello",
        "completion": "Hail",
    }


@given(dialogues)
def test_a_conversation_survives_its_record(conversation: Conversation) -> None:
    assert from_record(CONVERSATION, to_record(CONVERSATION, conversation)) == conversation


@given(dialogues)
def test_a_folded_record_survives_reading(conversation: Conversation) -> None:
    record = to_record("prompt-completion", conversation)
    assert to_record("prompt-completion", from_record("prompt-completion", record)) == record


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        ([], "not an object"),
        ({"messages": []}, "schemaVersion is missing"),
        ({"schemaVersion": "x"}, "messages must be a list"),
        ({"schemaVersion": "x", "messages": ["hello"]}, "a message must be an object"),
        ({"schemaVersion": "x", "messages": [{"role": "bot"}]}, "role must be user or assistant"),
        (
            {"schemaVersion": "x", "messages": [{"role": "user", "content": "hi"}]},
            "content must be a list",
        ),
        (
            {"schemaVersion": "x", "messages": [{"role": "user", "content": [{"image": {}}]}]},
            "only text",
        ),
        ({"schemaVersion": "x", "system": "a guard", "messages": []}, "content must be a list"),
    ],
)
def test_what_is_no_record_is_refused_with_a_reason(record: object, reason: str) -> None:
    with pytest.raises(RecordError, match=reason):
        from_record(CONVERSATION, record)


@pytest.mark.parametrize("record", [None, {}, {"prompt": "x"}, {"prompt": "x", "completion": 4}])
def test_a_prompt_without_text_is_refused(record: object) -> None:
    with pytest.raises(RecordError):
        from_record("prompt-completion", record)


def test_a_good_conversation_has_no_problem() -> None:
    good = dialogue("Who?", "Me.", "Why?", "Because.", system="A guard.")
    assert problem(NOVA, good) is None
    assert problem(LLAMA, good) is None


@pytest.mark.parametrize(
    "roles",
    [(), ("user",), ("assistant", "user"), ("user", "user"), ("user", "assistant", "user")],
)
def test_turns_out_of_order_are_a_problem(roles: tuple[str, ...]) -> None:
    messages = tuple(Message(role, "text") for role in roles)
    assert "alternate" in str(problem(NOVA, Conversation(None, messages)))


@pytest.mark.parametrize(
    "conversation",
    [dialogue("", "yes"), dialogue("yes", " \n"), dialogue("yes", "no", system="")],
)
def test_an_empty_turn_is_a_problem(conversation: Conversation) -> None:
    assert problem(NOVA, conversation) == "a turn is empty"


@pytest.mark.parametrize("word", NOVA.reserved_words)
def test_a_reserved_word_is_a_problem_in_every_turn_and_case(word: str) -> None:
    text = f"He said {word.lower()} and left."
    for conversation in (dialogue(text, "b"), dialogue("a", text), dialogue("a", "b", system=text)):
        assert problem(NOVA, conversation) == f"holds the reserved word {word!r}"
        assert problem(LLAMA, conversation) is None


def test_length_is_counted_over_all_turns() -> None:
    half = "x" * (NOVA.maximum_characters // 2)
    assert problem(NOVA, dialogue(half, half)) is None
    assert problem(NOVA, dialogue(half, half, system="y")) == "longer than 196,608 characters"
