"""A service around a backend of this process: what `gw.connect(model)` is made of.

The paths of a service, without the network: the same codec, checks and limits. There is no queue, so a job has ended
when it is answered, and nobody asks about it later.
"""

import json
import re
import secrets
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from glassworks.client.backend import keep_blob
from glassworks.client.base import JOB_HEADER, Answer, Request
from glassworks.client.content import Body, framed, joined, size_of
from glassworks.client.inprocess import InProcessTransport
from glassworks.errors import Cancelled, ModelError, RemoteError, WireError
from glassworks.graph import messages, tree
from glassworks.graph.backend import Backend
from glassworks.graph.limits import Limits
from glassworks.serve import answers
from glassworks.serve.answers import refusal, too_large
from glassworks.serve.checks import Checks
from glassworks.serve.host import ModelHost
from glassworks.serve.spending import Spending
from glassworks.serve.tensors import Stored, TensorStore

_MODELS, _TENSORS = "/v1/models/", "/v1/tensors/"
_DIGEST = re.compile("[0-9a-f]{64}")
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
    """One model and its checks."""

    def __init__(self, name: str, host: ModelHost, limits: Limits) -> None:
        self._name, self._host, self._limits = name, host, limits
        self._checks, self._tensors = Checks(limits), TensorStore()
        self._knows_sites = False
        self._begun: dict[str, str] = {}

    def handle(self, request: Request) -> Answer:
        """Any request by its path."""
        path, body = urlsplit(request.path).path, request.body or b""
        if path.startswith(_MODELS):
            name, _, what = unquote(path.removeprefix(_MODELS)).rpartition("/")
            if name != self._name:
                return _answer(refusal(404, ModelError(f"this service has no model {name!r}; it has: {self._name}")))
            match request.method, what:
                case "GET", "sites" | "tokenizer":
                    return _answer(self._host.handle("GET", f"/{what}"))
                case "POST", "sites":
                    return _answer(self._sites_for(body))
                case "POST", "jobs":
                    return self._run(body, request.headers.get("Idempotency-Key"))
        match request.method, path:
            case "GET", "/v1/models":
                return _answer((200, json.dumps({"models": [{"name": self._name}]}).encode()))
            case "GET", str(found) if found.startswith(_TENSORS):
                return _answer(self._tensor(found.removeprefix(_TENSORS)))
            case "PUT", str(found) if found.startswith(_TENSORS):
                return _answer(self._put_tensor(found.removeprefix(_TENSORS), body))
        return _answer(refusal(404, RemoteError(f"no such request: {request}")))

    def _run(self, body: Body, key: str | None) -> Answer:
        """What a check refuses has no job; what runs has ended. A key that comes again is of an author who was
        interrupted: nothing runs twice, and what still runs, in another thread, is called off."""
        id = f"job-{secrets.token_urlsafe(18)}"
        if key is not None and (begun := self._begun.setdefault(key, id)) != id:
            del self._begun[key]
            self._host.handle("POST", f"/cancel/{begun}")
            return _answer(refusal(409, Cancelled(f"the job {begun} was cancelled")), {JOB_HEADER: begun})
        answer = self._checked_and_run(body, id)
        if key is not None:  # one that was interrupted stays, until it comes again
            self._begun.pop(key, None)
        return answer

    def _checked_and_run(self, body: Body, id: str) -> Answer:
        status, found = self._checked("run", self._name, body)
        if status != 200:
            return _answer((status, found))
        tensors = [self._tensors.get(_OWNER, digest) for digest in json.loads(joined(found))["tensors"]]
        parts = [joined(found), body, *[tensor.body for tensor in tensors if tensor is not None]]
        return _answer(self._host.handle("POST", f"/run/{id}", framed(parts)), {JOB_HEADER: id})

    def _sites_for(self, body: Body) -> answers.Answer:
        status, verdict = self._checked("inputs", self._name, body)
        return (status, verdict) if status != 200 else self._host.handle("POST", "/sites", body)

    def _checked(self, what: str, about: str, body: Body) -> answers.Answer:
        """The checks' answer to a body that is within the limit."""
        if size_of(body) > self._limits.body_bytes:
            return refusal(413, too_large(size_of(body), self._limits))
        if not self._knows_sites:
            status, table = self._host.handle("GET", "/sites")
            if status != 200:
                return status, table
            self._checks.learn(self._name, joined(table))
            self._knows_sites = True
        return self._checks.check(what, about, body, self._asked)

    def _asked(self, what: str, about: bytes) -> Body:
        """What a check wants to know: the sites of a plain module for some inputs, or the forms of large tensors."""
        if what == "sites":
            status, table = self._host.handle("POST", "/sites", about)
            if status != 200:
                raise messages.decode_error(bytes(joined(table)))
            return table
        found = {digest: self._tensors.get(_OWNER, digest) for digest in json.loads(about)}
        return json.dumps({d: None if t is None else [t.dtype, list(t.shape)] for d, t in found.items()}).encode()

    def _tensor(self, digest: str) -> answers.Answer:
        if self._tensors.get(_OWNER, digest) is None:
            return refusal(404, RemoteError(f"no tensor {digest[:64]!r} was sent, or it was let go"))
        return 200, b"{}"

    def _put_tensor(self, digest: str, body: Body) -> answers.Answer:
        if not _DIGEST.fullmatch(digest):
            return refusal(400, WireError(f"the digest of a tensor is 64 hexadecimal digits, got {digest[:80]!r}"))
        status, verdict = self._checked("tensor", digest, body)
        if status == 200:
            found: dict[str, Any] = json.loads(joined(verdict))
            self._tensors.put(_OWNER, digest, Stored(body, found["dtype"], tuple(found["shape"])))
        return status, verdict


def _answer(found: answers.Answer, headers: Mapping[str, str] | None = None) -> Answer:
    return Answer(found[0], bytes(joined(found[1])), headers or {})
