"""`with model.session():` several blocks as one job: values flow between them, and nothing runs until it ends.

A value of an earlier block that a later one uses is saved there and becomes an input here; that is all a link is.
"""

from threading import get_ident
from typing import Any

from glassworks.errors import ScopeError
from glassworks.graph.backend import Experiment, Results
from glassworks.graph.flow import effects
from glassworks.graph.nodes import ALL_ROWS, Line, Node, Ref
from glassworks.trace.block import Block
from glassworks.trace.parts import Core
from glassworks.trace.recorder import Recorder, caller
from glassworks.trace.tensors import dtype_name
from glassworks.trace.value import Value
from glassworks.trace.waiting import Submitted


class Session:
    """The blocks of one job, in order."""

    def __init__(self, core: Core, *, wait: bool = True) -> None:
        self._core = core
        self._wait = wait
        self._job: Submitted | None = None
        self._blocks: list[Block] = []
        self._recorders: list[Recorder] = []
        self._links: list[dict[str, tuple[int, str]]] = []
        self._pending: dict[int, dict[str, tuple[int, str]]] = {}

    def __enter__(self) -> "Session":
        if get_ident() in self._core.sessions or get_ident() in self._core.blocks:
            raise ScopeError(f"a session holds blocks; it cannot stand inside one, or inside another\n  at {caller()}")
        self._core.sessions[get_ident()] = self
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        del self._core.sessions[get_ident()]
        for recorder in self._recorders:
            recorder.failure = "the session ended with an error, so nothing was computed"
        try:
            if error is None:
                self._run()
                for recorder in self._recorders:
                    recorder.failure = None
        finally:
            for recorder in self._recorders:
                recorder.close()

    def adopt(self, block: Block) -> None:
        """A block has ended: it waits for the end of the session."""
        recorder = block._own()
        self._blocks.append(block)
        self._recorders.append(recorder)
        self._links.append(self._pending.pop(id(recorder), {}))

    @property
    def open(self) -> Recorder | None:
        """The recorder of the block that is open now."""
        return self._core.blocks.get(get_ident())

    def bring(self, value: Value, into: Recorder, line: Line) -> int:
        """The node, in an open block, of a value that an earlier block of the session holds."""
        source = value._block
        if source not in self._recorders:
            raise ScopeError(
                f"this Value belongs to a block outside the session\n  value at {value._line}\n  used at  {line}"
            )
        number = self._recorders.index(source)
        if source.nodes[value._node].when:
            raise ScopeError(
                f"this Value belongs to a branch of gw.cond, which may not be taken: use what gw.cond gives\n"
                f"  value at {value._line}\n  used at  {line}"
            )
        name = f"session.{number}.{value._node}"
        links = self._pending.setdefault(id(into), {})
        if name in links:
            return next(n for n, node in enumerate(into.nodes) if node.kind == "input" and node.target == name)
        if not any(node.kind == "save" and node.target == name for node in source.nodes):
            own = Node("save", name, (Ref(value._node),), (("single", True),), (value._node,), ALL_ROWS, None)
            source.nodes.append(own)
            source.lines.append(line)
        links[name] = (number, name)
        meta = value._meta()
        return into.add(Node("input", name, (tuple(meta.shape), dtype_name(meta.dtype)), (), (), ALL_ROWS, None), line)

    def _run(self) -> None:
        experiments = []
        for block, recorder, links in zip(self._blocks, self._recorders, self._links, strict=True):
            experiments.append(Experiment(recorder.graph(), block.inputs, block._generation, links))
        if not any(True for experiment in experiments for _ in effects(experiment.graph)):
            return
        if self._wait:
            self._deliver(self._core.backend.run_session(experiments))
            return
        job = self._core.backend.submit(experiments)
        self._job = Submitted(job, [value for block in self._blocks for value in block.awaiting], self._deliver)

    def _deliver(self, found: list[Results]) -> None:
        for block, results in zip(self._blocks, found, strict=True):
            block.deliver(results)

    @property
    def job(self) -> Submitted:
        """With `wait=False`: the job that runs the blocks."""
        if self._job is None:
            raise ScopeError(
                f"a session has a job once it has ended, if it was opened with wait=False\n  at {caller()}"
            )
        return self._job
