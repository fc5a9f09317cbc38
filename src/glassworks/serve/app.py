"""The web application of a service: who is let in, which paths there are, and how answers look to HTTP.

A key is looked at before a byte of the body is. Bodies are `bodies`'s, everything else is the service's.
"""

import http
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from anyio import CapacityLimiter, to_thread
from fastapi import FastAPI, Request, Response, Security
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from glassworks.client.content import Whole
from glassworks.errors import RemoteError, Unauthorized
from glassworks.serve.answers import RETRY_AFTER_S, Answer, refusal, status_of
from glassworks.serve.bodies import BodyTimes, Refused, received
from glassworks.serve.keys import Keys
from glassworks.serve.service import Service
from glassworks.serve.spool import Spool

_JSON, _BYTES = "application/json", "application/octet-stream"
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
_MODEL = "/v1/models/{name:path}"


def _refusals(*statuses: tuple[int, str]) -> dict[int | str, dict[str, Any]]:
    content = {_JSON: {"schema": _ERROR}}
    return {
        status: {"description": text, "content": content}
        for status, text in ((401, "no key, or not a known one"), *statuses)
    }


_BODY = (
    (408, "the body did not come in time"),
    (413, "the body is over the limit"),
    (415, "the body is compressed"),
    (422, "refused by a check, over a limit, or failed while it ran"),
)
_NOT_THERE = (
    (404, "no such model"),
    (503, "the model's worker is not there; Retry-After says when to try again"),
)


class _Web:
    """What the routes share."""

    def __init__(self, service: Service, keys: Keys, spool: Spool, times: BodyTimes) -> None:
        self.service, self.spool, self.times = service, spool, times
        self.running = CapacityLimiter(_RUNS_AT_ONCE)
        bearer = HTTPBearer(auto_error=False, description="a key of this service")

        async def authorised(given: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]) -> None:
            if given is None:
                raise Unauthorized(
                    "this service needs a key: gw.connect(url, api_key=...), or Authorization: Bearer KEY"
                )
            if not keys.know(given.credentials):
                raise Unauthorized("the service does not know this key; ask whoever runs it for one")

        self.guarded: Any = {"response_class": Response, "dependencies": [Security(authorised)]}

    async def with_body(self, media_type: str, handler: Callable[..., Answer], name: str, request: Request) -> Response:
        """The answer of a handler that takes a body. Runs have threads of their own, so that health is answered."""
        try:
            body = await received(request, self.spool, self.service.limits, self.times)
        except Refused as refused:
            return _response(refused.answer, _JSON, {"Connection": "close"} if refused.cut_off else None)
        return await _answered(media_type, handler, name, body, limiter=self.running)


def create_app(service: Service, keys: Keys, *, spool: Spool | None = None, times: BodyTimes | None = None) -> FastAPI:
    """The web application of a service."""
    app = FastAPI(title="Glassworks", summary="Experiments on shared models.", docs_url=None, redoc_url=None)
    web = _Web(service, keys, spool or Spool(), times or BodyTimes())
    app.add_exception_handler(Unauthorized, _refuse)
    app.add_exception_handler(HTTPException, _refuse_path)
    _add_questions(app, web)
    _add_runs(app, web)
    return app


def _add_questions(app: FastAPI, web: _Web) -> None:
    """What a client asks before it runs anything."""
    service = web.service

    @app.get("/healthz", responses={200: {"description": "every model can be reached"}}, response_class=Response)
    async def health() -> Response:
        return await _answered(_JSON, service.health)

    @app.get("/v1/models", responses=_refusals(), **web.guarded)
    async def models() -> Response:
        """The names of the models."""
        return await _answered(_JSON, service.models)

    @app.get(f"{_MODEL}/sites", responses=_refusals(*_NOT_THERE), **web.guarded)
    async def sites(name: str) -> Response:
        """The site table of a model: every place that an experiment can name, as JSON."""
        return await _answered(_JSON, service.sites, name)

    @app.post(
        f"{_MODEL}/sites",
        openapi_extra={"requestBody": {"required": True, "content": _BINARY}},
        responses=_refusals((400, "the body is no inputs"), *_BODY, *_NOT_THERE),
        **web.guarded,
    )
    async def sites_for(name: str, request: Request) -> Response:
        """The site table of a plain module for given inputs, which are one safetensors message."""
        return await web.with_body(_JSON, service.sites_for, name, request)

    @app.get(
        f"{_MODEL}/tokenizer",
        responses={
            200: {"description": "the files, as uint8 tensors by name", "content": _BINARY},
            **_refusals(*_NOT_THERE),
        },
        **web.guarded,
    )
    async def tokenizer(name: str) -> Response:
        """The files of a model's tokenizer, as one safetensors message."""
        return await _answered(_BYTES, service.tokenizer, name)


def _add_runs(app: FastAPI, web: _Web) -> None:
    @app.post(
        f"{_MODEL}/run",
        summary="Run experiments",
        description=_RUN,
        openapi_extra={"requestBody": {"required": True, "content": _BINARY}},
        responses={
            200: {"description": "the saves, as one safetensors message", "content": _BINARY},
            **_refusals((400, "the body is not a request"), *_BODY, *_NOT_THERE),
        },
        **web.guarded,
    )
    async def run(name: str, request: Request) -> Response:
        return await web.with_body(_BYTES, web.service.run, name, request)


# Answers.


async def _refuse(request: Request, error: Exception) -> Response:
    return _response(refusal(status_of(error), error), _JSON)


async def _refuse_path(request: Request, error: Exception) -> Response:
    """A path or a method that does not exist, as an error of ours."""
    assert isinstance(error, HTTPException)
    spoken = http.HTTPStatus(error.status_code).phrase.lower()
    answer = refusal(error.status_code, RemoteError(f"{request.method} {request.url.path[:200]}: {spoken}"))
    return _response(answer, _JSON, error.headers)


async def _answered(
    media_type: str, handler: Callable[..., Answer], *arguments: Any, limiter: CapacityLimiter | None = None
) -> Response:
    """A handler's answer; handlers block."""
    return _response(await to_thread.run_sync(handler, *arguments, limiter=limiter), media_type)


def _response(answer: Answer, media_type: str, headers: Mapping[str, str] | None = None) -> Response:
    status, body = answer
    own = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": str(RETRY_AFTER_S)}}.get(status, {})
    kind = _JSON if status >= 400 else media_type
    if isinstance(body, Whole):
        return Response(bytes(body), status, {**own, **(headers or {})}, kind)
    return StreamingResponse(iter(body), status, {**own, "Content-Length": str(body.size_bytes)}, kind)
