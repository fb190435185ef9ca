"""A Llama, which only Provisioned Throughput serves once tuned, approved before there is any."""

import json

from stack import Tuning, dialogues, small, until

SETTINGS = small(
    region="us-west-2",
    tuning={
        "base_model": "meta.llama3-1-8b-instruct-v1:0:128k",
        "serving": "provisioned",
        "hyperparameters": {"epochCount": 1},
    },
)


def test_an_approval_waits_for_capacity(tuning: Tuning) -> None:
    tuning.upload("datasets/early.jsonl", dialogues(150))
    execution = tuning.execution_of("datasets/early.jsonl")
    assert tuning.end_of(execution)["PipelineExecutionStatus"] == "Succeeded", tuning.steps(
        execution
    )
    key = f"runs/{execution.rsplit('/', 1)[-1]}/train/data.jsonl"
    trained_on = tuning.client("s3").get_object(Bucket=tuning.bucket, Key=key)["Body"].readlines()
    assert {frozenset(json.loads(line)) for line in trained_on} == {
        frozenset({"prompt", "completion"})
    }

    package = tuning.package_of(execution)
    before = tuning.parameter()
    assert before["model_id"] is None
    tuning.decide(package, "Approved")
    log = "/aws/lambda/quench-promote-model"
    until(lambda: "NoServingCapacity" in _lines(tuning, log), "an attempt without capacity")
    assert tuning.parameter() == before

    custom_model = tuning.client("sagemaker").describe_model_package(ModelPackageName=package)[
        "CustomerMetadataProperties"
    ]["custom_model"]
    throughput = tuning.client("bedrock").create_provisioned_model_throughput(
        modelUnits=1, provisionedModelName="early", modelId=custom_model
    )["provisionedModelArn"]
    promoted = until(
        lambda: value if (value := tuning.parameter()) != before else None, "the promotion"
    )
    assert promoted["model_id"] == throughput
    assert promoted["custom_model"] == custom_model

    answer = tuning.client("bedrock-runtime").invoke_model(
        modelId=throughput, body=json.dumps({"prompt": "Who goes there?", "max_gen_len": 4})
    )
    said = json.loads(answer["body"].read())
    assert set(said) == {
        "generation",
        "prompt_token_count",
        "generation_token_count",
        "stop_reason",
    }
    assert 0 < said["generation_token_count"] <= 4


def _lines(tuning: Tuning, group: str) -> str:
    answer = tuning.client("logs").filter_log_events(logGroupName=group)
    return "\n".join(event["message"] for event in answer["events"])
