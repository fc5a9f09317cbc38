"""Paths of jobs: submitted, waited for, followed as server-sent events, called off, listed; and large tensors."""

import json
from typing import Annotated, Any

from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.responses import StreamingResponse

from glassworks.errors import InputError
from glassworks.graph.jobs import ENDED
from glassworks.serve.http_base import (
    BINARY,
    BYTES,
    EVENTS,
    JOB_HEADER,
    JSON,
    NOT_THERE,
    WITH_BODY,
    Web,
    refusals,
    response,
)
from glassworks.serve.jobs import EXPERIMENTS, Wishes
from glassworks.serve.keys import KeyRow
from glassworks.serve.records import Event, JobRow

_FOREVER_S = 24 * 3600.0
_WaitS = Annotated[float, Query(ge=0, le=60, description="seconds to wait for the job's end")]
_NUMBER = {"type": ["number", "null"]}
STATUS: dict[str, Any] = {
    "type": "object",
    "required": ["id", "model", "status", "position", "progress"],
    "properties": {
        "id": {"type": "string"},
        "model": {"type": "string"},
        "kind": {"type": "string"},
        "status": {"type": "string", "description": "queued, running, done, failed, cancelled; others may come"},
        "position": {"type": ["integer", "null"], "description": "how many jobs are before it"},
        "expected_start_s": {**_NUMBER, "description": "seconds from now, as far as that is known"},
        "progress": {"type": "number", "description": "0 to 1"},
        "created_s": {**_NUMBER, "description": "seconds since 1970, as the others"},
        "started_s": _NUMBER,
        "ended_s": _NUMBER,
        "attempts": {"type": "integer", "description": "how often it was given to a worker"},
        "priority": {"type": "integer"},
        "compute_s": {"type": "number", "description": "seconds of compute that its key was charged"},
    },
}
_LIST = {"type": "object", "properties": {"jobs": {"type": "array", "items": STATUS}}}
_SUBMIT = """Checks experiments, and lets them wait for their turn; the job is on the disk when the answer comes.

The body is one safetensors file. Its tensors are the constants of the graphs and the tensors among the inputs, each
once, named `0`, `1`, ... (a captured tensor above 1 MiB may be sent before, and be named by its digest in `large`); its
metadata field `glassworks` holds the request as versioned JSON: the model, and for each experiment the graph, the
inputs, the generation and the links to earlier saves. Graphs are data: sites, permitted operations, modules and
parameters of the model by name. They are checked against the site table and the limits, and priced, before they wait.

The same Idempotency-Key with the same body is the same job, however often it is sent. With `wait_s`, a job that ends in
that time is answered with its results."""
_RUN = f"As `jobs`, to the end. Whoever hangs up calls the job off, unless it has an Idempotency-Key.\n\n{_SUBMIT}"
_JOB = "/v1/jobs/{id}"


def add_jobs(app: FastAPI, web: Web) -> None:
    """All of them."""
    _add_submissions(app, web)
    _add_one(app, web)
    _add_events(app, web)
    _add_tensors(app, web)


def _json(value: Any, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return response((status, json.dumps(value).encode()), JSON, headers)


async def told(web: Web, row: JobRow, *, done: bool) -> Response:
    """A job's results if they are wanted, else its status, 202. Refused, 409: it has none yet."""
    headers = {JOB_HEADER: row.id}
    if not done:
        return _json(await web.do(web.jobs.status, row), 202, headers)
    answer, media = await web.do(web.jobs.results, row)
    return response(answer, media, headers)


def _add_submissions(app: FastAPI, web: Web) -> None:
    answers: dict[int | str, dict[str, Any]] = {
        200: {"description": "the saves, as one safetensors message", "content": BINARY},
        202: {"description": "the job's status", "content": {JSON: {"schema": STATUS}}},
        **refusals((400, "the body is not a request"), (409, "a large tensor was not sent"), *WITH_BODY, *NOT_THERE),
    }
    options: Any = {
        "openapi_extra": {"requestBody": {"required": True, "content": BINARY}},
        "response_class": Response,
        "responses": answers,
    }

    async def submitted(name: str, request: Request, owner: KeyRow, key: str | None, priority: int) -> JobRow:
        wishes = Wishes(idempotency=key, priority=priority)
        await web.do(web.jobs.check_room, owner.id, key)
        body = await web.body(request)
        row: JobRow = await web.check(web.jobs.submit, name, EXPERIMENTS, body, owner.id, wishes)
        return row

    @app.post(
        "/v1/models/{name:path}/jobs", summary="Submit experiments", description=_SUBMIT, status_code=202, **options
    )
    async def submit(
        name: str, request: Request, wait_s: _WaitS = 0.0,
        idempotency_key: Annotated[str | None, Header()] = None,
        glassworks_priority: Annotated[int, Header(description="-10 to 10")] = 0, owner: KeyRow = web.owner,
    ) -> Response:  # fmt: skip
        row = await submitted(name, request, owner, idempotency_key, glassworks_priority)
        row = await web.ended(row, wait_s)
        return await told(web, row, done=wait_s > 0 and row.status in ENDED)

    @app.post("/v1/models/{name:path}/run", summary="Run experiments", description=_RUN, **options)
    async def run(
        name: str, request: Request, idempotency_key: Annotated[str | None, Header()] = None,
        owner: KeyRow = web.owner,
    ) -> Response:  # fmt: skip
        row = await submitted(name, request, owner, idempotency_key, 0)
        row = await web.ended(row, _FOREVER_S, request=request)
        if row.status not in ENDED and idempotency_key is None:
            row = await web.do(web.jobs.cancel, row.id, row.owner)  # whoever asked has gone, and cannot ask again
        return await told(web, row, done=row.status in ENDED)


def _add_one(app: FastAPI, web: Web) -> None:
    """What is asked of a job by its id, which is known to the key that made it alone."""
    jobs = web.jobs
    status: Any = {
        "responses": {
            200: {"description": "the job's status", "content": {JSON: {"schema": STATUS}}},
            **refusals((404, "no such job"), (422, "a value that cannot be")),
        },
        "response_class": Response,
    }

    @app.get(
        "/v1/jobs", response_class=Response,
        responses={
            200: {"description": "jobs of this key, the newest first", "content": {JSON: {"schema": _LIST}}},
            **refusals((422, "a value that cannot be")),
        },
    )  # fmt: skip
    async def listed(
        status: str | None = None, limit: Annotated[int, Query(ge=1, le=1000)] = 100, owner: KeyRow = web.owner
    ) -> Response:
        """The jobs of this key."""
        return _json({"jobs": await web.do(lambda: jobs.list(owner.id, status=status, limit=limit))})

    @app.get(_JOB, **status)
    async def job(id: str, wait_s: _WaitS = 0.0, owner: KeyRow = web.owner) -> Response:
        """How a job stands; of one under way, once it has ended or `wait_s` has passed."""
        row = await web.ended(await web.do(jobs.find, id, owner.id), wait_s)
        return _json(await web.do(jobs.status, row))

    @app.post(f"{_JOB}/cancel", **status)
    async def cancel(id: str, owner: KeyRow = web.owner) -> Response:
        """Call a job off: at once if it waits, before its next forward pass if it runs; nothing if it has ended."""
        row = await web.do(jobs.cancel, id, owner.id)
        return _json(await web.do(jobs.status, row))

    @app.delete(
        _JOB, status_code=204, response_class=Response,
        responses={**refusals((404, "no such job"), (409, "it has not ended"))},
    )  # fmt: skip
    async def delete(id: str, owner: KeyRow = web.owner) -> Response:
        """Let go of a job that has ended, and of its results."""
        await web.do(jobs.delete, id, owner.id)
        return Response(status_code=204)

    @app.get(
        f"{_JOB}/results", response_class=Response,
        responses={
            200: {"description": "the saves, as one safetensors message", "content": BINARY},
            202: {"description": "not ended after wait_s: its status", "content": {JSON: {"schema": STATUS}}},
            **refusals((404, "no such job"), (409, "not ended yet, or cancelled"), (422, "it failed while it ran")),
        },
    )  # fmt: skip
    async def results(id: str, wait_s: _WaitS = 0.0, owner: KeyRow = web.owner) -> Response:
        """What the run answered."""
        row = await web.ended(await web.do(jobs.find, id, owner.id), wait_s)
        return await told(web, row, done=row.status in ENDED or wait_s == 0)


def framed(event: Event | None) -> str:
    """An event as it stands in a stream; a comment where there is none."""
    if event is None:
        return ": \n\n"
    data = json.dumps({"at_s": event.at_s, **event.data})
    return f"id: {event.number}\nevent: {event.kind}\ndata: {data}\n\n"


def _add_events(app: FastAPI, web: Web) -> None:
    @app.get(
        f"{_JOB}/events", response_class=Response,
        responses={
            200: {"description": "events, numbered from 1", "content": {EVENTS: {"schema": {"type": "string"}}}},
            **refusals((404, "no such job"), (422, "a value that cannot be"), (429, "too many streams are open")),
        },
    )  # fmt: skip
    async def events(
        id: str, after: Annotated[int, Query(ge=0, lt=2**53)] = 0,
        last_event_id: Annotated[str | None, Header()] = None, owner: KeyRow = web.owner,
    ) -> Response:  # fmt: skip
        """What happens to a job, as server-sent events; a stream that broke goes on after `Last-Event-ID`."""
        start = _event_number(last_event_id, after)
        row: JobRow = await web.do(web.jobs.find, id, owner.id)
        web.check_streams(owner.id)
        frames = (framed(event) async for event in web.events(row, start))
        return StreamingResponse(frames, media_type=EVENTS, headers={"Cache-Control": "no-cache"})


def _event_number(last: str | None, after: int) -> int:
    if last is None or last == "":
        return after
    if not last.isascii() or not last.isdecimal() or len(last) > 18:
        raise InputError(f"Last-Event-ID is the number of an event, got {last[:40]!r}")
    return int(last)


def _add_tensors(app: FastAPI, web: Web) -> None:
    """Large tensors, which travel once and are then known by their digest, to the key that sent them alone."""
    models = web.jobs.models

    @app.get("/v1/tensors/{digest}", responses=refusals((404, "not here")), response_class=Response)
    async def tensor(digest: str, owner: KeyRow = web.owner) -> Response:
        """Whether a tensor is here."""
        return response(await web.do(models.has_tensor, digest, owner.id), JSON)

    @app.put(
        "/v1/tensors/{digest}",
        openapi_extra={"requestBody": {"required": True, "content": BINARY}},
        responses=refusals((400, "the body is no tensor of that digest"), *WITH_BODY),
        response_class=Response,
    )
    async def put_tensor(digest: str, request: Request, owner: KeyRow = web.owner) -> Response:
        """Keep a tensor: one safetensors message that holds it, by the SHA-256 of its dtype, shape and values."""
        await web.do(web.jobs.check_room, owner.id)
        body = await web.body(request)
        return response(await web.check(models.put_tensor, digest, body, owner.id), BYTES)
