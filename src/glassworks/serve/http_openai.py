"""Paths that OpenAI's clients know: completions and chats, whole or as a stream. Each is a job like any other.

Whoever hangs up calls the job off. With an Idempotency-Key the job stays, so that who asks again gets the same.
"""

import json
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import FastAPI, Header, Request, Response
from fastapi.responses import StreamingResponse

from glassworks.client.content import joined
from glassworks.errors import GlassworksError
from glassworks.graph.jobs import ENDED
from glassworks.serve import openai_replies
from glassworks.serve.answers import Refused, refusal
from glassworks.serve.http_base import EVENTS, JOB_HEADER, JSON, NOT_THERE, WITH_BODY, Web, refusals, response
from glassworks.serve.jobs import COMPLETION, Wishes
from glassworks.serve.keys import KeyRow
from glassworks.serve.openai import Asked, read, status_here
from glassworks.serve.records import JobRow
from glassworks.serve.spool import Spooled

_FOREVER_S = 24 * 3600.0
_PATHS = {False: "/v1/completions", True: "/v1/chat/completions"}
_ABOUT = """As OpenAI's. One field is not: `graph`, base64 of the bytes of a stored graph of one invoke, takes part in
every completion, so that a steered model is had by any client. What this service cannot do is refused by name."""
_REFUSALS = ((400, "what is asked for cannot be; names the field"), (409, "cancelled"), *WITH_BODY, *NOT_THERE)


def add_openai(app: FastAPI, web: Web) -> None:
    """Both of them."""
    for chat in (False, True):
        _add_path(app, web, chat=chat)


def _add_path(app: FastAPI, web: Web, *, chat: bool) -> None:
    @app.post(
        _PATHS[chat],
        summary="Chat" if chat else "Complete a text",
        description=_ABOUT,
        openapi_extra={"requestBody": {"required": True, "content": {JSON: {"schema": {"type": "object"}}}}},
        response_class=Response,
        responses={
            200: {
                "description": "what the model said; with `stream`, chunks as server-sent events",
                "content": {JSON: {"schema": {"type": "object"}}, EVENTS: {"schema": {"type": "string"}}},
            },
            **refusals(*_REFUSALS),
        },
    )  # fmt: skip
    async def complete(
        request: Request, idempotency_key: Annotated[str | None, Header()] = None, owner: KeyRow = web.owner
    ) -> Response:
        await web.do(web.jobs.check_room, owner.id, idempotency_key)
        body = await web.body(request)
        asked, row = await web.check(_submitted, web, body, owner, chat, idempotency_key)
        kept = idempotency_key is not None
        if asked.form.stream:
            web.check_streams(owner.id)
            chunks = _chunks(web, asked, row, kept=kept)
            return StreamingResponse(
                chunks, media_type=EVENTS, headers={JOB_HEADER: row.id, "Cache-Control": "no-cache"}
            )
        return await _whole(web, asked, row, request, kept=kept)


def _submitted(web: Web, body: Spooled, owner: KeyRow, chat: bool, key: str | None) -> tuple[Asked, JobRow]:
    try:
        asked = read(joined(body), chat=chat)
        wishes = Wishes(idempotency=key, streams=asked.form.stream)
        about = "chat" if chat else "text"
        return asked, web.jobs.submit(asked.form.model, COMPLETION, body, owner.id, wishes, about=about)
    except GlassworksError as error:
        raise Refused(status_here(error), error) from None


async def _whole(web: Web, asked: Asked, row: JobRow, request: Request, *, kept: bool) -> Response:
    row = await web.ended(row, _FOREVER_S, request=request)
    if row.status not in ENDED and not kept:
        row = await web.do(web.jobs.cancel, row.id, row.owner)
    (status, found), _ = await web.do(web.jobs.results, row)
    headers = {JOB_HEADER: row.id}
    if status != 200:
        return response((status, found), JSON, headers)
    said = openai_replies.response(asked.form, json.loads(joined(found)), id=row.id, created_s=row.created_s)
    return response((200, json.dumps(said).encode()), JSON, headers)


async def _chunks(web: Web, asked: Asked, row: JobRow, *, kept: bool) -> AsyncIterator[bytes]:
    """A stream, from the job's events; a comment where nothing came for a while."""
    stream = openai_replies.Stream(asked.form, id=row.id, created_s=row.created_s)
    ended = False
    try:
        if first := stream.begin():
            yield first
        async for event in web.events(row, 0):
            if event is None:
                yield b": \n\n"
            elif event.kind == "token" and (chunk := stream.token(event.data)):
                yield chunk
            elif event.kind in ENDED:
                ended = True
                yield await _last(web, row, stream.end, stream.failed)
        if not ended:
            yield stream.failed(bytes(joined(refusal(401, GlassworksError("this key was revoked"))[1])))
    finally:
        if not ended and not kept:
            web.jobs.cancel(row.id, row.owner)


async def _last(web: Web, row: JobRow, end: Callable[[Any], bytes], failed: Callable[[bytes], bytes]) -> bytes:
    row = await web.do(web.jobs.find, row.id, row.owner)
    (status, found), _ = await web.do(web.jobs.results, row)
    return end(json.loads(joined(found))) if status == 200 else failed(bytes(joined(found)))
