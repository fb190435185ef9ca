"""Amazon Titan Text, for accounts that still have a tuned one.

Its prompt has turns of `User:` and `Bot:`, which are broken apart by a space wherever a turn holds
them; the system prompt stands before the first.

Source: https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-titan-text.html
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bedrock.bodies import (
    Answer,
    BodyError,
    Family,
    Limits,
    Request,
    StopReasons,
    given,
    only,
    parse_limits,
    parse_prompt,
    require_question,
)
from bedrock.conversations import Message

_LABEL = re.compile(r"(User|Bot):", re.IGNORECASE)
_TURN_START = re.compile(r"(?:^|\n)(User|Bot):")
_STOP_REASONS = StopReasons(end_turn="FINISH", max_tokens="LENGTH")


def _request_body(
    system: str | None, messages: Sequence[Message], limits: Limits
) -> dict[str, Any]:
    labels = {"user": "User", "assistant": "Bot"}
    lines = [] if system is None else [f"{_broken(system)}\n"]
    lines.extend(f"{labels[message.role]}: {_broken(message.text)}" for message in messages)
    return {
        "inputText": "\n".join([*lines, "Bot:"]),
        "textGenerationConfig": given(
            maxTokenCount=limits.max_tokens, temperature=limits.temperature, topP=limits.top_p
        ),
    }


def _parse_answer(body: Mapping[str, Any]) -> Answer:
    result = body["results"][0]
    return Answer(
        text=result["outputText"].strip(),
        stop_reason=_STOP_REASONS.ours(result.get("completionReason")),
        input_tokens=body.get("inputTextTokenCount"),
        output_tokens=result.get("tokenCount"),
    )


def _parse_request(body: Mapping[str, Any]) -> Request:
    only(body, "inputText", "textGenerationConfig")
    prompt = parse_prompt(body.get("inputText"))
    config = body.get("textGenerationConfig") or {}
    if not isinstance(config, Mapping):
        raise BodyError("Malformed input request: textGenerationConfig must be an object.")
    only(config, "maxTokenCount", "temperature", "topP")
    limits = parse_limits(
        config.get("maxTokenCount"), config.get("temperature"), config.get("topP")
    )
    before, *turns = _TURN_START.split(prompt)
    messages = [
        Message("user" if label == "User" else "assistant", text.strip())
        for label, text in zip(turns[::2], turns[1::2], strict=True)
    ]
    if not messages:
        return None, (Message("user", prompt),), limits
    if messages[-1] == Message("assistant", ""):
        messages.pop()
    require_question(messages)
    return before.strip() or None, tuple(messages), limits


def _response_body(answer: Answer) -> dict[str, Any]:
    return {
        "inputTextTokenCount": answer.input_tokens or 0,
        "results": [
            {
                "tokenCount": answer.output_tokens or 0,
                "outputText": answer.text,
                "completionReason": _STOP_REASONS.theirs(answer.stop_reason),
            }
        ],
    }


def _broken(text: str) -> str:
    return _LABEL.sub(r"\1 :", text)


TITAN_TEXT = Family(_request_body, _parse_answer, _parse_request, _response_body)
