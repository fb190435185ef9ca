"""What the settings of the APIs make of their stack."""

import json
from typing import Any

import pytest
from templates import (
    Template,
    allowed,
    functions,
    inference_template,
    knowledge_template,
    of_type,
    resources_of,
)

from infrastructure.assets import Assets
from workflows.settings import Settings

METHOD = "AWS::ApiGateway::Method"
ROUTES = {
    "text": ("POST", "text_api"),
    "rag": ("POST", "rag_api"),
    "image": ("POST", "image_api"),
    "health": ("GET", "status_api"),
    "openapi.json": ("GET", "status_api"),
}


@pytest.fixture(scope="module")
def template(assets: Assets) -> Template:
    return inference_template(Settings(), assets)


@pytest.fixture(scope="module")
def keyed(assets: Assets) -> Template:
    return with_settings(assets, authorization="api-key", rate_limit=5, burst_limit=7)


def with_settings(assets: Assets, **api: Any) -> Template:
    return inference_template(Settings(api=api), assets)


def variables(template: Template, function: str) -> dict[str, Any]:
    found: dict[str, Any] = functions(template)[function]["Environment"]["Variables"]
    return found


def test_each_path_reaches_its_function(template: Template) -> None:
    resources = template["Resources"]
    routes = {}
    for method in of_type(template, METHOD):
        path = resources[method["ResourceId"]["Ref"]]["Properties"]["PathPart"]
        integration = method["Integration"]
        (function,) = [
            part["Fn::GetAtt"][0]
            for part in integration["Uri"]["Fn::Join"][1]
            if "Fn::GetAtt" in part
        ]
        handler = resources[function]["Properties"]["Handler"]
        routes[path] = (method["HttpMethod"], handler.split(".")[1])
        assert (integration["Type"], integration["IntegrationHttpMethod"]) == ("AWS_PROXY", "POST")
    assert routes == ROUTES


def test_the_gateway_may_invoke_each_function_by_its_own_routes_only(template: Template) -> None:
    sources = [
        permission["SourceArn"]["Fn::Join"][1][-1]
        for permission in of_type(template, "AWS::Lambda::Permission")
    ]
    assert sorted(sources) == sorted(f"/{verb}/{path}" for path, (verb, _) in ROUTES.items())


def test_requests_are_signed_unless_a_key_is_set(template: Template, keyed: Template) -> None:
    assert {method["AuthorizationType"] for method in of_type(template, METHOD)} == {"AWS_IAM"}
    assert "ApiKeyId" not in template["Outputs"]
    assert of_type(template, "AWS::ApiGateway::ApiKey") == []
    assert {
        (method["AuthorizationType"], method["ApiKeyRequired"]) for method in of_type(keyed, METHOD)
    } == {("NONE", True)}


def test_a_key_is_limited_by_its_plan_for_the_stage(keyed: Template) -> None:
    (plan,) = of_type(keyed, "AWS::ApiGateway::UsagePlan")
    assert plan["Throttle"] == {"RateLimit": 5, "BurstLimit": 7}
    (stage,) = plan["ApiStages"]
    assert keyed["Resources"][stage["Stage"]["Ref"]]["Type"] == "AWS::ApiGateway::Stage"
    (membership,) = of_type(keyed, "AWS::ApiGateway::UsagePlanKey")
    assert membership["KeyId"] == keyed["Outputs"]["ApiKeyId"]["Value"]
    (key,) = of_type(keyed, "AWS::ApiGateway::ApiKey")
    assert "Value" not in key  # a secret: the service makes it


def test_the_stage_is_limited_and_logged_whoever_asks(template: Template, keyed: Template) -> None:
    for made, limits in ((template, (50, 100)), (keyed, (5, 7))):
        (stage,) = of_type(made, "AWS::ApiGateway::Stage")
        (every,) = stage["MethodSettings"]
        assert (every["HttpMethod"], every["ResourcePath"]) == ("*", "/*")
        assert (every["ThrottlingRateLimit"], every["ThrottlingBurstLimit"]) == limits
        assert not every["DataTraceEnabled"]  # it would log prompts
        assert "$context.requestId" in json.loads(stage["AccessLogSetting"]["Format"]).values()


def test_the_gateways_own_errors_carry_the_request_id_too(template: Template) -> None:
    responses = {
        r["ResponseType"]: r for r in of_type(template, "AWS::ApiGateway::GatewayResponse")
    }
    assert set(responses) == {"DEFAULT_4XX", "DEFAULT_5XX"}
    for response in responses.values():
        assert response["ResponseParameters"] == {
            "gatewayresponse.header.x-request-id": "context.requestId"
        }
    (deployment,) = (
        r for r in template["Resources"].values() if r["Type"] == "AWS::ApiGateway::Deployment"
    )
    kinds = {template["Resources"][name]["Type"] for name in deployment["DependsOn"]}
    assert "AWS::ApiGateway::GatewayResponse" in kinds  # else they would not be served


def test_a_changed_api_is_deployed_again(template: Template, keyed: Template) -> None:
    deployments = [
        {
            name
            for name, r in made["Resources"].items()
            if r["Type"] == "AWS::ApiGateway::Deployment"
        }
        for made in (template, keyed)
    ]
    assert deployments[0] != deployments[1]


def test_functions_are_told_what_the_parameters_held(template: Template, assets: Assets) -> None:
    kind = "AWS::SSM::Parameter::Value<String>"
    for name, default in (("Model", "/quench/model"), ("Index", "/quench/index")):
        assert template["Parameters"][name]["Type"] == kind
        assert template["Parameters"][name]["Default"] == default
    (written,) = of_type(knowledge_template(Settings(), assets), "AWS::SSM::Parameter")
    assert written["Name"] == template["Parameters"]["Index"]["Default"]
    told = {name: variables(template, name) for name in functions(template)}
    assert all(values["MODEL"] == {"Ref": "Model"} for values in told.values())
    assert {name for name, values in told.items() if values.get("INDEX") == {"Ref": "Index"}} == {
        "rag_api",
        "status_api",
    }
    assert {name for name, values in told.items() if "IMAGE_MODEL" in values} == {
        "image_api",
        "status_api",
    }


def test_no_function_outlasts_the_gateways_patience(template: Template) -> None:
    assert {function["Timeout"] for function in functions(template).values()} == {29}


def test_each_function_may_do_only_what_it_is_for(template: Template) -> None:
    logs = {"logs:CreateLogStream", "logs:PutLogEvents"}
    answer = {"bedrock:InvokeModel", "s3:GetObject", "s3:ListBucket"}
    search = {"es:ESHttpGet", "es:ESHttpPost"}
    actions = {name: set(allowed(template, name)) - logs for name in functions(template)}
    assert actions == {
        "text_api": answer,
        "rag_api": answer | search,
        "image_api": {"bedrock:InvokeModel"},
        "status_api": search,
    }


def test_functions_invoke_their_own_models_only(template: Template) -> None:
    text = allowed(template, "text_api")["bedrock:InvokeModel"]
    assert text.count("foundation-model/") == 1
    assert ":bedrock:us-east-1::foundation-model/amazon.nova-micro-v1:0" in text
    for tuned in (":custom-model-deployment/*", ":provisioned-model/*"):
        assert tuned in text
    rag = allowed(template, "rag_api")["bedrock:InvokeModel"]
    assert rag.count("foundation-model/") == 2
    assert "foundation-model/amazon.titan-embed-text-v2:0" in rag
    image = allowed(template, "image_api")["bedrock:InvokeModel"]
    assert ":bedrock:us-west-2::foundation-model/stability.stable-image-core-v1:1" in image
    assert "custom-model" not in image


def test_a_profile_may_be_invoked_with_the_models_behind_it_anywhere(assets: Assets) -> None:
    template = with_settings(assets, text_model="us.amazon.nova-pro-v1:0")
    assert variables(template, "text_api")["BASE_MODEL"] == "us.amazon.nova-pro-v1:0"
    invoked = allowed(template, "text_api")["bedrock:InvokeModel"]
    assert ":inference-profile/us.amazon.nova-pro-v1:0" in invoked
    assert ":bedrock:*::foundation-model/amazon.nova-pro-v1:0" in invoked


def test_a_guardrail_is_told_and_allowed_in_its_own_region(assets: Assets) -> None:
    template = with_settings(assets, guardrail="abc1:2", image_guardrail="def3:DRAFT")
    for name, guardrail, resource in (
        ("text_api", "abc1:2", (":bedrock:us-east-1:", ":guardrail/abc1")),
        ("rag_api", "abc1:2", (":bedrock:us-east-1:", ":guardrail/abc1")),
        ("image_api", "def3:DRAFT", (":bedrock:us-west-2:", ":guardrail/def3")),
    ):
        assert variables(template, name)["GUARDRAIL"] == guardrail
        for part in resource:
            assert part in allowed(template, name)["bedrock:ApplyGuardrail"]


def test_personas_lie_in_a_bucket_of_the_stack_or_where_they_are_set(
    template: Template, assets: Assets
) -> None:
    scheme, bucket, end = template["Outputs"]["PersonasUri"]["Value"]["Fn::Join"][1]
    assert (scheme, end) == ("s3://", "/")
    made = template["Resources"][bucket["Ref"]]
    assert (made["Type"], made["DeletionPolicy"]) == ("AWS::S3::Bucket", "Retain")
    elsewhere = with_settings(assets, personas_uri="s3://lore/voices/")
    assert of_type(elsewhere, "AWS::S3::Bucket") == []
    assert elsewhere["Outputs"]["PersonasUri"]["Value"] == "s3://lore/voices/"
    assert variables(elsewhere, "text_api")["PERSONAS_URI"] == "s3://lore/voices/"
    assert ":s3:::lore/voices/*" in allowed(elsewhere, "text_api")["s3:GetObject"]


def test_a_role_that_searches_has_the_name_that_the_domain_is_told(template: Template) -> None:
    named = {role["RoleName"] for role in of_type(template, "AWS::IAM::Role") if "RoleName" in role}
    assert named == {"quench-qa-rag-api", "quench-qa-status-api"}


def test_requests_to_another_search_are_not_signed(assets: Assets) -> None:
    settings = Settings(knowledge={"opensearch": {"endpoint": "https://search.example.com"}})
    template = inference_template(settings, assets)
    assert resources_of(template, "es:ESHttpPost") == "[]"


def test_server_errors_raise_an_alarm(template: Template) -> None:
    (alarm,) = of_type(template, "AWS::CloudWatch::Alarm")
    assert (alarm["MetricName"], alarm["Statistic"]) == ("5XXError", "Average")
    assert alarm["Threshold"] == 0.01
