"""The cloud's front door: one HTTP server for all services, ours first, moto behind."""

from __future__ import annotations

import io
import logging
import socket
import threading
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from moto.core.request import Request
from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import LISTEN_QUEUE, BaseWSGIServer, make_server
from werkzeug.wrappers import Response

from local.apigateway.gateway import PREFIX, RECEIVED_HEADERS
from local.faults import Faults
from local.protocol import (
    Service,
    ServiceError,
    credential_scope,
    error_response,
    match_operation,
)

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

log = logging.getLogger(__name__)

# Services that sign with another's name: botocore's name by what their operations' paths say.
SHARED_SIGNING_NAMES = {"bedrock": ("bedrock", "bedrock-runtime")}
SIGNING_ALIASES = {"eventbridge": "events", "states": "stepfunctions", "monitoring": "cloudwatch"}


class Gateway:
    """The WSGI application: finds the service a request is signed for, and the operation."""

    def __init__(
        self, services: Mapping[str, Service], faults: Faults, deployed_apis: WSGIApplication
    ) -> None:
        self._services = services
        self._faults = faults
        self._deployed_apis = deployed_apis
        self._moto: WSGIApplication = _Moto(create_backend_app)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if environ["PATH_INFO"].startswith(PREFIX):
            return self._deployed_apis(environ, start_response)
        name = _signed_service(environ)
        if name is None:
            return self._moto(environ, start_response)
        ours = [
            candidate
            for candidate in SHARED_SIGNING_NAMES.get(name, (name,))
            if candidate in self._services or self._faults.concerns(candidate)
        ]
        if ours:
            _keep_body(environ)
        for candidate in ours:
            response = self._answer(candidate, Request(environ, populate_request=False))
            if response is not None:
                return response(environ, start_response)
        if ours:
            environ["wsgi.input"].seek(0)
        return self._ask_moto(name, environ)(environ, start_response)

    def _answer(self, name: str, request: Request) -> Response | None:
        """Our answer to a call, or None if it is moto's to answer."""
        matched = match_operation(name, request)
        if matched is None:
            return None
        operation, labels = matched
        if fault := self._faults.take(name, operation.name):
            return error_response(name, ServiceError(fault.code, fault.message))
        service = self._services.get(name)
        if service is None or not service.implements(operation.name):
            return None
        try:
            return service.answer(operation, request, labels)
        except Exception as error:
            log.exception("%s:%s failed", name, operation.name)
            message = f"{name}:{operation.name} failed in the embedded cloud: {error!r}"
            return error_response(name, ServiceError("InternalFailure", message, 500))

    def _ask_moto(self, name: str, environ: WSGIEnvironment) -> Response:
        try:
            response = Response.from_app(self._moto, environ)
            # moto's own answers are XML or JSON: HTML says that no route of its was found.
            if response.status_code in (404, 405) and response.mimetype == "text/html":
                raise NotImplementedError
        except ServiceError as error:
            return error_response(name, error)
        except NotImplementedError as error:
            operation = _operation_name(name, environ)
            message = f"The embedded cloud does not implement {name}:{operation}. {error}".rstrip()
            return error_response(name, ServiceError("NotImplemented", message, 501))
        except Exception as error:
            log.exception("moto failed on %s %s", environ["REQUEST_METHOD"], environ["PATH_INFO"])
            operation = _operation_name(name, environ)
            message = f"{name}:{operation} failed in the embedded cloud: {error!r}"
            return error_response(name, ServiceError("InternalFailure", message, 500))
        return response


class _Moto(DomainDispatcherApplication):
    def __init__(self, create_app: Any) -> None:
        super().__init__(create_app)
        # moto would list the folders of its package for every request.
        self._found: dict[str, Any] = {}

    def get_backend_for_host(self, host: str | None) -> Any:
        if host is None:
            return None
        if host not in self._found:
            backend = super().get_backend_for_host(host)
            if backend is None:
                raise NotImplementedError("It has no such service.")
            self._found[host] = backend
        return self._found[host]


class PortInUseError(RuntimeError):
    """Another program listens on the cloud's port."""


class Server:
    """The HTTP server on the loopback interface, in a thread of its own."""

    def __init__(self, gateway: Gateway, port: int) -> None:
        """Raises `PortInUseError`, where werkzeug would end the process."""
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(("127.0.0.1", port))
            listener.listen(LISTEN_QUEUE)
        except OSError as error:
            listener.close()
            raise PortInUseError(
                f"Port {port} cannot be listened on ({error.strerror}): another program, perhaps "
                "another cloud, has it. Stop that one, or choose another port."
            ) from error
        with listener:
            self._server: BaseWSGIServer = make_server(
                "127.0.0.1",
                port,
                gateway,
                threaded=True,
                request_handler=_Handler,
                fd=listener.fileno(),
            )
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True
        )

    @property
    def port(self) -> int:
        return self._server.port

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Handler(MotoRequestHandler):
    # Headers and body leave in separate writes: Nagle's algorithm would hold the body back.
    disable_nagle_algorithm = True

    def make_environ(self) -> dict[str, Any]:
        """With the headers as they came: WSGI's names have no case, its values are joined."""
        environ: dict[str, Any] = super().make_environ()
        environ[RECEIVED_HEADERS] = self.headers.items()
        return environ

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        log.debug("%s %s", self.requestline, code)


def _signed_service(environ: WSGIEnvironment) -> str | None:
    """The service in a SigV4 credential scope, by botocore's name; None for an unsigned request."""
    scope = credential_scope(environ.get("HTTP_AUTHORIZATION", ""))
    return None if scope is None else SIGNING_ALIASES.get(scope[1], scope[1])


def _operation_name(name: str, environ: WSGIEnvironment) -> str:
    """The operation a request calls, as far as its head tells."""
    if target := environ.get("HTTP_X_AMZ_TARGET"):
        return str(target).rpartition(".")[2]
    if matched := match_operation(name, Request(environ, populate_request=False)):
        return str(matched[0].name)
    return f"{environ['REQUEST_METHOD']} {environ['PATH_INFO']}"


def _keep_body(environ: WSGIEnvironment) -> None:
    """Read the body once, so that whoever answers in the end can read it again."""
    body = Request(environ, populate_request=False).stream.read()
    environ["wsgi.input"] = io.BytesIO(body)
    environ["CONTENT_LENGTH"] = str(len(body))
    environ.pop("HTTP_TRANSFER_ENCODING", None)
    environ.pop("wsgi.input_terminated", None)
