import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bedrock.bodies import BodyError
from bedrock.images import (
    ASPECT_RATIOS,
    FAMILIES,
    ContentFilteredError,
    Image,
    ImageRequest,
    nearest_aspect_ratio,
    parse_image,
    parse_request,
    request_body,
    response_body,
)
from bedrock.models import all_models

BODIES = Path(__file__).parents[1] / "bodies"
WIDE = ImageRequest("A lantern above a harbour", "people", 1280, 720, 7)

every_family = pytest.mark.parametrize("family", FAMILIES)


def body_of(family: str, kind: str) -> dict[str, Any]:
    """The family's request or response as its service documents it."""
    content: dict[str, Any] = json.loads((BODIES / family / f"{kind}.json").read_text("utf-8"))
    return content


def test_every_image_model_has_a_family() -> None:
    assert {model.family for model in all_models() if "image" in model.tasks} == set(FAMILIES)


@every_family
def test_a_request_is_as_documented(family: str) -> None:
    assert request_body(family, WIDE) == body_of(family, "request")


@every_family
def test_a_documented_request_is_understood(family: str) -> None:
    request = parse_request(family, body_of(family, "request"))
    assert (request.prompt, request.negative_prompt, request.seed) == (
        WIDE.prompt,
        WIDE.negative_prompt,
        WIDE.seed,
    )
    size = ASPECT_RATIOS["16:9"] if family == "stability" else (WIDE.width, WIDE.height)
    assert (request.width, request.height) == size


@every_family
def test_the_picture_is_read_from_a_documented_response(family: str) -> None:
    image = parse_image(family, body_of(family, "response"))
    assert image.size == (4, 3)
    assert image.seed == (7 if family == "stability" else None)


@every_family
def test_what_is_not_asked_is_left_to_the_model(family: str) -> None:
    body = request_body(family, ImageRequest("A lantern"))
    request = parse_request(family, body)
    assert (request.prompt, request.negative_prompt, request.seed) == ("A lantern", None, None)
    assert "seed" not in json.dumps(body)


pngs = st.builds(
    lambda width, height, rest: (
        b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR" + struct.pack(">II", width, height) + rest
    ),
    st.integers(1, 2**31 - 1),
    st.integers(1, 2**31 - 1),
    st.binary(),
)


@every_family
@given(png=pngs, seed=st.integers(0, 2**32 - 2))
def test_a_picture_is_read_as_it_was_given(family: str, png: bytes, seed: int) -> None:
    image = Image(png, seed if family == "stability" else None)
    assert parse_image(family, json.loads(json.dumps(response_body(family, image)))) == image


@pytest.mark.parametrize(
    ("size", "ratio"),
    [
        ((512, 512), "1:1"),
        ((1920, 1080), "16:9"),
        ((1080, 1920), "9:16"),
        ((1000, 999), "1:1"),
        ((4096, 320), "21:9"),
        ((1, 10_000), "9:21"),
        ((800, 1000), "4:5"),
        ((1024, 768), "5:4"),
    ],
)
def test_the_nearest_aspect_ratio_is_chosen(size: tuple[int, int], ratio: str) -> None:
    assert nearest_aspect_ratio(*size) == ratio


@pytest.mark.parametrize("ratio", ASPECT_RATIOS)
def test_the_sizes_of_an_aspect_ratio_are_of_it(ratio: str) -> None:
    assert nearest_aspect_ratio(*ASPECT_RATIOS[ratio]) == ratio


@pytest.mark.parametrize(
    ("family", "body"),
    [
        ("stability", {"finish_reasons": ["Filter reason: prompt"]}),
        (
            "stability",
            {"seeds": [1], "finish_reasons": ["Filter reason: output image"], "images": [""]},
        ),
        ("nova-canvas", {"images": [], "error": "All images were blocked by the content filters."}),
        ("titan-image", {"error": "This request has been blocked by our content filters."}),
        ("stability", {"amazon-bedrock-guardrailAction": "INTERVENED"}),
    ],
)
def test_what_is_filtered_is_an_error_of_its_own(family: str, body: dict[str, Any]) -> None:
    with pytest.raises(ContentFilteredError, match=r"Filter reason|blocked|guardrail"):
        parse_image(family, body)


@pytest.mark.parametrize(
    ("family", "body"),
    [
        ("stability", {"finish_reasons": ["Inference error"]}),
        ("stability", {"message": "Too many requests"}),
        ("nova-canvas", {"images": []}),
        ("nova-canvas", {"images": ["no base64!"]}),
        ("titan-image", {"images": ["bm8gcGljdHVyZQ=="]}),
        ("dall-e", {}),
    ],
)
def test_what_is_no_response_is_refused(family: str, body: dict[str, Any]) -> None:
    with pytest.raises(BodyError):
        parse_image(family, body)


@pytest.mark.parametrize(
    ("family", "request_", "message"),
    [
        ("stability", ImageRequest(""), "1 to 10,000 characters"),
        ("stability", ImageRequest("x" * 10_001), "1 to 10,000 characters"),
        ("nova-canvas", ImageRequest("x", "y" * 1_025), "negative prompt must have 1 to 1,024"),
        ("titan-image", ImageRequest("x" * 513), "1 to 512 characters"),
        ("stability", ImageRequest("x", width=64), "give both, or neither"),
        ("stability", ImageRequest("x", width=0, height=64), "at least 1"),
        ("stability", ImageRequest("x", seed=2**32), "seed must be from 0 to 4,294,967,294"),
        ("nova-canvas", ImageRequest("x", seed=858_993_460), "seed must be from 0"),
        ("nova-canvas", ImageRequest("x", width=1000, height=1000), "multiples of 16"),
        ("nova-canvas", ImageRequest("x", width=2048, height=2048), "less than 4,194,304 pixels"),
        ("nova-canvas", ImageRequest("x", width=320, height=1600), "4 times"),
        ("titan-image", ImageRequest("x", width=2048, height=1024), "from 320 to 1,408"),
        ("dall-e", ImageRequest("x"), "Known: stability, nova-canvas, titan-image"),
    ],
)
def test_what_cannot_be_drawn_is_refused(family: str, request_: ImageRequest, message: str) -> None:
    with pytest.raises(BodyError, match=message):
        request_body(family, request_)


STABILITY = {"prompt": "x"}
NOVA = {"taskType": "TEXT_IMAGE", "textToImageParams": {"text": "x"}}


@pytest.mark.parametrize(
    ("family", "body"),
    [
        ("stability", {}),
        ("stability", STABILITY | {"mode": "image-to-image"}),
        ("stability", STABILITY | {"output_format": "jpeg"}),
        ("stability", STABILITY | {"aspect_ratio": "4:3"}),
        ("stability", STABILITY | {"seed": "7"}),
        ("stability", STABILITY | {"width": 512}),
        ("nova-canvas", {}),
        ("nova-canvas", NOVA | {"taskType": "INPAINTING"}),
        ("nova-canvas", NOVA | {"textToImageParams": "x"}),
        ("nova-canvas", NOVA | {"textToImageParams": {"text": "x", "style": "PHOTOREALISM"}}),
        ("nova-canvas", NOVA | {"imageGenerationConfig": {"numberOfImages": 2}}),
        ("nova-canvas", NOVA | {"imageGenerationConfig": {"width": 512}}),
        ("nova-canvas", NOVA | {"imageGenerationConfig": {"width": 64_000, "height": 64_000}}),
    ],
)
def test_a_malformed_request_is_refused(family: str, body: dict[str, Any]) -> None:
    with pytest.raises(BodyError):
        parse_request(family, body)
