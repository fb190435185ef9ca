"""Measures the functions of the API, with instant stand-ins for Bedrock and OpenSearch.

    python -m benchmarks.api        about two minutes; --quick leaves the load out

What our code adds to a request is measured against the same calls made with boto3 and OpenSearch's
client alone, by turns. A cold start is a fresh interpreter up to its first response, against one
that imports boto3, makes the same clients and ends; by turns, too. Medians, unless said otherwise.
"""

import argparse
import importlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import cycle
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import boto3
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.exceptions import HTTPClientError
from botocore.httpsession import URLLib3Session
from opensearchpy import OpenSearch
from rich.console import Console
from rich.table import Table

from benchmarks.api_stand_in import BASE_MODEL, DIMENSIONS, EMBEDDING_MODEL, IMAGE_MODEL
from infrastructure import ROOT
from infrastructure.app import synthesize
from local.cloud import Cloud
from local.config import LocalConfig
from workflows.settings import Settings

QUESTION = "What does bread cost?"
REQUESTS = 500
STARTS = 15
CLIENTS, SECONDS = 50, 30.0
CONTEXT = SimpleNamespace(
    function_name="benchmark",
    memory_limit_in_mb=512,
    invoked_function_arn="arn:aws:lambda:us-east-1:123456789012:function:benchmark",
    aws_request_id="52fdfc07-2182-454f-963f-5f0f9a621d72",
)
# Both end with their work, and leave nothing to the interpreter's end.
BARE_CLIENTS = "import boto3, os; boto3.client('bedrock-runtime'); boto3.client('s3')"
BARE_SEARCH = "from opensearchpy import OpenSearch; OpenSearch(hosts=['http://127.0.0.1:1'])"
END = "os._exit(0)"
BARE = {
    "text_api": f"{BARE_CLIENTS}; {END}",
    "rag_api": f"{BARE_CLIENTS}; boto3.client('bedrock-runtime'); {BARE_SEARCH}; {END}",
    "image_api": f"import boto3, os; boto3.client('bedrock-runtime'); {END}",
}
FIRST = """\
import json, os, sys
from types import SimpleNamespace
import lambdas.{name} as function
response = function.handler(json.loads(sys.argv[1]), SimpleNamespace(**json.loads(sys.argv[2])))
os._exit(response["statusCode"] != 200)
"""
BODIES = {
    "text_api": {"question": QUESTION},
    "rag_api": {"question": QUESTION},
    "image_api": {"prompt": "A market at dusk"},
}


@contextmanager
def stand_in() -> Iterator[str]:
    """The URL of a stand-in in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.api_stand_in"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None  # noqa: S101
        assert process.stdout is not None  # noqa: S101
        yield process.stdout.readline().strip()
        process.stdin.close()


def environment(url: str) -> dict[str, str]:
    """What the functions are deployed with."""
    index = {
        "location": url,
        "name": "lore",
        "embedding_model": EMBEDDING_MODEL,
        "dimensions": DIMENSIONS,
    }
    return {
        "AWS_ACCESS_KEY_ID": "benchmark",
        "AWS_SECRET_ACCESS_KEY": "benchmark",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_BEDROCK_RUNTIME": url,
        "BASE_MODEL": BASE_MODEL,
        "MODEL": json.dumps({"model_id": None, "base_model": None}),
        "PERSONAS_URI": "s3://personas/",
        "VERSION": "benchmark",
        "INDEX": json.dumps(index),
        "IMAGE_MODEL": IMAGE_MODEL,
        "IMAGE_REGION": "us-east-1",
    }


def event(name: str) -> dict[str, Any]:
    return {
        "path": f"/{name.removesuffix('_api')}",
        "requestContext": {"requestId": "benchmark"},
        "body": json.dumps(BODIES[name]),
        "isBase64Encoded": False,
    }


def bare_text(bedrock: Any) -> None:
    body = {
        "schemaVersion": "messages-v1",
        "messages": [{"role": "user", "content": [{"text": QUESTION}]}],
        "inferenceConfig": {"maxTokens": 512},
    }
    response = bedrock.invoke_model(modelId=BASE_MODEL, body=json.dumps(body))
    json.loads(response["body"].read())


def bare_rag(bedrock: Any, search: OpenSearch) -> None:
    body = {"inputText": QUESTION, "dimensions": DIMENSIONS, "normalize": True}
    response = bedrock.invoke_model(modelId=EMBEDDING_MODEL, body=json.dumps(body))
    vector = json.loads(response["body"].read())["embedding"]
    queries = [{"knn": {"vector": {"vector": vector, "k": 400}}}, {"match": {"words": QUESTION}}]
    lines: list[dict[str, Any]] = []
    for query in queries:
        lines += [{"index": "lore"}, {"query": query, "size": 50}]
    search.msearch(body=lines)
    bare_text(bedrock)


def milliseconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return (time.perf_counter() - started) * 1_000


def quantiles(values: list[float]) -> tuple[float, float]:
    """The 50th and the 99th percentile."""
    percentiles = statistics.quantiles(values, n=100)
    return percentiles[49], percentiles[98]


def added(table: Table, url: str) -> None:
    bedrock = boto3.client("bedrock-runtime")
    search = OpenSearch(hosts=[url])
    nowhere = open(os.devnull, "w")  # noqa: SIM115
    calls = {"text_api": partial(bare_text, bedrock), "rag_api": partial(bare_rag, bedrock, search)}
    for name, bare in calls.items():
        function = importlib.import_module(f"lambdas.{name}")
        function.logger.handlers[0].setStream(nowhere)
        ours, theirs = [], []
        for _ in range(REQUESTS):
            theirs.append(milliseconds(bare))
            ours.append(milliseconds(partial(answer, function, name)))
        (p50, p99), (bare_p50, bare_p99) = quantiles(ours), quantiles(theirs)
        table.add_row(
            f"added to a request, {name}",
            f"{p50 - bare_p50:.1f} ms (p50), {p99 - bare_p99:.1f} ms (p99)",
            f"{p50:.1f} and {p99:.1f} ms; bare {bare_p50:.1f} and {bare_p99:.1f} ms",
            "5 ms (p50)",
        )


def answer(function: ModuleType, name: str) -> None:
    response = function.handler(event(name), CONTEXT)
    if response["statusCode"] != 200:
        raise SystemExit(f"{name} answered {response['statusCode']}: {response['body']}")


def cold_starts(table: Table) -> None:
    codes = {f"bare {name}": code for name, code in BARE.items()}
    codes |= {name: FIRST.format(name=name) for name in BARE}
    seconds: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(STARTS):
        for name, code in codes.items():
            arguments = [json.dumps(event(name.removeprefix("bare "))), json.dumps(vars(CONTEXT))]
            command = [sys.executable, "-c", code, *arguments]
            start = partial(subprocess.run, command, check=True, stdout=subprocess.DEVNULL)
            seconds[name].append(milliseconds(start))
    for name in BARE:
        ours = statistics.median(seconds[name])
        bare = statistics.median(seconds[f"bare {name}"])
        table.add_row(
            f"cold start, {name}",
            f"{ours / bare:.2f} times bare",
            f"{ours:.0f} ms; boto3 and the same clients alone {bare:.0f} ms",
            "1.5 times",
        )


def load(table: Table, url: str, folder: Path) -> None:
    """All functions behind the embedded cloud's gateway, as they are deployed."""
    settings = Settings(api={"rate_limit": 10_000, "burst_limit": 5_000})
    config = LocalConfig(
        port=0, region=settings.region, state_dir=folder / "cloud", index_location=url
    )
    assembly = synthesize(settings, folder / "cdk.out", cache=ROOT / ".quench" / "cache")
    with Cloud(config) as cloud:
        outputs = cloud.deploy(assembly)[f"{settings.name}-prod-inference"]
        use_stand_in(cloud, url, f"{settings.name}-prod")
        responses = responses_of_clients(cloud, outputs["ApiUrl"])
    statuses = Counter(status for status, _ in responses)
    errors = sum(count for status, count in statuses.items() if status != 200)
    p50, p99 = quantiles([taken for _, taken in responses])
    table.add_row(
        f"{CLIENTS} clients for {SECONDS:g} s",
        f"{errors} errors of {len(responses)}",
        f"{len(responses) / SECONDS:.0f} requests a second, {p50:.0f} and {p99:.0f} ms",
        "0 errors",
    )


def use_stand_in(cloud: Cloud, url: str, name: str) -> None:
    """Let the deployed functions ask the stand-in instead of the embedded cloud's models."""
    functions = cloud.client("lambda")
    for path in BODIES:
        function = f"{name}-{path.replace('_', '-')}"
        variables = functions.get_function_configuration(FunctionName=function)["Environment"]
        variables["Variables"]["AWS_ENDPOINT_URL_BEDROCK_RUNTIME"] = url
        functions.update_function_configuration(FunctionName=function, Environment=variables)


def responses_of_clients(cloud: Cloud, url: str) -> list[tuple[int, float]]:
    """Status and milliseconds of every request of all clients, each of which asks in turn."""
    http = URLLib3Session(timeout=35, max_pool_connections=CLIENTS)
    credentials = cloud.session.get_credentials().get_frozen_credentials()
    signer = SigV4Auth(credentials, "execute-api", cloud.config.region)
    end = time.monotonic() + SECONDS

    def ask(client: int) -> list[tuple[int, float]]:
        responses = []
        for name in cycle([*BODIES][client % 3 :] + [*BODIES][: client % 3]):
            if time.monotonic() > end:
                break
            headers = {"Content-Type": "application/json"}
            address = url + name.removesuffix("_api")
            request = AWSRequest("POST", address, headers, data=json.dumps(BODIES[name]).encode())
            signer.add_auth(request)
            started = time.perf_counter()
            try:
                status = http.send(request.prepare()).status_code
            except HTTPClientError:
                status = 0
            responses.append((status, (time.perf_counter() - started) * 1_000))
        return responses

    with ThreadPoolExecutor(CLIENTS) as pool:
        return [response for client in pool.map(ask, range(CLIENTS)) for response in client]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="leave the load out")
    quick = parser.parse_args().quick
    table = Table("measured", "value", "that is", "at most")
    with stand_in() as url, tempfile.TemporaryDirectory() as folder:
        os.environ.update(environment(url))
        added(table, url)
        cold_starts(table)
        if not quick:
            load(table, url, Path(folder))
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
