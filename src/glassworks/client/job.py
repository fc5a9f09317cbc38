"""A job of a service, found by its id: asked about, waited for, called off, its results fetched.

Whoever has the id and the key that made the job may ask, from any process. What the service raises is raised where the
results are asked for.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from glassworks.client.base import Transport
from glassworks.client.calls import call, error_of
from glassworks.client.content import joined
from glassworks.errors import WireError
from glassworks.graph import messages, tree
from glassworks.graph.backend import Results
from glassworks.graph.jobs import ENDED, given
from glassworks.graph.wire import json_of

_ASK_S = 20.0
"""How long a service is asked to wait before it answers that nothing has changed."""


class RemoteJob:
    """A job of a service.

    Args:
        transport: the way to the service.
        id: as the service gave it.
        as_leaf: a tensor of the caller's as a constant.
        read: the answer as results.
        understood: an error of the run as it is to be raised.
    """

    def __init__(
        self,
        transport: Transport,
        id: str,
        *,
        as_leaf: tree.AsLeaf = tree.own_leaf,
        read: Callable[[bytes], list[Results]] = messages.decode_results,
        understood: Callable[[Exception], Exception] = lambda error: error,
    ) -> None:
        self.id, self._transport = id, transport
        self._as_leaf, self._read, self._understood = as_leaf, read, understood
        self._last: dict[str, Any] = {}
        self._found: list[Results] | Exception | None = None

    @property
    def status(self) -> str:
        return str(self._asked()["status"])

    @property
    def position(self) -> int | None:
        return self._asked()["position"]  # type: ignore[no-any-return]

    @property
    def progress(self) -> float:
        return float(self._asked()["progress"])

    def wait(self, *, timeout_s: float | None = None) -> None:
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while not self._has_ended():
            left = _ASK_S if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"the job {self.id} has not ended after {timeout_s} s: it is {self.status}")
            self._last = self._ask("GET", f"?wait_s={min(left, _ASK_S):.3f}")

    def cancel(self) -> None:
        self._last = self._ask("POST", "/cancel")

    def each(self) -> list[Results]:
        if self._found is None:
            self.wait()
            status, found = self._transport.request("GET", self._path("/results"))
            answer = bytes(joined(found))
            if 200 <= status < 300:
                self._found = self._read(answer)
            else:
                self._found = self._understood(error_of(status, answer, f"the results of {self.id}"))
        if isinstance(self._found, Exception):
            raise self._found
        return self._found

    def results(self, to: str | Path | None = None) -> Results | list[Results]:
        return given(self.each(), to, as_leaf=self._as_leaf)

    def _has_ended(self) -> bool:
        return self._last.get("status") in ENDED

    def _asked(self) -> dict[str, Any]:
        """What is known of it now; what has ended stays as it is."""
        if not self._has_ended():
            self._last = self._ask("GET")
        return self._last

    def _path(self, what: str) -> str:
        return f"/v1/jobs/{quote(self.id, safe='')}{what}"

    def _ask(self, method: str, what: str = "") -> dict[str, Any]:
        return status_of(call(self._transport, method, self._path(what)))

    def __repr__(self) -> str:
        return f"<job {self.id}>"


def status_of(answer: bytes) -> dict[str, Any]:
    """What a service says of a job. WireError: something else."""
    body = json_of(answer, "the answer")
    good = isinstance(body, dict) and isinstance(body.get("id"), str) and isinstance(body.get("status"), str)
    progress = body.get("progress") if good else None
    position = body.get("position") if good else None
    if type(progress) not in (int, float) or not (position is None or type(position) is int):
        raise WireError("the answer is no status of a job: id, status, position and progress")
    return body  # type: ignore[no-any-return]
