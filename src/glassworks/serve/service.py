"""A service without a queue: what is asked is checked and done at once, in the caller's own process.

What `gw.connect(model)` is made of: the codec, the checks and the limits of a service, and nothing that has to survive.
"""

import itertools
import json
import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping

from glassworks.client.base import Transport
from glassworks.client.content import Body, framed
from glassworks.errors import RemoteError
from glassworks.graph.jobs import DONE, FAILED
from glassworks.graph.limits import Limits
from glassworks.serve.answers import Answer, Refused, answered, refusal
from glassworks.serve.models import Checker, Models
from glassworks.serve.tensors import TensorStore

_LOG = logging.getLogger("glassworks.serve")
_KEPT_JOBS = 256


class Service:
    """Models by name, each behind a transport to its host; one caller, who owns everything.

    Args:
        hosts: how to reach each model.
        limits: what one request may ask for.
        checker: decides what may run.
    """

    def __init__(self, hosts: Mapping[str, Transport], *, limits: Limits, checker: Checker) -> None:
        self._models = Models(hosts, limits=limits, checker=checker, tensors=TensorStore())
        self._numbers = itertools.count(1)
        self._ended: OrderedDict[str, tuple[str, Answer]] = OrderedDict()

    def health(self) -> Answer:
        """Whether every model can be reached now."""
        return _answer(self._health)

    def models(self) -> Answer:
        """Names of the models, as JSON."""
        return 200, json.dumps({"models": [{"name": name} for name in self._models.names]}).encode()

    def sites(self, name: str) -> Answer:
        """The site table of a model, as JSON."""
        return _answer(lambda: (200, self._models.table(name)))

    def sites_for(self, name: str, body: Body) -> Answer:
        """The site table of a plain module for inputs of some shapes, as JSON."""
        return _answer(lambda: self._models.table_for(name, body, ""))

    def tokenizer(self, name: str) -> Answer:
        """The files of a model's tokenizer, as one message."""
        return _answer(lambda: self._models.ask(name, "GET", "/tokenizer"))

    def tensor(self, digest: str) -> Answer:
        """Whether a tensor is here; 404 if not."""
        return _answer(lambda: self._models.has_tensor(digest, ""))

    def put_tensor(self, digest: str, body: Body) -> Answer:
        """Keep a tensor, which must have that digest."""
        return _answer(lambda: self._models.put_tensor(digest, body, ""))

    def run(self, name: str, body: Body) -> Answer:
        """Check experiments, then let the model's host run them."""
        return _answer(lambda: self._run(name, self._let_in(name, body)))

    def submit(self, name: str, body: Body) -> Answer:
        """The same, as a job that has ended; 202 and its status, as JSON."""
        return _answer(lambda: self._submit(name, body))

    def job(self, id: str) -> Answer:
        """The status of a job, as JSON."""
        return _answer(lambda: (200, self._status(id)))

    def cancel(self, id: str) -> Answer:
        """Its status: it has ended."""
        return self.job(id)

    def job_results(self, id: str) -> Answer:
        """What the run of a job answered."""
        return _answer(lambda: self._find(id)[1])

    def _health(self) -> Answer:
        for name in self._models.names:
            self._models.good(name, "GET", "/healthz")
        return 200, b'{"status": "ok"}'

    def _let_in(self, name: str, body: Body) -> list[Body]:
        """What the host is to be sent."""
        let_in = self._models.let_in("run", name, body, "")
        return [json.dumps(let_in.verdict).encode(), body, *self._models.bodies(let_in.tensors, "")]

    def _run(self, name: str, parts: list[Body]) -> Answer:
        return self._models.ask(name, "POST", "/run", framed(parts))

    def _submit(self, name: str, body: Body) -> Answer:
        parts = self._let_in(name, body)
        id = f"job-{next(self._numbers)}"
        self._ended[id] = name, _answer(lambda: self._run(name, parts))
        while len(self._ended) > _KEPT_JOBS:
            self._ended.popitem(last=False)
        return 202, self._status(id)

    def _status(self, id: str) -> bytes:
        model, answer = self._find(id)
        status = DONE if answer[0] == 200 else FAILED
        told = {"id": id, "model": model, "status": status, "position": None, "progress": 1.0}
        return json.dumps(told).encode()

    def _find(self, id: str) -> tuple[str, Answer]:
        if id not in self._ended:
            raise Refused(404, RemoteError(f"no job {id[:60]!r}: it was never made, or was let go"))
        return self._ended[id]


def _answer(make: Callable[[], Answer]) -> Answer:
    try:
        return answered(make)
    except Exception:  # noqa: BLE001 - a fault of ours is logged, and answered without its insides
        _LOG.exception("a request failed inside the service")
        return refusal(500, RemoteError("the service failed at this request; its log says why"))
