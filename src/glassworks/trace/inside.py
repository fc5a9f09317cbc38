"""What stands inside a module: the heads of an attention, the operations of a forward.

`model.layers[3].attn.heads[2].output`, `model.layers[3].attn.op("softmax").output`. A head is a view of the site of all
heads. What a head adds to the residual, its `result`, is derived: written, it shifts what the projection returns.
"""

import difflib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from glassworks.errors import ScopeError, UnknownSite, WriteError
from glassworks.graph.nodes import ALL_ROWS, Line, Node
from glassworks.graph.sites import Site, SiteTable
from glassworks.trace.recorder import Recorder, caller
from glassworks.trace.show import axes
from glassworks.trace.structured import is_leaf, structured, write_site, write_structure
from glassworks.trace.value import Value

if TYPE_CHECKING:
    from glassworks.trace.parts import Core

_PORTS = ("query", "key", "value", "output")


class Heads:
    """The heads of one attention: all together, or by number.

    `.query`, `.key`, `.value` (after rotary) and `.output` (before the output projection) are
    `[batch, seq, heads, head_dim]`; of keys and values that heads share, as many as there are. `.result`
    `[batch, seq, heads, d_model]` is what each head adds to the residual.
    """

    _core: "Core"
    _name: str

    def __init__(self, core: "Core", name: str) -> None:
        self.__dict__["_core"], self.__dict__["_name"] = core, name

    def __len__(self) -> int:
        table = self._core.table
        for port in ("query", "output"):
            site = table.sites.get(f"{self._name}.{port}")
            if site is not None:
                return int(site.axes[2])
        attention = self._name.removesuffix(".heads")
        return int(table[f"{attention}.probs"].axes[1])

    def __getitem__(self, index: Any) -> Any:
        count = len(self)
        if isinstance(index, slice):
            return [Head(self, k) for k in range(*index.indices(count))]
        if type(index) is not int or not -count <= index < count:
            raise UnknownSite(f"head {index!r} of {count}: heads are numbered from 0\n  at {caller()}")
        return Head(self, index % count)

    def __iter__(self) -> Iterator["Head"]:
        return iter(self[:])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        line, recorder = caller(), self._core.scoped()
        if name == "result":
            return self.result_of(recorder, line)
        site = self.site(recorder, name, line)
        return Value(recorder, recorder.read(site.name, line), line, site.name)

    def __setattr__(self, name: str, value: Any) -> None:
        line, recorder = caller(), self._core.scoped()
        site = self.result_of(recorder, line)._site if name == "result" else self.site(recorder, name, line).name
        write_site(recorder, str(site), value, line)

    def __dir__(self) -> list[str]:
        return [*_PORTS, "result"]

    def __repr__(self) -> str:
        table = self._core.table
        rows = [f"{self._name}: {len(self)} heads"]
        for port in _PORTS:
            site = table.sites.get(self._port(port))
            rows.append(f"  .{port:<8} {axes(site.axes) if site else table.why_not(self._port(port))}")
        return "\n".join([*rows, "  .result   what each adds to the residual, [batch, seq, heads, d_model]"])

    def _port(self, port: str) -> str:
        return f"{self._name}.{port}"

    def site(self, recorder: Recorder, port: str, line: Line) -> Site:
        """The site of all heads. UnknownSite says why there is none."""
        if port not in _PORTS:
            near = difflib.get_close_matches(port, (*_PORTS, "result"), n=2)
            hint = f"; the nearest: {', '.join(near)}" if near else ""
            raise UnknownSite(f"heads have .query, .key, .value, .output and .result, not {port!r}{hint}\n  at {line}")
        name = self._port(port)
        if name not in recorder.table.sites:
            raise UnknownSite(f"{recorder.table.why_not(name)}\n  at {line}")
        return recorder.table.sites[name]

    def result_of(self, recorder: Recorder, line: Line) -> Value:
        """What each head adds to the residual, `[batch, seq, heads, d_model]`."""
        name = f"{self._name}.result"
        if name not in recorder.derived:
            recorder.derived[name] = Result(self, recorder, line)
        return Value(recorder, recorder.derived[name].read(line), line, name)


class Result:
    """The derived site of what heads add.

    It is read as `output` through each head's part of the projection's weight. Written, it moves what the projection
    returns by the difference.
    """

    def __init__(self, heads: Heads, recorder: Recorder, line: Line) -> None:
        self._heads, self._recorder = heads, recorder
        self._output = heads.site(recorder, "output", line).name
        self._count = len(heads)
        table, self._path = recorder.table, recorder.table.modules.get(heads._name, "")
        kind = table.kinds.get(self._path, "unknown")
        if kind not in ("Linear", "Conv1D") or f"{self._path}.weight" not in table.parameters:
            raise UnknownSite(
                f"{heads._name}.result needs a projection with a weight, and {self._path or 'its projection'} is "
                f"{kind}; use .output\n  at {line}"
            )
        self._inputs_first = kind == "Conv1D"
        self.scopes: dict[int, Any] = {}
        self._written: dict[Any, int] = {}
        self._name = f"{heads._name}.result"

    def read(self, line: Line) -> int:
        """The node of the current value in the rows and steps that are open."""
        recorder = self._recorder
        scope = recorder.invoke, recorder.steps
        node = self._written.get(scope)
        self._refuse_other_scopes(scope, line)
        if node is None:
            output = Value(recorder, recorder.read(self._output, line), line)
            node = (output.unsqueeze(-2) @ self._weight(line).to(output.dtype)).squeeze(-2)._node
        self.scopes[node] = scope
        return int(node)

    def _refuse_other_scopes(self, scope: Any, line: Line) -> None:
        """A write in other rows or steps, or in an edit, is not in what is read here: refused, not left out."""
        recorder, name = self._recorder, f"{self._path}.output"
        for n, node in enumerate(recorder.nodes):
            if node.target != name or node.kind != "write" or (node.invoke, node.steps) == scope:
                continue
            if _overlap((node.invoke, node.steps), scope):
                raise ScopeError(
                    f"{self._name} (or {name}) was written in other rows, other steps or an edit: touch it in one "
                    f"scope only, or use heads.output\n  written at {recorder.where(n)}\n  used at    {line}"
                )

    def check_upstream(self, place: Any, line: Line) -> None:
        """A write of `output` comes before `result` in the forward pass, and so in the block.

        Raises:
            WriteError: `result` was touched above already, from an `output` that this write changes.
        """
        recorder = self._recorder
        if place[0] != recorder.event_of(self._output):
            return
        for n, scope in self.scopes.items():
            if _overlap(place[1:], scope):
                raise WriteError(
                    f"{self._output} is upstream of {self._name}, which was used above: write {self._output} first\n"
                    f"  used at  {recorder.where(n)}\n  write at {line}"
                )

    def _weight(self, line: Line) -> Value:
        """The projection by heads: `[heads, head_dim, d_model]`."""
        recorder = self._recorder
        node = Node("parameter", f"{self._path}.weight", (), (), (), ALL_ROWS, None)
        weight = Value(recorder, recorder.add(node, line), line)
        across = weight if self._inputs_first else weight.transpose(0, 1)
        return across.unflatten(0, (self._count, -1))  # type: ignore[no-any-return]

    def write(self, new: int, line: Line) -> int:
        """Make node `new` the current value."""
        recorder, site = self._recorder, f"{self._path}.output"
        shift = Value(recorder, new, line).sub(Value(recorder, self.read(line), line)).sum(-2)
        whole: Value = Value(recorder, recorder.read(site, line), line).add(shift)
        scope = recorder.invoke, recorder.steps
        self._written[scope], self.scopes[new] = new, scope
        return recorder.write(site, whole._node, line)

    @property
    def is_written(self) -> bool:
        """Whether somebody wrote what a head adds."""
        return bool(self._written)

    def frozen(self) -> tuple[Any, str]:
        """What an edit that wrote here has used up: a later write of it would not be in what the edit wrote."""
        why = f"an edit of this model wrote {self._name}, for which {self._output} must stay: write it in the edit"
        return self._recorder.event_of(self._output), why

    def gradient(self, backward: int | None, line: Line) -> Value:
        """That of the projection's output, the same for every head."""
        recorder = self._recorder
        read = recorder.read(f"{self._path}.output", line)
        whole = Value(recorder, read, line).grad_of(backward, line)
        return whole.unsqueeze(-2).expand(-1, -1, self._count, -1)  # type: ignore[no-any-return]


class Head:
    """One head of an attention: `.query`, `.key`, `.value`, `.output` `[batch, seq, head_dim]`, `.result`
    `[batch, seq, d_model]`."""

    _heads: Heads
    _number: int

    def __init__(self, heads: Heads, number: int) -> None:
        self.__dict__["_heads"], self.__dict__["_number"] = heads, number

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        heads, line = self._heads, caller()
        recorder = heads._core.scoped()
        whole, number = self._whole(recorder, name, line)
        view = whole[:, :, number]
        if name != "result" and self._is_shared(recorder, name, line):
            recorder.refused[view._node] = self._shared(name)
        return view

    def __setattr__(self, name: str, value: Any) -> None:
        heads, line = self._heads, caller()
        recorder = heads._core.scoped()
        if name != "result" and self._is_shared(recorder, name, line):
            raise WriteError(f"{self._shared(name)}\n  at {line}")
        whole, number = self._whole(recorder, name, line)
        index = (slice(None), slice(None), number)
        if not _is_written_already(recorder, whole, value, recorder.argument(index, [], line)):
            whole.in_place("setitem_", (index, value), {}, line)

    def _whole(self, recorder: Recorder, name: str, line: Line) -> tuple[Value, int]:
        """The site of all heads, and which place in it is this head's."""
        heads = self._heads
        if name == "result":
            return heads.result_of(recorder, line), self._number
        site = heads.site(recorder, name, line)
        whole = Value(recorder, recorder.read(site.name, line), line, site.name)
        return whole, self._number * int(site.axes[2]) // len(heads)

    def _is_shared(self, recorder: Recorder, name: str, line: Line) -> bool:
        return int(self._heads.site(recorder, name, line).axes[2]) < len(self._heads)

    def _shared(self, port: str) -> str:
        return (
            f"head {self._number} shares its {port} with others: write heads.{port}, whose third axis is the "
            f"{port}s that there are; that changes it for every head that shares it"
        )

    def __dir__(self) -> list[str]:
        return [*_PORTS, "result"]

    def __repr__(self) -> str:
        return f"<head {self._number} of {self._heads._name}: .{', .'.join(dir(self))}>"


def _overlap(one: Any, other: Any) -> bool:
    """Whether two scopes, (invoke, steps), share rows and steps."""
    if one[0] != other[0] and ALL_ROWS not in (one[0], other[0]):
        return False
    a, b = one[1] or (0, None), other[1] or (0, None)
    return (a[1] is None or b[0] < a[1]) and (b[1] is None or a[0] < b[1])


def _is_written_already(recorder: Recorder, whole: Value, value: Any, index: Any) -> bool:
    """Whether this is the second half of `heads[h].output *= 2`: the first has written to the view already."""
    if type(value) is not Value or value._parent is None or value._parent._site != whole._site:
        return False
    current = value._version == recorder.version(str(whole._site)) > 0
    return current and recorder.nodes[value._view].args[-1] == index


class Ops:
    """The operations of a module's own forward, in order. `print` it for the list."""

    def __init__(self, table: SiteTable, path: str, call: int | None) -> None:
        events = [e for e in table.events if e.path == path and e.call == (call or 0) and e.port.startswith("op(")]
        self._rows = [
            (event.port[3:].partition(")")[0], event.structure) for event in events if event.port.endswith("output")
        ]
        self._table, self._path = table, path

    @property
    def names(self) -> list[tuple[str, int]]:
        """(operation, which call of it), in the order of the forward."""
        return [(name, int(k)) for name, _, k in (spelled.partition(",") for spelled, _ in self._rows)]

    def __len__(self) -> int:
        return len(self._rows)

    def __iter__(self) -> Iterator[tuple[str, int]]:
        return iter(self.names)

    def __repr__(self) -> str:
        if not self._rows:
            why = self._table.absent.get(f"{self._path}.op", "its forward only calls other modules")
            return f"{self._path}: no operations of its own: {why}"
        rows = [f"{self._path}: operations of its own forward"]
        for (name, k), (_, structure) in zip(self.names, self._rows, strict=True):
            rows.append(f'  .op("{name}", k={k}){"":<{max(0, 34 - len(name))}} {self._axes(structure)}')
        return "\n".join(rows)

    def _axes(self, structure: Any) -> str:
        if is_leaf(structure):
            site = self._table.sites[structure["leaf"]]
            return f"[{', '.join(map(str, site.axes))}] {site.dtype}"
        [(_, items)] = structure.items()
        return ", ".join(self._axes(item) for item in items if is_leaf(item)) if isinstance(items, list) else ""


class Op:
    """One call of an operation inside a module's forward."""

    _core: "Core"

    def __init__(self, core: "Core", table: SiteTable, path: str, call: int | None, which: tuple[str, int]) -> None:
        name, k = which
        own = self.__dict__
        own["_core"], own["_place"], own["_port"] = core, (path, call or 0), f"op({name},{k})"
        own["_name"] = ".".join(part for part in (path, "" if call is None else f"call({call})", own["_port"]) if part)
        if (path, f"{own['_port']}.output", call or 0) not in table.by_event:
            known = Ops(table, path, call)
            near = difflib.get_close_matches(f"{name},{k}", [f"{n},{i}" for n, i in known], n=3)
            hint = f"; the nearest: {', '.join(near)}" if near else ""
            why = f": {table.absent[f'{path}.op']}" if f"{path}.op" in table.absent else hint
            raise UnknownSite(
                f"{path} calls no {name!r} number {k} in its own forward{why} (print(part.ops()) lists what it calls)\n"
                f"  at {caller()}"
            )

    def _structure(self, table: SiteTable, end: str) -> Any:
        path, call = self.__dict__["_place"]
        return table.events[table.by_event[path, f"{self.__dict__['_port']}.{end}", call]].structure

    @property
    def output(self) -> Any:
        """What the operation gave: a Value, or a structure of them."""
        recorder, line = self._core.scoped(), caller()
        structure = self._structure(recorder.table, "output")
        if not is_leaf(structure):
            return structured(recorder, recorder.table, structure)
        return Value(recorder, recorder.read(structure["leaf"], line), line, structure["leaf"])

    @property
    def input(self) -> Any:
        """The first tensor that the operation was given."""
        recorder, line, name = self._core.scoped(), caller(), f"{self.__dict__['_name']}.input"
        recorder.table[name]
        return Value(recorder, recorder.read(name, line), line, name)

    @property
    def inputs(self) -> Any:
        """`(args, kwargs)` of the operation, with Values for tensors."""
        recorder = self._core.scoped()
        return structured(recorder, recorder.table, self._structure(recorder.table, "input"))

    def __setattr__(self, name: str, value: Any) -> None:
        recorder, line = self._core.scoped(), caller()
        if name == "input":
            write_site(recorder, f"{self.__dict__['_name']}.input", value, line)
        elif name == "output":
            structure = self._structure(recorder.table, "output")
            if is_leaf(structure):
                write_site(recorder, structure["leaf"], value, line)
            else:
                write_structure(recorder, structure, value, line)
        else:
            raise UnknownSite(f"an operation has .output, .input and .inputs, not {name!r}\n  at {line}")

    def __repr__(self) -> str:
        return f"<{self.__dict__['_name']}>"
