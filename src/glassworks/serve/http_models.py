"""Paths about a service and its models: health, metrics, what there is, sites and tokenizers."""

import json
import time
from typing import Any

from fastapi import FastAPI, Request, Response

from glassworks import __version__
from glassworks.serve.health import Health
from glassworks.serve.http_base import BINARY, BYTES, JSON, NOT_THERE, WITH_BODY, Web, refusals, response
from glassworks.serve.keys import KeyRow
from glassworks.serve.metrics import Metrics

_MODEL = "/v1/models/{name:path}"


def add_models(app: FastAPI, web: Web, health: Health, metrics: Metrics) -> None:
    """All of them."""
    _add_open(app, health, metrics)
    _add_service(app, web, health)
    _add_model(app, web)


def _add_open(app: FastAPI, health: Health, metrics: Metrics) -> None:
    """What is answered without a key; nothing of a key's is in it."""

    @app.get(
        "/healthz", response_class=Response,
        responses={200: {"description": "each model answers a test"}, 503: {"description": "one does not; says why"}},
    )  # fmt: skip
    async def healthz() -> Response:
        return response(health.answer(), JSON)

    @app.get("/metrics", response_class=Response, responses={200: {"description": "for Prometheus"}})
    async def measured() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")


def _add_service(app: FastAPI, web: Web, health: Health) -> None:
    models, began_s = web.jobs.models, int(time.time())

    @app.get("/v1/models", responses=refusals(), response_class=Response, dependencies=[web.owner])
    async def listed() -> Response:
        """The names of the models; as OpenAI's clients read them too."""
        data = [{"id": name, "object": "model", "created": began_s, "owned_by": "glassworks"} for name in models.names]
        found = {"object": "list", "data": data, "models": [{"name": name} for name in models.names]}
        return response((200, json.dumps(found).encode()), JSON)

    @app.get("/v1/status", responses=refusals(), response_class=Response)
    async def status(owner: KeyRow = web.owner) -> Response:
        """How the service stands, and what this key has and may have."""
        account = await web.do(web.jobs.account, owner.id)
        found = {
            "version": __version__,
            "models": {name: health.told(name) for name in models.names},
            "you": {"name": owner.name, "weight": owner.weight, **account},
        }
        return response((200, json.dumps(found).encode()), JSON)


def _add_model(app: FastAPI, web: Web) -> None:
    models = web.jobs.models

    @app.get(f"{_MODEL}/sites", responses=refusals(*NOT_THERE), response_class=Response, dependencies=[web.owner])
    async def sites(name: str) -> Response:
        """The site table of a model: every place that an experiment can name, as JSON."""
        return response((200, await web.check(models.table, name)), JSON)

    @app.post(
        f"{_MODEL}/sites",
        openapi_extra={"requestBody": {"required": True, "content": BINARY}},
        responses=refusals((400, "the body is no inputs"), *WITH_BODY, *NOT_THERE),
        response_class=Response,
    )
    async def sites_for(name: str, request: Request, owner: KeyRow = web.owner) -> Response:
        """The site table of a plain module for given inputs, which are one safetensors message."""
        body: Any = await web.body(request)
        return response(await web.check(models.table_for, name, body, owner.id), JSON)

    @app.get(
        f"{_MODEL}/tokenizer",
        responses={
            200: {"description": "the files, as uint8 tensors by name", "content": BINARY},
            **refusals(*NOT_THERE),
        },
        response_class=Response,
        dependencies=[web.owner],
    )
    async def tokenizer(name: str) -> Response:
        """The files of a model's tokenizer, as one safetensors message."""
        return response(await web.check(models.ask, name, "GET", "/tokenizer"), BYTES)
