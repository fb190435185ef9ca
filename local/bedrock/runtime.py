"""Invocation of Bedrock's models: one small model answers for every text model.

Every image model draws placeholders.

See docs/local-bedrock.md.
"""

import json
import secrets
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from bedrock import embeddings, images, text
from bedrock.models import FoundationModel
from bedrock.text import BodyError
from local.bedrock import pictures
from local.bedrock.embeddings import DIMENSIONS, EmbeddingModel
from local.bedrock.refusals import invalid, is_past, known_model, not_found, refuse
from local.bedrock.text_model import ModelFailedError, RefusedError, TextModel, weights_cache
from local.protocol import REGION, Service, ServiceError

if TYPE_CHECKING:
    from local.bedrock.service import BedrockService
    from local.cloud import Cloud

SEEDS = 858_993_459  # the largest seed that every image model takes
PLACEHOLDER = "x-quench-placeholder"  # a header that no real model's response has


class BedrockRuntimeService(Service):
    """InvokeModel. Other operations of `bedrock-runtime` are refused."""

    name: ClassVar[str] = "bedrock-runtime"

    def __init__(self, cloud: "Cloud") -> None:
        self._cloud = cloud
        folder = cloud.config.state_dir.resolve() / "bedrock"
        self._text = TextModel(cloud.config.model, weights_cache(cloud), folder / "generation.log")
        self._embeddings = EmbeddingModel()

    def stop(self) -> None:
        self._text.stop()

    def invoke_model(self, request: dict[str, Any]) -> dict[str, Any]:
        refuse(request, "guardrailIdentifier", "trace", "performanceConfigLatency", "serviceTier")
        model, adapter = self._model(request["modelId"])
        try:
            body = json.loads(request.get("body") or b"")
            if not isinstance(body, dict):
                raise BodyError("Malformed input request: the body must be a JSON object.")
            answer, headers = self._answer(model, adapter, body)
        except (BodyError, RefusedError) as error:
            raise invalid(str(error)) from error
        except ValueError as error:
            raise invalid(f"Malformed input request: the body is not JSON: {error}") from error
        except ModelFailedError as error:
            raise ServiceError("ModelErrorException", str(error), 424) from error
        return {
            "body": json.dumps(answer).encode(),
            "contentType": "application/json",
            "ResponseMetadata": {"HTTPHeaders": headers},
        }

    def _answer(
        self, model: FoundationModel, adapter: Path | None, body: dict[str, Any]
    ) -> tuple[dict[str, Any], dict[str, str]]:
        """The response's body and headers."""
        if "text" in model.tasks:
            system, messages, limits = text.parse_request(model.family, body)
            answer = self._text.answer(adapter, system, messages, limits)
            return text.response_body(model.family, answer), text.response_headers(answer)
        if "image" in model.tasks:
            request = images.parse_request(model.family, body)
            seed = 1 + secrets.randbelow(SEEDS) if request.seed is None else request.seed
            image = images.Image(pictures.draw(request, model.id, seed), seed)
            return images.response_body(model.family, image), {PLACEHOLDER: "true"}
        if "embedding" in model.tasks:
            texts, dimensions = embeddings.parse_request(model, body)
            if dimensions != DIMENSIONS:
                raise BodyError(
                    f"The embedded cloud makes vectors of {DIMENSIONS} dimensions only, "
                    f"not {dimensions}, which {model.id} would make here."
                )
            vectors, tokens = self._embeddings.embed(texts, body.get("normalize", True))
            headers = {"x-amzn-bedrock-input-token-count": str(tokens)}
            return embeddings.response_body(model, vectors, texts, tokens), headers
        raise BodyError(f"The embedded cloud cannot invoke {model.id}: no task of it is known.")

    def _model(self, identifier: str) -> tuple[FoundationModel, Path | None]:
        """The model that answers for an id or ARN, and the adapter it answers with."""
        bedrock = cast("BedrockService", self._cloud.services["bedrock"])
        if ":provisioned-model/" in identifier or ":custom-model-deployment/" in identifier:
            capacity = bedrock.serving(identifier)
            custom = capacity.custom_model
            return capacity.base_model, custom.job.adapter if custom else None
        if ":custom-model/" in identifier:
            raise invalid(
                "A custom model is not invoked by its own ARN, but by that of its provisioned "
                "throughput or custom model deployment."
            )
        model = known_model(identifier)
        if is_past(model):
            raise not_found("This model version has reached the end of its life.")
        self._check_on_demand(model, identifier)
        return model, None

    def _check_on_demand(self, model: FoundationModel, identifier: str) -> None:
        by_profile = "inference-profile/" in identifier or (
            not identifier.startswith("arn:") and identifier != model.id
        )
        if by_profile and not model.tuning:
            return
        region = REGION.get(self._cloud.config.region)
        if model.tuning or region not in model.regions:
            raise invalid(
                f"Invocation of model ID {identifier} with on-demand throughput isn't supported in "
                f"{region}. Retry with {model.invoke_id}, or with the ID of an inference profile "
                "that contains this model."
            )
