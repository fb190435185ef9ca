"""How a prompt becomes the body of a request to an image model, and a response a picture.

`request_body` and `parse_image` are for those who invoke a model; `parse_request` and
`response_body` are their inverses, for the embedded cloud. Bodies are decoded JSON.

Stability's models take no size but an aspect ratio: the nearest to what is asked is chosen, and
`Image.size` tells what came of it.

Sources: model-parameters-diffusion-stable-image-core-text-image-request-response.html,
model-parameters-diffusion-3-5-large.html and model-parameters-titan-image.html under
https://docs.aws.amazon.com/bedrock/latest/userguide/, and
https://docs.aws.amazon.com/nova/latest/userguide/image-gen-req-resp-structure.html
"""

import base64
import binascii
import math
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from bedrock.bodies import BodyError, given, only

_PNG = b"\x89PNG\r\n\x1a\n"

# The sizes of about a megapixel that Stable Diffusion 3.5 draws for each aspect ratio.
ASPECT_RATIOS = {
    "1:1": (1024, 1024),
    "16:9": (1344, 768),
    "21:9": (1536, 640),
    "2:3": (832, 1216),
    "3:2": (1216, 832),
    "4:5": (896, 1088),
    "5:4": (1088, 896),
    "9:16": (768, 1344),
    "9:21": (640, 1536),
}


@dataclass(frozen=True)
class ImageRequest:
    """What to draw. None: the model's default size, and a seed of its choice."""

    prompt: str
    negative_prompt: str | None = None
    width: int | None = None
    height: int | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Image:
    """A picture as PNG. `seed` draws it again; None if the response does not tell it."""

    png: bytes
    seed: int | None = None

    @property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        width, height = struct.unpack(">II", self.png[16:24])
        return width, height


class ContentFilteredError(Exception):
    """The model refused to draw this, or to show what it drew; the message is its reason."""


def request_body(family: str, request: ImageRequest) -> dict[str, Any]:
    """The request body of a family (`stability`, `nova-canvas`, `titan-image`).

    Raises BodyError for what the family cannot be asked.
    """
    bodies = _family(family)
    _check(bodies, request)
    return bodies.request_body(request)


def parse_image(family: str, body: Mapping[str, Any]) -> Image:
    """The picture in a response body. Raises ContentFilteredError, BodyError."""
    if body.get("amazon-bedrock-guardrailAction") == "INTERVENED":
        raise ContentFilteredError("The guardrail intervened.")
    image = _family(family).parse_image(body)
    if not image.png.startswith(_PNG) or len(image.png) < 24:
        raise BodyError(f"Not a response of the {family} family: its image is no PNG.")
    return image


def parse_request(family: str, body: Mapping[str, Any]) -> ImageRequest:
    """What a request body asks for; an aspect ratio comes back as one of its sizes.

    Raises BodyError saying what is wrong.
    """
    bodies = _family(family)
    request = bodies.parse_request(body)
    _check(bodies, request)
    return request


def response_body(family: str, image: Image) -> dict[str, Any]:
    """The response body that carries a picture."""
    return _family(family).response_body(image)


def nearest_aspect_ratio(width: int, height: int) -> str:
    """The aspect ratio, of those Stability's models take, that is nearest to a size's."""
    wanted = math.log(width / height)

    def distance(ratio: str) -> float:
        across, down = map(int, ratio.split(":"))
        return abs(math.log(across / down) - wanted)

    return min(ASPECT_RATIOS, key=distance)


# Stability


def _stability_check_size(width: int, height: int) -> None:
    if width < 1 or height < 1:
        raise BodyError(f"Width and height must be at least 1, not {width} and {height}.")


def _stability_request_body(request: ImageRequest) -> dict[str, Any]:
    ratio = None
    if request.width is not None and request.height is not None:
        ratio = nearest_aspect_ratio(request.width, request.height)
    return {
        "prompt": request.prompt,
        **given(negative_prompt=request.negative_prompt, aspect_ratio=ratio, seed=request.seed),
        "output_format": "png",
    }


def _stability_parse_image(body: Mapping[str, Any]) -> Image:
    reasons = body.get("finish_reasons")
    reason = reasons[0] if isinstance(reasons, list) and reasons else None
    if isinstance(reason, str) and reason.startswith("Filter reason"):
        raise ContentFilteredError(reason)
    if reason is not None:
        raise BodyError(f"The model drew nothing: {reason}.")
    seeds = body.get("seeds")
    seed = str(seeds[0]) if isinstance(seeds, list) and seeds else ""
    return Image(_first_image(body), int(seed) if seed.isdecimal() else None)


def _stability_parse_request(body: Mapping[str, Any]) -> ImageRequest:
    only(body, "prompt", "negative_prompt", "aspect_ratio", "seed", "output_format", "mode")
    if body.get("mode", "text-to-image") != "text-to-image":
        raise BodyError("Malformed input request: mode must be text-to-image here.")
    if str(body.get("output_format", "png")).lower() != "png":
        raise BodyError("Malformed input request: output_format must be png here.")
    ratio = body.get("aspect_ratio", "1:1")
    if ratio not in ASPECT_RATIOS:
        raise BodyError(
            f"Malformed input request: aspect_ratio must be one of {', '.join(ASPECT_RATIOS)}, "
            f"not {ratio!r}."
        )
    width, height = ASPECT_RATIOS[ratio]
    return ImageRequest(
        _text(body, "prompt"),
        _text(body, "negative_prompt") if "negative_prompt" in body else None,
        width,
        height,
        _whole(body, "seed") or None,  # 0 asks for a seed of the model's choice
    )


def _stability_response_body(image: Image) -> dict[str, Any]:
    return {"seeds": [image.seed], "finish_reasons": [None], "images": [_encoded(image)]}


# Amazon: one schema for Nova Canvas and Titan Image


def _nova_check_size(width: int, height: int) -> None:
    sides_fit = all(320 <= side <= 4096 and side % 16 == 0 for side in (width, height))
    if not sides_fit or not 1 / 4 <= width / height <= 4 or width * height >= 4_194_304:
        raise BodyError(
            "Width and height must be multiples of 16 from 320 to 4,096, neither over 4 times the "
            f"other, and less than 4,194,304 pixels together, not {width} and {height}."
        )


def _titan_check_size(width: int, height: int) -> None:
    if not all(320 <= side <= 1408 for side in (width, height)):
        raise BodyError(f"Width and height must be from 320 to 1,408, not {width} and {height}.")


def _amazon_request_body(request: ImageRequest) -> dict[str, Any]:
    return {
        "taskType": "TEXT_IMAGE",
        "textToImageParams": {
            "text": request.prompt,
            **given(negativeText=request.negative_prompt),
        },
        "imageGenerationConfig": {
            "numberOfImages": 1,
            **given(width=request.width, height=request.height, seed=request.seed),
        },
    }


def _amazon_parse_image(body: Mapping[str, Any]) -> Image:
    if error := body.get("error"):
        raise ContentFilteredError(str(error))
    return Image(_first_image(body))


def _amazon_parse_request(body: Mapping[str, Any]) -> ImageRequest:
    only(body, "taskType", "textToImageParams", "imageGenerationConfig")
    if body.get("taskType") != "TEXT_IMAGE":
        raise BodyError("Malformed input request: taskType must be TEXT_IMAGE here.")
    texts = body.get("textToImageParams")
    config = body.get("imageGenerationConfig", {})
    if not isinstance(texts, Mapping) or not isinstance(config, Mapping):
        raise BodyError(
            "Malformed input request: textToImageParams and imageGenerationConfig must be objects."
        )
    only(texts, "text", "negativeText")
    only(config, "numberOfImages", "width", "height", "seed")
    if config.get("numberOfImages", 1) != 1:
        raise BodyError("Malformed input request: numberOfImages must be 1 here.")
    return ImageRequest(
        _text(texts, "text"),
        _text(texts, "negativeText") if "negativeText" in texts else None,
        _whole(config, "width"),
        _whole(config, "height"),
        _whole(config, "seed"),
    )


def _amazon_response_body(image: Image) -> dict[str, Any]:
    return {"images": [_encoded(image)], "error": None}


def _first_image(body: Mapping[str, Any]) -> bytes:
    images = body.get("images")
    if not isinstance(images, list) or not images or not isinstance(images[0], str):
        raise BodyError(f"Not a response of an image model: it holds {', '.join(body)}.")
    try:
        return base64.b64decode(images[0], validate=True)
    except binascii.Error as error:
        raise BodyError(f"Not a response of an image model: {error}.") from error


def _encoded(image: Image) -> str:
    return base64.b64encode(image.png).decode()


def _text(body: Mapping[str, Any], name: str) -> str:
    value = body.get(name)
    if not isinstance(value, str) or not value:
        raise BodyError(f"Malformed input request: {name} must be text.")
    return value


def _whole(body: Mapping[str, Any], name: str) -> int | None:
    value = body.get(name)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 0):
        raise BodyError(f"Malformed input request: {name} must be a whole number, not {value!r}.")
    return value


@dataclass(frozen=True)
class _Family:
    maximum_characters: int
    maximum_seed: int
    check_size: Callable[[int, int], None]
    request_body: Callable[[ImageRequest], dict[str, Any]]
    parse_image: Callable[[Mapping[str, Any]], Image]
    parse_request: Callable[[Mapping[str, Any]], ImageRequest]
    response_body: Callable[[Image], dict[str, Any]]


_AMAZON = (_amazon_request_body, _amazon_parse_image, _amazon_parse_request, _amazon_response_body)

FAMILIES = {
    "stability": _Family(
        10_000,
        4_294_967_294,
        _stability_check_size,
        _stability_request_body,
        _stability_parse_image,
        _stability_parse_request,
        _stability_response_body,
    ),
    "nova-canvas": _Family(1_024, 858_993_459, _nova_check_size, *_AMAZON),
    "titan-image": _Family(512, 2_147_483_646, _titan_check_size, *_AMAZON),
}


def _check(bodies: _Family, request: ImageRequest) -> None:
    for name, text in (("prompt", request.prompt), ("negative prompt", request.negative_prompt)):
        if text is not None and not 1 <= len(text) <= bodies.maximum_characters:
            raise BodyError(
                f"The {name} must have 1 to {bodies.maximum_characters:,} characters, "
                f"not {len(text):,}."
            )
    if request.seed is not None and not 0 <= request.seed <= bodies.maximum_seed:
        raise BodyError(f"The seed must be from 0 to {bodies.maximum_seed:,}, not {request.seed}.")
    if (request.width is None) != (request.height is None):
        raise BodyError("Width and height belong together: give both, or neither.")
    if request.width is not None and request.height is not None:
        bodies.check_size(request.width, request.height)


def _family(name: str) -> _Family:
    if name not in FAMILIES:
        raise BodyError(f"No image family {name!r}. Known: {', '.join(FAMILIES)}.")
    return FAMILIES[name]
