"""The web process of a service: HTTP in front of workers, without weights and without torch.

    python -m glassworks.serve.web --model toy worker.sock --state glassworks-state --folder . --fd 3

Holds the ledger and hands jobs to the workers. Reads heads and bodies, and looks into neither: checkers do, in
processes of their own that this one starts and ends. Bodies pass through files, so that they take no memory here; what
a worker answers is in memory once, until it is in its file.
"""

import argparse
import json
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from glassworks.client.content import Body
from glassworks.errors import GlassworksError
from glassworks.graph.limits import Limits
from glassworks.serve.answers import Answer
from glassworks.serve.app import create_app
from glassworks.serve.bodies import BodyTimes
from glassworks.serve.careful import HEAD_BYTES, CarefulH11
from glassworks.serve.checking import CheckerPool
from glassworks.serve.deaths import death_of
from glassworks.serve.dispatch import Dispatcher
from glassworks.serve.health import Health
from glassworks.serve.http_base import Web
from glassworks.serve.hub import Hub
from glassworks.serve.janitor import Janitor
from glassworks.serve.jobs import Jobs
from glassworks.serve.keys import Keys
from glassworks.serve.ledger import Ledger
from glassworks.serve.lifeline import end_with
from glassworks.serve.link import WorkerLink
from glassworks.serve.metrics import Metrics
from glassworks.serve.models import Checker, Models
from glassworks.serve.quotas import Quotas
from glassworks.serve.spool import Spool
from glassworks.serve.state import State

_CONNECTIONS = 1024
_PATHS = {"/sites": "sites", "/tokenizer": "tokenizer"}


def asked(link: WorkerLink, method: str, path: str, body: Body | None = None) -> Answer:
    """A worker as a host that is asked about its model by paths (`models.Models`)."""
    return link.ask(_PATHS[path], body or b"")


@contextmanager
def running_app(
    state: State, sockets: dict[str, str], *, limits: Limits, quotas: Quotas, checker: Checker, spool: Spool,
    times: BodyTimes | None = None,
) -> Iterator[FastAPI]:  # fmt: skip
    """The application of a service on a state folder, with all that works beside it.

    Args:
        sockets: where the worker of each model listens.
    """
    keys, hub, metrics = Keys(state), Hub(), Metrics()
    ledger = Ledger(state, kept_bytes=quotas.stored_bytes // 2, most_events=quotas.events)
    ledger.on_commit, ledger.on_end = hub.tell, hub.tell_end
    weights: Any = _Weights(keys)
    dispatchers = {
        name: Dispatcher(
            name, ledger, path, limits=limits, weight_of=weights, death_of=partial(death_of, state.deaths),
            metrics=metrics,
        )
        for name, path in sockets.items()
    }  # fmt: skip
    hosts = {name: partial(asked, each.link) for name, each in dispatchers.items()}
    models = Models(hosts, limits=limits, checker=checker, tensors=ledger.shelf)
    jobs, health = Jobs(models, ledger, dispatchers, quotas=quotas, metrics=metrics), Health(dispatchers)
    metrics.watch(dispatchers)
    with ExitStack() as stack:
        janitor = Janitor(jobs, keys)
        for part in (jobs, health, janitor):
            part.start()
            stack.callback(part.close)
        web = Web(jobs, keys, hub, spool=spool, times=times or BodyTimes())
        yield create_app(web, health=health, metrics=metrics)


class _Weights:
    """The weights of keys by their ids."""

    def __init__(self, keys: Keys) -> None:
        self._keys = keys

    def __call__(self, owner: str) -> float:
        found = self._keys.find(owner)
        return 1.0 if found is None else found.weight


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
    found.add_argument("--state", required=True, help="the folder that the service keeps its state in")
    found.add_argument("--folder", help="where long bodies are kept while they come")
    found.add_argument("--limits", default="{}", help="limits that differ from the usual ones, as JSON")
    found.add_argument("--quotas", default="{}", help="quotas that differ from the usual ones, as JSON")
    found.add_argument("--fd", type=int, required=True, help="the socket to listen on, already bound")
    found.add_argument("--while-open", type=int, metavar="FD", help="end when this pipe closes at its other end")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal comes or the parent ends. Gives the exit code."""
    options = parser().parse_args(arguments)
    limits, quotas = Limits(**json.loads(options.limits)), Quotas(**json.loads(options.quotas))
    checkers = CheckerPool(limits)
    checkers.warm_up()
    try:
        with (
            State.hold(Path(options.state)) as state,
            running_app(
                state, dict(options.model), limits=limits, quotas=quotas, checker=checkers,
                spool=Spool(options.folder),
            ) as app,
        ):  # fmt: skip
            _serve(app, options)
    except GlassworksError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    finally:
        checkers.close()
    return 0


def server_of(app: FastAPI) -> uvicorn.Server:
    """What answers HTTP with an application."""
    return uvicorn.Server(
        uvicorn.Config(
            app, http=CarefulH11, ws="none", h11_max_incomplete_event_size=HEAD_BYTES, limit_concurrency=_CONNECTIONS,
            log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=2, server_header=False,
        )
    )  # fmt: skip


def _serve(app: FastAPI, options: argparse.Namespace) -> None:
    server = server_of(app)
    if options.while_open is not None:
        end_with(options.while_open, lambda: setattr(server, "should_exit", True))
    server.run(sockets=[socket.socket(fileno=options.fd)])


if __name__ == "__main__":
    sys.exit(main())
