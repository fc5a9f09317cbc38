"""The web process of a service: HTTP in front of workers, without weights and without torch.

    python -m glassworks.serve.web --model toy worker.sock --keys keys --folder . --fd 3

Reads heads and bodies, and looks into neither: checkers do, in processes of their own that this one starts and ends.
Bodies and answers pass through files, so that the process stays small whatever is sent.
"""

import argparse
import json
import socket
import sys
from collections.abc import Sequence

import uvicorn

from glassworks.graph.limits import Limits
from glassworks.serve.app import create_app
from glassworks.serve.careful import HEAD_BYTES, CarefulH11
from glassworks.serve.checking import CheckerPool
from glassworks.serve.hosts import WorkerHost
from glassworks.serve.keys import Keys
from glassworks.serve.lifeline import end_with
from glassworks.serve.service import Service
from glassworks.serve.spool import Spool

_WORKER_TIMEOUT_S = 3600.0
_CONNECTIONS = 512


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
    found.add_argument("--folder", help="where long bodies are kept while they are needed")
    found.add_argument("--limits", default="{}", help="limits that differ from the usual ones, as JSON")
    found.add_argument("--fd", type=int, required=True, help="the socket to listen on, already bound")
    found.add_argument("--while-open", type=int, metavar="FD", help="end when this pipe closes at its other end")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until a signal comes or the parent ends. Gives the exit code."""
    options = parser().parse_args(arguments)
    limits, spool = Limits(**json.loads(options.limits)), Spool(options.folder)
    hosts = {name: WorkerHost(path, timeout_s=_WORKER_TIMEOUT_S, keep=spool.new) for name, path in options.model}
    checkers = CheckerPool(limits)
    checkers.warm_up()
    app = create_app(Service(hosts, limits=limits, checker=checkers), Keys.load(options.keys), spool=spool)
    config = uvicorn.Config(
        app, http=CarefulH11, ws="none", h11_max_incomplete_event_size=HEAD_BYTES, limit_concurrency=_CONNECTIONS,
        log_level="warning", access_log=False, lifespan="off", timeout_graceful_shutdown=5, server_header=False,
    )  # fmt: skip
    server = uvicorn.Server(config)
    if options.while_open is not None:
        end_with(options.while_open, lambda: setattr(server, "should_exit", True))
    server.run(sockets=[socket.socket(fileno=options.fd)])
    checkers.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
