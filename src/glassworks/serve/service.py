"""What a service answers, whatever carries the questions: the same handlers behind a web server and in a
process.

A service holds no weights and looks into no request. A checker does, with the site table and the limits; what it
lets pass goes on, unchanged, to the host of the model: the bytes that were checked are the bytes that run.
"""

import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol
from urllib.parse import unquote

from glassworks.client.base import Transport
from glassworks.client.calls import call
from glassworks.client.content import Body, framed, joined, size_of
from glassworks.client.inprocess import InProcessTransport
from glassworks.errors import GlassworksError, ModelError, RemoteError
from glassworks.graph.limits import Limits
from glassworks.serve.answers import RETRY_AFTER_S, Answer, refusal, status_of, too_large

_LOG = logging.getLogger("glassworks.serve")
_PREFIX = "/v1/models/"


class Checker(Protocol):
    """What decides about requests: `checks.Checks`, in this process or behind a pipe to one of its own."""

    def learn(self, model: str, table: bytes) -> None:
        """Take in the site table of a model."""

    def check(self, what: str, model: str, body: Body, ask: Callable[[str, bytes], Body]) -> Answer:
        """200 and a verdict for the model's host, or the refusal; `ask` answers what only the host knows."""


class Service:
    """Models by name, each behind a transport to its host.

    Args:
        hosts: how to reach each model.
        limits: what one request may ask for.
        checker: decides what may run.
    """

    def __init__(self, hosts: Mapping[str, Transport], *, limits: Limits, checker: Checker) -> None:
        self.limits = limits
        self._hosts, self._checker = dict(hosts), checker
        self._tables: dict[str, bytes] = {}

    def handle(self, method: str, path: str, body: Body | None = None) -> Answer:
        """Any request by its path: how a client in this process asks."""
        if method == "GET" and path == "/healthz":
            return self.health()
        if method == "GET" and path == "/v1/models":
            return self.models()
        name, _, what = unquote(path.removeprefix(_PREFIX)).rpartition("/")
        if path.startswith(_PREFIX):
            match method, what:
                case "GET", "sites":
                    return self.sites(name)
                case "POST", "sites":
                    return self.sites_for(name, body or b"")
                case "GET", "tokenizer":
                    return self.tokenizer(name)
                case "POST", "run":
                    return self.run(name, body or b"")
        return refusal(404, RemoteError(f"no such request: {method} {path}"))

    def health(self) -> Answer:
        """Whether every model can be reached now."""
        return self._answer(self._health)

    def models(self) -> Answer:
        """Names of the models, as JSON."""
        return 200, json.dumps({"models": [{"name": name} for name in self._hosts]}).encode()

    def sites(self, name: str) -> Answer:
        """The site table of a model, as JSON."""
        return self._answer(lambda: (200, self._table(name)))

    def sites_for(self, name: str, body: Body) -> Answer:
        """The site table of a plain module for inputs of some shapes, as JSON."""
        return self._answer(lambda: self._sites_for(name, body))

    def tokenizer(self, name: str) -> Answer:
        """The files of a model's tokenizer, as one message."""
        return self._answer(lambda: self._ask(name, "GET", "/tokenizer"))

    def run(self, name: str, body: Body) -> Answer:
        """Check experiments, then let the model's host run them."""
        return self._answer(lambda: self._run(name, body))

    def _answer(self, make: Callable[[], Answer]) -> Answer:
        try:
            return make()
        except _NoSuchModel as error:
            return refusal(404, ModelError(str(error)))
        except GlassworksError as error:
            return refusal(status_of(error), error)
        except Exception:  # noqa: BLE001 - a fault of ours is logged, and answered without its insides
            _LOG.exception("a request failed inside the service")
            return refusal(500, RemoteError("the service failed at this request; its log says why"))

    def _ask(self, name: str, method: str, path: str, body: Body | None = None) -> Answer:
        """The host's own answer."""
        self._check_name(name)
        try:
            return self._hosts[name].request(method, path, body)
        except RemoteError as error:
            if path != "/healthz":  # asked over and over while the worker starts; the answer says it
                _LOG.warning("no answer from the worker of %s: %s", name, error)
            raise RemoteError(
                f"the worker that holds {name!r} is not there, or ended during this request; try again in "
                f"{RETRY_AFTER_S} s"
            ) from None

    def _good(self, name: str, method: str, path: str, body: Body | None = None) -> bytes:
        """The body of the host's answer, if the host did not refuse; its refusal is raised."""
        return call(InProcessTransport(partial(self._ask, name)), method, path, body)

    def _check_name(self, name: str) -> None:
        if name not in self._hosts:
            raise _NoSuchModel(f"this service has no model {name!r}; it has: {', '.join(self._hosts)}")

    def _table(self, name: str) -> bytes:
        self._check_name(name)
        if name not in self._tables:
            table = self._good(name, "GET", "/sites")
            self._checker.learn(name, table)
            self._tables[name] = table
        return self._tables[name]

    def _health(self) -> Answer:
        for name in self._hosts:
            self._good(name, "GET", "/healthz")
        return 200, b'{"status": "ok"}'

    def _checked(self, what: str, name: str, body: Body) -> Answer:
        """The checker's answer to a body that is within the limit."""
        self._table(name)
        if size_of(body) > self.limits.body_bytes:
            return refusal(413, too_large(size_of(body), self.limits))
        return self._checker.check(what, name, body, partial(self._asked, name))

    def _asked(self, name: str, what: str, about: bytes) -> bytes:
        """What a check wants to know of the host: the sites of a plain module for some inputs."""
        return self._good(name, "POST", f"/{what}", about)

    def _run(self, name: str, body: Body) -> Answer:
        status, verdict = self._checked("run", name, body)
        return (status, verdict) if status != 200 else self._ask(name, "POST", "/run", framed([joined(verdict), body]))

    def _sites_for(self, name: str, body: Body) -> Answer:
        status, verdict = self._checked("inputs", name, body)
        return (status, verdict) if status != 200 else self._ask(name, "POST", "/sites", body)


class _NoSuchModel(ModelError):
    """The status of this one is its own."""
