"""Measures hydration against a stand-in for Bedrock, and LangChain's indexing API beside it.

    python -m benchmarks.hydration             some minutes; --quick leaves the memory out

Both have 64 requests in flight to a stand-in that answers each after 100 ms, so 640 embeddings a
second are possible. The rate is taken at the stand-in, from the first request to the last answer.
Quench reads from S3 (the embedded cloud's, in a process of its own) and writes to LanceDB.
LangChain runs in the best of its configurations: `aindex()` in large batches, with embeddings that
a pool of 64 threads asks boto3 for, reading from a folder, and everything else in memory.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path

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
from local.cloud import Cloud
from local.config import LocalConfig

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


def serve_s3(connection: Connection) -> None:
    """Serve AWS, send the environment that points to it, and end when the other side does."""
    with (
        tempfile.TemporaryDirectory() as folder,
        Cloud(LocalConfig(port=0, state_dir=Path(folder))) as cloud,
        suppress(EOFError),
    ):
        connection.send(cloud.environment())
        connection.recv()


@contextmanager
def s3_elsewhere() -> Iterator[None]:
    """Point this process and its children at an S3 in a process of its own."""
    processes = multiprocessing.get_context("spawn")
    ours, theirs = processes.Pipe()
    process = processes.Process(target=serve_s3, args=(theirs,))
    process.start()
    theirs.close()
    os.environ.update(ours.recv())
    try:
        yield
    finally:
        ours.close()
        process.join()


class Quench:
    """Hydration of a folder's files, by way of a bucket, into an index that starts empty."""

    def __init__(
        self, folder: Path, work: Path, stand_in: BedrockStandIn, chunk_size: int = CHUNK_SIZE
    ) -> None:
        self._folder, self._work, self._stand_in = folder, work, stand_in
        name = uuid.uuid4().hex
        options: Mapping[str, object] = {
            "documents-bucket": f"documents-{name}",
            "failures-uri": f"s3://documents-{name}-failures/",
            "index-location": f"lancedb:{work / 'index'}",
            "index-name": "benchmark",
            "embedding-model": MODEL,
            "dimensions": DIMENSIONS,
            "chunk-size": chunk_size,
            "chunk-overlap": CHUNK_OVERLAP,
            "concurrency": CONCURRENCY,
        }
        self._arguments = [
            part for name, value in options.items() for part in (f"--{name}", str(value))
        ]
        self._s3, self._bucket = boto3.client("s3"), f"documents-{name}"
        self._s3.create_bucket(Bucket=self._bucket)
        self._s3.create_bucket(Bucket=f"{self._bucket}-failures")

    def index(self) -> Run:
        for path in self._folder.iterdir():
            self._s3.upload_file(str(path), self._bucket, path.name)
        calls = self._stand_in.calls
        process = subprocess.Popen(
            [sys.executable, "-m", "processing.hydrate", *self._arguments],
            env={**os.environ, "ML_ROOT": str(self._work)},
            stdout=subprocess.DEVNULL,
        )
        peak = 0
        while process.poll() is None:
            # not getrusage(): its figure for a child begins with what the parent held
            found = re.search(r"VmHWM:\s*(\d+)", Path(f"/proc/{process.pid}/status").read_text())
            peak = int(found[1]) * 1024 if found else peak
            time.sleep(0.1)
        if process.returncode:
            raise SystemExit(f"The hydration job ended with {process.returncode}.")
        path = self._work / "processing/output/report/hydration_report.json"
        report = json.loads(path.read_text())
        counts = report["chunks"]
        return Run(
            report["embedding_calls"],
            rate(self._stand_in, calls),
            counts["added"] + counts["unchanged"],
            peak,
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
    documents = folder / "documents"
    write_corpus(documents, 5)
    before: dict[str, Run] = {}
    with BedrockStandIn(LATENCY_SECONDS) as stand_in:
        os.environ["AWS_ENDPOINT_URL_BEDROCK_RUNTIME"] = stand_in.url
        tools = {
            "Quench": Quench(documents, folder, stand_in).index,
            "LangChain aindex()": LangChain(documents, stand_in).index,
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
        documents = folder / str(megabytes) / "documents"
        write_corpus(documents, megabytes)
        with BedrockStandIn() as stand_in:
            os.environ["AWS_ENDPOINT_URL_BEDROCK_RUNTIME"] = stand_in.url
            run = Quench(documents, documents.parent, stand_in, chunk_size=4_000).index()
        peaks.append(run.peak_bytes)
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
    table = Table("measured", "tool", "value", "that is")
    with tempfile.TemporaryDirectory() as folder, s3_elsewhere():
        speed(table, Path(folder) / "speed")
        if not quick:
            memory(table, Path(folder) / "memory")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
