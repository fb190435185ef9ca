"""How a conversation becomes the body of an InvokeModel request, and a response an answer.

Each family has its own bodies, in `bedrock/families/`. `request_body` and `parse_answer` are for
those who invoke a model; `parse_request`, `response_body` and `response_headers` are their
inverses, for the embedded cloud, which answers. Bodies are decoded JSON.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from bedrock.bodies import Answer, BodyError, Family, Limits, Request
from bedrock.conversations import Message
from bedrock.families.claude import CLAUDE, CLAUDE_ADAPTIVE
from bedrock.families.command import COMMAND
from bedrock.families.gpt_oss import GPT_OSS
from bedrock.families.llama import LLAMA, LLAMA_4
from bedrock.families.mistral import MISTRAL, MISTRAL_INSTRUCT
from bedrock.families.nova import NOVA
from bedrock.families.titan_text import TITAN_TEXT
from bedrock.passages import Passage, fenced

__all__ = [
    "FAMILIES",
    "Answer",
    "BodyError",
    "Limits",
    "Passage",
    "Request",
    "parse_answer",
    "parse_request",
    "request_body",
    "response_body",
    "response_headers",
]

FAMILIES = {
    "nova": NOVA,
    "claude": CLAUDE,
    "claude-adaptive": CLAUDE_ADAPTIVE,
    "llama": LLAMA,
    "llama-4": LLAMA_4,
    "mistral": MISTRAL,
    "mistral-instruct": MISTRAL_INSTRUCT,
    "command": COMMAND,
    "gpt-oss": GPT_OSS,
    "titan-text": TITAN_TEXT,
}

_INPUT_TOKENS = "x-amzn-bedrock-input-token-count"
_OUTPUT_TOKENS = "x-amzn-bedrock-output-token-count"


def request_body(
    family: str,
    system: str | None,
    messages: Sequence[Message],
    limits: Limits,
    context: Sequence[Passage] = (),
) -> dict[str, Any]:
    """The request body of a family, for turns that start and end with a user.

    `context` is what was found for the last turn, the question: data, never instructions. With it
    or without, the body has the same system prompt and as many turns.

    Raises BodyError for what the family cannot carry.
    """
    bodies = _family(family)
    if not messages or messages[-1].role != "user":
        raise BodyError("The last turn must be a user's: it is the question.")
    if bodies.documents is None:
        return bodies.request_body(system, fenced(messages, context), limits)
    documents = bodies.documents(context) if context else {}
    return bodies.request_body(system, messages, limits) | documents


def parse_answer(
    family: str, body: Mapping[str, Any], headers: Mapping[str, str] | None = None
) -> Answer:
    """The answer in a response body. Raises BodyError.

    `headers` are those of the HTTP response (boto3's `ResponseMetadata.HTTPHeaders`), by their
    names in small letters. Some families tell only there how many tokens were used.
    """
    headers = headers or {}
    bodies = _family(family)
    try:
        answer = bodies.parse_answer(body)
        if body.get("amazon-bedrock-guardrailAction") == "INTERVENED":
            answer = replace(answer, stop_reason="guardrail_intervened")
        if not answer.stop_reason:
            raise KeyError("stop reason")
        return replace(
            answer,
            input_tokens=_count(answer.input_tokens, headers.get(_INPUT_TOKENS)),
            output_tokens=_count(answer.output_tokens, headers.get(_OUTPUT_TOKENS)),
        )
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        # Names only: the rest may hold what a user said.
        names = ", ".join(body) if isinstance(body, Mapping) else type(body).__name__
        raise BodyError(
            f"Not a response of the {family} family: {error!r}. It holds: {names}."
        ) from error


def parse_request(family: str, body: Mapping[str, Any]) -> Request:
    """System prompt, turns and limits of a request body. Raises BodyError saying what is wrong."""
    return _family(family).parse_request(body)


def response_body(family: str, answer: Answer) -> dict[str, Any]:
    """The response body that carries an answer."""
    return _family(family).response_body(answer)


def response_headers(answer: Answer) -> dict[str, str]:
    """The headers that tell how many tokens an answer used, as far as it is known."""
    counts = {_INPUT_TOKENS: answer.input_tokens, _OUTPUT_TOKENS: answer.output_tokens}
    return {name: str(count) for name, count in counts.items() if count is not None}


def _family(name: str) -> Family:
    if name not in FAMILIES:
        raise BodyError(f"No text family {name!r}. Known: {', '.join(FAMILIES)}.")
    return FAMILIES[name]


def _count(in_body: int | None, in_header: str | None) -> int | None:
    return int(in_header) if in_body is None and in_header is not None else in_body
