"""The models of a service: how to reach them, what they answer about themselves, and what a check says of a request.

Looks into no request. A checker does, with the site table, the tokenizer and the limits; what it lets pass goes on,
unchanged: the bytes that were checked are the bytes that run.
"""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from glassworks.client.calls import error_of
from glassworks.client.content import Body, joined, size_of
from glassworks.errors import ModelError, RemoteError, WireError
from glassworks.graph.limits import Limits
from glassworks.serve.answers import RETRY_AFTER_S, Answer, Refused, refusal, too_large
from glassworks.serve.tensors import Stored

_LOG = logging.getLogger("glassworks.serve")
Ask = Callable[[str, bytes], Body]
Host = Callable[[str, str, Body | None], Answer]
"""What answers for a model, by (method, path, body). RemoteError: it did not."""


class Checker(Protocol):
    """What decides about bodies: `checks.Checks`, in this process or behind a pipe to one of its own."""

    def learn(self, model: str, table: bytes, tokenizer: bytes) -> None:
        """Take in the site table of a model, and its tokenizer's files as one message."""

    def check(self, what: str, about: str, body: Body, ask: Ask) -> Answer:
        """200 and a verdict, or the refusal; `ask` answers what only the service and its hosts know."""


class Tensors(Protocol):
    """Large tensors of keys, by digest."""

    def get(self, owner: str, digest: str) -> Stored | None:
        """A tensor of this key."""

    def put(self, owner: str, digest: str, tensor: Stored) -> None:
        """Keep a tensor of this key."""


@dataclass(frozen=True, slots=True)
class LetIn:
    """A request that may run: what the check said of it, the same as it came, and the large tensors that it names."""

    verdict: dict[str, Any]
    tensors: tuple[str, ...]


class Models:
    """Models by name, each with its host. An `owner` is who asks: the id of a key.

    Args:
        hosts: how to reach each model.
        limits: what one request may ask for.
        checker: decides what may run.
    """

    def __init__(self, hosts: Mapping[str, Host], *, limits: Limits, checker: Checker, tensors: Tensors) -> None:
        self.limits, self.tensors = limits, tensors
        self._hosts, self._checker = dict(hosts), checker
        self._tables: dict[str, bytes] = {}

    @property
    def names(self) -> list[str]:
        """Of the models."""
        return list(self._hosts)

    def check_name(self, name: str) -> None:
        """Refused, 404: there is no such model."""
        if name not in self._hosts:
            known = ", ".join(self._hosts)
            error = ModelError(f"this service has no model {name[:200]!r}; it has: {known}")
            error.param, error.code = "model", "model_not_found"  # type: ignore[attr-defined]
            raise Refused(404, error)

    def ask(self, name: str, method: str, path: str, body: Body | None = None) -> Answer:
        """The host's own answer. RemoteError: it is not there."""
        self.check_name(name)
        try:
            return self._hosts[name](method, path, body)
        except RemoteError as error:
            if path != "/healthz":  # asked over and over while the worker starts; the answer says it
                _LOG.warning("no answer from the worker of %s: %s", name, error)
            raise RemoteError(
                f"the worker that holds {name!r} is not there, or ended during this request; try again in "
                f"{RETRY_AFTER_S} s"
            ) from None

    def good(self, name: str, method: str, path: str, body: Body | None = None) -> bytes:
        """The body of the host's answer, if the host did not refuse; its refusal is raised."""
        status, found = self.ask(name, method, path, body)
        if not 200 <= status < 300:
            raise error_of(status, bytes(joined(found)), f"{method} {path}")
        return bytes(joined(found))

    def table(self, name: str) -> bytes:
        """The site table of a model, as JSON; the checker knows it from then on."""
        self.check_name(name)
        if name not in self._tables:
            table = self.good(name, "GET", "/sites")
            self._checker.learn(name, table, self.good(name, "GET", "/tokenizer"))
            self._tables[name] = table
        return self._tables[name]

    def table_for(self, name: str, body: Body, owner: str) -> Answer:
        """The site table of a plain module for inputs of some shapes."""
        self.table(name)
        status, verdict = self._checked("inputs", name, body, partial(self._asked, name, owner))
        return (status, verdict) if status != 200 else self.ask(name, "POST", "/sites", body)

    def let_in(self, what: str, name: str, body: Body, owner: str, *, about: str | None = None) -> LetIn:
        """What a check says of a request for a model. Refused: it may not run. `about`: see `checks.Checks.check`."""
        self.table(name)
        status, found = self._checked(what, about or name, body, partial(self._asked, name, owner))
        if status != 200:
            raise Refused.with_answer(status, found)
        verdict = json.loads(joined(found))
        return LetIn(verdict, tuple(verdict["tensors"]))

    def bodies(self, tensors: tuple[str, ...], owner: str) -> list[Body]:
        """Large tensors, each as the message that it came in. RemoteError: one was let go meanwhile."""
        found = [self.tensors.get(owner, digest) for digest in tensors]
        if None in found:
            raise RemoteError("a tensor of this request was let go while it was checked; send it again")
        return [tensor.body for tensor in found if tensor is not None]

    def has_tensor(self, digest: str, owner: str) -> Answer:
        """Whether a tensor of this key is here. Refused, 404: it is not."""
        if self.tensors.get(owner, digest) is None:
            raise Refused(404, RemoteError(f"no tensor {digest[:80]!r} was sent with this key, or it was let go"))
        return 200, b"{}"

    def put_tensor(self, digest: str, body: Body, owner: str) -> Answer:
        """Keep a tensor, which must have that digest."""
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise WireError(f"the digest of a tensor is 64 hexadecimal digits, got {digest[:80]!r}")
        status, verdict = self._checked("tensor", digest, body, _nothing)
        if status == 200:
            found: dict[str, Any] = json.loads(joined(verdict))
            self.tensors.put(owner, digest, Stored(body, found["dtype"], tuple(found["shape"])))
        return status, verdict

    def _checked(self, what: str, about: str, body: Body, ask: Ask) -> Answer:
        """The checker's answer to a body that is within the limit."""
        if size_of(body) > self.limits.body_bytes:
            return refusal(413, too_large(size_of(body), self.limits))
        return self._checker.check(what, about, body, ask)

    def _asked(self, name: str, owner: str, what: str, about: bytes) -> Body:
        """What a check wants to know: the sites of a plain module for some inputs, or the forms of large tensors."""
        if what == "sites":
            return self.good(name, "POST", "/sites", about)
        found = {digest: self.tensors.get(owner, digest) for digest in json.loads(about)}
        return json.dumps({d: None if t is None else [t.dtype, list(t.shape)] for d, t in found.items()}).encode()


def _nothing(what: str, about: bytes) -> Body:
    raise AssertionError(f"a check of a tensor asks nothing, and this one asked for {what}")
