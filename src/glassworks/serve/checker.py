"""The process that looks into what strangers send: torch without weights, and no more time and memory than it is given.

    python -m glassworks.serve.checker --fd 5

Its parent asks over a socket, one question at a time, and ends it when an answer takes too long. Memory is the kernel's
to refuse: what is private to the process may grow by `check_bytes` during a check. A process that has grown for good
says so with its last answer, and ends.
"""

import argparse
import json
import os
import resource
import signal
import socket
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch

from glassworks.client.content import Whole
from glassworks.errors import ModelError
from glassworks.graph.limits import Limits
from glassworks.serve.answers import Answer, refusal
from glassworks.serve.checks import Checks, out_of_memory
from glassworks.serve.pipe import receive, send
from glassworks.serve.pricing import quote

_ORPHAN_S = 60
_LEARN_BYTES = 2**32
"""What a model's tokenizer may take, with the libraries that read it."""


def data_bytes() -> int:
    """What the process holds for itself alone: its heap and private maps, not the code of libraries."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no VmData")


def serve(sock: socket.socket, limits: Limits) -> None:
    """Answer until the parent has gone."""
    checks, start = Checks(limits), data_bytes()
    send(sock, {"ready": True})
    while True:
        _allow(limits.check_bytes)
        signal.alarm(0)
        try:
            head, body = receive(sock)
        except MemoryError:
            status, answer = refusal(422, out_of_memory(limits, limits.check_bytes))
            send(sock, {"status": status, "last": True}, answer)
            return
        signal.alarm(limits.check_s + _ORPHAN_S)  # in case the parent is gone and nobody watches the clock
        if "learn" in head:
            _learn(checks, head, body)
            start = data_bytes()  # what is known of models is not growth
            send(sock, {"learned": True})
            continue
        status, answer = _checked(checks, sock, head, body)
        del body
        for table in checks.tables:
            table.plans.clear()
        last = data_bytes() - start > limits.check_bytes // 2
        send(sock, {"status": status, "last": last}, answer)
        if last:
            return


def _learn(checks: Checks, head: dict[str, str], body: Whole) -> None:
    _allow(_LEARN_BYTES)
    if head["what"] == "table":
        checks.learn(head["learn"], body)
        return
    checks.learn_tokenizer(head["learn"], body)
    with suppress(ModelError):  # whoever needs it is told
        checks.text(head["learn"])


def _checked(checks: Checks, sock: socket.socket, head: dict[str, str], body: Whole) -> Answer:
    def ask(what: str, about: bytes) -> Whole:
        send(sock, {"ask": what}, about)
        return receive(sock)[1]

    return checks.check(head["check"], head["about"], body, ask)


def _allow(more_bytes: int) -> None:
    """Let the process grow by so much from here."""
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (data_bytes() + more_bytes, hard))


def _warm_up() -> None:
    """The first call on meta tensors imports half of torch; that is not to count as a stranger's memory."""
    some = torch.empty(2, 2, device="meta")
    for name, args in (("add", (some, some)), ("softmax", (some, -1)), ("matmul", (some, some)), ("cat", ([some],))):
        quote(name, args, {})


def parser() -> argparse.ArgumentParser:
    """The options of a checker."""
    found = argparse.ArgumentParser(prog="python -m glassworks.serve.checker", description="Check requests.")
    found.add_argument("--fd", type=int, required=True, help="the socket to the parent")
    found.add_argument("--limits", default="{}", help="limits that differ from the usual ones, as JSON")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Check until the parent has gone. Gives the exit code."""
    options = parser().parse_args(arguments)
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _warm_up()
    try:
        serve(socket.socket(fileno=options.fd), Limits(**json.loads(options.limits)))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
