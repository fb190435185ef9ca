"""API Gateway's `execute-api`: serves the REST APIs that are deployed, at a path of the cloud's.

A stage serves what its deployment holds: routes, authorization and integrations are those of the
template, as moto has recorded them. Signatures are checked against the cloud's access key; API
keys, usage plans and throttling against the records of them.
"""

from __future__ import annotations

import json
import logging
import re
import secrets
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from botocore.credentials import Credentials
from moto.apigateway.models import RestAPI, apigateway_backends
from moto.cloudformation import parsing
from moto.core.request import Request
from moto.logs.models import logs_backends
from werkzeug.wrappers import Response

from local.apigateway.events import MalformedResponseError, proxy_event, proxy_response
from local.apigateway.routes import Route, Routes, method_settings
from local.apigateway.signatures import ReceivedRequest, SignatureError, verify
from local.apigateway.templates import render, render_headers
from local.apigateway.throttling import Throttles
from local.patches import Patches

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from local.cloud import Cloud

log = logging.getLogger(__name__)

PREFIX = "/_aws/execute-api/"
RECEIVED_HEADERS = "quench.received_headers"
BODY_BYTES = 10 * 1024 * 1024
PAYLOAD_BYTES = 6_291_556  # of a function's event or answer
CONCURRENT_REQUESTS = 256

_API_URL = re.compile(r"https://(\w+)\.execute-api\.[\w-]+\.amazonaws\.com(?![\w.-])")


class _Refusal(Exception):
    """An answer of the gateway's own, by its gateway response type."""

    def __init__(self, response_type: str, status: int, error_type: str, message: str) -> None:
        super().__init__(message)
        self.response_type = response_type
        self.status = status
        self.error_type = error_type
        self.message = message


def _internal_error(response_type: str, status: int) -> _Refusal:
    return _Refusal(response_type, status, "InternalServerErrorException", "Internal server error")


class ApiGateway:
    """Answers requests to deployed REST APIs."""

    def __init__(self, cloud: Cloud) -> None:
        self._cloud = cloud
        self._patches = Patches()
        self._throttles = Throttles()
        self._deployed: dict[tuple[str, str], Routes] = {}
        self._integrations = ThreadPoolExecutor(CONCURRENT_REQUESTS, "integration")

    def start(self) -> None:
        self._patches.wrap(RestAPI, "create_deployment", self._keeping_routes)
        self._patches.wrap(parsing, "clean_json", self._naming_urls)

    def stop(self) -> None:
        self._integrations.shutdown(wait=False, cancel_futures=True)
        self._patches.restore()

    def url(self, api_id: str) -> str:
        """Where an API's stages are served, in the place of `https://<id>.execute-api.…`."""
        return f"{self._cloud.endpoint}{PREFIX}{api_id}"

    def _keeping_routes(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def create_deployment(api: RestAPI, *args: Any, **kw: Any) -> Any:
            routes = Routes(api)
            deployment = original(api, *args, **kw)
            self._deployed[api.id, deployment.id] = routes
            return deployment

        return create_deployment

    def _naming_urls(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """A template makes the URL that an API has in AWS; here it becomes the one of here."""

        def clean_json(value: Any, resources: Any) -> Any:
            cleaned = original(value, resources)
            if isinstance(cleaned, str) and ".execute-api." in cleaned:
                return _API_URL.sub(lambda found: self.url(found[1]), cleaned)
            return cleaned

        return clean_json

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        begun = time.monotonic()
        request = _received(environ)
        api_id, stage_name, path = _address(request.path)
        config = self._cloud.config
        api = apigateway_backends[config.account_id][config.region].apis.get(api_id)
        stage = None if api is None else api.stages.get(stage_name)
        context = self._context(request, environ, api_id, stage_name, path)
        try:
            if api is None or stage is None:
                raise _Refusal("ACCESS_DENIED", 403, "ForbiddenException", "Forbidden")
            response = self._answer(request, api, stage, path, context)
        except _Refusal as refusal:
            response = _refused(refusal, api, context)
        except Exception:
            log.exception("%s %s failed", request.method, request.path)
            response = _refused(_internal_error("DEFAULT_5XX", 500), api, context)
        response.headers["x-amzn-RequestId"] = context["requestId"]
        response.headers["x-amz-apigw-id"] = context["extendedRequestId"]
        context["status"] = response.status_code
        context["responseLength"] = len(response.get_data())
        context["responseLatency"] = int((time.monotonic() - begun) * 1000)
        self._log_access(stage, context)
        application: WSGIApplication = response
        return application(environ, start_response)

    def _context(
        self,
        request: ReceivedRequest,
        environ: WSGIEnvironment,
        api_id: str,
        stage: str,
        path: str,
    ) -> dict[str, Any]:
        """The request's context, as far as it is known before it is routed."""
        now = datetime.now(UTC)
        return {
            "accountId": self._cloud.config.account_id,
            "apiId": api_id,
            "domainName": request.header("Host"),
            "domainPrefix": api_id,
            "extendedRequestId": secrets.token_urlsafe(11),
            "httpMethod": request.method,
            "identity": {
                "accessKey": None,
                "accountId": None,
                "apiKey": None,
                "apiKeyId": None,
                "caller": None,
                "cognitoAuthenticationProvider": None,
                "cognitoAuthenticationType": None,
                "cognitoIdentityId": None,
                "cognitoIdentityPoolId": None,
                "principalOrgId": None,
                "sourceIp": environ["REMOTE_ADDR"],
                "user": None,
                "userAgent": request.header("User-Agent"),
                "userArn": None,
            },
            "path": f"/{stage}{path}",
            "protocol": environ["SERVER_PROTOCOL"],
            "requestId": str(uuid.uuid4()),
            "requestTime": now.strftime("%d/%b/%Y:%H:%M:%S +0000"),
            "requestTimeEpoch": int(now.timestamp() * 1000),
            "stage": stage,
        }

    def _answer(
        self, request: ReceivedRequest, api: Any, stage: Any, path: str, context: dict[str, Any]
    ) -> Response:
        routes = self._deployed[api.id, stage.deployment_id]
        found = routes.find(request.method, path)
        if found is None:
            raise _Refusal(
                "MISSING_AUTHENTICATION_TOKEN",
                403,
                "MissingAuthenticationTokenException",
                "Missing Authentication Token",
            )
        route, parameters = found
        context |= {
            "deploymentId": stage.deployment_id,
            "resourceId": route.resource_id,
            "resourcePath": route.resource_path,
        }
        if len(request.body) > BODY_BYTES:  # the rest of it, which is signed too, was not kept
            raise _Refusal(
                "REQUEST_TOO_LARGE",
                413,
                "RequestEntityTooLargeException",
                f"HTTP content length exceeded {BODY_BYTES} bytes.",
            )
        self._authorize(request, route, context)
        self._throttle(request, api, stage, route, context)
        event = proxy_event(
            request, route, parameters, context, stage.variables, api.binaryMediaTypes
        )
        payload = self._invoke(route, event, context)
        try:
            status, headers, body = proxy_response(
                payload, request.header("Accept") or "", api.binaryMediaTypes
            )
        except MalformedResponseError as error:
            log.error("%s answered %s wrongly: %s", route.function, route.resource_path, error)
            raise _internal_error("DEFAULT_5XX", 502) from error
        response = Response(body, status, headers)
        if not any(name.lower() == "content-type" for name, _ in headers):
            response.headers["Content-Type"] = "application/json"
        return response

    def _authorize(self, request: ReceivedRequest, route: Route, context: dict[str, Any]) -> None:
        if route.authorization != "AWS_IAM":
            return
        variables = self._cloud.environment()
        credentials = Credentials(
            variables["AWS_ACCESS_KEY_ID"], variables["AWS_SECRET_ACCESS_KEY"]
        )
        try:
            verify(request, credentials, self._cloud.config.region)
        except SignatureError as error:
            raise _Refusal(error.response_type, 403, error.error_type, error.message) from error
        account = self._cloud.config.account_id
        context["identity"] |= {
            "accessKey": credentials.access_key,
            "accountId": account,
            "caller": account,
            "user": account,
            "userArn": f"arn:aws:iam::{account}:root",
        }

    def _throttle(
        self, request: ReceivedRequest, api: Any, stage: Any, route: Route, context: dict[str, Any]
    ) -> None:
        where = (api.id, stage.name)
        if route.api_key_required:
            key, plan = self._key_and_plan(request, *where)
            context["identity"] |= {"apiKey": key.value, "apiKeyId": key.id}
            limits = plan.throttle
            self._take((plan.id, key.id), limits.get("rateLimit"), limits.get("burstLimit"))
        settings = method_settings(stage, route)
        limits = (settings.get("throttlingRateLimit"), settings.get("throttlingBurstLimit"))
        self._take((*where, route.resource_path, route.method), *limits)

    def _take(self, key: tuple[str, ...], rate: float | None, burst: int | None) -> None:
        if rate is None and burst is None:
            return
        rate = 10_000.0 if rate is None else float(rate)
        burst = max(1, int(rate)) if burst is None else int(burst)
        if not self._throttles.allow(key, rate, burst):
            raise _Refusal("THROTTLED", 429, "TooManyRequestsException", "Too Many Requests")

    def _key_and_plan(self, request: ReceivedRequest, api: str, stage: str) -> tuple[Any, Any]:
        """The API key of a request and the usage plan by which it may call a stage."""
        config = self._cloud.config
        records = apigateway_backends[config.account_id][config.region]
        value = request.header("x-api-key")
        for key in records.keys.values():
            if key.value != value or not key.enabled:
                continue
            for plan in records.get_usage_plans(key.id):
                if {"apiId": api, "stage": stage} in plan.api_stages:
                    return key, plan
        raise _Refusal("INVALID_API_KEY", 403, "ForbiddenException", "Forbidden")

    def _invoke(self, route: Route, event: dict[str, Any], context: dict[str, Any]) -> bytes:
        payload = json.dumps(event).encode()
        if len(payload) > PAYLOAD_BYTES:
            raise _Refusal(
                "REQUEST_TOO_LARGE", 413, "RequestEntityTooLargeException", "Request Too Long"
            )
        functions = self._cloud.functions
        begun = time.monotonic()
        future = self._integrations.submit(
            lambda: functions.invoke(functions.find(route.function), payload)
        )
        try:
            outcome = future.result(route.timeout)
        except FutureTimeoutError as error:
            raise _Refusal(
                "INTEGRATION_TIMEOUT",
                504,
                "InternalServerErrorException",
                "Endpoint request timed out",
            ) from error
        except Exception as error:
            log.exception("%s could not be invoked", route.function)
            raise _internal_error("API_CONFIGURATION_ERROR", 500) from error
        context["integrationLatency"] = int((time.monotonic() - begun) * 1000)
        if outcome.failed or len(outcome.payload) > PAYLOAD_BYTES:
            log.error(
                "%s failed: %s", route.function, outcome.payload[:1000].decode(errors="replace")
            )
            raise _internal_error("DEFAULT_5XX", 502)
        return outcome.payload

    def _log_access(self, stage: Any, context: dict[str, Any]) -> None:
        settings = None if stage is None else stage.access_log_settings
        if not settings or "destinationArn" not in settings:
            return
        config = self._cloud.config
        logs = logs_backends[config.account_id][config.region]
        group = settings["destinationArn"].removesuffix(":*").rpartition(":log-group:")[2]
        stream = f"{context['apiId']}-{context['stage']}"
        logs.ensure_log_group(group)
        if stream not in logs.groups[group].streams:
            logs.create_log_stream(group, stream)
        message = render(settings["format"], context, absent="-")
        logs.put_log_events(
            group, stream, [{"timestamp": context["requestTimeEpoch"], "message": message}]
        )


def _received(environ: WSGIEnvironment) -> ReceivedRequest:
    path, _, query = environ["RAW_URI"].partition("?")
    stream = Request(environ, populate_request=False).stream
    body = stream.read(BODY_BYTES + 1)
    if len(body) > BODY_BYTES:
        # A client listens for the answer when it has sent everything.
        while stream.read(1024 * 1024):
            pass
    return ReceivedRequest(
        environ["REQUEST_METHOD"], path, query, tuple(environ[RECEIVED_HEADERS]), body
    )


def _address(path: str) -> tuple[str, str, str]:
    """API, stage and path (from its slash on) of a path of the cloud's."""
    api, _, rest = path.removeprefix(PREFIX).partition("/")
    stage, slash, below = rest.partition("/")
    return api, stage, f"{slash}{below}"


def _refused(refusal: _Refusal, api: Any, context: dict[str, Any]) -> Response:
    """The gateway's own answer, in the form that the API's gateway responses give it."""
    responses = {} if api is None else api.gateway_responses
    custom = responses.get(refusal.response_type) or responses.get(
        f"DEFAULT_{refusal.status // 100}XX"
    )
    context["error"] = {
        "message": refusal.message,
        "messageString": json.dumps(refusal.message),
        "responseType": refusal.response_type,
    }
    status, headers, content_type = refusal.status, {}, "application/json"
    body = json.dumps({"message": refusal.message})
    if custom is not None:
        status = int(custom.status_code or status)
        headers = render_headers(custom.response_parameters or {}, context)
        if templates := custom.response_templates:
            content_type = min(templates, key="application/json".__ne__)
            body = render(templates[content_type], context)
    headers["x-amzn-ErrorType"] = refusal.error_type
    return Response(body, status, headers, content_type=content_type)
