"""The face of a service: HTTP in front of `Service`, in a process without weights and without torch.

Decides who is let in, how much of a body is read before it is refused, and how answers look to HTTP.
Everything else is the service's. A key is looked at before a byte of the body is.
"""

import argparse
import json
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import uvicorn
from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request, Response, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.requests import ClientDisconnect

from glassworks.client.http import HTTPTransport
from glassworks.errors import InputError, Unauthorized
from glassworks.graph.check import Limits
from glassworks.serve.answers import RETRY_AFTER_S, Answer, refusal, status_of
from glassworks.serve.keys import Keys
from glassworks.serve.lifeline import end_with
from glassworks.serve.service import Service

_JSON, _BYTES = "application/json", "application/octet-stream"
_WORKER_TIMEOUT_S = 3600.0
_RUNS_AT_ONCE = 64
_BINARY = {_BYTES: {"schema": {"type": "string", "format": "binary"}}}
_ERROR = {
    "type": "object",
    "properties": {
        "error": {
            "type": "object",
            "required": ["version", "type", "message", "notes"],
            "properties": {
                "version": {"type": "integer"},
                "type": {"type": "string", "description": "the error's type, as the client raises it"},
                "message": {"type": "string"},
                "notes": {
                    "type": "array",
                    "items": {"type": "string"},
                    "description": "the lines it came from",
                },
            },
        }
    },
}
_RUN = """Runs experiments on a model, in order, as one job.

The body is one safetensors file. Its tensors are the constants of the graphs and the tensors among the
inputs, each once, named `0`, `1`, ...; its metadata field `glassworks` holds the request as versioned JSON:
the model, and for each experiment the graph, the inputs, the generation and the links to earlier saves.
Graphs are data: sites, permitted operations, modules and parameters of the model by name. They are checked
against the site table and the limits before any model work. The answer has the same form and holds the saves
by name."""


def _refusals(*statuses: tuple[int, str]) -> dict[int | str, dict[str, Any]]:
    content = {_JSON: {"schema": _ERROR}}
    return {
        status: {"description": text, "content": content}
        for status, text in ((401, "no key, or not a known one"), *statuses)
    }


_TOO_LARGE = "the body is over the limit"
_REFUSED = "refused by a check, over a limit, or failed while it ran"
_NOT_THERE = (
    (404, "no such model"),
    (503, "the model's worker is not there; Retry-After says when to try again"),
)


def create_app(service: Service, keys: Keys) -> FastAPI:
    """The web application of a service."""
    app = FastAPI(title="Glassworks", summary="Experiments on shared models.", docs_url=None, redoc_url=None)
    bearer = HTTPBearer(auto_error=False, description="a key of this service")

    async def authorised(given: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]) -> None:
        if given is None:
            raise Unauthorized("this service needs a key: gw.connect(url, api_key=...), or Authorization: Bearer KEY")
        if not keys.know(given.credentials):
            raise Unauthorized("the service does not know this key; ask whoever runs it for one")

    async def refuse(request: Request, error: Exception) -> Response:
        return _response(refusal(status_of(error), error), _JSON)

    app.add_exception_handler(Unauthorized, refuse)
    guarded: Any = {"dependencies": [Security(authorised)]}
    running = CapacityLimiter(_RUNS_AT_ONCE)

    @app.get("/healthz", responses={200: {"description": "every model can be reached"}}, response_class=Response)
    async def health() -> Response:
        return await _answered(_JSON, service.health)

    @app.get("/v1/models", responses=_refusals(), response_class=Response, **guarded)
    async def models() -> Response:
        """The names of the models."""
        return await _answered(_JSON, service.models)

    @app.get("/v1/models/{name:path}/sites", responses=_refusals(*_NOT_THERE), response_class=Response, **guarded)
    async def sites(name: str) -> Response:
        """The site table of a model: every place that an experiment can name, as JSON."""
        return await _answered(_JSON, service.sites, name)

    @app.post(
        "/v1/models/{name:path}/sites",
        openapi_extra={"requestBody": {"required": True, "content": _BINARY}},
        responses=_refusals((400, "the body is no inputs"), (413, _TOO_LARGE), (422, _REFUSED), *_NOT_THERE),
        response_class=Response,
        **guarded,
    )
    async def sites_for(name: str, request: Request) -> Response:
        """The site table of a plain module for given inputs, which are one safetensors message."""
        body = await _body(request, service)
        if isinstance(body, Response):
            return body
        return await _answered(_JSON, service.sites_for, name, body, limiter=running)

    @app.get(
        "/v1/models/{name:path}/tokenizer",
        responses={
            200: {"description": "the files, as uint8 tensors by name", "content": _BINARY},
            **_refusals(*_NOT_THERE),
        },
        response_class=Response,
        **guarded,
    )
    async def tokenizer(name: str) -> Response:
        """The files of a model's tokenizer, as one safetensors message."""
        return await _answered(_BYTES, service.tokenizer, name)

    @app.post(
        "/v1/models/{name:path}/run",
        summary="Run experiments",
        description=_RUN,
        openapi_extra={"requestBody": {"required": True, "content": _BINARY}},
        responses={
            200: {"description": "the saves, as one safetensors message", "content": _BINARY},
            **_refusals(
                (400, "the body is not a request"),
                (413, _TOO_LARGE),
                (422, _REFUSED),
                *_NOT_THERE,
            ),
        },
        response_class=Response,
        **guarded,
    )
    async def run(name: str, request: Request) -> Response:
        body = await _body(request, service)
        if isinstance(body, Response):
            return body
        return await _answered(_BYTES, service.run, name, body, limiter=running)

    return app


async def _answered(
    media_type: str, handler: Callable[..., Answer], *arguments: Any, limiter: CapacityLimiter | None = None
) -> Response:
    """A handler's answer; handlers block, and runs have threads of their own, so that health is always
    answered."""
    return _response(await to_thread.run_sync(handler, *arguments, limiter=limiter), media_type)


def _response(answer: Answer, media_type: str, headers: Mapping[str, str] | None = None) -> Response:
    status, body = answer
    own = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": str(RETRY_AFTER_S)}}.get(status, {})
    return Response(body, status, {**own, **(headers or {})}, _JSON if status >= 400 else media_type)


async def _body(request: Request, service: Service) -> bytes | Response:
    """The body, or the refusal of one that is too large: by its announced size, or once so much has come.

    What was announced is let run out unkept, so that the answer is sure to be read; what was not is cut off.
    """
    limit = service.limits.body_bytes
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        return _response(service.too_large(int(announced)), _JSON)
    chunks, size = [], 0
    try:
        async for chunk in request.stream():
            size += len(chunk)
            if size > limit:
                return _response(service.too_large(size), _JSON, {"Connection": "close"})
            chunks.append(chunk)
    except ClientDisconnect:
        return _response(refusal(400, InputError("the connection ended before the body did")), _JSON)
    return b"".join(chunks)


def parser() -> argparse.ArgumentParser:
    """The options of the web process."""
    found = argparse.ArgumentParser(prog="python -m glassworks.serve.web", description="Answer HTTP for workers.")
    found.add_argument(
        "--model",
        nargs=2,
        action="append",
        required=True,
        metavar=("NAME", "SOCKET"),
        help="a model's worker",
    )
    found.add_argument("--keys", required=True, help="file of the SHA-256 digests of the keys, one a line")
    found.add_argument("--limits", default="{}", help="limits that differ from the usual ones, as JSON")
    found.add_argument("--fd", type=int, required=True, help="the socket to listen on, already bound")
    found.add_argument("--while-open", type=int, metavar="FD", help="end when this pipe closes at its other end")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal comes or the parent ends. Gives the exit code."""
    options = parser().parse_args(arguments)
    hosts = {name: HTTPTransport(uds=path, timeout_s=_WORKER_TIMEOUT_S) for name, path in options.model}
    service = Service(hosts, limits=Limits(**json.loads(options.limits)))
    app = create_app(service, Keys.load(options.keys))
    config = uvicorn.Config(app, log_level="warning", lifespan="off", timeout_graceful_shutdown=5, server_header=False)
    server = uvicorn.Server(config)
    if options.while_open is not None:
        end_with(options.while_open, lambda: setattr(server, "should_exit", True))
    server.run(sockets=[socket.socket(fileno=options.fd)])
    return 0


if __name__ == "__main__":
    sys.exit(main())
