"""A stand-in for Bedrock and OpenSearch together: models answer, draw and embed, searches find.

It says the same to everybody, at once, and keeps what it was asked.
"""

import argparse
import json
import re
import sys
from typing import Any
from urllib.parse import unquote

from bedrock import images, text
from bedrock.bodies import Answer
from bedrock.models import find_model
from benchmarks.bedrock_stand_in import BedrockStandIn
from vectors.index import Chunk
from vectors.records import record

BASE_MODEL = "amazon.nova-micro-v1:0"
EMBEDDING_MODEL = "amazon.titan-embed-text-v2:0"
IMAGE_MODEL = "stability.stable-image-core-v1:1"
DIMENSIONS = 256
ANSWER = "Bread costs two coins."
# 1 by 1 pixel, of the smallest that are whole
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010800000000"
    "3a7e9b550000000a49444154789c63f80f0001010100b138f6140000000049454e44ae426082"
)


def passage(number: int) -> Chunk:
    """A chunk of about the size that documents are cut into."""
    return Chunk(
        id=f"chunk-{number}",
        source=f"s3://documents/ledger-{number}.md",
        title=f"Ledger {number}",
        text=f"On day {number} bread cost two coins and salt three. " * 18,
        position=number,
        heading="Prices",
        vector=(),
        attributes={"year": 412},
    )


def hits(count: int) -> dict[str, Any]:
    """The answer to a search by vector and by words that each find so many."""
    found = []
    for number in range(count):
        source = {
            name: value for name, value in record(passage(number)).items() if name != "vector"
        }
        found.append({"_id": source["id"], "_score": 0.9 - number / 1000, "_source": source})
    return {"responses": [{"status": 200, "hits": {"hits": found}} for _ in "vw"]}


class ApiStandIn(BedrockStandIn):
    """Serves `InvokeModel` of all kinds of models and `_msearch`.

    `requests` are the paths and decoded bodies of all requests. An ARN is answered as `served`, the
    foundation model behind it. `found` is the answer to a search, with its status.
    """

    def __init__(self, latency_seconds: float = 0.0, answer: str = ANSWER) -> None:
        super().__init__(latency_seconds)
        self.requests: list[tuple[str, Any]] = []
        self.served = BASE_MODEL
        self.found: tuple[int, dict[str, Any]] = (200, hits(50))
        self._answer = Answer(answer, "end_turn", 12, 6)

    def bodies(self, ending: str) -> list[Any]:
        """The bodies sent to paths of such an ending."""
        return [body for path, body in self.requests if path.endswith(ending)]

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        path = unquote(path)
        if path.endswith("/_msearch"):
            self.under_way += 1
            self.requests.append((path, [json.loads(line) for line in body.splitlines()]))
            return self.found
        request = json.loads(body)
        self.requests.append((path, request))
        model_id = re.fullmatch(r"/model/(.+)/invoke", path)
        assert model_id is not None  # noqa: S101
        served = self.served if model_id[1].startswith("arn:") else model_id[1]
        model = find_model(served)
        if "embedding" in model.tasks:
            return super().answer(path, body)
        self.under_way += 1
        if "image" in model.tasks:
            return 200, images.response_body(model.family, images.Image(PNG, 7))
        return 200, text.response_body(model.family, self._answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--latency", type=float, default=0.0)
    with ApiStandIn(parser.parse_args().latency) as stand_in:
        print(stand_in.url, flush=True)
        sys.stdin.read()  # until whoever started this ends


if __name__ == "__main__":
    main()
