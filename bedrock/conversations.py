"""Conversations, and the records that Bedrock's fine-tuning jobs read them from."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bedrock.models import DataFormat, TuningRules

Role = Literal["user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation."""

    role: Role
    text: str


@dataclass(frozen=True)
class Conversation:
    """A system prompt, if any, and turns. In training data the last turn is the answer to learn."""

    system: str | None
    messages: tuple[Message, ...]


class RecordError(ValueError):
    """A record is not of the format it should be. `reason` says why, in words fit to be counted."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


def to_record(data_format: DataFormat, conversation: Conversation) -> dict[str, Any]:
    """The record of a conversation in the format of a model's training data.

    `prompt-completion` has no turns: the system prompt and all turns but the last become the
    prompt, a blank line between them; turns are labelled only if there are several.

    Source: https://docs.aws.amazon.com/bedrock/latest/userguide/model-customization-prepare.html
    """
    if data_format == "prompt-completion":
        *earlier, answer = conversation.messages
        return {"prompt": _folded(conversation.system, earlier), "completion": answer.text}
    record: dict[str, Any] = {"schemaVersion": "bedrock-conversation-2024"}
    if conversation.system is not None:
        record["system"] = [{"text": conversation.system}]
    record["messages"] = [
        {"role": message.role, "content": [{"text": message.text}]}
        for message in conversation.messages
    ]
    return record


def from_record(data_format: DataFormat, record: object) -> Conversation:
    """The conversation of a record; what `prompt-completion` folded into one prompt stays folded.

    Raises RecordError.
    """
    if not isinstance(record, Mapping):
        raise RecordError("not an object")
    if data_format == "prompt-completion":
        prompt, completion = record.get("prompt"), record.get("completion")
        if not isinstance(prompt, str) or not isinstance(completion, str):
            raise RecordError("prompt and completion must both be text")
        return Conversation(None, (Message("user", prompt), Message("assistant", completion)))
    if not isinstance(record.get("schemaVersion"), str):
        raise RecordError("schemaVersion is missing")
    system = record.get("system")
    messages = record.get("messages")
    if not isinstance(messages, list):
        raise RecordError("messages must be a list")
    return Conversation(
        None if system is None else _text_of_blocks(system),
        tuple(_message(message) for message in messages),
    )


def problem(rules: TuningRules, conversation: Conversation) -> str | None:
    """Why a fine-tuning job would fail for this conversation; None if it would not."""
    messages = conversation.messages
    roles = [message.role for message in messages]
    if not messages or roles != ["user", "assistant"] * (len(roles) // 2):
        return "turns must alternate between user and assistant, from a user to an assistant"
    texts = [message.text for message in messages]
    if conversation.system is not None:
        texts.insert(0, conversation.system)
    if not all(text.strip() for text in texts):
        return "a turn is empty"
    everything = "\n".join(texts).casefold()
    for word in rules.reserved_words:
        if word.casefold() in everything:
            return f"holds the reserved word {word!r}"
    if sum(map(len, texts)) > rules.maximum_characters:
        return f"longer than {rules.maximum_characters:,} characters"
    return None


def _folded(system: str | None, turns: list[Message]) -> str:
    labelled = len(turns) > 1
    paragraphs = [] if system is None else [system]
    for turn in turns:
        paragraphs.append(f"{turn.role.capitalize()}: {turn.text}" if labelled else turn.text)
    return "\n\n".join(paragraphs)


def _message(message: object) -> Message:
    if not isinstance(message, Mapping):
        raise RecordError("a message must be an object with role and content")
    role = message.get("role")
    if role not in ("user", "assistant"):
        raise RecordError("a message's role must be user or assistant")
    return Message(role, _text_of_blocks(message.get("content")))


def _text_of_blocks(content: object) -> str:
    if not isinstance(content, list) or not content:
        raise RecordError('content must be a list of {"text": …}')
    texts = []
    for block in content:
        text = block.get("text") if isinstance(block, Mapping) and len(block) == 1 else None
        if not isinstance(text, str):
            raise RecordError(
                'content must be a list of {"text": …}: only text can be tuned on here'
            )
        texts.append(text)
    return "\n".join(texts)
