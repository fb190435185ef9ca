"""What the bodies of all families have in common.

A guardrail is no part of a body: `guardrailIdentifier` and `guardrailVersion` are parameters of
InvokeModel. What it did, the response body says beside the model's own fields.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bedrock.conversations import Message
from bedrock.passages import Passage


@dataclass(frozen=True)
class Limits:
    """How long an answer may get, in tokens, and how it is sampled; None: the model's default."""

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None


@dataclass(frozen=True)
class Answer:
    """A model's answer. `stop_reason` is `end_turn`, `max_tokens`, `guardrail_intervened` or the
    family's own word. Counts of tokens are None where the response does not tell them."""

    text: str
    stop_reason: str
    input_tokens: int | None
    output_tokens: int | None


class BodyError(ValueError):
    """A request or response body is not what the model's family takes or gives."""


Request = tuple[str | None, tuple[Message, ...], Limits]


@dataclass(frozen=True)
class Family:
    """The bodies of one family.

    `parse_answer` raises KeyError, IndexError or TypeError for what is no response, and leaves
    `stop_reason` empty where the response has none. `documents` is for a family that takes passages
    in a field of their own: the fields of the body that carry them.
    """

    request_body: Callable[[str | None, Sequence[Message], Limits], dict[str, Any]]
    parse_answer: Callable[[Mapping[str, Any]], Answer]
    parse_request: Callable[[Mapping[str, Any]], Request]
    response_body: Callable[[Answer], dict[str, Any]]
    documents: Callable[[Sequence[Passage]], dict[str, Any]] | None = None


@dataclass(frozen=True)
class StopReasons:
    """A family's words for the ends that all families know."""

    end_turn: str
    max_tokens: str

    def ours(self, word: str | None) -> str:
        """`end_turn` or `max_tokens`, or the family's own word."""
        return {self.end_turn: "end_turn", self.max_tokens: "max_tokens"}.get(
            word or "", word or ""
        )

    def theirs(self, word: str) -> str:
        """The inverse of `ours`."""
        return {"end_turn": self.end_turn, "max_tokens": self.max_tokens}.get(word, word)


def given(**values: object) -> dict[str, Any]:
    """Those of the values that are not None: what is left out of a body is the model's default."""
    return {name: value for name, value in values.items() if value is not None}


def only(body: Mapping[str, Any], *known: str) -> None:
    """Raises BodyError for a key that is not known: what it asks for would silently be left out."""
    if unknown := sorted(set(body) - set(known)):
        raise BodyError(f"Not supported here: {', '.join(unknown)} (only {', '.join(known)}).")


def parse_limits(max_tokens: object, temperature: object, top_p: object) -> Limits:
    """Limits from a request body's values. Raises BodyError."""
    if max_tokens is None:
        max_tokens = 512
    if not isinstance(max_tokens, int) or isinstance(max_tokens, bool) or max_tokens < 1:
        raise BodyError(f"The maximum of tokens must be a whole number from 1, not {max_tokens!r}.")
    return Limits(max_tokens, _fraction("temperature", temperature), _fraction("top P", top_p))


def require_question(messages: Sequence[Message]) -> None:
    """Raises BodyError for a conversation that does not start and end with a user."""
    if not messages or messages[0].role != "user" or messages[-1].role != "user":
        raise BodyError("Malformed input request: a conversation must start and end with a user.")


def parse_prompt(value: object) -> str:
    """The prompt of a request body that has one. Raises BodyError."""
    if not isinstance(value, str) or not value.strip():
        raise BodyError("Malformed input request: the prompt is missing.")
    return value


def _fraction(name: str, value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
        raise BodyError(f"{name} must be a number from 0 to 1, not {value!r}.")
    return float(value)
