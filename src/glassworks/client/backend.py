"""A backend that is elsewhere: graphs and inputs go out as one message, saves come back as another.

Knows no torch: how the caller's tensors become bytes and come back is given (`as_leaf`, `from_blob`). The
site table is fetched once.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NoReturn

from glassworks.client.base import Transport
from glassworks.client.calls import call, error_of, model_path
from glassworks.client.content import joined
from glassworks.client.job import RemoteJob, status_of
from glassworks.client.lines import with_own_lines
from glassworks.errors import RemoteError, WireError
from glassworks.graph import logs, messages, sites, tree
from glassworks.graph.backend import Draft, Experiment, Generation, Inputs, Results
from glassworks.graph.graph import Graph
from glassworks.graph.jobs import EndedJob, Job
from glassworks.graph.sites import SiteTable
from glassworks.graph.wire import Blob, Constant, json_of

_UNKNOWN, _NOT_SENT = 404, 409


def keep_blob(blob: Blob) -> Blob:
    """The `from_blob` of a caller without tensors."""
    return blob


class RemoteBackend:
    """A model of a service.

    Args:
        transport: the way there.
        name: of the model.
        as_leaf: a tensor of the caller's as a constant, None for what is no tensor.
        from_blob: the bytes of a result as a tensor of the caller's.
    """

    def __init__(
        self,
        transport: Transport,
        name: str,
        *,
        as_leaf: tree.AsLeaf = tree.own_leaf,
        from_blob: messages.FromBlob = keep_blob,
    ) -> None:
        self.transport, self.name = transport, name
        self._as_leaf, self._from_blob = as_leaf, from_blob
        self._table: SiteTable | None = None
        self._by_shapes: dict[Any, SiteTable] = {}

    def sites(self, inputs: Inputs | None = None, *, within: frozenset[str] = frozenset()) -> SiteTable:
        """The model's site table, as the service has it; of a plain module, for inputs of these shapes.

        `within`: native paths of modules whose own operations are to be sites too.
        """
        if self._table is None:
            self._table = table_from_bytes(call(self.transport, "GET", model_path(self.name, "sites")))
        if within <= set(self._table.within) and (inputs is None or not self._table.plain):
            return self._table
        inputs = inputs if inputs is not None and self._table.plain else Inputs(())
        shapes = self._shapes(inputs), within
        if shapes not in self._by_shapes:
            body = messages.encode_inputs(inputs, within=within, as_leaf=self._as_leaf)
            answer = call(self.transport, "POST", model_path(self.name, "sites"), body)
            self._by_shapes[shapes] = table_from_bytes(answer)
        return self._by_shapes[shapes]

    def _shapes(self, inputs: Inputs) -> Any:
        """What tells apart inputs whose tables may differ: everything but the values of tensors."""
        leaves: list[Constant] = []
        parts = [(rows.ids, rows.args, dict(rows.kwargs)) for rows in inputs.invokes]
        own = tree.flatten([*parts, dict(inputs.named)], leaves, where="inputs", as_leaf=self._as_leaf)
        return json.dumps(own), tuple((str(leaf.dtype), tuple(leaf.shape)) for leaf in leaves)

    def run(self, graph: Graph, inputs: Inputs, generation: Generation | None = None) -> Results:
        """Run an experiment there and give its saves."""
        return self.run_session([Experiment(graph, inputs, generation)])[0]

    def run_session(self, experiments: Sequence[Experiment]) -> list[Results]:
        """Run several there, in order, as one job. What the service refuses is raised here, of its own
        type."""
        return self._read(self._post("run", experiments), experiments) if experiments else []

    def submit(self, experiments: Sequence[Experiment]) -> Job:
        """Let several run there, in order, as one job, and go on. What a check refuses is raised here."""
        if not experiments:
            return EndedJob(list)
        own = tuple(experiments)
        status = status_of(self._post("jobs", own))
        graphs = [experiment.graph for experiment in own]
        return RemoteJob(
            self.transport, status["id"], as_leaf=self._as_leaf, read=lambda answer: self._read(answer, own),
            understood=lambda error: with_own_lines(error, graphs),
        )  # fmt: skip

    def _post(self, what: str, experiments: Sequence[Experiment]) -> bytes:
        """Send a request, its large tensors first where the service has them not."""
        aside: dict[str, Blob] = {}
        body = messages.encode_request(self.name, experiments, as_leaf=self._as_leaf, aside=aside)
        path = model_path(self.name, what)
        for last in (False, True):
            self._send(aside)
            status, answer = self.transport.request("POST", path, body)
            if 200 <= status < 300:
                return bytes(joined(answer))
            if status != _NOT_SENT or last:  # let go between the question and the request
                break
        error = error_of(status, bytes(joined(answer)), f"POST {path}")
        raise with_own_lines(error, [experiment.graph for experiment in experiments])

    def _send(self, tensors: Mapping[str, Blob]) -> None:
        for digest, blob in tensors.items():
            path = f"/v1/tensors/{digest}"
            if self.transport.request("GET", path)[0] == _UNKNOWN:
                call(self.transport, "PUT", path, messages.encode_tensor(blob))

    def _read(self, answer: bytes, experiments: Sequence[Experiment]) -> list[Results]:
        results = messages.decode_results(answer, from_blob=self._from_blob)
        if len(results) != len(experiments):
            raise WireError(f"{len(experiments)} experiments were sent and {len(results)} results came back")
        return [_heard(experiment.graph, result) for experiment, result in zip(experiments, results, strict=True)]

    def live(self, draft: Draft, inputs: Inputs, *, within: frozenset[str] = frozenset()) -> NoReturn:
        """Refused: only data travels, and a live block would have to travel line by line."""
        raise RemoteError(
            f"model.live stops the model at each line, so the model must be in this process: load it with gw.load, or "
            f"write the same block with model.trace, which runs as one job on {self.name}"
        )

    def __repr__(self) -> str:
        return f"RemoteBackend({self.transport!r}, {self.name!r})"


def _heard(graph: Graph, results: Results) -> Results:
    """The results, after what the run said was said here, with the author's own lines."""
    if any(entry.node >= len(graph) for entry in results.logs):
        raise WireError(f"a log names a node that the graph of {len(graph)} nodes does not have")
    own = [replace(entry, line=graph.where(entry.node)) for entry in results.logs]
    for entry in own:
        logs.tell(entry)
    return replace(results, logs=own)


def table_from_bytes(data: bytes | bytearray) -> SiteTable:
    """A site table from the JSON text of a service. Raises WireError."""
    try:
        return sites.from_json(json_of(bytes(data), "the answer"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WireError(f"the site table of the service cannot be read ({type(error).__name__}: {error})") from None
