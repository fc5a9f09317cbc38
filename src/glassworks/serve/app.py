"""The web application of a service: its paths together, and how errors look to HTTP.

A key is looked at before a byte of the body is. Bodies are `bodies`'s, the paths are in `http_models`, `http_jobs` and
`http_openai`.
"""

import http
import logging

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from glassworks import __version__
from glassworks.errors import GlassworksError, InputError, RemoteError
from glassworks.serve.answers import Refused, refusal, status_of
from glassworks.serve.health import Health
from glassworks.serve.http_base import JSON, Web, response
from glassworks.serve.http_jobs import add_jobs
from glassworks.serve.http_models import add_models
from glassworks.serve.http_openai import add_openai
from glassworks.serve.metrics import Metrics

_LOG = logging.getLogger("glassworks.serve")


def create_app(web: Web, *, health: Health, metrics: Metrics) -> FastAPI:
    """The web application of a service."""
    app = FastAPI(
        title="Glassworks", summary="Experiments on shared models.", version=__version__, docs_url=None, redoc_url=None
    )
    app.add_exception_handler(Refused, _refuse)
    app.add_exception_handler(GlassworksError, _refuse_error)
    app.add_exception_handler(HTTPException, _refuse_path)
    app.add_exception_handler(RequestValidationError, _refuse_value)
    app.add_exception_handler(Exception, _fault)
    add_models(app, web, health, metrics)
    add_jobs(app, web)
    add_openai(app, web)
    return app


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return response(error.answer, JSON, error.headers)


async def _refuse_error(request: Request, error: Exception) -> Response:
    return response(refusal(status_of(error), error), JSON)


async def _refuse_path(request: Request, error: Exception) -> Response:
    """A path or a method that does not exist, as an error of ours."""
    assert isinstance(error, HTTPException)
    spoken = http.HTTPStatus(error.status_code).phrase.lower()
    answer = refusal(error.status_code, RemoteError(f"{request.method} {request.url.path[:200]}: {spoken}"))
    return response(answer, JSON, error.headers)


async def _refuse_value(request: Request, error: Exception) -> Response:
    """A value in a path, a query or a header that cannot be, as an error of ours."""
    assert isinstance(error, RequestValidationError)
    wrong = ", ".join(str(part) for part in error.errors()[0]["loc"])
    return response(refusal(422, InputError(f"{wrong[:100]}: {error.errors()[0]['msg'][:200]}")), JSON)


async def _fault(request: Request, error: Exception) -> Response:
    """A fault of ours: the log has it, the answer not its insides."""
    _LOG.error("a request failed inside the service", exc_info=error)
    return response(refusal(500, RemoteError("the service failed at this request; its log says why")), JSON)
