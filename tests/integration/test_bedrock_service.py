"""Bedrock in the embedded cloud, as its real client sees it, with the tiny model."""

import csv
import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import boto3
import PIL.Image
import pytest
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st
from stack import commands_below

from bedrock import images, text
from bedrock.conversations import Message
from bedrock.images import Image, ImageRequest
from bedrock.models import all_models
from local.bedrock import pictures
from local.cloud import Cloud
from local.config import LocalConfig

BASE = "amazon.nova-micro-v1:0"
TUNABLE = "amazon.nova-micro-v1:0:128k"
ROLE = "arn:aws:iam::123456789012:role/tuning"
PATIENCE = 120.0


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("bedrock") / "cloud"
    with Cloud(LocalConfig(port=0, state_dir=folder, wait_scale=0.01, model="tiny")) as running:
        s3 = running.client("s3")
        s3.create_bucket(Bucket="data")
        for name, count in {"train": 40, "validation": 8, "long": 3_000}.items():
            s3.put_object(Bucket="data", Key=f"{name}.jsonl", Body=records(count))
        yield running


@pytest.fixture(scope="module")
def bedrock(cloud: Cloud) -> Any:
    return cloud.client("bedrock")


@pytest.fixture(scope="module")
def trained(bedrock: Any) -> dict[str, Any]:
    """A job that completed."""
    create(bedrock, "trained", hyperParameters={"epochCount": "2"}, clientRequestToken="once")
    job = ended(bedrock, "trained")
    assert job["status"] == "Completed", job
    return job


@pytest.fixture(scope="module")
def deployment(bedrock: Any, trained: dict[str, Any]) -> str:
    """The ARN of an active deployment of the trained model."""
    arn: str = bedrock.create_custom_model_deployment(
        modelDeploymentName="trained", modelArn=trained["outputModelArn"]
    )["customModelDeploymentArn"]
    until(
        lambda: (
            bedrock.get_custom_model_deployment(customModelDeploymentIdentifier=arn)["status"]
            == "Active"
        )
    )
    return arn


@pytest.fixture
def running(bedrock: Any, request: pytest.FixtureRequest) -> Iterator[str]:
    """The name of a job that will not end by itself while a test lasts."""
    name = request.node.name.replace("_", "-")[:63]
    create(bedrock, name, data="long", hyperParameters={"epochCount": "5"})
    yield name
    if bedrock.get_model_customization_job(jobIdentifier=name)["status"] == "InProgress":
        bedrock.stop_model_customization_job(jobIdentifier=name)
    ended(bedrock, name)


def test_a_completed_job_made_a_model(bedrock: Any, trained: dict[str, Any]) -> None:
    assert trained["hyperParameters"] == {
        "epochCount": "2",
        "learningRate": "1e-05",
        "learningRateWarmupSteps": "10",
    }
    model = bedrock.get_custom_model(modelIdentifier=trained["outputModelArn"])
    assert model["modelName"] == "trained"
    assert model["jobArn"] == trained["jobArn"]
    assert model["trainingMetrics"] == trained["trainingMetrics"]
    assert [entry["modelArn"] for entry in bedrock.list_custom_models()["modelSummaries"]] == [
        trained["outputModelArn"]
    ]


def test_a_completed_job_leaves_its_metrics(cloud: Cloud, trained: dict[str, Any]) -> None:
    root = "out/model-customization-job-" + trained["jobArn"].rpartition("/")[2]
    steps = rows(cloud, f"{root}/training_artifacts/step_wise_training_metrics.csv")
    assert [row["step_number"] for row in steps] == [str(number) for number in range(1, 11)]
    assert float(steps[-1]["training_loss"]) == trained["trainingMetrics"]["trainingLoss"]
    validation = rows(
        cloud,
        f"{root}/validation_artifacts/post_fine_tuning_validation/validation/validation_metrics.csv",
    )
    assert [row["epoch_number"] for row in validation] == ["0", "1", "2"]
    assert float(validation[-1]["perplexity"]) < 0.9 * float(validation[0]["perplexity"])


def test_a_request_that_comes_twice_starts_one_job(bedrock: Any, trained: dict[str, Any]) -> None:
    again = create(bedrock, "trained", clientRequestToken="once")
    assert again == trained["jobArn"]


@pytest.mark.parametrize(
    ("change", "code", "cause"),
    [
        ({"hyperParameters": {"epochCount": "6"}}, "ValidationException", "epochCount"),
        ({"hyperParameters": {"learningRate": "0.1"}}, "ValidationException", "learningRate"),
        ({"hyperParameters": {"rank": "8"}}, "ValidationException", "rank"),
        ({"baseModelIdentifier": BASE}, "ValidationException", TUNABLE),
        ({"baseModelIdentifier": "acme.model-v1:0"}, "ValidationException", "acme.model-v1:0"),
        (
            {"baseModelIdentifier": "meta.llama3-1-8b-instruct-v1:0:128k"},
            "ValidationException",
            "us-west-2",
        ),
        ({"customizationType": "DISTILLATION"}, "ValidationException", "DISTILLATION"),
        ({"jobName": "trained"}, "ConflictException", "trained"),
        ({"customModelName": "trained"}, "ConflictException", "trained"),
    ],
)
def test_what_a_job_cannot_be_asked_for(
    bedrock: Any, trained: dict[str, Any], change: dict[str, Any], code: str, cause: str
) -> None:
    with pytest.raises(ClientError) as raised:
        create(bedrock, **{"jobName": "refused", **change})
    assert raised.value.response["Error"]["Code"] == code
    assert cause in raised.value.response["Error"]["Message"]


@pytest.mark.parametrize(
    ("name", "bad", "cause"),
    [
        ("torn", b'{"schemaVersion": ', "line 3 of s3://data/torn.jsonl is not JSON"),
        ("reserved", None, "line 3 of s3://data/reserved.jsonl is invalid: holds the reserved"),
    ],
)
def test_a_bad_line_fails_the_job_and_is_named(
    cloud: Cloud, bedrock: Any, name: str, bad: bytes | None, cause: str
) -> None:
    lines = records(20).splitlines()
    lines[2] = bad or record("Who is there?", "User: a friend")
    cloud.client("s3").put_object(Bucket="data", Key=f"{name}.jsonl", Body=b"\n".join(lines))
    create(bedrock, name, data=name)
    job = ended(bedrock, name)
    assert job["status"] == "Failed"
    assert cause in job["failureMessage"]
    assert "outputModelArn" not in job


def test_missing_data_fails_the_job_and_is_named(bedrock: Any) -> None:
    create(bedrock, "missing", data="nowhere")
    job = ended(bedrock, "missing")
    assert job["status"] == "Failed"
    assert "s3://data/nowhere.jsonl" in job["failureMessage"]


def test_a_job_can_be_stopped_once(bedrock: Any, running: str) -> None:
    bedrock.stop_model_customization_job(jobIdentifier=running)
    assert ended(bedrock, running)["status"] == "Stopped"
    with pytest.raises(ClientError, match="is Stopped"):
        bedrock.stop_model_customization_job(jobIdentifier=running)


def test_a_job_whose_process_is_killed_fails(bedrock: Any, running: str) -> None:
    arn = bedrock.get_model_customization_job(jobIdentifier=running)["jobArn"]
    os.kill(process_of(arn.rpartition("/")[2]), signal.SIGKILL)
    job = ended(bedrock, running)
    assert job["status"] == "Failed"
    assert "killed by signal 9" in job["failureMessage"]


def test_a_third_job_at_once_exceeds_the_quota(bedrock: Any, running: str) -> None:
    create(bedrock, "second", data="long", hyperParameters={"epochCount": "5"})
    listed = bedrock.list_model_customization_jobs(statusEquals="InProgress")
    assert [job["jobName"] for job in listed["modelCustomizationJobSummaries"]] == [
        "second",
        running,
    ]
    with pytest.raises(ClientError) as raised:
        create(bedrock, "third")
    assert raised.value.response["Error"]["Code"] == "ServiceQuotaExceededException"
    bedrock.stop_model_customization_job(jobIdentifier="second")
    assert ended(bedrock, "second")["status"] == "Stopped"


def test_base_and_tuned_model_answer_differently(cloud: Cloud, deployment: str) -> None:
    base, tuned = ask(cloud, BASE), ask(cloud, deployment)
    assert base["output"]["message"]["content"] != tuned["output"]["message"]["content"]
    for answer in (base, tuned):
        assert answer["stopReason"] in ("end_turn", "max_tokens")
        assert answer["usage"]["inputTokens"] > 10
        assert 0 < answer["usage"]["outputTokens"] <= 12


def test_questions_asked_together_are_answered_as_when_asked_alone(
    cloud: Cloud, deployment: str
) -> None:
    questions = [(model, size) for model in (BASE, deployment) for size in (4, 8, 12)]
    alone = [ask(cloud, model, size) for model, size in questions]
    with ThreadPoolExecutor(len(questions)) as pool:
        together = list(pool.map(lambda question: ask(cloud, *question), questions))
    assert together == alone


def test_a_throughput_serves_the_model_once_it_is_in_service(
    cloud: Cloud, bedrock: Any, trained: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("local.bedrock.service.SECONDS_TO_SERVE", 400)
    arn = bedrock.create_provisioned_model_throughput(
        modelUnits=1, provisionedModelName="tp", modelId=trained["outputModelArn"]
    )["provisionedModelArn"]
    with pytest.raises(ClientError, match="Creating"):
        ask(cloud, arn)
    until(
        lambda: (
            bedrock.get_provisioned_model_throughput(provisionedModelId="tp")["status"]
            == "InService"
        )
    )
    assert ask(cloud, arn)["usage"]["outputTokens"] > 0
    listed = bedrock.list_provisioned_model_throughputs(modelArnEquals=trained["outputModelArn"])
    assert [entry["provisionedModelArn"] for entry in listed["provisionedModelSummaries"]] == [arn]
    other = trained["outputModelArn"][:-12] + "0" * 12
    listed = bedrock.list_provisioned_model_throughputs(modelArnEquals=other)
    assert listed["provisionedModelSummaries"] == []
    bedrock.delete_provisioned_model_throughput(provisionedModelId=arn)
    with pytest.raises(ClientError, match="ResourceNotFoundException"):
        ask(cloud, arn)


def test_a_deployed_model_cannot_be_deleted(
    bedrock: Any, trained: dict[str, Any], deployment: str
) -> None:
    listed = bedrock.list_custom_model_deployments(modelArnEquals=trained["outputModelArn"])
    assert [entry["customModelDeploymentArn"] for entry in listed["modelDeploymentSummaries"]] == [
        deployment
    ]
    with pytest.raises(ClientError, match="ConflictException"):
        bedrock.delete_custom_model(modelIdentifier="trained")


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("acme.model-v1:0", "ResourceNotFoundException"),
        (TUNABLE, "ValidationException"),
        ("meta.llama3-1-8b-instruct-v1:0", "ValidationException"),
        ("meta.llama3-2-1b-instruct-v1:0", "ResourceNotFoundException"),
        (
            "arn:aws:bedrock:us-east-1:123456789012:custom-model-deployment/000000000000",
            "ResourceNotFoundException",
        ),
    ],
)
def test_what_cannot_be_invoked(cloud: Cloud, model: str, code: str) -> None:
    with pytest.raises(ClientError) as raised:
        ask(cloud, model)
    assert raised.value.response["Error"]["Code"] == code


def test_a_custom_model_is_not_invoked_by_its_own_arn(
    cloud: Cloud, trained: dict[str, Any]
) -> None:
    with pytest.raises(ClientError, match="ValidationException"):
        ask(cloud, trained["outputModelArn"])


def test_a_body_of_another_family_is_refused(cloud: Cloud) -> None:
    with pytest.raises(ClientError, match="Not supported here: prompt"):
        invoke(cloud, BASE, {"prompt": "Hello"})


# One model that lives for each family's bodies.
ONE_OF_EACH_FAMILY = {
    model.family: model.invoke_id
    for model in all_models()
    if model.tasks == ("text",) and model.end_of_life is None and not model.tuning
}


def test_every_family_with_a_living_model_is_invoked_below() -> None:
    assert set(ONE_OF_EACH_FAMILY) == set(text.FAMILIES) - {"command", "titan-text"}


@pytest.mark.parametrize("family", sorted(ONE_OF_EACH_FAMILY))
def test_a_model_of_every_family_answers_in_its_own_words(cloud: Cloud, family: str) -> None:
    question = Message("user", "What lies beyond gate 7?")
    body = text.request_body(family, "Answer briefly.", [question], text.Limits(8))
    runtime = region_of(cloud, "us-west-2")
    model = ONE_OF_EACH_FAMILY[family]
    response = runtime.invoke_model(modelId=model, body=json.dumps(body))
    headers = response["ResponseMetadata"]["HTTPHeaders"]
    answer = text.parse_answer(family, json.loads(response["body"].read()), headers)
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert answer.input_tokens == int(headers["x-amzn-bedrock-input-token-count"]) > 8
    assert answer.output_tokens == int(headers["x-amzn-bedrock-output-token-count"]) <= 8


def test_a_guardrail_is_refused_by_name(cloud: Cloud) -> None:
    with pytest.raises(ClientError, match="does not support guardrailIdentifier"):
        cloud.client("bedrock-runtime").invoke_model(
            modelId=BASE, body=b"{}", guardrailIdentifier="g", guardrailVersion="1"
        )


class TestImages:
    CORE = "stability.stable-image-core-v1:1"

    def draw(self, cloud: Cloud, **asked: Any) -> Image:
        request = ImageRequest(**{"prompt": "A lantern on a hill", **asked})
        response = region_of(cloud, "us-west-2").invoke_model(
            modelId=self.CORE, body=json.dumps(images.request_body("stability", request))
        )
        assert response["ResponseMetadata"]["HTTPHeaders"]["x-quench-placeholder"] == "true"
        return images.parse_image("stability", json.loads(response["body"].read()))

    def test_a_placeholder_has_the_size_and_the_seed_that_were_asked_for(
        self, cloud: Cloud
    ) -> None:
        image = self.draw(cloud, width=1344, height=768, seed=7)
        assert (image.size, image.seed) == ((1344, 768), 7)
        with PIL.Image.open(io.BytesIO(image.png)) as picture:
            assert (picture.format, picture.size) == ("PNG", (1344, 768))
            assert len(picture.convert("RGB").getcolors(100_000) or []) > 2

    def test_a_seed_draws_it_again_another_does_not(self, cloud: Cloud) -> None:
        first = self.draw(cloud, seed=7)
        assert self.draw(cloud, seed=7) == first
        assert self.draw(cloud, seed=8).png != first.png
        assert self.draw(cloud, seed=7, prompt="A gate").png != first.png
        assert self.draw(cloud, seed=7, negative_prompt="fog").png != first.png

    def test_a_seed_of_its_choice_is_told(self, cloud: Cloud) -> None:
        image = self.draw(cloud)
        assert image.seed
        assert self.draw(cloud, seed=image.seed) == image

    @given(
        prompt=st.text(min_size=1, max_size=2_000),
        size=st.tuples(st.integers(64, 1536), st.integers(64, 1536)),
        seed=st.integers(0, 4_294_967_294),
    )
    @settings(max_examples=25)
    def test_anything_can_be_written_on_any_size(
        self, prompt: str, size: tuple[int, int], seed: int
    ) -> None:
        request = ImageRequest(prompt, None, *size, seed)
        assert Image(pictures.draw(request, self.CORE, seed)).size == size

    def test_a_model_draws_in_its_own_regions(self, cloud: Cloud) -> None:
        with pytest.raises(ClientError, match="isn't supported in us-east-1"):
            invoke(cloud, self.CORE, {"prompt": "A lantern"})

    def test_what_the_family_does_not_take_is_refused(self, cloud: Cloud) -> None:
        with pytest.raises(ClientError, match="Not supported here: image"):
            region_of(cloud, "us-west-2").invoke_model(
                modelId=self.CORE, body=json.dumps({"prompt": "A lantern", "image": "…"})
            )


def test_embeddings_are_near_for_what_means_the_same(cloud: Cloud) -> None:
    def embed(text: str) -> list[float]:
        body = {"inputText": text, "dimensions": 256}
        vector: list[float] = invoke(cloud, "amazon.titan-embed-text-v2:0", body)["embedding"]
        return vector

    smith, forge, eel = embed("the blacksmith"), embed("a smith's forge"), embed("a river eel")
    assert len(smith) == 256
    assert dot(smith, smith) == pytest.approx(1, abs=1e-5)
    assert dot(smith, forge) > dot(smith, eel)
    with pytest.raises(ClientError, match="256 dimensions only, not 1024"):
        invoke(cloud, "amazon.titan-embed-text-v2:0", {"inputText": "hello"})

    texts = {"texts": ["the blacksmith"], "input_type": "search_query", "output_dimension": 256}
    answer = invoke(cloud, "cohere.embed-v4:0", texts)
    assert answer["embeddings"] == [pytest.approx(smith)]
    with pytest.raises(ClientError, match="Not supported here: embedding_types"):
        invoke(cloud, "cohere.embed-v4:0", {**texts, "embedding_types": ["int8"]})


def test_foundation_models_are_listed_by_what_they_can(bedrock: Any) -> None:
    tunable = bedrock.list_foundation_models(byCustomizationType="FINE_TUNING")["modelSummaries"]
    assert TUNABLE in [model["modelId"] for model in tunable]
    assert BASE not in [model["modelId"] for model in tunable]
    details = bedrock.get_foundation_model(modelIdentifier=BASE)["modelDetails"]
    assert details["modelLifecycle"]["status"] == "ACTIVE"


def record(prompt: str, completion: str) -> bytes:
    return json.dumps(
        {
            "schemaVersion": "bedrock-conversation-2024",
            "messages": [
                {"role": "user", "content": [{"text": prompt}]},
                {"role": "assistant", "content": [{"text": completion}]},
            ],
        }
    ).encode()


def records(count: int) -> bytes:
    return b"".join(
        record(f"What lies beyond gate {number}?", "The ember road, friend. Keep warm.") + b"\n"
        for number in range(count)
    )


def create(bedrock: Any, jobName: str, data: str = "train", **changes: Any) -> str:
    answer = bedrock.create_model_customization_job(
        **{
            "jobName": jobName,
            "customModelName": jobName,
            "roleArn": ROLE,
            "baseModelIdentifier": TUNABLE,
            "trainingDataConfig": {"s3Uri": f"s3://data/{data}.jsonl"},
            "validationDataConfig": {"validators": [{"s3Uri": "s3://data/validation.jsonl"}]},
            "outputDataConfig": {"s3Uri": "s3://data/out/"},
            **changes,
        }
    )
    return str(answer["jobArn"])


def ended(bedrock: Any, name: str) -> dict[str, Any]:
    """The job's description once it has ended."""
    return until(
        lambda: (
            job
            if (job := bedrock.get_model_customization_job(jobIdentifier=name))["status"]
            not in ("InProgress", "Stopping")
            else None
        )
    )


def until(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(0.05)
    raise AssertionError("waited in vain")


def process_of(job_id: str) -> int:
    """The id of the process that trains."""
    return next(pid for pid, command in commands_below(os.getpid()) if f"/{job_id}/" in command)


def rows(cloud: Cloud, key: str) -> list[dict[str, str]]:
    body = cloud.client("s3").get_object(Bucket="data", Key=key)["Body"].read().decode()
    return list(csv.DictReader(body.splitlines()))


def ask(cloud: Cloud, model: str, max_tokens: int = 12) -> dict[str, Any]:
    return invoke(
        cloud,
        model,
        {
            "schemaVersion": "messages-v1",
            "messages": [{"role": "user", "content": [{"text": "What lies beyond gate 7?"}]}],
            "inferenceConfig": {"maxTokens": max_tokens, "temperature": 0},
        },
    )


def invoke(cloud: Cloud, model: str, body: dict[str, Any]) -> dict[str, Any]:
    answer = cloud.client("bedrock-runtime").invoke_model(modelId=model, body=json.dumps(body))
    decoded: dict[str, Any] = json.loads(answer["body"].read())
    return decoded


def region_of(cloud: Cloud, region: str) -> Any:
    """A client of the cloud that signs for another region than the cloud's."""
    return boto3.Session("quench", "quench", region_name=region).client(
        "bedrock-runtime", endpoint_url=cloud.endpoint
    )


def dot(one: list[float], other: list[float]) -> float:
    return sum(a * b for a, b in zip(one, other, strict=True))
