"""One model and what it answers: the side of a service that holds weights.

Speaks the same messages inside a worker and inside the caller's own process. Whatever an experiment raises
while it runs is that experiment's error: it goes back with its type, its message and its notes, and the host
goes on.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from glassworks.client.backend import keep_blob
from glassworks.client.content import Body, Whole, joined, split
from glassworks.errors import WireError
from glassworks.graph import logs, messages, sites, tree
from glassworks.graph.backend import Backend
from glassworks.serve.answers import Answer, refusal, status_of

_LOG = logging.getLogger("glassworks.serve")
Watching = Callable[[Sequence[Sequence[int]]], AbstractContextManager[None]]


class ModelHost:
    """A backend behind messages.

    Args:
        backend: runs the experiments.
        tokenizer: the tokenizer's files by name.
        result_bytes: how much one request may save.
        watching: what stands around a run, given the nodes to be priced while it runs.
        as_leaf: a tensor of the backend's as a constant.
        from_blob: bytes as a tensor of the backend's.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        tokenizer: Mapping[str, bytes],
        result_bytes: int,
        watching: Watching = lambda late: nullcontext(),
        as_leaf: tree.AsLeaf = tree.own_leaf,
        from_blob: messages.FromBlob = keep_blob,
    ) -> None:
        self._backend, self._result_bytes, self._watching = backend, result_bytes, watching
        self._as_leaf, self._from_blob = as_leaf, from_blob
        self._tokenizer = messages.encode_files(tokenizer)

    def handle(self, method: str, path: str, body: Body | None = None) -> Answer:
        """GET /healthz, /sites, /tokenizer; POST /run for a framed verdict and request, and /sites for inputs."""
        match method, path:
            case "GET", "/healthz":
                return 200, b'{"status": "ok"}'
            case "GET", "/sites":
                return self._sites(None)
            case "POST", "/sites":
                return self._sites(memoryview(joined(body or b"")))
            case "GET", "/tokenizer":
                return 200, self._tokenizer
            case "POST", "/run":
                return self._run(joined(body or b""))
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

    def _run(self, body: Whole) -> Answer:
        try:
            verdict, request = self._read(body)
        except WireError as error:
            return refusal(status_of(error), error)
        try:
            with logs.silence(), self._watching(verdict["late"]):
                results = self._backend.run_session(request.experiments)
            answer = messages.encode_results(results, as_leaf=self._as_leaf, limit_bytes=self._result_bytes)
        except Exception as error:  # noqa: BLE001 - the experiment's own error, whatever its type
            _LOG.info("an experiment on %s failed: %s", request.model, type(error).__name__)
            return refusal(422, error)
        return 200, answer

    def _read(self, body: Whole) -> tuple[dict[str, Any], messages.Request]:
        """What the check said, and what it said it of."""
        verdict, request = split(body)
        return json.loads(bytes(verdict)), messages.decode_request(request, from_blob=self._from_blob)


def tokenizer_files(tokenizer: Any) -> dict[str, bytes]:
    """What a transformers tokenizer saves, by file name; nothing for None."""
    if tokenizer is None:
        return {}
    with tempfile.TemporaryDirectory(prefix="glassworks-") as folder:
        tokenizer.save_pretrained(folder)
        found = sorted(path for path in Path(folder).iterdir() if path.suffix in messages.FILE_SUFFIXES)
        return {path.name: path.read_bytes() for path in found}
