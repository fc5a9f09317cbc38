"""A service around a backend of this process: what `gw.connect(model)` is made of.

The paths of a service, without the network: the same codec, checks and limits. There is no queue, so a job has ended
when it is answered, and nobody asks about it later.
"""

import json
import logging
import secrets
from collections.abc import Mapping
from urllib.parse import unquote, urlsplit

from glassworks.client.backend import keep_blob
from glassworks.client.base import JOB_HEADER, Answer, Request
from glassworks.client.content import Body, framed, joined
from glassworks.client.inprocess import InProcessTransport
from glassworks.errors import Cancelled, RemoteError
from glassworks.graph import messages, tree
from glassworks.graph.backend import Backend
from glassworks.graph.limits import Limits
from glassworks.serve import answers
from glassworks.serve.answers import answered, refusal
from glassworks.serve.checks import Checks
from glassworks.serve.host import ModelHost
from glassworks.serve.models import Models
from glassworks.serve.spending import Spending
from glassworks.serve.tensors import TensorStore

_LOG = logging.getLogger("glassworks.serve")
_MODELS, _TENSORS = "/v1/models/", "/v1/tensors/"
_OWNER = ""
"""There is one person in a process."""


def in_process(
    name: str,
    backend: Backend,
    *,
    tokenizer: Mapping[str, bytes],
    limits: Limits | None = None,
    as_leaf: tree.AsLeaf = tree.own_leaf,
    from_blob: messages.FromBlob = keep_blob,
) -> InProcessTransport:
    """A transport to a service that has one model: through the codec, the checks and the limits, without a
    network.

    Args:
        name: of the model in the service.
        backend: runs the experiments.
        tokenizer: files by name (see `tokenizer_files`).
        limits: what one request may ask for.
        as_leaf: a tensor of the backend's as a constant.
        from_blob: bytes as a tensor of the backend's.
    """
    limits = limits or Limits()
    host = ModelHost(
        backend, tokenizer=tokenizer, result_bytes=limits.result_bytes, price=lambda: Spending(limits, backend.sites()),
        as_leaf=as_leaf, from_blob=from_blob,
    )  # fmt: skip
    return InProcessTransport(LocalService(name, host, limits).handle)


class LocalService:
    """The paths of a service of one model, for one person; what is run has ended when it is answered."""

    def __init__(self, name: str, host: ModelHost, limits: Limits) -> None:
        self._models = Models({name: host.handle}, limits=limits, checker=Checks(limits), tensors=TensorStore())
        self._begun: dict[str, str] = {}

    def handle(self, request: Request) -> Answer:
        """Any request by its path."""
        headers: dict[str, str] = {}
        try:
            status, body = answered(lambda: self._handled(request, headers))
        except Exception:  # noqa: BLE001 - a fault of ours is logged, and answered without its insides
            _LOG.exception("a request failed inside the service")
            status, body = refusal(500, RemoteError("the service failed at this request; its log says why"))
        return Answer(status, bytes(joined(body)), headers)

    def _handled(self, request: Request, headers: dict[str, str]) -> answers.Answer:
        path, body, models = urlsplit(request.path).path, request.body or b"", self._models
        if path.startswith(_MODELS):
            name, _, what = unquote(path.removeprefix(_MODELS)).rpartition("/")
            match request.method, what:
                case "GET", "sites":
                    return 200, models.table(name)
                case "GET", "tokenizer":
                    return models.ask(name, "GET", "/tokenizer")
                case "POST", "sites":
                    return models.table_for(name, body, _OWNER)
                case "POST", "jobs" | "run":
                    return self._run(name, body, request.headers.get("Idempotency-Key"), headers)
        match request.method, path:
            case "GET", "/v1/models":
                return 200, json.dumps({"models": [{"name": name} for name in models.names]}).encode()
            case "GET", str(found) if found.startswith(_TENSORS):
                return models.has_tensor(found.removeprefix(_TENSORS), _OWNER)
            case "PUT", str(found) if found.startswith(_TENSORS):
                return models.put_tensor(found.removeprefix(_TENSORS), body, _OWNER)
        return refusal(404, RemoteError(f"no such request: {request}"))

    def _run(self, name: str, body: Body, key: str | None, headers: dict[str, str]) -> answers.Answer:
        """What a check refuses has no job; what runs has ended. A key that comes again is of an author who was
        interrupted: nothing runs twice, and what still runs, in another thread, is called off."""
        id = f"job-{secrets.token_urlsafe(18)}"
        if key is not None and (begun := self._begun.setdefault(key, id)) != id:
            del self._begun[key]
            headers[JOB_HEADER] = begun
            self._models.ask(name, "POST", f"/cancel/{begun}")
            return refusal(409, Cancelled(f"the job {begun} was cancelled"))
        try:
            answer = self._checked_and_run(name, body, id, headers)
        except Exception:  # an answer like others, and not the author's own interruption
            self._begun.pop(key or "", None)
            raise
        self._begun.pop(key or "", None)
        return answer

    def _checked_and_run(self, name: str, body: Body, id: str, headers: dict[str, str]) -> answers.Answer:
        let_in = self._models.let_in("run", name, body, _OWNER)
        parts = [json.dumps(let_in.verdict).encode(), body, *self._models.bodies(let_in.tensors, _OWNER)]
        headers[JOB_HEADER] = id
        return self._models.ask(name, "POST", f"/run/{id}", framed(parts))
