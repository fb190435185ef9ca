"""Meta Llama: one prompt, in the format of Llama 3 (`LLAMA`) or of Llama 4 (`LLAMA_4`).

All tokens of a prompt's format start with `<|`, which is broken apart by a space wherever a turn
holds it.

Sources: https://docs.aws.amazon.com/bedrock/latest/userguide/model-parameters-meta.html
https://www.llama.com/docs/model-cards-and-prompt-formats/llama3_1/ and …/llama4/
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bedrock.bodies import (
    Answer,
    Family,
    Limits,
    Request,
    StopReasons,
    given,
    only,
    parse_limits,
    parse_prompt,
)
from bedrock.conversations import Message

_STOP_REASONS = StopReasons(end_turn="stop", max_tokens="length")


@dataclass(frozen=True)
class _Format:
    """How a prompt marks its turns."""

    before_role: str
    after_role: str
    turn_end: str

    def request_body(
        self, system: str | None, messages: Sequence[Message], limits: Limits
    ) -> dict[str, Any]:
        turns = [] if system is None else [("system", system)]
        turns.extend((message.role, message.text) for message in messages)
        prompt = "".join(
            f"{self._header(role)}{text.replace('<|', '< |')}{self.turn_end}"
            for role, text in turns
        )
        return {
            "prompt": f"<|begin_of_text|>{prompt}{self._header('assistant')}",
            "max_gen_len": limits.max_tokens,
            **given(temperature=limits.temperature, top_p=limits.top_p),
        }

    def parse_request(self, body: Mapping[str, Any]) -> Request:
        only(body, "prompt", "max_gen_len", "temperature", "top_p")
        prompt = parse_prompt(body.get("prompt"))
        limits = parse_limits(body.get("max_gen_len"), body.get("temperature"), body.get("top_p"))
        turn = (
            rf"{re.escape(self.before_role)}(\w+){re.escape(self.after_role)}"
            rf"\s*(.*?)\s*{re.escape(self.turn_end)}"
        )
        turns = re.findall(turn, prompt, re.DOTALL)
        if not any(role == "user" for role, _ in turns):
            return None, (Message("user", prompt),), limits
        system = "\n\n".join(text for role, text in turns if role == "system") or None
        messages = tuple(
            Message(role, text) for role, text in turns if role in ("user", "assistant")
        )
        return system, messages, limits

    def _header(self, role: str) -> str:
        return f"{self.before_role}{role}{self.after_role}\n\n"


def _parse_answer(body: Mapping[str, Any]) -> Answer:
    return Answer(
        text=body["generation"].strip(),
        stop_reason=_STOP_REASONS.ours(body.get("stop_reason")),
        input_tokens=body.get("prompt_token_count"),
        output_tokens=body.get("generation_token_count"),
    )


def _response_body(answer: Answer) -> dict[str, Any]:
    return {
        "generation": answer.text,
        "prompt_token_count": answer.input_tokens or 0,
        "generation_token_count": answer.output_tokens or 0,
        "stop_reason": _STOP_REASONS.theirs(answer.stop_reason),
    }


def _family(prompt: _Format) -> Family:
    return Family(prompt.request_body, _parse_answer, prompt.parse_request, _response_body)


LLAMA = _family(_Format("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"))
LLAMA_4 = _family(_Format("<|header_start|>", "<|header_end|>", "<|eot|>"))
