"""What a service answers, whatever carries the questions: the same handlers behind a web server and in a process.

A service holds no weights and looks into no request. A checker does, with the site table and the limits; what it
lets pass goes on, unchanged, to the host of the model: the bytes that were checked are the bytes that run.
"""

import json
import logging
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Protocol

from glassworks.client.calls import error_of
from glassworks.client.content import Body, framed, joined, size_of
from glassworks.errors import GlassworksError, ModelError, RemoteError, WireError
from glassworks.graph.jobs import ENDED, RUNNING
from glassworks.graph.limits import Limits
from glassworks.serve.answers import RETRY_AFTER_S, Answer, refusal, status_of, too_large
from glassworks.serve.hosts import Host
from glassworks.serve.jobs import Jobs, Served
from glassworks.serve.tensors import Stored, TensorStore

_LOG = logging.getLogger("glassworks.serve")
Ask = Callable[[str, bytes], Body]


class Checker(Protocol):
    """What decides about bodies: `checks.Checks`, in this process or behind a pipe to one of its own."""

    def learn(self, model: str, table: bytes) -> None:
        """Take in the site table of a model."""

    def check(self, what: str, about: str, body: Body, ask: Ask) -> Answer:
        """200 and a verdict, or the refusal; `ask` answers what only the service and its hosts know."""


class Service:
    """Models by name, each with its host. An `owner` is who asks: a key's digest.

    Args:
        hosts: how to reach each model.
        limits: what one request may ask for.
        checker: decides what may run.
    """

    def __init__(self, hosts: Mapping[str, Host], *, limits: Limits, checker: Checker) -> None:
        self.limits = limits
        self._hosts, self._checker = dict(hosts), checker
        self._tables: dict[str, bytes] = {}
        self._jobs, self._tensors = Jobs(), TensorStore()

    # Questions about models.

    def health(self) -> Answer:
        """Whether every model can be reached now."""
        return self._answer(self._health)

    def models(self) -> Answer:
        """Names of the models, as JSON."""
        return 200, json.dumps({"models": [{"name": name} for name in self._hosts]}).encode()

    def sites(self, name: str) -> Answer:
        """The site table of a model, as JSON."""
        return self._answer(lambda: (200, self._table(name)))

    def sites_for(self, name: str, body: Body, owner: str = "") -> Answer:
        """The site table of a plain module for inputs of some shapes, as JSON."""
        return self._answer(lambda: self._sites_for(name, body, owner))

    def tokenizer(self, name: str) -> Answer:
        """The files of a model's tokenizer, as one message."""
        return self._answer(lambda: self._ask(name, "GET", "/tokenizer"))

    # Runs and jobs.

    def run(self, name: str, body: Body, owner: str = "") -> Answer:
        """Check experiments, then let the model's host run them."""
        return self._answer(lambda: self._run(name, body, owner))

    def submit(self, name: str, body: Body, owner: str = "") -> Answer:
        """Check experiments, and let them wait for their turn; 202 and the job's status, as JSON."""
        return self._answer(lambda: self._submit(name, body, owner))

    def job(self, id: str, owner: str = "", wait_s: float = 0.0) -> Answer:
        """The status of a job, as JSON; of one under way, once it has ended or so long has passed."""
        return self._answer(lambda: self._job(id, owner, wait_s))

    def is_under_way(self, id: str, owner: str = "") -> bool:
        """Whether a job is known and has not ended: for who would rather ask again than wait here."""
        try:
            return self._jobs.find(owner, id).status not in ENDED
        except RemoteError:
            return False

    def cancel(self, id: str, owner: str = "") -> Answer:
        """Call a job off; its status, as JSON."""
        return self._answer(lambda: self._cancel(id, owner))

    def job_results(self, id: str, owner: str = "") -> Answer:
        """What the run of a job answered, as `run` would have."""
        return self._answer(lambda: self._job_results(id, owner))

    # Large tensors.

    def tensor(self, digest: str, owner: str = "") -> Answer:
        """Whether a tensor of this key is here; 404 if not."""
        return self._answer(lambda: self._tensor(digest, owner))

    def put_tensor(self, digest: str, body: Body, owner: str = "") -> Answer:
        """Keep a tensor, which must have that digest."""
        return self._answer(lambda: self._put_tensor(digest, body, owner))

    # How.

    def _answer(self, make: Callable[[], Answer]) -> Answer:
        try:
            return make()
        except _NotHere as error:
            return refusal(404, error.args[0])
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
        status, found = self._ask(name, method, path, body)
        if not 200 <= status < 300:
            raise error_of(status, bytes(joined(found)), f"{method} {path}")
        return bytes(joined(found))

    def _check_name(self, name: str) -> None:
        if name not in self._hosts:
            raise _NotHere(ModelError(f"this service has no model {name[:200]!r}; it has: {', '.join(self._hosts)}"))

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

    def _checked(self, what: str, about: str, body: Body, ask: Ask) -> Answer:
        """The checker's answer to a body that is within the limit."""
        if size_of(body) > self.limits.body_bytes:
            return refusal(413, too_large(size_of(body), self.limits))
        return self._checker.check(what, about, body, ask)

    def _sites_for(self, name: str, body: Body, owner: str) -> Answer:
        self._table(name)
        status, verdict = self._checked("inputs", name, body, partial(self._asked, name, owner))
        return (status, verdict) if status != 200 else self._ask(name, "POST", "/sites", body)

    def _asked(self, name: str, owner: str, what: str, about: bytes) -> Body:
        """What a check wants to know: the sites of a plain module for some inputs, or the forms of large tensors."""
        if what == "sites":
            return self._good(name, "POST", "/sites", about)
        found = {digest: self._tensors.get(owner, digest) for digest in json.loads(about)}
        return json.dumps({d: None if t is None else [t.dtype, list(t.shape)] for d, t in found.items()}).encode()

    def _let_in(self, name: str, body: Body, owner: str) -> tuple[Answer, list[Body]]:
        """The checker's answer to a request, and, if it may run, what the host is to be sent."""
        self._table(name)
        status, found = self._checked("run", name, body, partial(self._asked, name, owner))
        if status != 200:
            return (status, found), []
        verdict = json.loads(joined(found))
        tensors = [self._tensors.get(owner, digest) for digest in verdict["tensors"]]
        if None in tensors:
            raise RemoteError("a tensor of this request was let go while it was checked; send it again")
        return (status, found), [joined(found), body, *[tensor.body for tensor in tensors if tensor is not None]]

    def _run(self, name: str, body: Body, owner: str) -> Answer:
        answer, parts = self._let_in(name, body, owner)
        return self._ask(name, "POST", "/run", framed(parts)) if parts else answer

    # Jobs.

    def _submit(self, name: str, body: Body, owner: str) -> Answer:
        answer, parts = self._let_in(name, body, owner)
        if not parts:
            return answer

        def run(id: str) -> Answer:
            return self._answer(lambda: self._ask(name, "POST", f"/run/{id}", framed(parts)))

        job = self._jobs.submit(owner, name, json.loads(joined(answer[1]))["forwards"], run)
        return 202, self._status(job)

    def _status(self, job: Served) -> bytes:
        status, progress = job.status, 0.0
        if status == RUNNING:
            progress = self._progress(job)
        elif status in ENDED:
            progress = 1.0
        told = {"id": job.id, "model": job.model, "status": status, "position": self._jobs.position(job)}
        return json.dumps({**told, "progress": progress}).encode()

    def _progress(self, job: Served) -> float:
        try:
            done = json.loads(self._good(job.model, "GET", f"/progress/{job.id}"))["forwards"]
        except (GlassworksError, ValueError, KeyError):  # it has just ended, or the host is not there
            return 0.0
        return float(min(done / max(job.forwards, 1), 1.0))

    def _find(self, id: str, owner: str) -> Served:
        try:
            return self._jobs.find(owner, id)
        except RemoteError as error:
            raise _NotHere(error) from None

    def _job(self, id: str, owner: str, wait_s: float) -> Answer:
        job = self._find(id, owner)
        job.ended.wait(wait_s)
        return 200, self._status(job)

    def _cancel(self, id: str, owner: str) -> Answer:
        job = self._find(id, owner)
        if self._jobs.cancel(job):
            self._good(job.model, "POST", f"/cancel/{job.id}")
        return 200, self._status(job)

    def _job_results(self, id: str, owner: str) -> Answer:
        job = self._find(id, owner)
        if job.answer is None:
            return refusal(409, RemoteError(f"the job {id} has not ended: it is {job.status}"))
        return job.answer

    # Tensors.

    def _tensor(self, digest: str, owner: str) -> Answer:
        if self._tensors.get(owner, digest) is None:
            raise _NotHere(RemoteError(f"this key has sent no tensor {digest[:64]!r}, or it was let go"))
        return 200, b"{}"

    def _put_tensor(self, digest: str, body: Body, owner: str) -> Answer:
        if len(digest) != 64 or not set(digest) <= set("0123456789abcdef"):
            raise WireError(f"the digest of a tensor is 64 hexadecimal digits, got {digest[:80]!r}")
        status, verdict = self._checked("tensor", digest, body, _nothing)
        if status == 200:
            found: dict[str, Any] = json.loads(joined(verdict))
            self._tensors.put(owner, digest, Stored(body, found["dtype"], tuple(found["shape"])))
        return status, verdict


def _nothing(what: str, about: bytes) -> Body:
    raise AssertionError(f"a check of a tensor asks nothing, and this one asked for {what}")


class _NotHere(Exception):
    """Something by that name is not here: 404, with the error to give."""
