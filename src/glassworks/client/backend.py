"""A backend that is elsewhere: graphs and inputs go out as one message, saves come back as another.

Knows no torch: how the caller's tensors become bytes and come back is given (`as_leaf`, `from_blob`). The
site table is fetched once.
"""

import json
from collections.abc import Sequence
from typing import Any, NoReturn

from glassworks.client import following
from glassworks.client.base import Request, Transport
from glassworks.client.calls import model_path
from glassworks.client.flow import carry, carry_async
from glassworks.client.patience import Patience
from glassworks.client.sent import Sent
from glassworks.errors import RemoteError, WireError
from glassworks.graph import messages, sites, tree
from glassworks.graph.backend import Draft, Experiment, Generation, Inputs, Results
from glassworks.graph.graph import Graph
from glassworks.graph.jobs import EndedJob, Job
from glassworks.graph.sites import SiteTable
from glassworks.graph.wire import Blob, Constant, json_of


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
        patience_s: how long a service that is not there is asked again.
        table: its sites, if they are known.
    """

    def __init__(
        self,
        transport: Transport,
        name: str,
        *,
        as_leaf: tree.AsLeaf = tree.own_leaf,
        from_blob: messages.FromBlob = keep_blob,
        patience_s: float = 0.0,
        table: SiteTable | None = None,
    ) -> None:
        self.transport, self.name, self.patience_s = transport, name, patience_s
        self._as_leaf, self._from_blob = as_leaf, from_blob
        self._table = table
        self._by_shapes: dict[Any, SiteTable] = {}

    def sites(self, inputs: Inputs | None = None, *, within: frozenset[str] = frozenset()) -> SiteTable:
        """The model's site table, as the service has it; of a plain module, for inputs of these shapes.

        `within`: native paths of modules whose own operations are to be sites too.
        """
        if self._table is None:
            self._table = table_from_bytes(self._good(Request("GET", model_path(self.name, "sites"))))
        if within <= set(self._table.within) and (inputs is None or not self._table.plain):
            return self._table
        inputs = inputs if inputs is not None and self._table.plain else Inputs(())
        shapes = self._shapes(inputs), within
        if shapes not in self._by_shapes:
            body = messages.encode_inputs(inputs, within=within, as_leaf=self._as_leaf)
            answer = self._good(Request("POST", model_path(self.name, "sites"), body))
            self._by_shapes[shapes] = table_from_bytes(answer)
        return self._by_shapes[shapes]

    def _good(self, request: Request) -> bytes:
        return carry(following.good(request, Patience(self.patience_s)), self.transport)

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
        if not experiments:
            return []
        own = self._sent(experiments)
        return own.results(carry(own.run(), self.transport, hear=own.heard.event))

    async def run_session_async(self, experiments: Sequence[Experiment]) -> list[Results]:
        """As `run_session`."""
        if not experiments:
            return []
        own = self._sent(experiments)
        return own.results(await carry_async(own.run(), self.transport.asynchronous(), hear=own.heard.event))

    def submit(self, experiments: Sequence[Experiment]) -> Job:
        """Let several run there, in order, as one job, and go on. What a check refuses is raised here."""
        if not experiments:
            return EndedJob(list)
        own = self._sent(experiments)
        return own.job(carry(own.submit(), self.transport))

    async def submit_async(self, experiments: Sequence[Experiment]) -> Job:
        """As `submit`."""
        if not experiments:
            return EndedJob(list)
        own = self._sent(experiments)
        return own.job(await carry_async(own.submit(), self.transport.asynchronous()), in_tasks=True)

    def _sent(self, experiments: Sequence[Experiment]) -> Sent:
        return Sent(
            self.transport, self.name, experiments,
            as_leaf=self._as_leaf, from_blob=self._from_blob, patience_s=self.patience_s,
        )  # fmt: skip

    def live(self, draft: Draft, inputs: Inputs, *, within: frozenset[str] = frozenset()) -> NoReturn:
        """Refused: only data travels, and a live block would have to travel line by line."""
        raise RemoteError(
            f"model.live stops the model at each line, so the model must be in this process: load it with gw.load, or "
            f"write the same block with model.trace, which runs as one job on {self.name}"
        )

    def __repr__(self) -> str:
        return f"RemoteBackend({self.transport!r}, {self.name!r})"


def table_from_bytes(data: bytes | bytearray) -> SiteTable:
    """A site table from the JSON text of a service. Raises WireError."""
    try:
        return sites.from_json(json_of(bytes(data), "the answer"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WireError(f"the site table of the service cannot be read ({type(error).__name__}: {error})") from None
