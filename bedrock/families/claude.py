"""Anthropic Claude: the Messages API.

`CLAUDE` samples by temperature or by top P, not both. `CLAUDE_ADAPTIVE` is of the models from
Claude Opus 4.7 on, which refuse both, and think by themselves when they find it worth it; what they
think is not part of the answer.

Sources:
https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-anthropic-claude-messages.html
https://platform.claude.com/docs/en/about-claude/models/migrating-to-claude-4
"""

from collections.abc import Mapping, Sequence
from typing import Any

from bedrock.bodies import (
    Answer,
    BodyError,
    Family,
    Limits,
    Request,
    given,
    only,
    parse_limits,
    require_question,
)
from bedrock.conversations import Message
from bedrock.families import chat

_VERSION = "bedrock-2023-05-31"


def _request_body(
    system: str | None, messages: Sequence[Message], limits: Limits
) -> dict[str, Any]:
    _require_one_way_of_sampling(limits)
    return {
        "anthropic_version": _VERSION,
        "max_tokens": limits.max_tokens,
        **chat.sampling(limits),
        **given(system=system),
        "messages": [
            {"role": message.role, "content": [{"type": "text", "text": message.text}]}
            for message in messages
        ],
    }


def _adaptive_request_body(
    system: str | None, messages: Sequence[Message], limits: Limits
) -> dict[str, Any]:
    _require_no_sampling(limits)
    return _request_body(system, messages, limits)


def _parse_answer(body: Mapping[str, Any]) -> Answer:
    usage = body.get("usage") or {}
    return Answer(
        text="".join(block["text"] for block in body["content"] if block.get("type") == "text"),
        stop_reason=body.get("stop_reason") or "",
        input_tokens=usage.get("input_tokens"),
        output_tokens=usage.get("output_tokens"),
    )


def _parse_request(body: Mapping[str, Any]) -> Request:
    only(body, "anthropic_version", "max_tokens", "temperature", "top_p", "system", "messages")
    if body.get("anthropic_version") != _VERSION:
        raise BodyError(f"anthropic_version must be {_VERSION}.")
    if body.get("max_tokens") is None:
        raise BodyError("Malformed input request: max_tokens is missing.")
    inner_system, messages = chat.parse_messages(body.get("messages"))
    if inner_system is not None:
        raise BodyError("Malformed input request: the system prompt belongs in system.")
    require_question(messages)
    limits = parse_limits(body["max_tokens"], body.get("temperature"), body.get("top_p"))
    _require_one_way_of_sampling(limits)
    system = body.get("system")
    return None if system is None else chat.parse_content(system), messages, limits


def _adaptive_parse_request(body: Mapping[str, Any]) -> Request:
    request = _parse_request(body)
    _require_no_sampling(request[2])
    return request


def _response_body(answer: Answer) -> dict[str, Any]:
    return {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "text", "text": answer.text}],
        "stop_reason": answer.stop_reason,
        "stop_sequence": None,
        "usage": {
            "input_tokens": answer.input_tokens or 0,
            "output_tokens": answer.output_tokens or 0,
        },
    }


def _require_one_way_of_sampling(limits: Limits) -> None:
    if limits.temperature is not None and limits.top_p is not None:
        raise BodyError("Claude takes temperature or top P, not both.")


def _require_no_sampling(limits: Limits) -> None:
    if limits.temperature is not None or limits.top_p is not None:
        raise BodyError("Claude from Opus 4.7 on takes neither temperature nor top P.")


CLAUDE = Family(_request_body, _parse_answer, _parse_request, _response_body)
CLAUDE_ADAPTIVE = Family(
    _adaptive_request_body, _parse_answer, _adaptive_parse_request, _response_body
)
