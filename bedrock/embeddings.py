"""How texts become the body of a request to an embedding model, and a response vectors.

`request_body` and `parse_embeddings` are for those who invoke a model; `parse_request` and
`response_body` are their inverses, for the embedded cloud. Bodies are decoded JSON.

Sources: model-parameters-titan-embed-text.html, model-parameters-embed-v3.html and
model-parameters-embed-v4.html under https://docs.aws.amazon.com/bedrock/latest/userguide/, and
https://docs.aws.amazon.com/nova/latest/userguide/embeddings-schema.html
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from bedrock.bodies import BodyError, only
from bedrock.models import FoundationModel

Purpose = Literal["search_document", "search_query", "classification", "clustering"]

_TEXTS_PER_REQUEST = {"titan-embed": 1, "cohere-embed": 96, "nova-embed": 1}
_NOVA_SCHEMA = "nova-multimodal-embed-v1"
_NOVA_PURPOSES: dict[Purpose, str] = {
    "search_document": "GENERIC_INDEX",
    "search_query": "TEXT_RETRIEVAL",
    "classification": "CLASSIFICATION",
    "clustering": "CLUSTERING",
}


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

    `dimensions` is the length of each vector (None: the model's default). Titan knows no purpose.
    A text that is too long is refused by the service, never cut. Raises BodyError if the model
    cannot do what is asked.
    """
    if not 1 <= len(texts) <= texts_per_request(model):
        raise BodyError(
            f"{model.id} takes 1 to {texts_per_request(model)} texts at a time, not {len(texts)}."
        )
    dimensions = _dimensions(model, dimensions)
    if model.family == "titan-embed":
        return {"inputText": texts[0], "dimensions": dimensions, "normalize": True}
    if model.family == "nova-embed":
        return {
            "schemaVersion": _NOVA_SCHEMA,
            "taskType": "SINGLE_EMBEDDING",
            "singleEmbeddingParams": {
                "embeddingPurpose": _NOVA_PURPOSES[purpose],
                "embeddingDimension": dimensions,
                "text": {"truncationMode": "NONE", "value": texts[0]},
            },
        }
    body: dict[str, Any] = {"texts": list(texts), "input_type": purpose}
    if len(model.dimensions) > 1:
        body["output_dimension"] = dimensions
    return body


def parse_embeddings(model: FoundationModel, body: Mapping[str, Any]) -> list[list[float]]:
    """The vectors in a response body, one for each text of the request. Raises BodyError."""
    vectors = [body.get("embedding")] if model.family == "titan-embed" else body.get("embeddings")
    if isinstance(vectors, Mapping):  # Cohere's answer to a request that named embedding_types
        vectors = vectors.get("float")
    if model.family == "nova-embed" and isinstance(vectors, list):
        vectors = [found.get("embedding") for found in vectors if isinstance(found, Mapping)]
    if not isinstance(vectors, list) or not all(isinstance(vector, list) for vector in vectors):
        raise BodyError(f"Not a response of {model.id}: it holds no vectors, but {sorted(body)}.")
    return vectors


def parse_request(model: FoundationModel, body: Mapping[str, Any]) -> tuple[list[str], int]:
    """Texts and dimensions of a request body. Raises BodyError saying what is wrong."""
    texts: object
    if model.family == "titan-embed":
        only(body, "inputText", "dimensions", "normalize")
        texts, dimensions = [body.get("inputText")], body.get("dimensions")
    elif model.family == "nova-embed":
        text, dimensions = _parse_nova_request(body)
        texts = [text]
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
    if model.family == "nova-embed":
        found = [{"embeddingType": "TEXT", "embedding": vector} for vector in floats]
        return {"embeddings": found}
    return {"embeddings": floats, "texts": list(texts), "response_type": "embeddings_floats"}


def _parse_nova_request(body: Mapping[str, Any]) -> tuple[object, object]:
    only(body, "schemaVersion", "taskType", "singleEmbeddingParams")
    if body.get("schemaVersion", _NOVA_SCHEMA) != _NOVA_SCHEMA:
        raise BodyError(f"Malformed input request: schemaVersion must be {_NOVA_SCHEMA}.")
    if body.get("taskType") != "SINGLE_EMBEDDING":
        raise BodyError("Malformed input request: taskType must be SINGLE_EMBEDDING here.")
    parameters = body.get("singleEmbeddingParams")
    if not isinstance(parameters, Mapping):
        raise BodyError("Malformed input request: singleEmbeddingParams is missing.")
    only(parameters, "embeddingPurpose", "embeddingDimension", "text")
    if "embeddingPurpose" not in parameters:
        raise BodyError("Malformed input request: embeddingPurpose is missing.")
    text = parameters.get("text")
    if not isinstance(text, Mapping):
        raise BodyError("Malformed input request: text is missing, the only thing embedded here.")
    only(text, "truncationMode", "value")
    return text.get("value"), parameters.get("embeddingDimension")


def _dimensions(model: FoundationModel, dimensions: object) -> int:
    if dimensions is None:
        return model.dimensions[0]
    if not isinstance(dimensions, int) or dimensions not in model.dimensions:
        allowed = ", ".join(map(str, model.dimensions))
        raise BodyError(f"{model.id} makes vectors of {allowed} dimensions, not {dimensions!r}.")
    return dimensions
