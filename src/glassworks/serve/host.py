"""One model and what it answers: the side of a service that holds weights.

Everything that is read from messages for a model, and written for them, is read and written here, for whoever runs the
experiments: a worker's engine, or `handle`, which runs them one by one and is all that a service in the caller's own
process needs. Whatever an experiment raises while it runs is that experiment's error: it goes back with its type, its
message and its notes, and the host goes on.
"""

import json
import logging
import tempfile
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from glassworks.client.backend import keep_blob
from glassworks.client.content import Body, Whole, joined, split
from glassworks.errors import Cancelled, WireError
from glassworks.graph import logs, messages, sites, tree
from glassworks.graph.backend import Backend, Results
from glassworks.graph.logs import LogEntry
from glassworks.run.watch import watched
from glassworks.serve.answers import Answer, refusal, status_of
from glassworks.serve.watch import PriceNode, RunWatch, free

_LOG = logging.getLogger("glassworks.serve")
Hear = Callable[[int, LogEntry], None]
"""(number of the experiment, what it said)."""


Begun = Callable[[dict[str, Any], RunWatch], None]
"""(verdict, what watches the run)"""


def _ignored(*_: Any) -> None:
    """Nobody wants to know."""


class ModelHost:
    """A backend behind messages.

    Args:
        backend: runs the experiments.
        tokenizer: the tokenizer's files by name.
        result_bytes: how much one request may save.
        price: makes what prices the nodes of a request that nobody could price before.
        as_leaf: a tensor of the backend's as a constant.
        from_blob: bytes as a tensor of the backend's.
        run_s: how long one request may take; None: as long as it likes.

    Attributes:
        tokenizer: its files, as one message.
        running: what watches the requests that `run` is at, by their ids.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        tokenizer: Mapping[str, bytes],
        result_bytes: int,
        price: Callable[[], PriceNode] = lambda: free,
        as_leaf: tree.AsLeaf = tree.own_leaf,
        from_blob: messages.FromBlob = keep_blob,
        run_s: float | None = None,
    ) -> None:
        self.backend, self.price, self._result_bytes, self._run_s = backend, price, result_bytes, run_s
        self.running: dict[str, RunWatch] = {}
        self._cancelled: deque[str] = deque(maxlen=1000)
        self._as_leaf, self._from_blob = as_leaf, from_blob
        self.tokenizer = messages.encode_files(tokenizer)
        self._table: bytes | None = None

    def handle(self, method: str, path: str, body: Body | None = None) -> Answer:
        """GET /healthz, /sites, /tokenizer, /progress/{id}; POST /sites for inputs, /cancel/{id}, and /run or /run/{id}
        for a framed verdict, request and large tensors."""
        what, _, id = path.removeprefix("/").partition("/")
        match method, what:
            case "GET", "healthz":
                return 200, b'{"status": "ok"}'
            case "GET", "sites":
                return self.sites()
            case "POST", "sites":
                return self.sites_for(memoryview(joined(body or b"")))
            case "GET", "tokenizer":
                return 200, self.tokenizer
            case "POST", "run":
                return self.run(joined(body or b""), id)
            case "GET", "progress":
                return self._progress(id)
            case "POST", "cancel":
                self.cancel(id)
                return 200, b"{}"
        return 404, messages.encode_error(LookupError(f"no such request: {method} {path}"))

    # What is known of the model.

    def sites(self) -> Answer:
        """The site table. Any thread may ask."""
        if self._table is None:
            self._table = json.dumps(sites.to_json(self.backend.sites())).encode()
        return 200, self._table

    def sites_for(self, body: memoryview) -> Answer:
        """The site table for inputs, or with the operations inside modules. It may run the model."""
        try:
            inputs, within = messages.decode_inputs(body, from_blob=self._from_blob)
        except WireError as error:
            return refusal(status_of(error), error)
        try:
            return 200, json.dumps(sites.to_json(self.backend.sites(inputs, within=within))).encode()
        except Exception as error:  # noqa: BLE001 - what a model raises while it is scanned
            return refusal(422, error)

    # Requests.

    def read(self, body: Whole) -> tuple[dict[str, Any], messages.Request]:
        """What the check said, and what it said it of. WireError: the bytes are not that."""
        first, request, *large = split(body)
        verdict = json.loads(bytes(first))
        aside = dict(zip(verdict["tensors"], map(messages.decode_tensor, large), strict=True))
        return verdict, messages.decode_request(request, from_blob=self._from_blob, aside=aside)

    def written(self, results: list[Results]) -> bytes:
        """What came of a request. LimitExceeded: it is more than one may save."""
        return messages.encode_results(results, as_leaf=self._as_leaf, limit_bytes=self._result_bytes)

    def run(self, body: Whole, id: str = "", *, hear: Hear = _ignored, begun: Begun = _ignored) -> Answer:
        """Run a request, with the model for itself.

        Args:
            body: a framed verdict, request and large tensors.
            id: under which it may be called off from another thread.
            hear: is told what its graphs say. begun: is told of the run before it begins.
        """
        try:
            verdict, request = self.read(body)
        except WireError as error:
            return refusal(status_of(error), error)
        watch = RunWatch(verdict["late"], self.price(), run_s=self._run_s, job=id)
        self.running[id] = watch
        if id in self._cancelled:
            watch.stop()
        begun(verdict, watch)
        try:
            with logs.heard_by(lambda entry: hear(watch.number, entry)), watched(watch):
                results = self.backend.run_session(request.experiments)
            return 200, self.written(results)
        except Exception as error:  # noqa: BLE001 - the experiment's own error, whatever its type
            return failed(error)
        finally:
            self.running.pop(id, None)

    def cancel(self, id: str) -> None:
        """Call a run off, also one that has not come yet. Any thread may ask."""
        self._cancelled.append(id)
        watch = self.running.get(id)
        if watch is not None:
            watch.stop()

    def _progress(self, id: str) -> Answer:
        watch = self.running.get(id)
        return 200, json.dumps({"forwards": 0 if watch is None else watch.forwards}).encode()


def failed(error: Exception) -> Answer:
    """What goes back where an experiment has raised something."""
    _LOG.info("an experiment failed: %s", type(error).__name__)
    return refusal(409 if isinstance(error, Cancelled) else 422, error)


def tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """What a transformers tokenizer saves, by file name; nothing for None."""
    if tokenizer is None:
        return {}
    with tempfile.TemporaryDirectory(prefix="glassworks-") as folder:
        tokenizer.save_pretrained(folder)
        found = sorted(path for path in Path(folder).iterdir() if path.suffix in messages.FILE_SUFFIXES)
        return {path.name: path.read_bytes() for path in found}
