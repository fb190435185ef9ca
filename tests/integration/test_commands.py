"""`quench up` and `quench demo` as a person runs them: each a process of its own."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from botocore.exceptions import EndpointConnectionError
from releases import whole_tree
from stack import ROOT, commands_below, dialogues, until

SETTINGS = """
[dataset]
prefix = "tales/"
[evaluation]
max_records = 4
max_tokens = 8
[quality_gate]
metric = "gain.perplexity"
[local]
wait_scale = 0.002
"""
OPTIONS = ("--port", "0", "--model", "tiny", "--settings", "mine.toml")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "mine.toml").write_text(SETTINGS)
    cache = tmp_path / ".quench" / "cache"
    cache.parent.mkdir()
    cache.symlink_to(ROOT / ".quench" / "cache")  # the functions' layer, made once
    return tmp_path


@contextmanager
def quench(folder: Path, *arguments: str) -> Iterator["subprocess.Popen[str]"]:
    with subprocess.Popen(
        [sys.executable, "-m", "cli.main", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def test_up_says_what_to_export_and_leaves_nothing_after_ctrl_c(folder: Path) -> None:
    exported: dict[str, str] = {}
    with quench(folder, "up", "--state-dir", "state", *OPTIONS) as up:
        assert up.stdout is not None
        output = ""
        for line in up.stdout:
            output += line
            if line.startswith("  export "):
                name, _, value = line.split()[1].partition("=")
                exported[name] = value
            if "Ctrl-C" in line:
                break
        bucket = output.partition("aws s3 cp FILE s3://")[2].partition("/")[0]
        assert f"  aws s3 cp FILE s3://{bucket}/tales/\n" in output
        for folders in ("quench-knowledge-documentsbucket", "quench-prod-inference-personasbucket"):
            assert f"  aws s3 sync FOLDER s3://{folders}" in output
        s3: Any = boto3.Session(
            exported["AWS_ACCESS_KEY_ID"],
            exported["AWS_SECRET_ACCESS_KEY"],
            region_name=exported["AWS_DEFAULT_REGION"],
        ).client("s3", endpoint_url=exported["AWS_ENDPOINT_URL"])
        s3.put_object(Bucket=bucket, Key="tales/long.jsonl", Body=dialogues(2_000).encode())
        until(lambda: trains(up.pid), "the tuning to begin")
        children = psutil.Process(up.pid).children(recursive=True)
        up.send_signal(signal.SIGINT)
        output += up.stdout.read()
        assert up.wait() == 0, output
    assert output.endswith("Stopped.\n")
    assert psutil.wait_procs(children, timeout=10)[1] == []
    with pytest.raises(EndpointConnectionError):
        s3.list_buckets()


@pytest.mark.timeout(900)
def test_demo_takes_somebodys_own_data_to_production(folder: Path) -> None:
    (folder / "mine.jsonl").write_text(dialogues(60))
    (folder / "examples").symlink_to(ROOT / "examples")
    source = str(whole_tree(folder / "source"))
    arguments = ("demo", "--plain", "--dataset", "mine.jsonl", "--source", source)
    with quench(folder, *arguments, *OPTIONS) as demo:
        assert demo.stdout is not None
        output = demo.stdout.read()
        assert demo.wait() == 0, output
    result = json.loads((folder / ".quench" / "demo.json").read_text())
    assert result["ok"] is True
    assert [phase["name"] for phase in result["phases"]] == [
        "start",
        "hydrate",
        "upload",
        "tune",
        "approve",
        "promote",
        "release",
        "answer",
    ]
    knowledge = result["knowledge"]
    assert (knowledge["documents"], knowledge["failed"], knowledge["questions"]) == (47, 0, 60)
    assert knowledge["embedding_calls"] == knowledge["chunks"] > knowledge["documents"]
    assert knowledge["recall_at_5"] >= 0.85
    assert "long-night-chronicle.md" in output
    assert result["execution"]["status"] == "Succeeded"
    assert {step["status"] for step in result["execution"]["steps"]} == {"Succeeded"}
    assert result["state_machine"]["status"] == "SUCCEEDED"
    assert result["training"]["last_loss"] < result["training"]["first_loss"]
    evaluation = result["evaluation"]
    assert evaluation["tuned"]["perplexity"] < evaluation["base"]["perplexity"]
    assert result["model_package"]["approval_status"] == "Approved"
    promoted = json.loads(result["parameter"]["value"])
    assert promoted["model_package"] == result["model_package"]["arn"]
    assert promoted["model_id"] in output
    release = result["release"]
    assert (release["pipeline"], release["status"]) == ("quench-release", "Succeeded")
    assert release["stages"] == [
        {
            "name": stage,
            "model_before": None,
            "model_after": promoted["model_id"],
            "system_tests": system_tests,
        }
        for stage, system_tests in (("QA", "Succeeded"), ("PROD", None))
    ]
    answers = {answer["mode"]: answer for answer in result["answers"]}
    assert {mode: answer["status"] for mode, answer in answers.items()} == {
        "base": 200,
        "tuned": 200,
        "rag": 200,
    }
    assert answers["tuned"]["model_id"] == promoted["model_id"] != answers["base"]["model_id"]
    assert answers["rag"]["sources"][0]["uri"].endswith("/long-night-chronicle.md")
    assert result["picture"]["placeholder"] is True
    assert (folder / result["picture"]["path"]).read_bytes().startswith(b"\x89PNG")
    assert result["peak_memory_mb"] > 0


def test_demo_that_fails_says_why_and_where_to_read(folder: Path) -> None:
    (folder / "mine.jsonl").write_text("{not json}\n" * 40)
    with quench(folder, "demo", "--plain", "--dataset", "mine.jsonl", *OPTIONS) as demo:
        assert demo.stdout is not None
        output = demo.stdout.read()
        assert demo.wait() == 1
    assert "Preprocess failed" in output
    assert "40 of 40 records were rejected" in output
    result = json.loads((folder / ".quench" / "demo.json").read_text())
    assert result["ok"] is False
    assert "40 of 40 records were rejected" in result["error"]
    assert (folder / ".quench" / "demo" / "rejected.jsonl").is_file()


def trains(process: int) -> bool:
    """Whether a customization job's process runs among the descendants of a process."""
    return any("local.bedrock.training" in command for _, command in commands_below(process))
