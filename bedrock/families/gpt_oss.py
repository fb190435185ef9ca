"""OpenAI gpt-oss: chat completions. What the model thinks comes first, in a `<reasoning>` tag.

Source: https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-openai.html
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bedrock.bodies import (
    Answer,
    BodyError,
    Family,
    Limits,
    Request,
    only,
    parse_limits,
    require_question,
)
from bedrock.conversations import Message
from bedrock.families import chat

# Where the maximum of tokens is reached while it thinks, the tag is not closed.
_REASONING = re.compile(r"\s*<reasoning>.*?(?:</reasoning>|\Z)", re.DOTALL)


def _request_body(
    system: str | None, messages: Sequence[Message], limits: Limits
) -> dict[str, Any]:
    return {
        "messages": chat.messages_with_system(system, messages),
        "max_completion_tokens": limits.max_tokens,
        **chat.sampling(limits),
    }


def _parse_answer(body: Mapping[str, Any]) -> Answer:
    answer = chat.parse_choice(body)
    return replace(answer, text=_REASONING.sub("", answer.text, count=1).strip())


def _parse_request(body: Mapping[str, Any]) -> Request:
    names = ("max_completion_tokens", "max_tokens")
    only(body, "messages", *names, "temperature", "top_p", "model", "stream")
    if body.get("stream"):
        raise BodyError("Malformed input request: stream must be false for InvokeModel.")
    system, messages = chat.parse_messages(body.get("messages"))
    require_question(messages)
    max_tokens = next((body[name] for name in names if name in body), None)
    return system, messages, parse_limits(max_tokens, body.get("temperature"), body.get("top_p"))


def _response_body(answer: Answer) -> dict[str, Any]:
    input_tokens, output_tokens = answer.input_tokens or 0, answer.output_tokens or 0
    return {
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": f"<reasoning></reasoning>{answer.text}",
                },
                "finish_reason": chat.CHOICE_STOP_REASONS.theirs(answer.stop_reason),
            }
        ],
        "usage": {
            "prompt_tokens": input_tokens,
            "completion_tokens": output_tokens,
            "total_tokens": input_tokens + output_tokens,
        },
    }


GPT_OSS = Family(_request_body, _parse_answer, _parse_request, _response_body)
