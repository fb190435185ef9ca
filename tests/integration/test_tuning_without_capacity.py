"""A model that Provisioned Throughput is to serve, approved before there is any."""

from stack import Tuning, dialogues, small, until

SETTINGS = small(tuning={"serving": "provisioned"})


def test_an_approval_waits_for_capacity(tuning: Tuning) -> None:
    tuning.upload("datasets/early.jsonl", dialogues(60))
    execution = tuning.execution_of("datasets/early.jsonl")
    assert tuning.end_of(execution)["PipelineExecutionStatus"] == "Succeeded", tuning.steps(
        execution
    )
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


def _lines(tuning: Tuning, group: str) -> str:
    answer = tuning.client("logs").filter_log_events(logGroupName=group)
    return "\n".join(event["message"] for event in answer["events"])
