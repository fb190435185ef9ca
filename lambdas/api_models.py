"""Requests and responses of the API. The OpenAPI document is made from them."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

MOST_TOKENS = 2048  # what a model answers within the 29 seconds that API Gateway waits
ModelName = Literal["base", "tuned"]
Text = Annotated[str, Field(min_length=1, max_length=8_000, pattern=r"\S")]
# An answer comes back as a turn: so many characters are more than its most tokens hold.
TurnText = Annotated[str, Field(min_length=1, max_length=16_000, pattern=r"\S")]
FilterValue = str | float | bool


class _Request(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        allow_inf_nan=False,
        protected_namespaces=(),
        defer_build=True,  # no function needs all of these models
    )


class _Response(BaseModel):
    model_config = ConfigDict(protected_namespaces=(), defer_build=True)


class Turn(_Request):
    """An earlier turn of the conversation."""

    role: Literal["user", "assistant"]
    text: TurnText


class TextRequest(_Request):
    """A question to the base model, or to the tuned one."""

    question: Text = Field(description="The question, which is the conversation's last turn.")
    persona: str | None = Field(
        default=None,
        pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$",
        description="Who answers: the name of a persona's file, without `.json`.",
    )
    history: list[Turn] = Field(
        default=[],
        max_length=50,
        description="Earlier turns: a user's first, an assistant's last, one after the other.",
    )
    max_tokens: int = Field(default=512, ge=1, le=MOST_TOKENS)
    temperature: float | None = Field(
        default=None, ge=0, le=1, description="If absent, the model's own default."
    )
    model: ModelName = Field(
        default="base",
        description="`tuned` is the approved model; before there is one, the base model answers.",
    )

    @field_validator("history")
    @classmethod
    def _alternates(cls, turns: list[Turn]) -> list[Turn]:
        roles = [turn.role for turn in turns]
        if roles != ["user", "assistant"] * (len(roles) // 2):
            raise ValueError("turns must alternate, from a user's to an assistant's")
        return turns


class RagRequest(TextRequest):
    """A question to be answered from the documents."""

    top_k: int = Field(default=5, ge=1, le=20, description="How many passages may be used.")
    filter: dict[
        Annotated[str, Field(min_length=1, max_length=256)],
        FilterValue | Annotated[list[FilterValue], Field(min_length=1, max_length=100)],
    ] = Field(
        default={},
        max_length=20,
        description="Attributes a passage's document must have; of several values, any one. "
        'Types count: the text "1" is not the number 1.',
    )
    min_score: float | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Leaves out passages whose score is lower. If absent, passages are used if "
        "the best score among them is at least 0.6.",
    )


class ImageRequest(_Request):
    """A picture to draw. What sizes and seeds can be asked for depends on the model."""

    prompt: str = Field(min_length=1, max_length=10_000, pattern=r"\S")
    negative_prompt: str | None = Field(
        default=None,
        min_length=1,
        max_length=10_000,
        pattern=r"\S",
        description="What must not be in the picture.",
    )
    width: int | None = Field(default=None, ge=64, le=4096, description="Pixels; with `height`.")
    height: int | None = Field(default=None, ge=64, le=4096, description="Pixels; with `width`.")
    seed: int | None = Field(
        default=None, ge=0, le=4_294_967_294, description="The same seed draws the same picture."
    )

    @model_validator(mode="after")
    def _whole_size(self) -> "ImageRequest":
        if (self.width is None) != (self.height is None):
            raise ValueError("width and height belong together: give both, or neither")
        return self


class Usage(_Response):
    """Tokens; null where the model does not tell them."""

    input_tokens: int | None
    output_tokens: int | None


class TextResponse(_Response):
    """The whole answer."""

    response: str
    model: ModelName = Field(description="Which model really answered.")
    model_id: str = Field(description="What was invoked.")
    stop_reason: str = Field(
        description="`end_turn`, `max_tokens`, `guardrail_intervened`, `nothing_found` (no model "
        "was asked), or the model's own word."
    )
    usage: Usage
    request_id: str
    note: str = Field(
        default="", description="Only if `tuned` was asked for and the base model answered."
    )


class Source(_Response):
    """A passage that the model was given."""

    uri: str
    title: str
    score: float = Field(
        description="Similarity to the question, (1 + cosine) / 2; an upper bound for a passage "
        "that was found by its words alone."
    )
    excerpt: str


class RagResponse(TextResponse):
    """The whole answer, and what it was made from: no sources, if nothing relevant was found."""

    sources: list[Source] = Field(description="Best first, by meaning and words together.")


class ImageResponse(_Response):
    """A picture."""

    image: str = Field(description="PNG in base64.")
    model_id: str
    seed: int
    width: int
    height: int
    placeholder: bool = Field(description="Whether this is no picture but a stand-in for one.")
    request_id: str


class Models(_Response):
    """What is invoked for what."""

    base: str
    tuned: str | None
    image: str
    embedding: str


class IndexStatus(_Response):
    """The vector index; counts are null if it could not be asked."""

    name: str
    documents: int | None
    chunks: int | None


class HealthResponse(_Response):
    """What is deployed. `degraded`: the index could not be asked, or holds nothing."""

    status: Literal["ok", "degraded"]
    version: str
    models: Models
    index: IndexStatus
    request_id: str


class FieldError(_Response):
    """What is wrong with one field of the request."""

    field: str
    reason: str


class ErrorDetail(_Response):
    """What went wrong, and what to do."""

    code: str
    message: str
    fields: list[FieldError] = []


class ErrorResponse(_Response):
    """Every error of the functions."""

    error: ErrorDetail
    request_id: str


class GatewayError(_Response):
    """An error of API Gateway, before or instead of a function's response."""

    message: str | None
