"""POST /image: a picture for a prompt."""

import base64
import random
from dataclasses import replace
from typing import Any

from aws_lambda_powertools.utilities.typing import LambdaContext
from pydantic import Field

from bedrock import images
from bedrock.bodies import BodyError
from bedrock.images import ContentFilteredError
from lambdas.api_models import ImageRequest, ImageResponse
from lambdas.api_settings import ApiSettings
from lambdas.generation import client, failed, invoke, invoke_id, usable_model
from lambdas.http import ApiError, invalid, logger, parse, respond
from lambdas.validation import read_environment

MOST_CHARACTERS = 5_500_000  # Lambda's responses hold 6 MB
HIGHEST_SEED = 858_993_459  # Nova Canvas'; the other families take higher ones too


class Environment(ApiSettings):
    IMAGE_MODEL: str = Field(min_length=1)
    IMAGE_REGION: str = Field(min_length=1)


environment = read_environment(Environment)
bedrock = client(
    "bedrock-runtime",
    read_seconds=24,
    region=environment.IMAGE_REGION,
    access=environment.ACCESS,
)


@logger.inject_lambda_context(clear_state=True)
def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answer one proxy event."""
    return respond(event, context, lambda request_id: draw(parse(event, ImageRequest), request_id))


def draw(request: ImageRequest, request_id: str) -> ImageResponse:
    """The picture. Raises ApiError: 422 for what the model does not draw, or as `invoke` does."""
    model = usable_model(environment.IMAGE_MODEL)
    model_id = invoke_id(environment.IMAGE_MODEL, model)
    seed = random.randint(1, HIGHEST_SEED) if request.seed is None else request.seed  # noqa: S311
    body = request_body(model.family, request, seed)
    content, headers = invoke(bedrock, model_id, body, environment.GUARDRAIL)
    try:
        image = images.parse_image(model.family, content)
    except ContentFilteredError as error:
        raise ApiError(
            422,
            "content_filtered",
            f"{model_id} does not draw this: {error}",
            fields={"prompt": str(error)},
        ) from error
    except BodyError as error:
        raise failed(model_id, "unreadable response", "Trying again may help.") from error
    encoded = base64.b64encode(image.png).decode()
    if len(encoded) > MOST_CHARACTERS:
        raise failed(model_id, "picture too large to send", "Ask for a smaller one.")
    width, height = image.size
    logger.info(
        "drawn",
        model_id=model_id,
        width=width,
        height=height,
        extra={"prompt": request.prompt} if environment.LOG_PROMPTS else {},
    )
    return ImageResponse(
        image=encoded,
        model_id=model_id,
        seed=seed if image.seed is None else image.seed,
        width=width,
        height=height,
        placeholder="x-quench-placeholder" in headers,
        request_id=request_id,
    )


def request_body(family: str, request: ImageRequest, seed: int) -> dict[str, Any]:
    """The body of the request. Raises ApiError naming the first field that the family refuses."""
    asked = images.ImageRequest(request.prompt)
    body: dict[str, Any] = {}
    parts: dict[str, dict[str, Any]] = {
        "prompt": {},
        "negative_prompt": {"negative_prompt": request.negative_prompt},
        "width": {"width": request.width, "height": request.height},
        "seed": {"seed": seed},
    }
    for field, values in parts.items():
        asked = replace(asked, **values)
        try:
            body = images.request_body(family, asked)
        except BodyError as error:
            raise invalid({field: str(error)}) from error
    return body
