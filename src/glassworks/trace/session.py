"""`with model.session():` several blocks as one job: values flow between them, and nothing runs until it ends.

A value of an earlier block that a later one uses is saved there and becomes an input here; that is all a link is.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from glassworks.errors import ScopeError
from glassworks.graph.backend import Experiment, Results
from glassworks.graph.flow import effects
from glassworks.graph.jobs import Job
from glassworks.graph.nodes import ALL_ROWS, Line, Node, Ref
from glassworks.trace.author import author
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
        if author() in self._core.sessions or author() in self._core.blocks:
            raise ScopeError(f"a session holds blocks; it cannot stand inside one, or inside another\n  at {caller()}")
        self._core.sessions[author()] = self
        return self

    async def __aenter__(self) -> "Session":
        return self.__enter__()

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        with self._ending(error) as experiments:
            if experiments and not self._wait:
                self._job = self._submitted(self._core.backend.submit(experiments))
            elif experiments:
                self._deliver(self._core.backend.run_session(experiments))

    async def __aexit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        with self._ending(error) as experiments:
            if experiments and not self._wait:
                self._job = self._submitted(await self._core.backend.submit_async(experiments))
            elif experiments:
                self._deliver(await self._core.backend.run_session_async(experiments))

    @contextmanager
    def _ending(self, error: BaseException | None) -> Iterator[list[Experiment]]:
        """Around the run of what is given; what was saved are results after it, or nothing."""
        del self._core.sessions[author()]
        for recorder in self._recorders:
            recorder.failure = "the session ended with an error, so nothing was computed"
        try:
            yield self._experiments() if error is None else []
            if error is None:
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
        return self._core.blocks.get(author())

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

    def _experiments(self) -> list[Experiment]:
        """What is to be run, in order; nothing, if nothing needs a run."""
        experiments = [
            Experiment(recorder.graph(), block.inputs, block._generation, links)
            for block, recorder, links in zip(self._blocks, self._recorders, self._links, strict=True)
        ]
        needed = any(True for experiment in experiments for _ in effects(experiment.graph))
        return experiments if needed else []

    def _submitted(self, job: Job) -> Submitted:
        return Submitted(job, [value for block in self._blocks for value in block.awaiting], self._deliver)

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
