"""The process that holds a model and one engine, behind a Unix socket.

    python -m glassworks.serve.worker --model toy --socket worker.sock

One connection at a time: who connects gives jobs and is told of them (see `running`). When the connection ends so do
its jobs, and the next may come. The socket is for the owner alone: whoever can open it needs no key. Torch and
transformers are imported here, and nowhere else in `serve` but by what this imports to run jobs.
"""

import argparse
import json
import os
import socket
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

from glassworks.errors import GlassworksError, InputError
from glassworks.graph.limits import Limits
from glassworks.serve.lifeline import end_with
from glassworks.serve.runner import Runner
from glassworks.serve.running import serve

POLICIES = ("mlfq", "fcfs", "srpt-predicted")
STARVATION_S = 20.0
"""Whoever waits for so long in the engine goes first, whoever else is there."""


def load(options: argparse.Namespace) -> Runner:
    """What runs jobs on a model that `gw.load` can load. It has run once, so that its weights are here and it works."""
    from glassworks import loading
    from glassworks.serve.host import ModelHost, tokenizer_files
    from glassworks.serve.one_by_one import OneByOne
    from glassworks.serve.spending import Spending
    from glassworks.trace.tensors import as_leaf, from_blob

    limits = Limits(**json.loads(options.limits))
    model = loading.load(options.model)
    host = ModelHost(
        model.backend, tokenizer=tokenizer_files(model.tokenizer), result_bytes=limits.result_bytes,
        price=lambda: Spending(limits, model.backend.sites()), as_leaf=as_leaf, from_blob=from_blob,
        run_s=limits.run_s,
    )  # fmt: skip
    if model.table.plain:
        return OneByOne(host)
    from glassworks.engine.engine import Engine
    from glassworks.memory.budget import KVBudget
    from glassworks.serve.together import Together

    engine = Engine(
        model, policy="fair", inner=options.policy, rows=options.rows, starvation_s=STARVATION_S,
        kv=KVBudget(device=options.kv_device, host=options.kv_host),
    )  # fmt: skip
    runner = Together(host, engine, run_s=limits.run_s)
    runner.try_out()
    return runner


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


def run(runner: Runner, *, socket_path: str, while_open: int | None = None) -> None:
    """Serve one connection after the other until a signal comes or the pipe `while_open` closes at its other end."""
    with bind(socket_path) as listening:
        listening.listen(1)
        if while_open is not None:
            end_with(while_open, lambda: os._exit(0))  # nothing is kept here that would have to be put away
        while True:
            connection, _ = listening.accept()
            with connection:
                serve(runner, connection)


def parser() -> argparse.ArgumentParser:
    """The options of a worker."""
    found = argparse.ArgumentParser(
        prog="python -m glassworks.serve.worker", description="Hold a model and run experiments."
    )
    found.add_argument("--model", required=True, help="what gw.load takes: toy, a Hugging Face id, or a folder")
    found.add_argument("--socket", required=True, help="path of the Unix socket to listen on")
    found.add_argument("--limits", default="{}", help="limits that differ from the usual ones, as JSON")
    found.add_argument("--policy", default="mlfq", choices=POLICIES, help="which of one key's jobs go first")
    found.add_argument("--rows", type=int, default=32, help="how many jobs share a forward pass at most")
    found.add_argument("--kv-device", default="1GiB", help="memory for keys and values where the model runs")
    found.add_argument("--kv-host", default="2GiB", help="memory for those of jobs whose turn it is not")
    found.add_argument("--while-open", type=int, metavar="FD", help="end when this pipe closes at its other end")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Load a model and serve it. Gives the exit code."""
    options = parser().parse_args(arguments)
    try:
        run(load(options), socket_path=options.socket, while_open=options.while_open)
    except GlassworksError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
