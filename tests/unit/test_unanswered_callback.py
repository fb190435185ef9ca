"""unanswered_callback: a FineTune message that nobody handled fails its step."""

import json

import pytest
from botocore.stub import ANY


@pytest.fixture
def function(load_function):
    return load_function("unanswered_callback")


def test_the_step_fails_and_says_where_to_look(function, stub, read_event, context):
    event = read_event("sqs_callbacks")
    event["Records"] = event["Records"][:1]
    token = json.loads(event["Records"][0]["body"])["token"]
    stub("sagemaker").add_response(
        "send_pipeline_execution_step_failure",
        {},
        {"CallbackToken": token, "FailureReason": ANY, "ClientRequestToken": ANY},
    )
    assert function.handler(event, context) == {"batchItemFailures": []}


def test_a_message_without_a_token_goes_on_to_the_dead_letters(function, read_event, context):
    event = read_event("sqs_callbacks")
    event["Records"] = [event["Records"][0] | {"body": "poison"}]
    failures = function.handler(event, context)["batchItemFailures"]
    assert [failure["itemIdentifier"] for failure in failures] == [event["Records"][0]["messageId"]]
