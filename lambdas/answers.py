"""Answers of the deployed text models: which of them, in whose voice, with what to answer from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bedrock.conversations import Message
from bedrock.models import UnknownModelError, resolve_model
from bedrock.passages import Passage
from bedrock.text import BodyError, Limits, parse_answer, request_body
from lambdas.api_models import ModelName, TextRequest, TextResponse, Usage
from lambdas.api_settings import ApiSettings
from lambdas.generation import failed, invoke, invoke_id, usable_model
from lambdas.http import ApiError, invalid, logger
from lambdas.personas import Personas

NOT_PROMOTED = "No tuned model has been approved yet: the base model answered."


@dataclass(frozen=True)
class TextModel:
    """A text model that can be asked: how it is called here, what to invoke, whose bodies."""

    name: ModelName
    model_id: str
    family: str


class Generator:
    """Answers requests with the deployed text models."""

    def __init__(self, settings: ApiSettings, bedrock: Any, personas: Personas) -> None:
        self._settings, self._bedrock, self._personas = settings, bedrock, personas

    def choose(self, wanted: ModelName) -> TextModel:
        """The model that answers; the base model too if none was promoted.

        Raises ApiError (502) for a base model past its end of life. A custom model may outlive it.
        """
        base, served = self._settings.BASE_MODEL, self._settings.MODEL
        if wanted == "tuned" and served.model_id is not None:
            try:
                model = resolve_model(served.model_id, served.base_model)
            except UnknownModelError as error:
                raise ApiError(502, "model_unusable", str(error)) from error
            return TextModel("tuned", served.model_id, model.family)
        model = usable_model(base)
        return TextModel("base", invoke_id(base, model), model.family)

    def system(self, request: TextRequest) -> str | None:
        """The system prompt of the persona that is asked. Raises ApiError if there is none."""
        return self._personas.find(request.persona).system if request.persona else None

    def answer(
        self,
        model: TextModel,
        system: str | None,
        request: TextRequest,
        request_id: str,
        context: Sequence[Passage] = (),
    ) -> TextResponse:
        """The model's answer, with passages as data beside the question. Raises ApiError."""
        turns = [Message(turn.role, turn.text) for turn in request.history]
        turns.append(Message("user", request.question))
        limits = Limits(request.max_tokens, request.temperature)
        try:
            body = request_body(model.family, system, turns, limits, context)
        except BodyError as error:
            # Of what a request may hold, only the temperature is not for every family.
            raise invalid({"temperature": str(error)}) from error
        content, headers = invoke(self._bedrock, model.model_id, body, self._settings.GUARDRAIL)
        try:
            answer = parse_answer(model.family, content, headers)
        except BodyError as error:
            raise failed(model.model_id, "unreadable response", "Trying again may help.") from error
        usage = Usage(input_tokens=answer.input_tokens, output_tokens=answer.output_tokens)
        return self.respond(model, request, request_id, answer.text, answer.stop_reason, usage)

    def respond(
        self,
        model: TextModel,
        request: TextRequest,
        request_id: str,
        text: str,
        stop_reason: str,
        usage: Usage,
    ) -> TextResponse:
        """The response with a text, which is logged; without the texts, unless they are wanted."""
        texts = {"question": request.question, "response": text}
        logger.info(
            "answered",
            model_id=model.model_id,
            stop_reason=stop_reason,
            extra=usage.model_dump() | (texts if self._settings.LOG_PROMPTS else {}),
        )
        note = {"note": NOT_PROMOTED} if model.name != request.model else {}
        return TextResponse(
            response=text,
            model=model.name,
            model_id=model.model_id,
            stop_reason=stop_reason,
            usage=usage,
            request_id=request_id,
            **note,
        )
