"""The web application of a service: who is let in, which paths there are, and how answers look to HTTP.

A key is looked at before a byte of the body is. Bodies are `bodies`'s, everything else is the service's.
"""

import http
from collections.abc import Callable, Mapping
from typing import Annotated, Any

from anyio import CapacityLimiter, move_on_after, sleep, to_thread
from fastapi import FastAPI, Query, Request, Response, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.exceptions import HTTPException

from glassworks.client.content import Whole
from glassworks.errors import InputError, RemoteError, Unauthorized
from glassworks.serve.answers import RETRY_AFTER_S, Answer, refusal, status_of
from glassworks.serve.bodies import BodyTimes, Refused, received
from glassworks.serve.digests import Digests as Keys
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
_STATUS = {
    "type": "object",
    "required": ["id", "model", "status", "position", "progress"],
    "properties": {
        "id": {"type": "string"},
        "model": {"type": "string"},
        "status": {"type": "string", "description": "queued, running, done, failed or cancelled"},
        "position": {"type": ["integer", "null"], "description": "how many jobs are before it"},
        "progress": {"type": "number", "description": "forward passes that have run, of those that may: 0 to 1"},
    },
}
_LOOK_S = 0.05
_RUN = """Runs experiments on a model, in order, as one job.

The body is one safetensors file. Its tensors are the constants of the graphs and the tensors among the
inputs, each once, named `0`, `1`, ... (a captured tensor above 1 MiB may be sent before, and be named by its
digest in `large`); its metadata field `glassworks` holds the request as versioned JSON:
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

        async def owner(given: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)]) -> str:
            if given is None:
                raise Unauthorized(
                    "this service needs a key: gw.connect(url, api_key=...), or Authorization: Bearer KEY"
                )
            found = keys.owner(given.credentials)
            if found is None:
                raise Unauthorized("the service does not know this key; ask whoever runs it for one")
            return found

        self.owner = Security(owner)

    async def with_body(
        self, media_type: str, handler: Callable[..., Answer], about: str, request: Request, owner: str
    ) -> Response:
        """The answer of a handler that takes a body. Runs have threads of their own, so that health is answered."""
        try:
            body = await received(request, self.spool, self.service.limits, self.times)
        except Refused as refused:
            return _response(refused.answer, _JSON, {"Connection": "close"} if refused.cut_off else None)
        return await _answered(media_type, handler, about, body, owner, limiter=self.running)


def create_app(service: Service, keys: Keys, *, spool: Spool | None = None, times: BodyTimes | None = None) -> FastAPI:
    """The web application of a service."""
    app = FastAPI(title="Glassworks", summary="Experiments on shared models.", docs_url=None, redoc_url=None)
    web = _Web(service, keys, spool or Spool(), times or BodyTimes())
    app.add_exception_handler(Unauthorized, _refuse)
    app.add_exception_handler(HTTPException, _refuse_path)
    app.add_exception_handler(RequestValidationError, _refuse_value)
    _add_questions(app, web)
    _add_runs(app, web)
    _add_jobs(app, web)
    _add_tensors(app, web)
    return app


def _add_questions(app: FastAPI, web: _Web) -> None:
    """What a client asks before it runs anything."""
    service = web.service

    @app.get("/healthz", responses={200: {"description": "every model can be reached"}}, response_class=Response)
    async def health() -> Response:
        return await _answered(_JSON, service.health)

    @app.get("/v1/models", responses=_refusals(), response_class=Response, dependencies=[web.owner])
    async def models() -> Response:
        """The names of the models."""
        return await _answered(_JSON, service.models)

    @app.get(f"{_MODEL}/sites", responses=_refusals(*_NOT_THERE), response_class=Response, dependencies=[web.owner])
    async def sites(name: str) -> Response:
        """The site table of a model: every place that an experiment can name, as JSON."""
        return await _answered(_JSON, service.sites, name)

    @app.post(
        f"{_MODEL}/sites",
        openapi_extra={"requestBody": {"required": True, "content": _BINARY}},
        responses=_refusals((400, "the body is no inputs"), *_BODY, *_NOT_THERE),
        response_class=Response,
    )
    async def sites_for(name: str, request: Request, owner: str = web.owner) -> Response:
        """The site table of a plain module for given inputs, which are one safetensors message."""
        return await web.with_body(_JSON, service.sites_for, name, request, owner)

    @app.get(
        f"{_MODEL}/tokenizer",
        responses={
            200: {"description": "the files, as uint8 tensors by name", "content": _BINARY},
            **_refusals(*_NOT_THERE),
        },
        response_class=Response,
        dependencies=[web.owner],
    )
    async def tokenizer(name: str) -> Response:
        """The files of a model's tokenizer, as one safetensors message."""
        return await _answered(_BYTES, service.tokenizer, name)


def _add_runs(app: FastAPI, web: _Web) -> None:
    options: Any = {
        "openapi_extra": {"requestBody": {"required": True, "content": _BINARY}},
        "response_class": Response,
    }
    refusals = _refusals((400, "the body is not a request"), (409, "a large tensor was not sent"), *_BODY, *_NOT_THERE)

    @app.post(
        f"{_MODEL}/run",
        summary="Run experiments",
        description=_RUN,
        responses={200: {"description": "the saves, as one safetensors message", "content": _BINARY}, **refusals},
        **options,
    )
    async def run(name: str, request: Request, owner: str = web.owner) -> Response:
        return await web.with_body(_BYTES, web.service.run, name, request, owner)

    @app.post(
        f"{_MODEL}/jobs",
        summary="Submit experiments",
        status_code=202,
        responses={202: {"description": "the job's status", "content": {_JSON: {"schema": _STATUS}}}, **refusals},
        **options,
    )
    async def submit(name: str, request: Request, owner: str = web.owner) -> Response:
        """As `run`, without waiting: the experiments are checked now, and run when their turn comes."""
        return await web.with_body(_JSON, web.service.submit, name, request, owner)


def _add_jobs(app: FastAPI, web: _Web) -> None:
    """What is asked of a job by its id, which is known to the key that made it alone."""
    service = web.service
    status: Any = {
        "responses": {
            200: {"description": "the job's status", "content": {_JSON: {"schema": _STATUS}}},
            **_refusals((404, "no such job")),
        },
        "response_class": Response,
    }

    @app.get("/v1/jobs/{id}", **status)
    async def job(id: str, wait_s: Annotated[float, Query(ge=0, le=60)] = 0.0, owner: str = web.owner) -> Response:
        """How a job stands; of one under way, once it has ended or `wait_s` has passed."""
        with move_on_after(wait_s):
            while service.is_under_way(id, owner):
                await sleep(_LOOK_S)
        return await _answered(_JSON, service.job, id, owner)

    @app.post("/v1/jobs/{id}/cancel", **status)
    async def cancel(id: str, owner: str = web.owner) -> Response:
        """Call a job off: at once if it waits, before its next forward pass if it runs."""
        return await _answered(_JSON, service.cancel, id, owner)

    @app.get(
        "/v1/jobs/{id}/results",
        responses={
            200: {"description": "the saves, as one safetensors message", "content": _BINARY},
            **_refusals((404, "no such job"), (409, "not ended yet, or cancelled"), (422, "it failed while it ran")),
        },
        response_class=Response,
    )
    async def results(id: str, owner: str = web.owner) -> Response:
        """What the run answered."""
        return await _answered(_BYTES, service.job_results, id, owner)


def _add_tensors(app: FastAPI, web: _Web) -> None:
    """Large tensors, which travel once and are then known by their digest, to the key that sent them alone."""

    @app.get("/v1/tensors/{digest}", responses=_refusals((404, "not here")), response_class=Response)
    async def tensor(digest: str, owner: str = web.owner) -> Response:
        """Whether a tensor is here."""
        return await _answered(_JSON, web.service.tensor, digest, owner)

    @app.put(
        "/v1/tensors/{digest}",
        openapi_extra={"requestBody": {"required": True, "content": _BINARY}},
        responses=_refusals((400, "the body is no tensor of that digest"), *_BODY),
        response_class=Response,
    )
    async def put_tensor(digest: str, request: Request, owner: str = web.owner) -> Response:
        """Keep a tensor: one safetensors message that holds it, by the SHA-256 of its dtype, shape and values."""
        return await web.with_body(_JSON, web.service.put_tensor, digest, request, owner)


# Answers.


async def _refuse(request: Request, error: Exception) -> Response:
    return _response(refusal(status_of(error), error), _JSON)


async def _refuse_path(request: Request, error: Exception) -> Response:
    """A path or a method that does not exist, as an error of ours."""
    assert isinstance(error, HTTPException)
    spoken = http.HTTPStatus(error.status_code).phrase.lower()
    answer = refusal(error.status_code, RemoteError(f"{request.method} {request.url.path[:200]}: {spoken}"))
    return _response(answer, _JSON, error.headers)


async def _refuse_value(request: Request, error: Exception) -> Response:
    """A value in a path or a query that cannot be, as an error of ours."""
    assert isinstance(error, RequestValidationError)
    wrong = ", ".join(str(part) for part in error.errors()[0]["loc"])
    return _response(refusal(422, InputError(f"{wrong[:100]}: {error.errors()[0]['msg'][:200]}")), _JSON)


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
