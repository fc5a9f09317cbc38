"""What a service answers, whatever carries the questions: the same handlers behind a web server and in a
process.

A service holds no weights. It checks each request against the site table and the limits, and hands what
passes on, unchanged, to the host of the model: the bytes that were checked are the bytes that run.
"""

import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from urllib.parse import unquote

from glassworks.client.backend import table_from_bytes
from glassworks.client.base import Transport
from glassworks.client.calls import call
from glassworks.client.inprocess import InProcessTransport
from glassworks.errors import GlassworksError, LimitExceeded, ModelError, RemoteError, WireError
from glassworks.graph.backend import Inputs
from glassworks.graph.check import Limits, check_inputs, check_request
from glassworks.graph.messages import decode_inputs, decode_request, encode_inputs
from glassworks.graph.sites import SiteTable
from glassworks.serve.answers import RETRY_AFTER_S, Answer, refusal, status_of

_LOG = logging.getLogger("glassworks.serve")
_PREFIX = "/v1/models/"


class Service:
    """Models by name, each behind a transport to its host.

    Args:
        hosts: how to reach each model.
        limits: what one request may ask for.
    """

    def __init__(self, hosts: Mapping[str, Transport], *, limits: Limits) -> None:
        self.limits = limits
        self._hosts = dict(hosts)
        self._tables: dict[str, tuple[SiteTable, bytes]] = {}

    def handle(self, method: str, path: str, body: bytes | None = None) -> Answer:
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
        return self._answer(lambda: (200, self._table(name)[1]))

    def sites_for(self, name: str, body: bytes) -> Answer:
        """The site table of a plain module for inputs of some shapes, as JSON."""
        return self._answer(lambda: self._sites_for(name, body))

    def tokenizer(self, name: str) -> Answer:
        """The files of a model's tokenizer, as one message."""
        return self._answer(lambda: self._ask(name, "GET", "/tokenizer"))

    def run(self, name: str, body: bytes) -> Answer:
        """Check experiments, then let the model's host run them."""
        return self._answer(lambda: self._run(name, body))

    def too_large(self, size_bytes: int) -> Answer:
        """The refusal of a body, by its announced or counted size."""
        return refusal(
            413,
            LimitExceeded(
                f"body_bytes: a request of {size_bytes} bytes or more, {self.limits.body_bytes} allowed; "
                f"send smaller tensors, or several requests"
            ),
        )

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

    def _ask(self, name: str, method: str, path: str, body: bytes | None = None) -> Answer:
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

    def _good(self, name: str, method: str, path: str, body: bytes | None = None) -> bytes:
        """The body of the host's answer, if the host did not refuse; its refusal is raised."""
        return call(InProcessTransport(partial(self._ask, name)), method, path, body)

    def _check_name(self, name: str) -> None:
        if name not in self._hosts:
            raise _NoSuchModel(f"this service has no model {name!r}; it has: {', '.join(self._hosts)}")

    def _table(self, name: str) -> tuple[SiteTable, bytes]:
        self._check_name(name)
        if name not in self._tables:
            data = self._good(name, "GET", "/sites")
            self._tables[name] = (table_from_bytes(data), data)
        return self._tables[name]

    def _health(self) -> Answer:
        for name in self._hosts:
            self._good(name, "GET", "/healthz")
        return 200, b'{"status": "ok"}'

    def _run(self, name: str, body: bytes) -> Answer:
        self._check_name(name)
        if len(body) > self.limits.body_bytes:
            return self.too_large(len(body))
        request = decode_request(body)
        if request.model != name:
            raise WireError(f"request: the message is for the model {request.model!r} and was sent to {name!r}")
        table = self._table(name)[0]
        check_request(request, table, self.limits, table_of=partial(self._table_of, name))
        return self._ask(name, "POST", "/run", body)

    def _sites_for(self, name: str, body: bytes) -> Answer:
        self._check_name(name)
        if len(body) > self.limits.body_bytes:
            return self.too_large(len(body))
        check_inputs(decode_inputs(body), self._table(name)[0], self.limits)
        return self._ask(name, "POST", "/sites", body)

    def _table_of(self, name: str, inputs: Inputs) -> SiteTable:
        return table_from_bytes(self._good(name, "POST", "/sites", encode_inputs(inputs)))


class _NoSuchModel(ModelError):
    """The status of this one is its own."""
