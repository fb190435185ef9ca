"""Measures hydration against a stand-in for Bedrock, and LangChain's indexing API beside it.

    python -m benchmarks.hydration             some minutes; --quick leaves the memory out

Both have 64 requests in flight to a stand-in that answers each after 100 ms, so 640 embeddings a
second are possible. The rate is taken at the stand-in, from the first request to the last answer.
LangChain runs in the best of its configurations: `aindex()` in large batches, with embeddings that
a pool of 64 threads asks boto3 for, and everything else in memory.
"""

import argparse
import asyncio
import json
import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.indexing import InMemoryRecordManager, aindex
from langchain_core.vectorstores import InMemoryVectorStore
from langchain_text_splitters import RecursiveCharacterTextSplitter
from rich.console import Console
from rich.table import Table

from benchmarks.bedrock_stand_in import BedrockStandIn

MODEL = "amazon.titan-embed-text-v2:0"
DIMENSIONS = 256
LATENCY_SECONDS = 0.1
CONCURRENCY = 64
CHUNK_SIZE, CHUNK_OVERLAP = 1_000, 100
POSSIBLE = CONCURRENCY / LATENCY_SECONDS
MEGABYTE = 1_000_000
SYLLABLES = ["em", "ber", "fall", "ash", "en", "gate", "mi", "ra", "tor", "il", "wen", "ka", "dun"]


@dataclass(frozen=True)
class Run:
    """What one run of a tool took."""

    calls: int
    calls_per_second: float
    chunks: int
    peak_bytes: int = 0


def prose(seed: int, size: int) -> str:
    """About so many characters of text in paragraphs, no two the same."""
    rng = random.Random(seed)  # noqa: S311
    words = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 3))) for _ in range(2_000)]
    paragraphs = []
    while size > 0:
        paragraphs.append(" ".join(rng.choices(words, k=rng.randint(20, 90))) + ".")
        size -= len(paragraphs[-1]) + 2
    return "\n\n".join(paragraphs)


def write_corpus(folder: Path, megabytes: int) -> None:
    folder.mkdir(parents=True)
    for number in range(megabytes):
        (folder / f"{number:04}.txt").write_text(prose(number, MEGABYTE), encoding="utf-8")


def edit(path: Path) -> None:
    """Change one paragraph in the middle."""
    paragraphs = path.read_text(encoding="utf-8").split("\n\n")
    paragraphs[len(paragraphs) // 2] = "Here the chronicle was mended by another hand."
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")


def quench(root: Path, stand_in: BedrockStandIn, chunk_size: int = CHUNK_SIZE) -> Run:
    """Hydrate the documents below an ML_ROOT, in a process of its own."""
    calls = stand_in.calls
    options: Mapping[str, object] = {
        "documents-uri": "s3://documents/",
        "index-location": f"lancedb:{root / 'index'}",
        "index-name": "benchmark",
        "embedding-model": MODEL,
        "dimensions": DIMENSIONS,
        "chunk-size": chunk_size,
        "chunk-overlap": CHUNK_OVERLAP,
        "concurrency": CONCURRENCY,
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    process = subprocess.Popen(
        [sys.executable, "-m", "processing.hydrate", *arguments],
        env={**os.environ, "ML_ROOT": str(root)},
        stdout=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f"The hydration job ended with {os.waitstatus_to_exitcode(status)}.")
    report = json.loads((root / "processing/output/report/hydration_report.json").read_text())
    counts = report["chunks"]
    return Run(
        report["embedding_calls"],
        rate(stand_in, calls),
        counts["added"] + counts["unchanged"],
        usage.ru_maxrss * 1024,
    )


class PooledEmbeddings(Embeddings):
    """Titan's embeddings through boto3 and a pool of threads."""

    def __init__(self, endpoint: str) -> None:
        config = Config(max_pool_connections=CONCURRENCY)
        self._client = boto3.client("bedrock-runtime", endpoint_url=endpoint, config=config)
        self._pool = ThreadPoolExecutor(CONCURRENCY)

    def _embed(self, text: str) -> list[float]:
        body = json.dumps({"inputText": text, "dimensions": DIMENSIONS, "normalize": True})
        response = self._client.invoke_model(modelId=MODEL, body=body)
        vector: list[float] = json.loads(response["body"].read())["embedding"]
        return vector

    def embed_query(self, text: str) -> list[float]:
        return self._embed(text)

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        return list(self._pool.map(self._embed, texts))

    async def aembed_documents(self, texts: list[str]) -> list[list[float]]:
        loop = asyncio.get_running_loop()
        calls = [loop.run_in_executor(self._pool, self._embed, text) for text in texts]
        return await asyncio.gather(*calls)


class LangChain:
    """LangChain's indexing of a folder; an index and its records live as long as this does."""

    def __init__(self, folder: Path, stand_in: BedrockStandIn) -> None:
        self._folder, self._stand_in = folder, stand_in
        self._store = InMemoryVectorStore(PooledEmbeddings(stand_in.url))
        self._records = InMemoryRecordManager("benchmark")
        self._records.create_schema()

    def index(self) -> Run:
        calls = self._stand_in.calls
        splitter = RecursiveCharacterTextSplitter(
            chunk_size=CHUNK_SIZE, chunk_overlap=CHUNK_OVERLAP
        )
        documents = [
            Document(path.read_text(encoding="utf-8"), metadata={"source": path.name})
            for path in sorted(self._folder.iterdir())
        ]
        chunks = splitter.split_documents(documents)
        asyncio.run(
            aindex(
                chunks,
                self._records,
                self._store,
                batch_size=1_000,
                cleanup="scoped_full",
                source_id_key="source",
                key_encoder="sha256",
            )
        )
        return Run(self._stand_in.calls - calls, rate(self._stand_in, calls), len(chunks))


def rate(stand_in: BedrockStandIn, first_call: int) -> float:
    """Calls a second since a call of that number."""
    starts = stand_in.started_at[first_call:]
    return len(starts) / (stand_in.answered_at - starts[0]) if starts else 0.0


def speed(table: Table, folder: Path) -> None:
    write_corpus(folder / "processing/input/documents", 5)
    documents = folder / "processing/input/documents"
    before: dict[str, Any] = {}
    with BedrockStandIn(LATENCY_SECONDS) as stand_in:
        os.environ["AWS_ENDPOINT_URL_BEDROCK_RUNTIME"] = stand_in.url
        langchain = LangChain(documents, stand_in)
        tools = {
            "Quench": lambda: quench(folder, stand_in),
            "LangChain aindex()": langchain.index,
        }
        for tool, run in tools.items():
            first = before[tool] = run()
            share = first.calls_per_second / POSSIBLE
            table.add_row(
                "embeddings a second", tool, f"{first.calls_per_second:.0f}", f"{share:.2f} of 640"
            )
        for tool, run in tools.items():
            table.add_row("unchanged, run again", tool, f"{run().calls}", "embedding calls")
        edit(documents / "0002.txt")
        for tool, run in tools.items():
            calls = run().calls
            share = calls / (before[tool].chunks / 5)
            table.add_row(
                "a paragraph of 1 MB changed", tool, f"{calls}", f"{share:.2%} of its chunks"
            )


def memory(table: Table, folder: Path) -> None:
    peaks = []
    for megabytes in (20, 200):
        root = folder / str(megabytes)
        write_corpus(root / "processing/input/documents", megabytes)
        with BedrockStandIn() as stand_in:
            os.environ["AWS_ENDPOINT_URL_BEDROCK_RUNTIME"] = stand_in.url
            peaks.append(quench(root, stand_in, chunk_size=4_000).peak_bytes)
        table.add_row(
            f"peak memory, {megabytes} MB of text",
            "Quench",
            f"{peaks[-1] / MEGABYTE:.0f} MB",
            f"{peaks[-1] / peaks[0]:.2f} times that for 20 MB",
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave out the memory of 200 MB")
    quick = parser.parse_args().quick
    credentials = {"AWS_ACCESS_KEY_ID": "benchmark", "AWS_SECRET_ACCESS_KEY": "benchmark"}
    os.environ.update(credentials, AWS_DEFAULT_REGION="us-east-1")
    table = Table("measured", "tool", "value", "that is")
    with tempfile.TemporaryDirectory() as folder:
        speed(table, Path(folder) / "speed")
        if not quick:
            memory(table, Path(folder) / "memory")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
