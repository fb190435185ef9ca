"""How a conversation becomes the body of an InvokeModel request, and a response an answer.

Each family has its own bodies. `request_body` and `parse_answer` are for those who invoke a model;
`parse_request` and `response_body` are their inverses, for the embedded cloud, which answers.
Bodies are decoded JSON.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bedrock.conversations import Conversation, Message, RecordError, from_record


@dataclass(frozen=True)
class Limits:
    """How long an answer may get, in tokens, and how it is sampled; None: the model's default."""

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None


@dataclass(frozen=True)
class Answer:
    """A model's answer. `stop_reason` is `end_turn` or `max_tokens`, or the family's own word."""

    text: str
    stop_reason: str
    input_tokens: int
    output_tokens: int


class BodyError(ValueError):
    """A request or response body is not what the model's family takes or gives."""


Request = tuple[str | None, tuple[Message, ...], Limits]


def request_body(
    family: str, system: str | None, messages: Sequence[Message], limits: Limits
) -> dict[str, Any]:
    """The request body of a family (`nova`, `llama`). Raises BodyError for text it cannot carry."""
    return _family(family).request_body(system, messages, limits)


def parse_answer(family: str, body: Mapping[str, Any]) -> Answer:
    """The answer in a response body. Raises BodyError."""
    try:
        return _family(family).parse_answer(body)
    except (KeyError, IndexError, TypeError) as error:
        raise BodyError(f"Not a response of the {family} family: {error!r} in {body!r}") from error


def parse_request(family: str, body: Mapping[str, Any]) -> Request:
    """System prompt, turns and limits of a request body. Raises BodyError saying what is wrong."""
    return _family(family).parse_request(body)


def response_body(family: str, answer: Answer) -> dict[str, Any]:
    """The response body that carries an answer."""
    return _family(family).response_body(answer)


# Nova: https://docs.aws.amazon.com/nova/latest/userguide/complete-request-schema.html


def _nova_request_body(
    system: str | None, messages: Sequence[Message], limits: Limits
) -> dict[str, Any]:
    inference = {
        "maxTokens": limits.max_tokens,
        "temperature": limits.temperature,
        "topP": limits.top_p,
    }
    body: dict[str, Any] = {
        "schemaVersion": "messages-v1",
        "messages": [
            {"role": message.role, "content": [{"text": message.text}]} for message in messages
        ],
        "inferenceConfig": {name: value for name, value in inference.items() if value is not None},
    }
    if system is not None:
        body["system"] = [{"text": system}]
    return body


def _nova_parse_answer(body: Mapping[str, Any]) -> Answer:
    content = body["output"]["message"]["content"]
    usage = body["usage"]
    return Answer(
        text="".join(block["text"] for block in content if "text" in block),
        stop_reason=body["stopReason"],
        input_tokens=usage["inputTokens"],
        output_tokens=usage["outputTokens"],
    )


def _nova_parse_request(body: Mapping[str, Any]) -> Request:
    only(body, "schemaVersion", "system", "messages", "inferenceConfig")
    if body.get("schemaVersion", "messages-v1") != "messages-v1":
        raise BodyError("schemaVersion must be messages-v1.")
    try:
        conversation: Conversation = from_record(
            "bedrock-conversation-2024", {"schemaVersion": "messages-v1", **body}
        )
    except RecordError as error:
        raise BodyError(f"Malformed input request: {error.reason}.") from error
    messages = conversation.messages
    if not messages or messages[0].role != "user" or messages[-1].role != "user":
        raise BodyError("Malformed input request: a conversation must start and end with a user.")
    inference = body.get("inferenceConfig") or {}
    if not isinstance(inference, Mapping):
        raise BodyError("Malformed input request: inferenceConfig must be an object.")
    only(inference, "maxTokens", "temperature", "topP")
    limits = _limits(
        inference.get("maxTokens"), inference.get("temperature"), inference.get("topP")
    )
    return conversation.system, messages, limits


def _nova_response_body(answer: Answer) -> dict[str, Any]:
    return {
        "output": {"message": {"role": "assistant", "content": [{"text": answer.text}]}},
        "stopReason": answer.stop_reason,
        "usage": {
            "inputTokens": answer.input_tokens,
            "outputTokens": answer.output_tokens,
            "totalTokens": answer.input_tokens + answer.output_tokens,
        },
    }


# Llama: https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-meta.html
# and Meta's prompt format, https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1/

_LLAMA_TOKEN = re.compile(r"<\|(begin_of_text|start_header_id|end_header_id|eot_id)\|>")
_LLAMA_TURN = re.compile(
    r"<\|start_header_id\|>(\w+)<\|end_header_id\|>\s*(.*?)\s*<\|eot_id\|>", re.DOTALL
)
_LLAMA_STOP_REASONS = {"stop": "end_turn", "length": "max_tokens"}


def _llama_request_body(
    system: str | None, messages: Sequence[Message], limits: Limits
) -> dict[str, Any]:
    turns = [] if system is None else [("system", system)]
    turns.extend((message.role, message.text) for message in messages)
    for role, text in turns:
        if token := _LLAMA_TOKEN.search(text):
            raise BodyError(
                f"A {role} turn holds {token[0]}, which would end the turn in a prompt."
            )
    prompt = "".join(
        f"<|start_header_id|>{role}<|end_header_id|>\n\n{text}<|eot_id|>" for role, text in turns
    )
    body: dict[str, Any] = {
        "prompt": f"<|begin_of_text|>{prompt}<|start_header_id|>assistant<|end_header_id|>\n\n",
        "max_gen_len": limits.max_tokens,
    }
    if limits.temperature is not None:
        body["temperature"] = limits.temperature
    if limits.top_p is not None:
        body["top_p"] = limits.top_p
    return body


def _llama_parse_answer(body: Mapping[str, Any]) -> Answer:
    stop_reason = body["stop_reason"]
    return Answer(
        text=body["generation"].strip(),
        stop_reason=_LLAMA_STOP_REASONS.get(stop_reason, stop_reason),
        input_tokens=body["prompt_token_count"],
        output_tokens=body["generation_token_count"],
    )


def _llama_parse_request(body: Mapping[str, Any]) -> Request:
    only(body, "prompt", "max_gen_len", "temperature", "top_p")
    prompt = body.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise BodyError("Malformed input request: prompt is missing.")
    limits = _limits(body.get("max_gen_len"), body.get("temperature"), body.get("top_p"))
    turns = _LLAMA_TURN.findall(prompt)
    if not any(role == "user" for role, _ in turns):
        return None, (Message("user", prompt),), limits
    system = "\n\n".join(text for role, text in turns if role == "system") or None
    messages = tuple(Message(role, text) for role, text in turns if role in ("user", "assistant"))
    return system, messages, limits


def _llama_response_body(answer: Answer) -> dict[str, Any]:
    names = {ours: theirs for theirs, ours in _LLAMA_STOP_REASONS.items()}
    return {
        "generation": answer.text,
        "prompt_token_count": answer.input_tokens,
        "generation_token_count": answer.output_tokens,
        "stop_reason": names.get(answer.stop_reason, answer.stop_reason),
    }


def only(body: Mapping[str, Any], *known: str) -> None:
    """Raises BodyError for a key that is not known: what it asks for would silently be left out."""
    if unknown := sorted(set(body) - set(known)):
        raise BodyError(f"Not supported here: {', '.join(unknown)} (only {', '.join(known)}).")


def _limits(max_tokens: object, temperature: object, top_p: object) -> Limits:
    if max_tokens is None:
        max_tokens = 512
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
        raise BodyError(f"The maximum of tokens must be a whole number from 1, not {max_tokens!r}.")
    return Limits(max_tokens, _fraction("temperature", temperature), _fraction("top P", top_p))


def _fraction(name: str, value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise BodyError(f"{name} must be a number from 0 to 1, not {value!r}.")
    return float(value)


@dataclass(frozen=True)
class _Family:
    request_body: Callable[[str | None, Sequence[Message], Limits], dict[str, Any]]
    parse_answer: Callable[[Mapping[str, Any]], Answer]
    parse_request: Callable[[Mapping[str, Any]], Request]
    response_body: Callable[[Answer], dict[str, Any]]


_FAMILIES = {
    "nova": _Family(
        _nova_request_body, _nova_parse_answer, _nova_parse_request, _nova_response_body
    ),
    "llama": _Family(
        _llama_request_body, _llama_parse_answer, _llama_parse_request, _llama_response_body
    ),
}


def _family(name: str) -> _Family:
    if name not in _FAMILIES:
        raise BodyError(f"No text family {name!r}. Known: {', '.join(_FAMILIES)}.")
    return _FAMILIES[name]
