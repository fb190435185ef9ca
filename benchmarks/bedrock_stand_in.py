"""A stand-in for Bedrock's embedding models that answers after a fixed time, and can throttle.

Its vectors are hashes of the texts. It is one thread with an event loop, so that it takes little of
the processor that whoever is measured needs.

    python -m benchmarks.bedrock_stand_in --latency 0.1     prints its URL, runs until killed
"""

import argparse
import asyncio
import hashlib
import json
import random
import threading
from collections.abc import Callable
from typing import Any, Self
from urllib.parse import unquote

from bedrock.embeddings import parse_request, response_body
from bedrock.models import find_model

ERRORS = {400: "ValidationException", 403: "AccessDeniedException", 429: "ThrottlingException"}


class BedrockStandIn:
    """Serves `InvokeModel` on a port of its own while it is entered; `url` is its endpoint.

    `calls` counts requests, `throttled` those answered with 429, by a coin of that fraction.
    Texts that contain `refused` are answered with 400, all texts with 403 while it is `closed`.
    `before` is called with each text list that is asked for, and may raise to break the connection.
    """

    def __init__(
        self,
        latency_seconds: float = 0.0,
        throttled_fraction: float = 0.0,
        seed: int = 0,
        before: Callable[[list[str]], None] | None = None,
    ) -> None:
        self.latency_seconds = latency_seconds
        self.throttled_fraction = throttled_fraction
        self.before = before
        self.refused: str | None = None
        self.closed = False
        self.calls = self.throttled = self.under_way = self.most_under_way = 0
        self.started_at: list[float] = []
        self.answered_at = 0.0
        self._random = random.Random(seed)  # noqa: S311
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        asyncio.run_coroutine_threadsafe(self._serve(), self._loop).result(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self) -> None:
        self._server = await self._loop.create_server(
            lambda: _Connection(self), "127.0.0.1", 0, backlog=512
        )

    def answer(self, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Status and body of the response to a request."""
        self.calls += 1
        self.started_at.append(self._loop.time())
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        if self._random.random() < self.throttled_fraction:
            self.throttled += 1
            return 429, {"message": "Too many requests, please wait before trying again."}
        if self.closed:
            return 403, {"message": "You don't have access to the model."}
        model = find_model(unquote(path.split("/")[2]))
        texts, dimensions = parse_request(model, json.loads(body))
        if self.before is not None:
            self.before(texts)
        if self.refused is not None and any(self.refused in text for text in texts):
            return 400, {"message": f"Malformed input request: {self.refused}"}
        vectors = [vector(text, dimensions) for text in texts]
        return 200, response_body(model, vectors, texts, sum(map(len, texts)) // 4)


def vector(text: str, dimensions: int) -> list[float]:
    digest = hashlib.shake_128(text.encode()).digest(dimensions)
    return [(byte - 127.5) / 128 for byte in digest]


class _Connection(asyncio.Protocol):
    def __init__(self, stand_in: BedrockStandIn) -> None:
        self._stand_in = stand_in
        self._received = b""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length:")[2].split(b"\r\n")[0] or 0)
        if not end or len(body) < length:
            return
        self._received = body[length:]
        stand_in = self._stand_in
        try:
            status, content = stand_in.answer(head.split()[1].decode(), body[:length])
        except ConnectionError:
            self._transport.abort()
            return
        asyncio.get_running_loop().call_later(
            stand_in.latency_seconds, self._respond, status, content
        )

    def _respond(self, status: int, content: dict[str, Any]) -> None:
        self._stand_in.under_way -= 1
        self._stand_in.answered_at = asyncio.get_running_loop().time()
        body = json.dumps(content).encode()
        error = f"x-amzn-errortype: {ERRORS[status]}\r\n" if status in ERRORS else ""
        head = (
            f"HTTP/1.1 {status} \r\nContent-Type: application/json\r\n{error}"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        self._transport.write(head.encode() + body)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--latency", type=float, default=0.1)
    with BedrockStandIn(parser.parse_args().latency) as stand_in:
        print(stand_in.url, flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
