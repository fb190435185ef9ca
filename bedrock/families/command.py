"""Cohere Command R and R+. They take passages in a field of their own, apart from all turns.

Source:
https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-cohere-command-r-plus.html
"""

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
from bedrock.conversations import Message, Role
from bedrock.passages import Passage, fenced

_ROLES: dict[Role, str] = {"user": "USER", "assistant": "CHATBOT"}
_STOP_REASONS = StopReasons(end_turn="COMPLETE", max_tokens="MAX_TOKENS")


def _request_body(
    system: str | None, messages: Sequence[Message], limits: Limits
) -> dict[str, Any]:
    *earlier, question = messages
    return {
        "message": question.text,
        "chat_history": [{"role": _ROLES[turn.role], "message": turn.text} for turn in earlier],
        **given(preamble=system, temperature=limits.temperature, p=limits.top_p),
        "max_tokens": limits.max_tokens,
    }


def _documents(passages: Sequence[Passage]) -> dict[str, Any]:
    return {
        "documents": [
            {"title": _broken(passage.title), "snippet": _broken(passage.text)}
            for passage in passages
        ]
    }


def _parse_answer(body: Mapping[str, Any]) -> Answer:
    stop_reason = _STOP_REASONS.ours(body.get("finish_reason"))
    return Answer(body["text"].strip(), stop_reason, None, None)


def _parse_request(body: Mapping[str, Any]) -> Request:
    """Documents come back fenced into the question, for a model that knows no documents."""
    only(body, "message", "chat_history", "documents", "preamble", "max_tokens", "temperature", "p")
    try:
        roles = {theirs: ours for ours, theirs in _ROLES.items()}
        messages = [
            Message(roles[turn["role"]], str(turn["message"]))
            for turn in body.get("chat_history") or []
        ]
        passages = [
            Passage(str(document.get("title", "")), str(document["snippet"]))
            for document in body.get("documents") or []
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise BodyError(
            "Malformed input request: chat_history holds objects with role (USER or CHATBOT) and "
            "message, documents objects with title and snippet."
        ) from error
    messages.append(Message("user", parse_prompt(body.get("message"))))
    require_question(messages)
    system = body.get("preamble")
    if system is not None and not isinstance(system, str):
        raise BodyError("Malformed input request: preamble must be text.")
    limits = parse_limits(body.get("max_tokens"), body.get("temperature"), body.get("p"))
    return system, tuple(fenced(messages, passages)), limits


def _response_body(answer: Answer) -> dict[str, Any]:
    return {"text": answer.text, "finish_reason": _STOP_REASONS.theirs(answer.stop_reason)}


def _broken(text: str) -> str:
    return text.replace("<|", "< |")  # with which all of the model's own tokens start


COMMAND = Family(_request_body, _parse_answer, _parse_request, _response_body, _documents)
