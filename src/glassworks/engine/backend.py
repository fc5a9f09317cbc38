"""An engine as a backend: blocks of `model.on(engine)` become experiments among its requests."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from glassworks.engine.local import HasLocal, LocalBackend
from glassworks.errors import ModelError
from glassworks.graph.backend import Draft, Experiment, Generation, Inputs, Live, Results, run_in_order
from glassworks.graph.graph import Graph
from glassworks.graph.jobs import EndedJob, Job
from glassworks.graph.sites import SiteTable
from glassworks.trace.tensors import as_leaf

if TYPE_CHECKING:
    from glassworks.engine.engine import Engine


class EngineBackend(HasLocal):
    """Runs graphs on an engine; whoever waits for one drives it for everybody."""

    def __init__(self, engine: "Engine", local: LocalBackend) -> None:
        self._engine, self._local = engine, local

    @property
    def local(self) -> LocalBackend:
        """The model itself."""
        return self._local

    def sites(self, inputs: Inputs | None = None, *, within: frozenset[str] = frozenset()) -> SiteTable:
        """The model's site table."""
        return self._local.sites(inputs, within=within)

    def run(self, graph: Graph, inputs: Inputs, generation: Generation | None = None) -> Results:
        """Run a graph among the engine's requests. Errors of nodes keep their type and carry the user's line."""
        reply = self._engine.start(graph, inputs, generation)
        try:
            found: Any = reply.results
        except BaseException:
            reply.cancel()  # whoever was to wait for it is gone; nothing, if it has ended
            raise
        return found  # type: ignore[no-any-return]

    def run_session(self, experiments: Sequence[Experiment]) -> list[Results]:
        """Several experiments in order, values handed on."""
        return run_in_order(self, experiments)

    def submit(self, experiments: Sequence[Experiment]) -> Job:
        """The same, at once; a job that has ended."""
        return EndedJob(lambda: self.run_session(experiments), as_leaf=as_leaf)

    def live(self, draft: Draft, inputs: Inputs, *, within: frozenset[str] = frozenset()) -> Live:
        """ModelError: a live block keeps the model standing still, and an engine's model is everybody's."""
        raise ModelError(
            "a live block stands still in the middle of a forward pass, and on an engine others are in it too: write "
            "it with trace, or open it on the model itself"
        )
