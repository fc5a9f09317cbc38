"""One model and what it answers: the side of a service that holds weights.

Speaks the same messages inside a worker and inside the caller's own process. Whatever an experiment raises
while it runs is that experiment's error: it goes back with its type, its message and its notes, and the host
goes on.
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
from glassworks.errors import WireError
from glassworks.graph import logs, messages, sites, tree
from glassworks.graph.backend import Backend
from glassworks.run.watch import watched
from glassworks.serve.answers import Answer, refusal, status_of
from glassworks.serve.watch import PriceNode, RunWatch, free

_LOG = logging.getLogger("glassworks.serve")


class ModelHost:
    """A backend behind messages.

    Args:
        backend: runs the experiments.
        tokenizer: the tokenizer's files by name.
        result_bytes: how much one request may save.
        price: makes what prices the nodes of a request that nobody could price before.
        as_leaf: a tensor of the backend's as a constant.
        from_blob: bytes as a tensor of the backend's.
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
    ) -> None:
        self._backend, self._result_bytes, self._price = backend, result_bytes, price
        self._running: dict[str, RunWatch] = {}
        self._cancelled: deque[str] = deque(maxlen=1000)
        self._as_leaf, self._from_blob = as_leaf, from_blob
        self._tokenizer = messages.encode_files(tokenizer)

    def handle(self, method: str, path: str, body: Body | None = None) -> Answer:
        """GET /healthz, /sites, /tokenizer, /progress/{id}; POST /sites for inputs, /cancel/{id}, and /run or /run/{id}
        for a framed verdict, request and large tensors."""
        what, _, id = path.removeprefix("/").partition("/")
        match method, what:
            case "GET", "healthz":
                return 200, b'{"status": "ok"}'
            case "GET", "sites":
                return self._sites(None)
            case "POST", "sites":
                return self._sites(memoryview(joined(body or b"")))
            case "GET", "tokenizer":
                return 200, self._tokenizer
            case "POST", "run":
                return self._run(joined(body or b""), id)
            case "GET", "progress":
                return self._progress(id)
            case "POST", "cancel":
                return self._cancel(id)
        return 404, messages.encode_error(LookupError(f"no such request: {method} {path}"))

    def _sites(self, body: memoryview | None) -> Answer:
        try:
            asked = None if body is None else messages.decode_inputs(body, from_blob=self._from_blob)
        except WireError as error:
            return refusal(status_of(error), error)
        try:
            inputs, within = (None, frozenset[str]()) if asked is None else asked
            return 200, json.dumps(sites.to_json(self._backend.sites(inputs, within=within))).encode()
        except Exception as error:  # noqa: BLE001 - what a model raises while it is scanned
            return refusal(422, error)

    def _run(self, body: Whole, id: str) -> Answer:
        try:
            verdict, request = self._read(body)
        except WireError as error:
            return refusal(status_of(error), error)
        watch = RunWatch(verdict["late"], self._price())
        self._running[id] = watch
        if id in self._cancelled:
            watch.stop()
        try:
            with logs.silence(), watched(watch):
                results = self._backend.run_session(request.experiments)
            answer = messages.encode_results(results, as_leaf=self._as_leaf, limit_bytes=self._result_bytes)
        except Exception as error:  # noqa: BLE001 - the experiment's own error, whatever its type
            _LOG.info("an experiment on %s failed: %s", request.model, type(error).__name__)
            return refusal(422, error)
        finally:
            self._running.pop(id, None)
        return 200, answer

    def _read(self, body: Whole) -> tuple[dict[str, Any], messages.Request]:
        """What the check said, and what it said it of."""
        first, request, *large = split(body)
        verdict = json.loads(bytes(first))
        aside = dict(zip(verdict["tensors"], map(messages.decode_tensor, large), strict=True))
        return verdict, messages.decode_request(request, from_blob=self._from_blob, aside=aside)

    def _progress(self, id: str) -> Answer:
        watch = self._running.get(id)
        return 200, json.dumps({"forwards": 0 if watch is None else watch.forwards}).encode()

    def _cancel(self, id: str) -> Answer:
        """Call a run off, also one that has not come yet."""
        self._cancelled.append(id)
        watch = self._running.get(id)
        if watch is not None:
            watch.stop()
        return 200, b"{}"


def tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """What a transformers tokenizer saves, by file name; nothing for None."""
    if tokenizer is None:
        return {}
    with tempfile.TemporaryDirectory(prefix="glassworks-") as folder:
        tokenizer.save_pretrained(folder)
        found = sorted(path for path in Path(folder).iterdir() if path.suffix in messages.FILE_SUFFIXES)
        return {path.name: path.read_bytes() for path in found}
