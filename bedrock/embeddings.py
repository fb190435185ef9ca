"""How texts become the body of a request to an embedding model, and a response vectors.

`request_body` and `parse_embeddings` are for those who invoke a model; `parse_request` and
`response_body` are their inverses, for the embedded cloud. Bodies are decoded JSON.

Sources: model-parameters-titan-embed-text.html, model-parameters-embed-v3.html and
model-parameters-embed-v4.html under https://docs.aws.amazon.com/bedrock/latest/userguide/
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from bedrock.models import FoundationModel
from bedrock.text import BodyError, only

Purpose = Literal["search_document", "search_query", "classification", "clustering"]

_TEXTS_PER_REQUEST = {"titan-embed": 1, "cohere-embed": 96}


def texts_per_request(model: FoundationModel) -> int:
    """How many texts one request of the model can carry. Raises BodyError for other families."""
    if model.family not in _TEXTS_PER_REQUEST:
        raise BodyError(f"{model.id} is not an embedding model.")
    return _TEXTS_PER_REQUEST[model.family]


def request_body(
    model: FoundationModel,
    texts: Sequence[str],
    dimensions: int | None = None,
    purpose: Purpose = "search_document",
) -> dict[str, Any]:
    """The request body for some texts, at most `texts_per_request` of them.

    `dimensions` is the length of each vector (None: the model's default). Only Cohere's models know
    a purpose. Raises BodyError if the model cannot do what is asked.
    """
    if not 1 <= len(texts) <= texts_per_request(model):
        raise BodyError(
            f"{model.id} takes 1 to {texts_per_request(model)} texts at a time, not {len(texts)}."
        )
    dimensions = _dimensions(model, dimensions)
    if model.family == "titan-embed":
        return {"inputText": texts[0], "dimensions": dimensions, "normalize": True}
    body: dict[str, Any] = {"texts": list(texts), "input_type": purpose}
    if len(model.dimensions) > 1:
        body["output_dimension"] = dimensions
    return body


def parse_embeddings(model: FoundationModel, body: Mapping[str, Any]) -> list[list[float]]:
    """The vectors in a response body, one for each text of the request. Raises BodyError."""
    vectors = [body.get("embedding")] if model.family == "titan-embed" else body.get("embeddings")
    if isinstance(vectors, Mapping):  # Cohere's answer to a request that named embedding_types
        vectors = vectors.get("float")
    if not isinstance(vectors, list) or not all(isinstance(vector, list) for vector in vectors):
        raise BodyError(f"Not a response of {model.id}: it holds no vectors, but {sorted(body)}.")
    return vectors


def parse_request(model: FoundationModel, body: Mapping[str, Any]) -> tuple[list[str], int]:
    """Texts and dimensions of a request body. Raises BodyError saying what is wrong."""
    texts: object
    if model.family == "titan-embed":
        only(body, "inputText", "dimensions", "normalize")
        texts, dimensions = [body.get("inputText")], body.get("dimensions")
    else:
        only(body, "texts", "input_type", "output_dimension")
        texts, dimensions = body.get("texts"), body.get("output_dimension")
        if body.get("input_type") is None:
            raise BodyError("Malformed input request: input_type is missing.")
    if not isinstance(texts, list) or not all(isinstance(text, str) and text for text in texts):
        raise BodyError("Malformed input request: there must be text to embed.")
    if not 1 <= len(texts) <= texts_per_request(model):
        raise BodyError(
            f"Malformed input request: 1 to {texts_per_request(model)} texts, not {len(texts)}."
        )
    return texts, _dimensions(model, dimensions)


def response_body(
    model: FoundationModel, vectors: Sequence[Sequence[float]], texts: Sequence[str], tokens: int
) -> dict[str, Any]:
    """The response body for the vectors of some texts, which held so many tokens in all."""
    floats = [[float(value) for value in vector] for vector in vectors]
    if model.family == "titan-embed":
        return {
            "embedding": floats[0],
            "embeddingsByType": {"float": floats[0]},
            "inputTextTokenCount": tokens,
        }
    return {"embeddings": floats, "texts": list(texts), "response_type": "embeddings_floats"}


def _dimensions(model: FoundationModel, dimensions: object) -> int:
    if dimensions is None:
        return model.dimensions[0]
    if not isinstance(dimensions, int) or dimensions not in model.dimensions:
        allowed = ", ".join(map(str, model.dimensions))
        raise BodyError(f"{model.id} makes vectors of {allowed} dimensions, not {dimensions!r}.")
    return dimensions
