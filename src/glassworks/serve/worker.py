"""The process that holds a model: its host behind a Unix socket, one experiment at a time.

    python -m glassworks.serve.worker --model toy --socket worker.sock

The socket is for the owner alone: whoever can open it needs no key. Questions other than runs are answered
while a run is under way. Torch and transformers are imported here, and nowhere else in `serve`.
"""

import argparse
import json
import os
import socket
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

import uvicorn
from anyio import CapacityLimiter, to_thread
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from glassworks.errors import GlassworksError, InputError
from glassworks.graph.backend import Backend, Inputs, Rows
from glassworks.graph.graph import Graph
from glassworks.graph.limits import Limits
from glassworks.graph.nodes import ALL_ROWS, Node, Ref
from glassworks.serve.host import ModelHost, tokenizer_files
from glassworks.serve.lifeline import end_with

_GRACE_S = 5


def load_host(name: str, *, limits: Limits) -> ModelHost:
    """The host of a model that `gw.load` can load. It has run once, so that its weights are here and it works."""
    from glassworks.loading import load
    from glassworks.serve.spending import Spending
    from glassworks.trace.tensors import as_leaf, from_blob

    model = load(name)
    try_out(model.backend)
    files = tokenizer_files(model.tokenizer)
    return ModelHost(
        model.backend, tokenizer=files, result_bytes=limits.result_bytes,
        price=lambda: Spending(limits, model.backend.sites()),
        as_leaf=as_leaf, from_blob=from_blob,
    )  # fmt: skip


def try_out(backend: Backend) -> None:
    """Run one token through the model, up to its logits."""
    nodes = (
        Node("read", "logits", (), (), (), 0, None),
        Node("save", "logits", (Ref(0),), (), (0,), ALL_ROWS, None),
    )
    backend.run(Graph(nodes), Inputs((Rows(ids=((0,),)),)))


def create_app(host: ModelHost) -> Starlette:
    """The host as an application: runs wait for each other, in the order in which they came."""
    one_at_a_time = CapacityLimiter(1)

    async def answer(request: Request) -> Response:
        path, body = request.url.path, await request.body()
        limiter = one_at_a_time if path.startswith("/run") else None
        status, content = await to_thread.run_sync(host.handle, request.method, path, body, limiter=limiter)
        return Response(content, status)

    return Starlette(routes=[Route("/{path:path}", answer, methods=["GET", "POST"])])


def bind(path: str) -> socket.socket:
    """A Unix socket that only its owner can open; one that an earlier worker left behind is replaced."""
    if len(os.fsencode(path)) > 100:
        raise InputError(
            f"the path of a Unix socket must be shorter than 100 bytes, got {path!r}; choose a shorter folder"
        )
    if os.path.exists(path) and stat.S_ISSOCK(os.stat(path).st_mode):
        Path(path).unlink()
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        bound.bind(path)
    finally:
        os.umask(mask)
    return bound


def run(host: ModelHost, *, socket_path: str, while_open: int | None = None) -> None:
    """Serve until a signal comes or the pipe `while_open` closes at its other end."""
    config = uvicorn.Config(
        create_app(host),
        log_level="warning",
        lifespan="off",
        timeout_graceful_shutdown=_GRACE_S,
        access_log=False,
    )
    server = uvicorn.Server(config)
    if while_open is not None:
        end_with(while_open, lambda: setattr(server, "should_exit", True))
    server.run(sockets=[bind(socket_path)])


def parser() -> argparse.ArgumentParser:
    """The options of a worker."""
    found = argparse.ArgumentParser(
        prog="python -m glassworks.serve.worker", description="Hold a model and run experiments."
    )
    found.add_argument("--model", required=True, help="what gw.load takes: toy, a Hugging Face id, or a folder")
    found.add_argument("--socket", required=True, help="path of the Unix socket to listen on")
    found.add_argument("--limits", default="{}", help="limits that differ from the usual ones, as JSON")
    found.add_argument("--while-open", type=int, metavar="FD", help="end when this pipe closes at its other end")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Load a model and serve it. Gives the exit code."""
    options = parser().parse_args(arguments)
    try:
        host = load_host(options.model, limits=Limits(**json.loads(options.limits)))
        run(host, socket_path=options.socket, while_open=options.while_open)
    except GlassworksError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
