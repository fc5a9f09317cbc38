"""What a run says, told here once: while it runs, as its events come, and the rest when its results have come.

An event of kind `log` has as its data `{"experiment": k, "entry": [text, node, step, rows]}`. One that cannot be read
is passed over, for the results hold it too.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from glassworks.errors import WireError
from glassworks.graph import logs
from glassworks.graph.backend import Results
from glassworks.graph.graph import Graph
from glassworks.graph.jobs import Event
from glassworks.graph.logs import LogEntry


class Heard:
    """What the runs of some graphs have said so far. Entries get the author's own lines."""

    def __init__(self, graphs: Sequence[Graph]) -> None:
        self._graphs = tuple(graphs)
        self._told: Counter[tuple[int, LogEntry]] = Counter()

    def event(self, event: Event) -> None:
        """Tell what an event says, if it says something."""
        if event.kind != "log" or not isinstance(event.data, dict):
            return
        number = event.data.get("experiment", 0)
        if type(number) is not int or not 0 <= number < len(self._graphs):
            return
        try:
            entry = self._own(number, logs.from_json(event.data.get("entry"), "an event of the service"))
        except WireError:
            return
        self._told[number, entry] += 1
        logs.tell(entry)

    def results(self, found: Sequence[Results]) -> list[Results]:
        """The results, after what nobody has been told yet was told. WireError: they are of other graphs."""
        if len(found) != len(self._graphs):
            raise WireError(f"{len(self._graphs)} experiments were sent and {len(found)} results came back")
        return [self._result(number, result) for number, result in enumerate(found)]

    def _result(self, number: int, result: Results) -> Results:
        own = [self._own(number, entry) for entry in result.logs]
        for entry in own:
            if self._told[number, entry] > 0:
                self._told[number, entry] -= 1
            else:
                logs.tell(entry)
        return replace(result, logs=own)

    def _own(self, number: int, entry: LogEntry) -> LogEntry:
        graph = self._graphs[number]
        if entry.node >= len(graph):
            raise WireError(f"a log names a node that the graph of {len(graph)} nodes does not have")
        return replace(entry, line=graph.where(entry.node))
