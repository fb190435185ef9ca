"""How a conversation becomes the tokens a local model reads, and which of them it learns."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bedrock.conversations import Conversation, Message

IGNORED = -100  # label of a token that is not learned (cross_entropy's ignore_index)


@dataclass(frozen=True)
class Example:
    """Token ids of a conversation, and for each the id to learn or IGNORED."""

    tokens: list[int]
    labels: list[int]

    @property
    def learned(self) -> int:
        """How many of its tokens are learned."""
        return sum(label != IGNORED for label in self.labels)


def prompt_tokens(tokenizer: Any, system: str | None, messages: Sequence[Message]) -> list[int]:
    """The tokens of a prompt, up to where the assistant's answer begins."""
    text = _render(tokenizer, system, messages, ask=True)
    return list(tokenizer.encode(text, add_special_tokens=False))


def example(tokenizer: Any, conversation: Conversation) -> Example:
    """A conversation as the model reads it. Learned are the assistant's turns with their ends.

    Each turn is encoded by itself, so that an answer's tokens are those the model will generate.
    """
    tokens: list[int] = []
    labels: list[int] = []
    rendered = ""
    for index, message in enumerate(conversation.messages):
        if message.role != "assistant":
            continue
        before = conversation.messages[:index]
        asked = _render(tokenizer, conversation.system, before, ask=True)
        question = tokenizer.encode(asked[len(rendered) :], add_special_tokens=False)
        answer = tokenizer.encode(message.text, add_special_tokens=False)
        answer.append(tokenizer.eos_token_id)
        tokens += question + answer
        labels += [IGNORED] * len(question) + answer
        rendered = asked + message.text + tokenizer.eos_token
    return Example(tokens, labels)


def _render(tokenizer: Any, system: str | None, messages: Sequence[Message], ask: bool) -> str:
    turns = [] if system is None else [{"role": "system", "content": system}]
    turns += [{"role": message.role, "content": message.text} for message in messages]
    text: str = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)
    return text
