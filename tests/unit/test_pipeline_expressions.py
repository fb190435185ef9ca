"""Expressions and definitions of SageMaker Pipelines, without a cloud."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from local.sagemaker.definition import DefinitionError, parse_definition
from local.sagemaker.expressions import (
    ExpressionError,
    Reference,
    Scope,
    condition_references,
    evaluate,
    holds,
    parse_path,
    references,
)
from local.sagemaker.processing import at_root, relative_key
from local.sagemaker.retries import RetryPolicy

SCOPE = Scope(
    parameters={"DatasetUri": "s3://data/x.csv", "EpochCount": 3, "Rate": 1e-5, "Dry": True},
    execution={"PipelineExecutionId": "abc123", "PipelineName": "tuning"},
    steps={
        "Preprocess": {
            "ProcessingOutputConfig": {"Outputs": {"train": {"S3Output": {"S3Uri": "s3://d/t"}}}},
            "Hosts": [{"Name": "algo-1"}],
        },
        "FineTune": {"OutputParameters": {"arn": "arn:aws:bedrock:m"}},
    },
    property_file_uri=lambda step, name: f"s3://d/{step}/{name}.json",
    read_json=lambda uri: {"uri": uri, "gain": {"rouge_l": 0.25, "rows": [1, 2]}},
)


def get(text: str) -> dict[str, str]:
    return {"Get": text}


def json_get(path: str) -> dict[str, Any]:
    file = get("Steps.Preprocess.PropertyFiles.Report")
    return {"Std:JsonGet": {"PropertyFile": file, "Path": path}}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (get("Parameters.EpochCount"), 3),
        (get("Execution.PipelineExecutionId"), "abc123"),
        (
            get("Steps.Preprocess.ProcessingOutputConfig.Outputs['train'].S3Output.S3Uri"),
            "s3://d/t",
        ),
        (get("Steps.Preprocess.Hosts[0].Name"), "algo-1"),
        (get("Steps.FineTune.OutputParameters['arn']"), "arn:aws:bedrock:m"),
        (json_get("gain.rouge_l"), 0.25),
        (json_get("$.gain['rows'][1]"), 2),
        (json_get("uri"), "s3://d/Preprocess/Report.json"),
        (
            {"Std:JsonGet": {"S3Uri": get("Parameters.DatasetUri"), "Path": "uri"}},
            "s3://data/x.csv",
        ),
        (
            {
                "Std:Join": {
                    "On": "/",
                    "Values": [
                        {"Std:Join": {"On": "", "Values": ["s3:/", get("Parameters.Dry")]}},
                        get("Parameters.Rate"),
                        2,
                    ],
                }
            },
            "s3:/true/1e-05/2",
        ),
        ({"a": [get("Parameters.EpochCount"), {"b": "text"}]}, {"a": [3, {"b": "text"}]}),
    ],
)
def test_an_expression_has_its_value(expression: Any, value: Any) -> None:
    assert list(references(expression)) is not None
    assert evaluate(expression, SCOPE) == value


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        (get("Parameters.Nothing"), "Nothing"),
        (get("Steps.Evaluate.ProcessingJobArn"), "Evaluate"),
        (get("Steps.Preprocess.ProcessingOutputConfig.Outputs['test']"), "test"),
        (json_get("gain.bleu"), "gain.bleu"),
    ],
)
def test_an_expression_without_a_value_says_what_is_missing(
    expression: Any, complaint: str
) -> None:
    with pytest.raises(ExpressionError, match=complaint):
        evaluate(expression, SCOPE)


@pytest.mark.parametrize(
    ("expression", "complaint"),
    [
        ({"Std:Split": {"On": "/"}}, "Std:Split"),
        (get("Execution.Weather"), "Weather"),
        (get("Secrets.Key"), "Secrets.Key"),
        ({"Get": "Parameters.A", "Else": 1}, "Get"),
        ({"Std:Join": {"Values": []}}, "On, Values"),
        (json_get("rows[?(@.x > 1)]"), "cannot be followed"),
        (json_get("rows.*"), "cannot be followed"),
        ({"Std:JsonGet": {"PropertyFile": get("Parameters.A"), "Path": "a"}}, "PropertyFiles"),
    ],
)
def test_an_unknown_function_is_refused_by_name(expression: Any, complaint: str) -> None:
    with pytest.raises(ExpressionError, match=complaint.replace("[", r"\[")):
        list(references([expression]))


def compare(kind: str, left: Any, right: Any) -> dict[str, Any]:
    return {"Type": kind, "LeftValue": left, "RightValue": right}


@pytest.mark.parametrize(
    ("condition", "outcome"),
    [
        (compare("Equals", get("Parameters.EpochCount"), 3.0), True),
        (compare("GreaterThan", json_get("gain.rouge_l"), 0.25), False),
        (compare("GreaterThanOrEqualTo", json_get("gain.rouge_l"), 0.25), True),
        (compare("LessThan", 1, 2), True),
        (compare("LessThanOrEqualTo", "b", "a"), False),
        ({"Type": "In", "QueryValue": get("Parameters.EpochCount"), "Values": [1, 3]}, True),
        ({"Type": "Not", "Condition": compare("Equals", True, get("Parameters.Dry"))}, False),
        (
            {"Type": "Or", "Conditions": [compare("Equals", 1, 2), compare("LessThan", 1, 2)]},
            True,
        ),
    ],
)
def test_a_condition_holds_or_not(condition: dict[str, Any], outcome: bool) -> None:
    assert all(isinstance(r, Reference) for r in condition_references(condition))
    assert holds(condition, SCOPE) is outcome


@pytest.mark.parametrize("right", ["0.1", None, True, [0.1]])
def test_values_of_different_kinds_are_never_compared(right: Any) -> None:
    with pytest.raises(ExpressionError, match="cannot compare"):
        holds(compare("GreaterThan", json_get("gain.rouge_l"), right), SCOPE)


def test_an_unknown_condition_is_refused_by_name() -> None:
    with pytest.raises(ExpressionError, match="Matches"):
        list(condition_references({"Type": "Not", "Condition": {"Type": "Matches"}}))


NAMES = st.text(st.characters(codec="utf-8", exclude_characters="'"), min_size=1, max_size=8)


@given(st.lists(st.one_of(NAMES, st.integers(0, 9)), min_size=1, max_size=5))
def test_a_path_written_in_brackets_is_read_back(parts: list[str | int]) -> None:
    text = "".join(f"[{part}]" if isinstance(part, int) else f"['{part}']" for part in parts)
    assert parse_path(text) == parse_path(f"${text}") == tuple(parts)


def definition(*steps: Any, **more: Any) -> str:
    return json.dumps({"Version": "2020-12-01", "Steps": list(steps), **more})


def fail_step(name: str, **more: Any) -> dict[str, Any]:
    return {"Name": name, "Type": "Fail", "Arguments": {"ErrorMessage": "no"}, **more}


QUEUE = "http://127.0.0.1/123456789012/queue"
CALLBACK = {
    "Name": "FineTune",
    "Type": "Callback",
    "Arguments": {},
    "SqsQueueUrl": QUEUE,
    "OutputParameters": [{"OutputName": "arn", "OutputType": "String"}],
}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "not JSON"),
        (definition(), "no steps"),
        (json.dumps({"Version": "1999", "Steps": [fail_step("A")]}), "version"),
        (definition({"Name": "Train", "Type": "Training"}), "'Train' has the type 'Training'"),
        (definition(fail_step("A"), fail_step("A")), "Two steps are named 'A'"),
        (definition(fail_step("A b")), "not a step name"),
        (definition(fail_step("A", DependsOn=["B"])), "'B', which does not exist"),
        (
            definition(fail_step("A", DependsOn=["B"]), fail_step("B", DependsOn=["A"])),
            "wait for each other",
        ),
        (definition(fail_step("A", Fallback="B")), "Fallback"),
        (
            definition(fail_step("A", Arguments={"ErrorMessage": get("Parameters.Why")})),
            "'Why', not declared",
        ),
        (
            definition(
                CALLBACK,
                fail_step("A", Arguments={"ErrorMessage": get("Steps.FineTune.Nothing['x']")}),
            ),
            "not among its outputs",
        ),
        (
            definition(
                {"Name": "P", "Type": "Processing", "Arguments": {}},
                fail_step("A", Arguments={"ErrorMessage": get("Steps.P.PropertyFiles.Report")}),
            ),
            "property file 'Report'",
        ),
        (
            definition(
                {
                    "Name": "P",
                    "Type": "Processing",
                    "Arguments": {},
                    "CacheConfig": {"Enabled": True, "ExpireAfter": "P1D"},
                }
            ),
            "CacheConfig",
        ),
        (
            definition(
                {
                    "Name": "P",
                    "Type": "Processing",
                    "Arguments": {},
                    "RetryPolicies": [{"ExceptionType": ["Step.BAD_LUCK"], "MaxAttempts": 1}],
                }
            ),
            "BAD_LUCK",
        ),
        (
            definition(
                {
                    "Name": "Gate",
                    "Type": "Condition",
                    "Arguments": {
                        "Conditions": [{"Type": "Matches"}],
                        "IfSteps": [],
                        "ElseSteps": [],
                    },
                }
            ),
            "Matches",
        ),
        (definition("step"), "not a step name"),
        (definition({**CALLBACK, "OutputParameters": [{}]}), "Malformed step"),
        (definition(fail_step("A"), Parameters=[{"Name": "P", "Type": "List"}]), "'List'"),
        (
            definition(
                fail_step("A"),
                Parameters=[{"Name": "P", "Type": "Integer", "DefaultValue": "many"}],
            ),
            "'P' must be of type Integer",
        ),
    ],
)
def test_a_definition_that_cannot_run_is_refused_by_name(text: str, complaint: str) -> None:
    with pytest.raises(DefinitionError, match=complaint):
        parse_definition(text)


def test_steps_in_branches_wait_for_their_condition_and_their_data() -> None:
    parsed = parse_definition(
        definition(
            CALLBACK,
            {
                "Name": "Gate",
                "Type": "Condition",
                "Arguments": {
                    "Conditions": [compare("Equals", get("Parameters.Mode"), "full")],
                    "IfSteps": [
                        fail_step(
                            "Yes",
                            Arguments={
                                "ErrorMessage": get("Steps.FineTune.OutputParameters['arn']")
                            },
                        )
                    ],
                    "ElseSteps": [fail_step("No")],
                },
            },
            Parameters=[{"Name": "Mode", "Type": "String", "DefaultValue": "full"}],
        )
    )
    assert parsed.steps["Yes"].depends_on == {"Gate", "FineTune"}
    assert parsed.steps["Yes"].branch == ("Gate", True)
    assert parsed.steps["No"].branch == ("Gate", False)


PARAMETERS = parse_definition(
    definition(
        fail_step("A"),
        Parameters=[
            {"Name": "Uri", "Type": "String"},
            {"Name": "Count", "Type": "Integer", "DefaultValue": 2},
            {"Name": "Mode", "Type": "String", "DefaultValue": "a", "EnumValues": ["a", "b"]},
        ],
    )
)


def test_parameters_are_given_or_have_defaults() -> None:
    assert PARAMETERS.bind({"Uri": "s3://x", "Count": "5"}) == {
        "Uri": "s3://x",
        "Count": 5,
        "Mode": "a",
    }


@pytest.mark.parametrize(
    ("given_parameters", "complaint"),
    [
        ({}, "'Uri' has no default"),
        ({"Uri": "x", "Url": "y"}, "Unknown parameter 'Url'"),
        ({"Uri": "x", "Count": "two"}, "'Count' must be of type Integer"),
        ({"Uri": "x", "Mode": "c"}, "allowed are a, b"),
    ],
)
def test_wrong_parameters_are_refused_by_name(
    given_parameters: dict[str, str], complaint: str
) -> None:
    with pytest.raises(DefinitionError, match=complaint):
        PARAMETERS.bind(given_parameters)


def test_a_retry_policy_backs_off_and_ends() -> None:
    policy = RetryPolicy.parse(
        {
            "ExceptionType": ["Step.THROTTLING"],
            "IntervalSeconds": 2,
            "BackoffRate": 3.0,
            "MaxAttempts": 3,
        }
    )
    assert [policy.delay(n, 0) for n in range(4)] == [2, 6, 18, None]
    expiring = RetryPolicy.parse({"ExceptionType": ["Step.THROTTLING"], "ExpireAfterMin": 1})
    assert expiring.delay(2, 50) == 4
    assert expiring.delay(4, 50) is None


@pytest.mark.parametrize(
    ("prefix", "key", "relative"),
    [
        ("datasets/a.jsonl", "datasets/a.jsonl", "a.jsonl"),
        ("datasets/a.jsonl", "datasets/a.jsonl.bak", "a.jsonl.bak"),
        ("datasets/", "datasets/x/a.jsonl", "x/a.jsonl"),
        ("runs/1/training", "runs/1/training/job/metrics.csv", "job/metrics.csv"),
        ("runs/1/tr", "runs/1/training/metrics.csv", "training/metrics.csv"),
        ("", "a/b.csv", "a/b.csv"),
    ],
)
def test_an_objects_place_in_the_inputs_folder(prefix: str, key: str, relative: str) -> None:
    assert relative_key(prefix, key) == relative


def test_only_opt_ml_itself_is_moved_to_the_jobs_folder(tmp_path: Any) -> None:
    assert at_root("--in=/opt/ml/processing:/opt/ml", tmp_path) == (
        f"--in={tmp_path}/processing:{tmp_path}"
    )
    for text in ("s3://bucket/opt/ml/x", "/opt/mlflow", "/my/opt/ml"):
        assert at_root(text, tmp_path) == text
