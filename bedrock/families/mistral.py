"""Mistral: chat messages (`MISTRAL`), or one prompt for the older models (`MISTRAL_INSTRUCT`).

A prompt has no place for a system prompt: it stands before the first question. What would be read
as one of the model's own tokens is broken apart by a space.

Sources: model-parameters-mistral-chat-completion.html and
model-parameters-mistral-text-completion.html under
https://docs.aws.amazon.com/bedrock/latest/userguide/
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bedrock.bodies import (
    Answer,
    Family,
    Limits,
    Request,
    only,
    parse_limits,
    parse_prompt,
    require_question,
)
from bedrock.conversations import Message
from bedrock.families import chat

_TOKEN_START = re.compile(
    r"<(?=/?(?:s|unk|pad)>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|THINK"
    r"|IMG|IMG_BREAK|IMG_END|PREFIX|MIDDLE|SUFFIX)\])",
    re.IGNORECASE,
)
_TURNS = re.compile(r"\[INST\](.*?)\[/INST\](?:(.*?)</s>)?", re.DOTALL)


def _request_body(
    system: str | None, messages: Sequence[Message], limits: Limits
) -> dict[str, Any]:
    return {
        "messages": chat.messages_with_system(system, messages),
        "max_tokens": limits.max_tokens,
        **chat.sampling(limits),
    }


def _parse_request(body: Mapping[str, Any]) -> Request:
    only(body, "messages", "max_tokens", "temperature", "top_p")
    system, messages = chat.parse_messages(body.get("messages"))
    require_question(messages)
    return system, messages, _parse_limits(body)


def _response_body(answer: Answer) -> dict[str, Any]:
    return {
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": answer.text},
                "stop_reason": chat.CHOICE_STOP_REASONS.theirs(answer.stop_reason),
            }
        ]
    }


def _instruct_request_body(
    system: str | None, messages: Sequence[Message], limits: Limits
) -> dict[str, Any]:
    prompt = "<s>"
    before = "" if system is None else f"{_broken(system)}\n\n"
    for message in messages:
        if message.role == "user":
            prompt += f"[INST] {before}{_broken(message.text)} [/INST]"
            before = ""
        else:
            prompt += f" {_broken(message.text)}</s>"
    return {"prompt": prompt, "max_tokens": limits.max_tokens, **chat.sampling(limits)}


def _instruct_parse_answer(body: Mapping[str, Any]) -> Answer:
    output = body["outputs"][0]
    stop_reason = chat.CHOICE_STOP_REASONS.ours(output.get("stop_reason"))
    return Answer(output["text"].strip(), stop_reason, None, None)


def _instruct_parse_request(body: Mapping[str, Any]) -> Request:
    only(body, "prompt", "max_tokens", "temperature", "top_p")
    prompt = parse_prompt(body.get("prompt"))
    messages = []
    for question, answer in _TURNS.findall(prompt):
        messages.append(Message("user", question.strip()))
        if answer:
            messages.append(Message("assistant", answer.strip()))
    if not messages:
        messages = [Message("user", prompt)]
    require_question(messages)
    return None, tuple(messages), _parse_limits(body)


def _instruct_response_body(answer: Answer) -> dict[str, Any]:
    stop_reason = chat.CHOICE_STOP_REASONS.theirs(answer.stop_reason)
    return {"outputs": [{"text": f" {answer.text}", "stop_reason": stop_reason}]}


def _parse_limits(body: Mapping[str, Any]) -> Limits:
    return parse_limits(body.get("max_tokens"), body.get("temperature"), body.get("top_p"))


def _broken(text: str) -> str:
    return _TOKEN_START.sub(lambda start: f"{start[0]} ", text)


MISTRAL = Family(_request_body, chat.parse_choice, _parse_request, _response_body)
MISTRAL_INSTRUCT = Family(
    _instruct_request_body,
    _instruct_parse_answer,
    _instruct_parse_request,
    _instruct_response_body,
)
