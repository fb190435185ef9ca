"""Amazon Nova.

Source: https://docs.aws.amazon.com/nova/latest/userguide/complete-request-schema.html
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
from bedrock.conversations import Message, RecordError, from_record


def _request_body(
    system: str | None, messages: Sequence[Message], limits: Limits
) -> dict[str, Any]:
    return {
        "schemaVersion": "messages-v1",
        **given(system=None if system is None else [{"text": system}]),
        "messages": [
            {"role": message.role, "content": [{"text": message.text}]} for message in messages
        ],
        "inferenceConfig": given(
            maxTokens=limits.max_tokens, temperature=limits.temperature, topP=limits.top_p
        ),
    }


def _parse_answer(body: Mapping[str, Any]) -> Answer:
    content = body["output"]["message"]["content"]
    usage = body.get("usage", {})
    return Answer(
        text="".join(block["text"] for block in content if "text" in block),
        stop_reason=body.get("stopReason", ""),
        input_tokens=usage.get("inputTokens"),
        output_tokens=usage.get("outputTokens"),
    )


def _parse_request(body: Mapping[str, Any]) -> Request:
    only(body, "schemaVersion", "system", "messages", "inferenceConfig")
    if body.get("schemaVersion", "messages-v1") != "messages-v1":
        raise BodyError("schemaVersion must be messages-v1.")
    try:
        conversation = from_record(
            "bedrock-conversation-2024", {"schemaVersion": "messages-v1", **body}
        )
    except RecordError as error:
        raise BodyError(f"Malformed input request: {error.reason}.") from error
    require_question(conversation.messages)
    inference = body.get("inferenceConfig") or {}
    if not isinstance(inference, Mapping):
        raise BodyError("Malformed input request: inferenceConfig must be an object.")
    only(inference, "maxTokens", "temperature", "topP")
    limits = parse_limits(
        inference.get("maxTokens"), inference.get("temperature"), inference.get("topP")
    )
    return conversation.system, conversation.messages, limits


def _response_body(answer: Answer) -> dict[str, Any]:
    input_tokens, output_tokens = answer.input_tokens or 0, answer.output_tokens or 0
    return {
        "output": {"message": {"role": "assistant", "content": [{"text": answer.text}]}},
        "stopReason": answer.stop_reason,
        "usage": {
            "inputTokens": input_tokens,
            "outputTokens": output_tokens,
            "totalTokens": input_tokens + output_tokens,
        },
    }


NOVA = Family(_request_body, _parse_answer, _parse_request, _response_body)
