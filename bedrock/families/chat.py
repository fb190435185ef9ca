"""What families have in common whose bodies hold chat messages: Claude, Mistral and gpt-oss."""

from collections.abc import Mapping, Sequence
from typing import Any

from bedrock.bodies import Answer, BodyError, Limits, StopReasons, given
from bedrock.conversations import Message

CHOICE_STOP_REASONS = StopReasons(end_turn="stop", max_tokens="length")


def messages_with_system(system: str | None, messages: Sequence[Message]) -> list[dict[str, str]]:
    """The turns as OpenAI and Mistral write them, the system prompt first."""
    turns = [{"role": message.role, "content": message.text} for message in messages]
    return turns if system is None else [{"role": "system", "content": system}, *turns]


def sampling(limits: Limits) -> dict[str, float]:
    """`temperature` and `top_p`, where they are set."""
    return given(temperature=limits.temperature, top_p=limits.top_p)


def parse_messages(raw: object) -> tuple[str | None, tuple[Message, ...]]:
    """System prompt (from turns of role `system`, at the start only) and turns.

    Raises BodyError.
    """
    if not isinstance(raw, list) or not all(isinstance(turn, Mapping) for turn in raw):
        raise BodyError("Malformed input request: messages must be a list of objects.")
    turns = [(turn.get("role"), parse_content(turn.get("content"))) for turn in raw]
    system = None
    if turns and turns[0][0] in ("system", "developer"):
        system = turns.pop(0)[1]
    messages = []
    for role, text in turns:
        if role not in ("user", "assistant"):
            raise BodyError(f"Malformed input request: no turn can be {role!r} here.")
        messages.append(Message(role, text))
    return system, tuple(messages)


def parse_content(content: object) -> str:
    """The text of a turn, which is text or a list of blocks of text. Raises BodyError."""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and content:
        texts = [
            block.get("text")
            for block in content
            if isinstance(block, Mapping) and block.get("type") == "text"
        ]
        if len(texts) == len(content) and all(isinstance(text, str) for text in texts):
            return "\n".join(map(str, texts))
    raise BodyError("Malformed input request: content must be text: nothing else is read here.")


def parse_choice(body: Mapping[str, Any]) -> Answer:
    """The first of a response's `choices`.

    Of Mistral's models, those of 2024 say `stop_reason` and no usage; all later ones, and gpt-oss,
    say `finish_reason` and `usage`.
    """
    choice = body["choices"][0]
    usage = body.get("usage") or {}
    return Answer(
        text=choice["message"]["content"].strip(),
        stop_reason=CHOICE_STOP_REASONS.ours(
            choice.get("finish_reason") or choice.get("stop_reason")
        ),
        input_tokens=usage.get("prompt_tokens"),
        output_tokens=usage.get("completion_tokens"),
    )
