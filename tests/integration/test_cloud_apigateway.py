"""REST APIs of the embedded cloud: a template deployed, and called by signing HTTP clients."""

import base64
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import urllib3
from botocore.auth import SigV4Auth, SigV4QueryAuth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from botocore.exceptions import ClientError

from local.cloud import Cloud
from local.config import LocalConfig

HANDLER = """
import base64, json, os, time

def answer(status, body, **more):
    return {"statusCode": status, "body": body, **more}

def handler(event, context):
    kind = (event["pathParameters"] or {}).get("kind")
    if kind == "raise":
        raise ValueError("not today")
    if kind == "sleep":
        time.sleep(60)
    if kind == "pid":
        time.sleep(0.02)
        return answer(200, str(os.getpid()))
    if kind == "headers":
        return answer("201", "made", headers={"x-single": 1, "Server": "mine"},
                      multiValueHeaders={"Set-Cookie": ["a=1", "b=2"]})
    if kind == "png":
        return answer(200, base64.b64encode(b"\\x89PNG\\xff").decode(), isBase64Encoded=True,
                      headers={"Content-Type": "image/png"})
    if kind in MALFORMED:
        return MALFORMED[kind]
    return answer(200, json.dumps({"event": event, "model": os.environ["MODEL"],
                                   "api": os.environ["API"]}))

MALFORMED = {"text": "just text", "no-status": {"body": "x"}, "object": answer(200, {"a": 1}),
             "status": answer("many", ""), "base64": answer(200, "%", isBase64Encoded=True),
             "lines": answer(200, "", headers={"a": "b\\r\\nc: d"}), "nothing": None}
"""


def method(resource: Any, verb: str, timeout: int = 29_000, **properties: Any) -> dict[str, Any]:
    uri = (
        "arn:${AWS::Partition}:apigateway:${AWS::Region}:lambda:path/2015-03-31/functions/"
        "${Function.Arn}/invocations"
    )
    return {
        "Type": "AWS::ApiGateway::Method",
        "Properties": {
            "RestApiId": {"Ref": "Api"},
            "ResourceId": resource,
            "HttpMethod": verb,
            "AuthorizationType": "NONE",
            "Integration": {
                "Type": "AWS_PROXY",
                "IntegrationHttpMethod": "POST",
                "TimeoutInMillis": timeout,
                "Uri": {"Fn::Sub": uri},
            },
            **properties,
        },
    }


def resource(parent: Any, part: str) -> dict[str, Any]:
    return {
        "Type": "AWS::ApiGateway::Resource",
        "Properties": {"RestApiId": {"Ref": "Api"}, "ParentId": parent, "PathPart": part},
    }


def deployment(methods: list[str]) -> dict[str, Any]:
    return {
        "Type": "AWS::ApiGateway::Deployment",
        "Properties": {"RestApiId": {"Ref": "Api"}},
        "DependsOn": methods,
    }


ROOT = {"Fn::GetAtt": ["Api", "RootResourceId"]}
TEMPLATE: dict[str, Any] = {
    "Parameters": {
        "Model": {"Type": "AWS::SSM::Parameter::Value<String>", "Default": "/quench/model"}
    },
    "Resources": {
        "Role": {
            "Type": "AWS::IAM::Role",
            "Properties": {"AssumeRolePolicyDocument": {"Version": "2012-10-17", "Statement": []}},
        },
        "Function": {
            "Type": "AWS::Lambda::Function",
            "Properties": {
                "Handler": "index.handler",
                "Runtime": "python3.12",
                "Timeout": 30,
                "Role": {"Fn::GetAtt": ["Role", "Arn"]},
                "Code": {"ZipFile": HANDLER},
                "Environment": {
                    "Variables": {
                        "MODEL": {"Ref": "Model"},
                        "API": {
                            "Fn::Sub": "https://${Api}.execute-api.${AWS::Region}.amazonaws.com"
                        },
                    }
                },
            },
        },
        "Accesses": {"Type": "AWS::Logs::LogGroup", "Properties": {"LogGroupName": "accesses"}},
        "Api": {
            "Type": "AWS::ApiGateway::RestApi",
            "Properties": {
                "Name": "api",
                "EndpointConfiguration": {"Types": ["REGIONAL"]},
                "BinaryMediaTypes": ["image/png"],
            },
        },
        "Account": {
            "Type": "AWS::ApiGateway::Account",
            "Properties": {"CloudWatchRoleArn": {"Fn::GetAtt": ["Role", "Arn"]}},
        },
        "Open": resource(ROOT, "open"),
        "Kind": resource({"Ref": "Open"}, "{kind}"),
        "Word": resource({"Ref": "Open"}, "word"),
        "All": resource({"Ref": "Word"}, "{all+}"),
        "Slow": resource(ROOT, "slow"),
        "SlowKind": resource({"Ref": "Slow"}, "{kind}"),
        "Signed": resource(ROOT, "signed"),
        "Keyed": resource(ROOT, "keyed"),
        "Rare": resource(ROOT, "rare"),
        "GetKind": method({"Ref": "Kind"}, "GET"),
        "PostKind": method({"Ref": "Kind"}, "POST"),
        "PutWord": method({"Ref": "Word"}, "PUT"),
        "AnyAll": method({"Ref": "All"}, "ANY"),
        "GetSlow": method({"Ref": "SlowKind"}, "GET", timeout=100),
        "PostSigned": method({"Ref": "Signed"}, "POST", AuthorizationType="AWS_IAM"),
        "GetSigned": method({"Ref": "Signed"}, "GET", AuthorizationType="AWS_IAM"),
        "GetKeyed": method({"Ref": "Keyed"}, "GET", ApiKeyRequired=True),
        "GetRare": method({"Ref": "Rare"}, "GET"),
        "NotFound": {
            "Type": "AWS::ApiGateway::GatewayResponse",
            "Properties": {
                "RestApiId": {"Ref": "Api"},
                "ResponseType": "DEFAULT_5XX",
                "ResponseParameters": {
                    "gatewayresponse.header.x-request-id": "context.requestId",
                    "gatewayresponse.header.x-from": "'gateway'",
                },
                "ResponseTemplates": {
                    "application/json": '{"error": $context.error.messageString,'
                    ' "request": "$context.requestId"}'
                },
            },
        },
        "Deployment": deployment(
            [
                *("GetKind", "PostKind", "PutWord", "AnyAll", "GetSlow"),
                *("PostSigned", "GetSigned", "GetKeyed", "GetRare"),
            ]
        ),
        "Stage": {
            "Type": "AWS::ApiGateway::Stage",
            "Properties": {
                "RestApiId": {"Ref": "Api"},
                "DeploymentId": {"Ref": "Deployment"},
                "StageName": "v1",
                "Variables": {"colour": "blue"},
                "AccessLogSetting": {
                    "DestinationArn": {"Fn::GetAtt": ["Accesses", "Arn"]},
                    "Format": "$context.requestId $context.status $context.identity.user",
                },
                "MethodSettings": [
                    {
                        "ResourcePath": "/*",
                        "HttpMethod": "*",
                        "ThrottlingRateLimit": 1000,
                        "ThrottlingBurstLimit": 1000,
                        "MetricsEnabled": True,
                    },
                    {
                        "ResourcePath": "/~1rare",
                        "HttpMethod": "GET",
                        "ThrottlingRateLimit": 0.001,
                        "ThrottlingBurstLimit": 2,
                    },
                ],
            },
        },
        "Key": {
            "Type": "AWS::ApiGateway::ApiKey",
            "Properties": {"Name": "client", "Enabled": True},
        },
        "OtherKey": {
            "Type": "AWS::ApiGateway::ApiKey",
            "Properties": {"Enabled": True, "Value": "of-no-usage-plan-at-all"},
        },
        "Plan": {
            "Type": "AWS::ApiGateway::UsagePlan",
            "Properties": {
                "UsagePlanName": "plan",
                "ApiStages": [{"ApiId": {"Ref": "Api"}, "Stage": {"Ref": "Stage"}, "Throttle": {}}],
                "Throttle": {"RateLimit": 0.001, "BurstLimit": 3},
            },
        },
        "PlanKey": {
            "Type": "AWS::ApiGateway::UsagePlanKey",
            "Properties": {
                "UsagePlanId": {"Ref": "Plan"},
                "KeyId": {"Ref": "Key"},
                "KeyType": "API_KEY",
            },
        },
    },
    "Outputs": {
        "ApiUrl": {
            "Value": {
                "Fn::Join": [
                    "",
                    [
                        *("https://", {"Ref": "Api"}, ".execute-api.", {"Ref": "AWS::Region"}),
                        *(".", {"Ref": "AWS::URLSuffix"}, "/", {"Ref": "Stage"}, "/"),
                    ],
                ]
            }
        },
        "ApiId": {"Value": {"Ref": "Api"}},
        "KeyId": {"Value": {"Ref": "Key"}},
    },
}

Call = Callable[..., urllib3.BaseHTTPResponse]


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    folder = tmp_path_factory.mktemp("apis") / "cloud"
    with Cloud(LocalConfig(port=0, state_dir=folder, wait_scale=0.001)) as running:
        running.client("ssm").put_parameter(Name="/quench/model", Value="first", Type="String")
        running.client("cloudformation").create_stack(
            StackName="api", TemplateBody=json.dumps(TEMPLATE)
        )
        yield running


@pytest.fixture(scope="module")
def outputs(cloud: Cloud) -> dict[str, str]:
    return stack_outputs(cloud)


@pytest.fixture(scope="module")
def call(outputs: dict[str, str]) -> Call:
    """Sends a request to a path of the stage."""
    pool = urllib3.PoolManager(maxsize=50)

    def send(method: str, path: str, **more: Any) -> urllib3.BaseHTTPResponse:
        return pool.request(method, outputs["ApiUrl"] + path, retries=False, **more)

    return send


def stack_outputs(cloud: Cloud, name: str = "api") -> dict[str, str]:
    stack = cloud.client("cloudformation").describe_stacks(StackName=name)["Stacks"][0]
    return {output["OutputKey"]: output["OutputValue"] for output in stack["Outputs"]}


def update(cloud: Cloud, template: dict[str, Any], name: str = "api") -> None:
    cloud.client("cloudformation").update_stack(StackName=name, TemplateBody=json.dumps(template))


def event_of(response: urllib3.BaseHTTPResponse) -> Any:
    assert response.status == 200, response.data
    return response.json()["event"]


class TestUrl:
    def test_outputs_and_variables_name_the_api_here(
        self, cloud: Cloud, outputs: dict[str, str], call: Call
    ) -> None:
        base = f"{cloud.endpoint}/_aws/execute-api/{outputs['ApiId']}"
        assert outputs["ApiUrl"] == f"{base}/v1/"
        assert call("GET", "open/x").json()["api"] == base

    def test_an_unknown_stage_is_forbidden(self, outputs: dict[str, str]) -> None:
        response = urllib3.request("GET", outputs["ApiUrl"].replace("/v1/", "/v2/open/x"))
        assert (response.status, response.json()) == (403, {"message": "Forbidden"})


class TestEvent:
    def test_it_is_complete(self, cloud: Cloud, outputs: dict[str, str], call: Call) -> None:
        event = event_of(
            call(
                "POST",
                "open/a%20b?x=1&x=two%20words&y=",
                body='{"question": "Wer trägt die Laterne?"}'.encode(),
                headers={"X-Game": "Emberfall", "Content-Type": "application/json"},
            )
        )
        assert event["resource"] == "/open/{kind}"
        assert event["path"] == "/open/a%20b"
        assert event["httpMethod"] == "POST"
        assert event["pathParameters"] == {"kind": "a%20b"}
        assert event["queryStringParameters"] == {"x": "two words", "y": ""}
        assert event["multiValueQueryStringParameters"] == {"x": ["1", "two words"], "y": [""]}
        assert event["headers"]["X-Game"] == "Emberfall"
        assert event["multiValueHeaders"]["X-Game"] == ["Emberfall"]
        assert event["stageVariables"] == {"colour": "blue"}
        assert json.loads(event["body"]) == {"question": "Wer trägt die Laterne?"}
        assert event["isBase64Encoded"] is False
        context = event["requestContext"]
        assert context["apiId"] == outputs["ApiId"]
        assert (context["stage"], context["path"]) == ("v1", "/v1/open/a%20b")
        assert context["resourcePath"] == "/open/{kind}"
        assert context["identity"]["sourceIp"] == "127.0.0.1"
        assert context["identity"]["userAgent"] == event["headers"]["User-Agent"]
        assert context["identity"]["userArn"] is None

    def test_what_is_not_there_is_null(self, call: Call) -> None:
        event = event_of(call("PUT", "open/word"))
        absent = ("pathParameters", "queryStringParameters", "body")
        assert [event[name] for name in absent] == [None, None, None]

    def test_a_body_of_a_binary_type_is_base64(self, call: Call) -> None:
        event = event_of(
            call("POST", "open/x", body=b"\xff\x00", headers={"Content-Type": "image/png"})
        )
        assert event["isBase64Encoded"] is True
        assert base64.b64decode(event["body"]) == b"\xff\x00"


class TestRoutes:
    @pytest.mark.parametrize(
        ("verb", "path", "resource", "parameters"),
        [
            ("PUT", "open/word", "/open/word", None),
            ("GET", "open/words", "/open/{kind}", {"kind": "words"}),
            ("DELETE", "open/word/a/b", "/open/word/{all+}", {"all": "a/b"}),
        ],
    )
    def test_the_most_specific_path_answers(
        self, call: Call, verb: str, path: str, resource: str, parameters: Any
    ) -> None:
        event = event_of(call(verb, path))
        assert (event["resource"], event["pathParameters"]) == (resource, parameters)

    @pytest.mark.parametrize(
        ("verb", "path"),
        [("GET", "nowhere"), ("DELETE", "open/x"), ("GET", "open/word"), ("GET", "open/x/y")],
    )
    def test_what_has_no_route_misses_a_token(self, call: Call, verb: str, path: str) -> None:
        response = call(verb, path)
        assert response.status == 403
        assert response.json() == {"message": "Missing Authentication Token"}
        assert response.headers["x-amzn-ErrorType"] == "MissingAuthenticationTokenException"
        assert response.headers["x-amzn-RequestId"]


class TestResponse:
    def test_status_and_headers_are_the_functions(self, call: Call) -> None:
        response = call("GET", "open/headers")
        assert (response.status, response.data) == (201, b"made")
        assert response.headers["x-single"] == "1"
        assert response.headers.getlist("Set-Cookie") == ["a=1", "b=2"]
        assert response.headers["x-amzn-Remapped-Server"] == "mine"
        assert response.headers["Content-Type"] == "application/json"

    def test_base64_is_decoded_for_who_accepts_it(self, call: Call) -> None:
        decoded = call("GET", "open/png", headers={"Accept": "image/png"})
        assert (decoded.data, decoded.headers["Content-Type"]) == (b"\x89PNG\xff", "image/png")
        assert base64.b64decode(call("GET", "open/png").data) == b"\x89PNG\xff"

    @pytest.mark.parametrize(
        "kind",
        ["raise", "text", "no-status", "object", "status", "lines", "nothing"],
    )
    def test_a_function_that_fails_or_answers_wrongly_is_a_bad_gateway(
        self, call: Call, kind: str
    ) -> None:
        response = call("GET", f"open/{kind}")
        assert response.status == 502
        assert response.json()["error"] == "Internal server error"
        assert "not today" not in response.data.decode()

    def test_base64_that_is_none_is_a_bad_gateway(self, call: Call) -> None:
        assert call("GET", "open/base64", headers={"Accept": "image/png"}).status == 502

    def test_a_function_that_takes_too_long_is_given_up(self, call: Call) -> None:
        response = call("GET", "slow/sleep")
        assert response.status == 504
        assert response.json()["error"] == "Endpoint request timed out"

    def test_gateway_responses_form_the_gateways_own(self, call: Call) -> None:
        response = call("GET", "open/raise")
        assert response.headers["x-from"] == "gateway"
        identifier = response.headers["x-amzn-RequestId"]
        assert response.headers["x-request-id"] == response.json()["request"] == identifier

    def test_more_than_10_mb_are_too_large(self, call: Call) -> None:
        response = call("POST", "open/x", body=b"x" * (10 * 1024 * 1024 + 1))
        assert response.status == 413
        assert response.headers["x-amzn-ErrorType"] == "RequestEntityTooLargeException"

    def test_they_are_so_before_anybody_looks_at_the_signature(
        self, call: Call, outputs: dict[str, str]
    ) -> None:
        response = signed(call, outputs, body=b"x" * (10 * 1024 * 1024 + 1))
        assert response.status == 413, response.data

    def test_so_is_what_lambda_would_not_take(self, call: Call) -> None:
        assert call("POST", "open/x", body=b"x" * (6 * 1024 * 1024)).status == 413

    def test_accesses_are_logged(self, cloud: Cloud, call: Call) -> None:
        response = call("GET", "open/headers")
        events = cloud.client("logs").filter_log_events(logGroupName="accesses")["events"]
        assert f"{response.headers['x-amzn-RequestId']} 201 -" in [e["message"] for e in events]

    def test_fifty_clients_are_served(self, call: Call) -> None:
        with ThreadPoolExecutor(50) as clients:
            answers = list(clients.map(lambda _: call("GET", "open/pid"), range(200)))
        assert {answer.status for answer in answers} == {200}
        assert len({answer.data for answer in answers}) > 1


OURS = Credentials("quench", "quench")


def signed(
    call: Call,
    outputs: dict[str, str],
    path: str = "signed",
    *,
    body: bytes = b"",
    sent: bytes | None = None,
    auth: SigV4Auth | None = None,
    headers: dict[str, str] | None = None,
    then: Callable[[dict[str, str]], None] = lambda headers: None,
) -> urllib3.BaseHTTPResponse:
    """POST, signed for `body`; what is `sent` and its headers `then` may be others."""
    request = AWSRequest("POST", outputs["ApiUrl"] + path, data=body, headers=headers or {})
    (auth or SigV4Auth(OURS, "execute-api", "us-east-1")).add_auth(request)
    final = dict(request.headers)
    then(final)
    return call("POST", path, body=body if sent is None else sent, headers=final)


class LateAuth(SigV4Auth):
    """Signs as if its clock were wrong."""

    def __init__(self, minutes: float) -> None:
        super().__init__(OURS, "execute-api", "us-east-1")
        self._off = timedelta(minutes=minutes)

    def add_auth(self, request: AWSRequest) -> None:
        moment = datetime.now(UTC) + self._off
        request.context["timestamp"] = moment.strftime("%Y%m%dT%H%M%SZ")
        self._modify_request_before_signing(request)
        to_sign = self.string_to_sign(request, self.canonical_request(request))
        self._inject_signature_to_request(request, self.signature(to_sign, request))


class TestSignature:
    def test_who_signs_is_let_in_and_named(self, call: Call, outputs: dict[str, str]) -> None:
        event = event_of(
            signed(
                call,
                outputs,
                "signed?b=2&a=%C3%A4%20b&a=1",
                body=b'{"question": "?"}',
                headers={"Content-Type": "application/json", "X-Padded": "  a   b "},
            )
        )
        identity = event["requestContext"]["identity"]
        assert identity["accessKey"] == "quench"
        assert identity["userArn"] == "arn:aws:iam::123456789012:root"
        assert "Authorization" not in event["headers"]

    def test_a_presigned_url_is_signed_too(self, call: Call, outputs: dict[str, str]) -> None:
        request = AWSRequest("GET", outputs["ApiUrl"] + "signed", params={"a": "ä b"})
        SigV4QueryAuth(OURS, "execute-api", "us-east-1", expires=60).add_auth(request)
        path = str(request.url).removeprefix(outputs["ApiUrl"])
        assert event_of(call("GET", path))["queryStringParameters"]["a"] == "ä b"
        assert call("GET", path.replace("?a=", "?a=x")).status == 403
        assert call("GET", path.replace("X-Amz-Expires=60", "X-Amz-Expires=61")).status == 403

    def test_a_presigned_url_expires(self, call: Call, outputs: dict[str, str]) -> None:
        class LateQueryAuth(LateAuth, SigV4QueryAuth):
            """Good for an hour."""

        request = AWSRequest("GET", outputs["ApiUrl"] + "signed")
        LateQueryAuth(-61).add_auth(request)
        response = call("GET", str(request.url).removeprefix(outputs["ApiUrl"]))
        assert response.status == 403
        assert response.json()["message"].startswith("Signature expired")

    def test_who_does_not_sign_misses_a_token(self, call: Call) -> None:
        response = call("POST", "signed", body=b"{}")
        assert response.status == 403
        assert response.json() == {"message": "Missing Authentication Token"}

    @pytest.mark.parametrize(
        ("case", "kind", "message"),
        [
            ({"sent": b"other"}, "InvalidSignature", "The request signature we calculated"),
            (
                {"auth": SigV4Auth(Credentials("quench", "wrong"), "execute-api", "us-east-1")},
                "InvalidSignature",
                "The request signature we calculated",
            ),
            (
                {"auth": SigV4Auth(OURS, "execute-api", "eu-west-1")},
                "InvalidSignature",
                "Credential should be scoped to a valid region",
            ),
            (
                {"auth": SigV4Auth(OURS, "lambda", "us-east-1")},
                "InvalidSignature",
                "Credential should be scoped to correct service: 'execute-api'",
            ),
            (
                {"auth": SigV4Auth(Credentials("other", "key"), "execute-api", "us-east-1")},
                "UnrecognizedClient",
                "The security token included in the request is invalid.",
            ),
            (
                {
                    "auth": SigV4Auth(
                        Credentials("quench", "quench", "t"), "execute-api", "us-east-1"
                    )
                },
                "UnrecognizedClient",
                "The security token included in the request is invalid.",
            ),
            ({"auth": LateAuth(-6)}, "InvalidSignature", "Signature expired"),
            ({"auth": LateAuth(6)}, "InvalidSignature", "Signature not yet current"),
            (
                {"headers": {"X-Game": "a"}, "then": lambda h: h.update({"X-Game": "b"})},
                "InvalidSignature",
                "The request signature we calculated",
            ),
            (
                {"headers": {"X-Game": "a"}, "then": lambda h: h.pop("X-Game")},
                "InvalidSignature",
                "The request signature we calculated",
            ),
            (
                {"then": lambda h: h.update(Authorization="Bearer me")},
                "IncompleteSignature",
                "Invalid key=value pair",
            ),
            (
                {"then": lambda h: h.update(Authorization="AWS4-HMAC-SHA256 Credential=a/b/c")},
                "IncompleteSignature",
                "Authorization header requires 'Signature' parameter",
            ),
            (
                {"then": lambda h: h.pop("X-Amz-Date")},
                "IncompleteSignature",
                "Authorization header requires existence of either",
            ),
            (
                {"then": lambda h: h.update({"X-Amz-Date": "today"})},
                "InvalidSignature",
                "Date must be in ISO-8601",
            ),
        ],
    )
    def test_a_wrong_signature_is_refused(
        self,
        call: Call,
        outputs: dict[str, str],
        case: dict[str, Any],
        kind: str,
        message: str,
    ) -> None:
        response = signed(call, outputs, body=b"question", **case)
        assert response.status == 403
        assert response.json()["message"].startswith(message)
        assert response.headers["x-amzn-ErrorType"] == f"{kind}Exception"


class TestApiKeys:
    @pytest.mark.parametrize(
        "headers", [{}, {"x-api-key": "x"}, {"x-api-key": "of-no-usage-plan-at-all"}]
    )
    def test_without_a_key_of_a_plan_it_is_forbidden(
        self, call: Call, headers: dict[str, str]
    ) -> None:
        response = call("GET", "keyed", headers=headers)
        assert (response.status, response.json()) == (403, {"message": "Forbidden"})
        assert response.headers["x-amzn-ErrorType"] == "ForbiddenException"

    def test_a_key_is_let_in_as_often_as_its_plan_says(
        self, cloud: Cloud, outputs: dict[str, str], call: Call
    ) -> None:
        key = cloud.client("apigateway").get_api_key(apiKey=outputs["KeyId"], includeValue=True)
        headers = {"x-api-key": key["value"]}
        answers = [call("GET", "keyed", headers=headers) for _ in range(4)]
        assert [answer.status for answer in answers] == [200, 200, 200, 429]
        identity = event_of(answers[0])["requestContext"]["identity"]
        assert (identity["apiKey"], identity["apiKeyId"]) == (key["value"], key["id"])
        assert answers[3].json() == {"message": "Too Many Requests"}

    def test_a_method_is_throttled_as_its_stage_says(self, call: Call) -> None:
        answers = [call("GET", "rare") for _ in range(3)]
        assert [answer.status for answer in answers] == [200, 200, 429]
        assert answers[2].headers["x-amzn-ErrorType"] == "TooManyRequestsException"


@pytest.fixture
def another(cloud: Cloud) -> Iterator[dict[str, Any]]:
    """A template like ours, to be deployed as another stack."""
    template = deepcopy(TEMPLATE)
    resources = template["Resources"]
    resources["Accesses"]["Properties"]["LogGroupName"] = "other-accesses"
    del resources["OtherKey"]
    yield template
    live = cloud.client("cloudformation").list_stacks(
        StackStatusFilter=["CREATE_COMPLETE", "UPDATE_COMPLETE"]
    )
    if any(stack["StackName"] == "another" for stack in live["StackSummaries"]):
        cloud.client("cloudformation").delete_stack(StackName="another")


class TestDeployment:
    def test_a_new_value_in_parameter_store_reaches_the_function(
        self, cloud: Cloud, another: dict[str, Any]
    ) -> None:
        cloudformation, ssm = cloud.client("cloudformation"), cloud.client("ssm")
        ssm.put_parameter(Name="/another/model", Value="one", Type="String")
        another["Parameters"]["Model"]["Default"] = "/another/model"
        body = json.dumps(another)
        cloudformation.create_stack(StackName="another", TemplateBody=body)
        url = stack_outputs(cloud, "another")["ApiUrl"] + "open/x"
        assert urllib3.request("GET", url).json()["model"] == "one"

        ssm.put_parameter(Name="/another/model", Value="two", Type="String", Overwrite=True)
        assert urllib3.request("GET", url).json()["model"] == "one"
        cloudformation.update_stack(StackName="another", TemplateBody=body)
        assert urllib3.request("GET", url).json()["model"] == "two"

        ssm.put_parameter(Name="/another/model", Value="three", Type="String", Overwrite=True)
        change = {"StackName": "another", "ChangeSetName": "three"}
        cloudformation.create_change_set(**change, TemplateBody=body, ChangeSetType="UPDATE")
        assert cloudformation.describe_change_set(**change)["Status"] == "CREATE_COMPLETE"
        cloudformation.execute_change_set(**change)
        assert urllib3.request("GET", url).json()["model"] == "three"

        change["ChangeSetName"] = "nothing"
        cloudformation.create_change_set(**change, TemplateBody=body, ChangeSetType="UPDATE")
        assert cloudformation.describe_change_set(**change)["Status"] == "FAILED"

    def test_a_parameter_that_is_not_there_is_named(
        self, cloud: Cloud, another: dict[str, Any]
    ) -> None:
        another["Parameters"]["Model"]["Default"] = "/nobody/put/it"
        with pytest.raises(ClientError, match="/nobody/put/it"):
            cloud.client("cloudformation").create_stack(
                StackName="another", TemplateBody=json.dumps(another)
            )

    def test_what_is_served_is_what_is_deployed(
        self, cloud: Cloud, another: dict[str, Any]
    ) -> None:
        cloud.client("cloudformation").create_stack(
            StackName="another", TemplateBody=json.dumps(another)
        )
        base = stack_outputs(cloud, "another")["ApiUrl"]
        resources = another["Resources"]
        resources["New"] = resource(ROOT, "new")
        resources["GetNew"] = method({"Ref": "New"}, "GET")
        resources["GetRare"]["Properties"]["AuthorizationType"] = "AWS_IAM"
        update(cloud, another, "another")
        assert urllib3.request("GET", base + "new").status == 403
        assert urllib3.request("GET", base + "rare").status == 200

        methods = resources.pop("Deployment")["DependsOn"]
        resources["Deployment2"] = deployment([*methods, "GetNew"])
        resources["Stage"]["Properties"]["DeploymentId"] = {"Ref": "Deployment2"}
        resources["Stage"]["Properties"]["Variables"] = {"colour": "red"}
        update(cloud, another, "another")
        assert stack_outputs(cloud, "another")["ApiUrl"] == base
        response = urllib3.request("GET", base + "new")
        assert event_of(response)["stageVariables"] == {"colour": "red"}
        assert urllib3.request("GET", base + "rare").status == 403

    def test_a_stack_that_goes_takes_its_api_along(
        self, cloud: Cloud, another: dict[str, Any]
    ) -> None:
        client = cloud.client("apigateway")
        before = {api["id"] for api in client.get_rest_apis()["items"]}
        cloudformation = cloud.client("cloudformation")
        cloudformation.create_stack(StackName="another", TemplateBody=json.dumps(another))
        url = stack_outputs(cloud, "another")["ApiUrl"]
        cloudformation.delete_stack(StackName="another")
        assert {api["id"] for api in client.get_rest_apis()["items"]} == before
        assert urllib3.request("GET", url + "open/x").status == 403

    @pytest.mark.parametrize(
        ("logical_id", "properties", "named"),
        [
            ("Api", {"Body": {"openapi": "3.0.1"}}, "Body"),
            ("Api", {"EndpointConfiguration": {"Types": ["PRIVATE"]}}, "private"),
            ("GetRare", {"AuthorizationType": "COGNITO_USER_POOLS"}, "COGNITO_USER_POOLS"),
            ("GetRare", {"RequestValidatorId": "v"}, "RequestValidatorId"),
            ("GetRare", {"Integration": {"Type": "MOCK"}}, "MOCK"),
            ("Stage", {"TracingEnabled": True}, "trace"),
            ("Stage", {"CacheClusterEnabled": True}, "CacheClusterEnabled"),
            ("Stage", {"MethodSettings": [{"CachingEnabled": True}]}, "CachingEnabled"),
            ("Plan", {"Quota": {"Limit": 1, "Period": "DAY"}}, "Quota"),
            ("NotFound", {"ResponseTemplates": {"a/b": "$util.escapeJavaScript()"}}, r"\$util"),
            ("NotFound", {"ResponseParameters": {"gatewayresponse.header.a": "1"}}, "header.a = 1"),
        ],
    )
    def test_what_would_be_ignored_is_refused_by_name(
        self,
        cloud: Cloud,
        another: dict[str, Any],
        logical_id: str,
        properties: dict[str, Any],
        named: str,
    ) -> None:
        another["Resources"][logical_id]["Properties"] |= properties
        with pytest.raises(ClientError, match=named):
            cloud.client("cloudformation").create_stack(
                StackName="another", TemplateBody=json.dumps(another)
            )
