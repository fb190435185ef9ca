"""image_api: pictures from a stand-in that draws one pixel."""

import base64
import json

import pytest

from bedrock.images import Image, response_body
from benchmarks.api_stand_in import BASE_MODEL, IMAGE_MODEL, PNG, ApiStandIn
from local.cloud import Cloud
from local.config import LocalConfig


@pytest.fixture
def stand_in():
    with ApiStandIn() as stand_in:
        yield stand_in


@pytest.fixture
def load(stand_in, load_function):
    def load(**environment):
        defaults = {
            "BASE_MODEL": BASE_MODEL,
            "MODEL": json.dumps({"model_id": None, "base_model": None}),
            "VERSION": "1.2.3",
            "IMAGE_MODEL": IMAGE_MODEL,
            "IMAGE_REGION": "us-west-2",
            "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": stand_in.url,
        }
        return load_function("image_api", **{**defaults, **environment})

    return load


@pytest.fixture
def ask(load, read_event, context):
    event = read_event("api_image")

    def ask(request, **environment):
        event["body"] = json.dumps(request)
        response = load(**environment).handler(event, context)
        return response["statusCode"], response["headers"], json.loads(response["body"])

    return ask


def test_the_recorded_request_is_answered_with_a_picture(load, read_event, context, stand_in):
    function = load()
    response = function.handler(read_event("api_image"), context)
    assert response["statusCode"] == 200
    body = json.loads(response["body"])
    assert base64.b64decode(body.pop("image")) == PNG
    assert body == {
        "model_id": IMAGE_MODEL,
        "seed": 7,
        "width": 1,
        "height": 1,
        "placeholder": False,
        "request_id": "7a9d2b54-1c1e-4d6f-8a53-9d0c6c1b2f22",
    }
    assert stand_in.requests == [
        (
            f"/model/{IMAGE_MODEL}/invoke",
            {
                "prompt": "A market at dusk",
                "negative_prompt": "people",
                "aspect_ratio": "16:9",
                "seed": 7,
                "output_format": "png",
            },
        )
    ]
    assert function.bedrock.meta.region_name == "us-west-2"


def test_a_picture_without_a_seed_can_be_drawn_again(ask, stand_in):
    stand_in.answer = lambda path, body: (
        stand_in.requests.append((path, json.loads(body))),
        (200, response_body("stability", Image(PNG))),
    )[1]
    _, _, body = ask({"prompt": "A market"})
    assert body["seed"] == stand_in.requests[0][1]["seed"]


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({}, "prompt"),
        ({"prompt": " "}, "prompt"),
        ({"prompt": "a" * 10_001}, "prompt"),
        ({"prompt": "?", "negative_prompt": ""}, "negative_prompt"),
        ({"prompt": "?", "width": 512}, "body"),
        ({"prompt": "?", "width": 63, "height": 64}, "width"),
        ({"prompt": "?", "width": 64, "height": 4_097}, "height"),
        ({"prompt": "?", "seed": -1}, "seed"),
        ({"prompt": "?", "seed": 2**32}, "seed"),
        ({"prompt": "?", "style": "oil"}, "style"),
    ],
)
def test_an_invalid_field_is_named(ask, stand_in, request_, field):
    status, _, body = ask(request_)
    assert (status, [f["field"] for f in body["error"]["fields"]]) == (422, [field])
    assert not stand_in.requests


@pytest.mark.parametrize(
    ("part", "field"),
    [
        ({"prompt": "a" * 1_025}, "prompt"),
        ({"negative_prompt": "a" * 1_025}, "negative_prompt"),
        ({"width": 500, "height": 512}, "width"),
        ({"seed": 858_993_460}, "seed"),
    ],
)
def test_what_one_family_does_not_take_is_named(load, part, field):
    function = load()
    request = function.ImageRequest(**{"prompt": "A market", "seed": 1, **part})
    with pytest.raises(function.ApiError) as raised:
        function.request_body("nova-canvas", request, request.seed)
    assert (raised.value.status, list(raised.value.fields)) == (422, [field])


def test_what_the_model_will_not_draw_is_refused(ask, stand_in):
    filtered = {"seeds": [], "finish_reasons": ["Filter reason: prompt"], "images": []}
    stand_in.answer = lambda path, body: (200, filtered)
    status, _, body = ask({"prompt": "Something"})
    assert (status, body["error"]["code"]) == (422, "content_filtered")
    assert body["error"]["fields"][0]["field"] == "prompt"


def test_a_picture_too_large_for_a_response_is_an_error(ask, stand_in):
    large = Image(PNG + bytes(4_200_000), 7)
    stand_in.answer = lambda path, body: (200, response_body("stability", large))
    status, _, body = ask({"prompt": "A market"})
    assert (status, body["error"]["code"]) == (502, "model_failed")
    assert "smaller" in body["error"]["message"]


def test_an_image_model_past_its_end_of_life_names_what_replaces_it(ask):
    status, _, body = ask({"prompt": "A market"}, IMAGE_MODEL="amazon.nova-canvas-v1:0")
    assert (status, body["error"]["code"]) == (502, "model_unusable")
    assert "Use " in body["error"]["message"]


def test_throttling_is_told(ask, stand_in):
    stand_in.answer = lambda path, body: (429, {"message": "Too many requests"})
    status, headers, _ = ask({"prompt": "A market"})
    assert (status, int(headers["retry-after"]) > 0) == (429, True)


def test_the_embedded_cloud_says_that_its_pictures_are_placeholders(
    load, read_event, context, tmp_path
):
    with Cloud(LocalConfig(port=0, state_dir=tmp_path / "cloud")) as cloud:
        function = load(**cloud.environment(), AWS_ENDPOINT_URL_BEDROCK_RUNTIME=cloud.endpoint)
        response = function.handler(read_event("api_image"), context)
    assert response["statusCode"] == 200
    body = json.loads(response["body"])
    assert (body["placeholder"], body["width"], body["height"]) == (True, 1344, 768)
