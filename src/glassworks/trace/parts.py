"""The parts of a model as people reach them: `model.layers[3].attn.output`, `model.transformer.h[0]`.

A part knows its standard name (`layers.3.attn`), its native path (`transformer.h.3.attn`), or both; standard names win.
It holds the core that it shares with the model, never the model, so that nothing here keeps a model alive in a cycle.
"""

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

from glassworks.errors import GraphError, ScopeError, UnknownSite
from glassworks.graph.backend import Backend
from glassworks.graph.graph import Graph
from glassworks.graph.nodes import ALL_ROWS, Node
from glassworks.graph.sites import SiteTable
from glassworks.trace.author import author
from glassworks.trace.inside import Heads, Op, Ops
from glassworks.trace.prompts import Text
from glassworks.trace.recorder import Recorder, caller
from glassworks.trace.show import render
from glassworks.trace.structured import is_leaf, leaves_of, structured, write_site, write_structure
from glassworks.trace.value import Value


class Core:
    """What a model and all its parts share: where graphs run, and the block that each `author` has open."""

    __slots__ = ("backend", "blocks", "device", "frozen", "name", "prefix", "sessions", "table", "text")

    def __init__(
        self,
        backend: Backend,
        *,
        text: Text | None,
        table: SiteTable,
        name: str,
        device: Any = "cpu",
        prefix: Graph | None = None,
    ) -> None:
        self.backend, self.text, self.table, self.name, self.prefix = backend, text, table, name, prefix
        self.device = device
        self.frozen: dict[Any, str] = {}
        self.blocks: dict[Hashable, Recorder] = {}
        self.sessions: dict[Hashable, Any] = {}

    def open_block(self) -> Recorder:
        """The recorder of the block that is open here."""
        recorder = self.blocks.get(author())
        if recorder is None:
            raise ScopeError(
                f"sites exist inside a block only: write `with model.trace(prompt) as t:` above\n  at {caller()}"
            )
        return recorder

    def scoped(self) -> Recorder:
        """The recorder, where a site may be named: in a generation under steps only."""
        recorder = self.blocks.get(author()) or self.open_block()
        if recorder.steps is None and recorder.needs_steps:
            raise ScopeError(
                "in a generate block a site needs its steps: `with t.steps[0:5]:` (or [:], or t.prompt) around it, or "
                f"`for step in t.steps[0:5]:`\n  at {caller()}"
            )
        if recorder.invoke == ALL_ROWS and recorder.invokes == 0 and not recorder.is_edit:
            raise ScopeError(
                f"no rows yet: give the prompt to trace(...), or open `with t.invoke(prompt):`\n  at {caller()}"
            )
        return recorder

    def look_within(self, path: str, recorder: Recorder | None) -> SiteTable:
        """Learn the operations of a module's own forward: the table grows, here and in the open block."""
        inputs = None if recorder is None else recorder.inputs()
        if self.table.plain and inputs is None:
            raise ScopeError(
                f"what a plain module does depends on its input: ask for operations inside a block\n  at {caller()}"
            )
        known = (recorder.table if recorder is not None else self.table).within
        table = self.backend.sites(inputs, within=frozenset({*known, path}))
        if recorder is not None:
            recorder.table = table
        if not table.plain:
            self.table = table
        return table


class Part:
    """A module of the model. `print` it for its children and sites."""

    _core: Core
    _standard: str | None
    _native: str | None
    _call: int | None
    _items: dict[int | str, Any]

    def __init__(self, core: Core, standard: str | None, native: str | None, call: int | None = None) -> None:
        own = self.__dict__
        own["_core"], own["_standard"], own["_native"], own["_call"] = core, standard, native, call
        own["_items"] = {}
        own["output"], own["input"] = self._name("output"), self._name("input")

    # Sites.

    @property
    def output(self) -> Any:
        """What the module gave: one Value at a standard site; at a native one, the structure that it returned."""
        return self._read("output")

    @output.setter
    def output(self, value: Any) -> None:
        self._write("output", value)

    @property
    def input(self) -> Any:
        """The first tensor that the module was given."""
        return self._read("input")

    @input.setter
    def input(self, value: Any) -> None:
        self._write("input", value)

    @property
    def inputs(self) -> Any:
        """`(args, kwargs)` of a native module, with Values for tensors."""
        recorder = self._core.scoped()
        return structured(recorder, recorder.table, self._event(recorder.table, "input"))

    def skip(self, value: Any) -> None:
        """Give `value` as the module's output and spare its work where nothing else depends on it."""
        recorder, line = self._core.scoped(), caller()
        recorder.write(self._single(recorder.table, "output"), recorder.node_of(value, line), line, "skip")

    def call(self, k: int) -> "Part":
        """The `k`-th call, from 0, of a module that a forward pass calls more than once."""
        return Part(self._core, None, self._path(), k)

    def _read(self, port: str) -> Any:
        own = self.__dict__
        recorder, name = own["_core"].scoped(), own[port]
        table = recorder.table
        if name not in table.sites:
            if table.plain and not table.events:  # written before there is any input: checked when it is run
                line = caller()
                return Value(recorder, recorder.read(name, line), line, name)
            event = self._event(table, "output") if port == "output" else None
            if event is not None and not is_leaf(event):
                return structured(recorder, table, event)
            raise UnknownSite(f"{table.why_not(name)}\n  at {caller()}")
        line = caller(3)
        return Value(recorder, recorder.read(name, line), line, name)

    def _write(self, port: str, value: Any) -> None:
        recorder = self._core.scoped()
        table, name, line = recorder.table, self._name(port), caller()
        if name not in table.sites and not (table.plain and not table.events):
            event = self._event(table, "output") if port == "output" else None
            if event is None:
                raise UnknownSite(f"{table.why_not(name)}\n  at {line}")
            write_structure(recorder, event, value, line)
            return
        write_site(recorder, name, value, line)

    def _name(self, port: str) -> str:
        if self._standard is not None and self._call is None:
            name, table = f"{self._standard}.{port}", self._core.table
            if name in table.sites or self._native is None or name in table.absent:
                return name
        prefix = f"{self._native}." if self._native else ""
        return f"{prefix}{'' if self._call is None else f'call({self._call}).'}{port}"

    def _single(self, table: SiteTable, port: str) -> str:
        name = self._name(port)
        if name in table.sites:
            return name
        event = self._event(table, port)
        leaves = leaves_of(event) if event is not None else []
        if len(leaves) != 1:
            raise UnknownSite(f"{table.why_not(name)}\n  at {caller()}")
        return leaves[0]

    def _event(self, table: SiteTable, port: str) -> Any:
        """The structure that passes at a native event, or None."""
        if self._native is None or (self._standard is not None and f"{self._standard}.{port}" in table.absent):
            return None
        order = table.by_event.get((self._native, port, self._call or 0))
        if order is None or (self._call is None and table.calls.get(self._native, 1) > 1):
            return None
        return table.events[order].structure

    # Weights and calls.

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the module on Values as a pure function: fires no sites and counts as no step."""
        return call_module(self._core, self._path(), args, kwargs)

    def _path(self) -> str:
        if self._native is None:
            raise GraphError(f"{self._standard} is no single module of {self._core.table.family}\n  at {caller()}")
        return self._native

    # Children.

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        core = self._core
        if name in ("output", "input"):  # the property raised: say again why, whatever children there are
            return self._read(name)
        if self._native is not None and f"{self._native}.{name}" in core.table.parameters:
            return _parameter(core, f"{self._native}.{name}")
        if (site := self._site(name)) is not None:
            recorder, line = core.scoped(), caller()
            return Value(recorder, recorder.read(site, line), line, site)
        child = self._child(name)
        if child is None:
            own = ".".join(part for part in (self._standard or self._native, name) if part)
            raise UnknownSite(f"{core.table.why_not(own)}\n  at {caller()}")
        self.__dict__[name] = child
        return child

    def _child(self, name: str) -> Any:
        return child_of(self._core, self._standard, self._native, name)

    def _site(self, name: str) -> str | None:
        """The standard site that is this part's attribute of that name: `mid`, `probs`, `neurons`."""
        own = f"{self._standard}.{name}"
        return own if self._standard is not None and own in self._core.table.sites else None

    def __getitem__(self, key: int | str) -> Any:
        known = self._items.get(key)
        if known is not None:
            return known
        child = self._items[key] = self._item(key)
        return child

    def _item(self, key: int | str) -> Any:
        table = self._core.table
        names = table.children.get(self._native or "", ())
        if isinstance(key, int):
            found = names[key] if -len(names) <= key < len(names) else None
        else:
            found = key
        child = self._child(found) if found is not None else None
        if child is None:
            raise UnknownSite(
                f"{self._native or self._standard} has no child {key!r}; it has {', '.join(names)}\n  at {caller()}"
            )
        return child

    def __len__(self) -> int:
        return len(self._core.table.children.get(self._native or "", ()))

    def __iter__(self) -> Iterator[Any]:
        return iter([self[k] for k in range(len(self))])

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("output", "input"):
            object.__setattr__(self, name, value)
            return
        site, line = self._site(name), caller()
        if site is None:
            own = f"{self._standard or self._native}.{name}"
            why = self._core.table.why_not(own) if own in self._core.table.absent else "it is no site"
            raise UnknownSite(f"{own} cannot be written: {why}\n  at {line}")
        write_site(self._core.scoped(), site, value, line)

    # Operations of the module's own forward.

    def ops(self) -> Ops:
        """The operations of this module's own forward, those of its children left out; `print` the list."""
        return Ops(self._within(), self._path(), self._call)

    def op(self, name: str, k: int = 0) -> Op:
        """The `k`-th call, from 0, of an operation in this module's own forward: `.output`, `.input`, `.inputs`.

        Args:
            name: as torch calls it: "softmax", "linear", "add"; `print(part.ops())` lists them.
        """
        return Op(self._core, self._within(), self._path(), self._call, (name, k))

    def _within(self) -> SiteTable:
        """The site table with the operations of this module in it."""
        core, path = self._core, self._path()
        recorder = core.blocks.get(author())
        table = recorder.table if recorder is not None else core.table
        return table if path in table.within else core.look_within(path, recorder)

    def __dir__(self) -> list[str]:
        """Attributes, children and standard sites: what the tab key offers."""
        table, own = self._core.table, f"{self._standard}." if self._standard else ""
        standard = {
            name[len(own) :].partition(".")[0] for name in (*table.sites, *table.modules) if name.startswith(own)
        }
        children = set(table.children.get(self._native or "", ()))
        named = {name for name in standard | children if name.isidentifier()} if own or self._native == "" else children
        return sorted({*object.__dir__(self), *named})

    def __repr__(self) -> str:
        return render(self._core.table, self._standard, self._native)


class Layers:
    """The layers of a model, or of one of its stacks: indexable from both ends, sliceable, iterable."""

    __slots__ = ("_parts",)

    def __init__(self, parts: list[Part]) -> None:
        self._parts = parts

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Layers(self._parts[index])
        try:
            return self._parts[index]
        except IndexError:
            raise UnknownSite(f"layer {index} of a model with {len(self._parts)} layers\n  at {caller()}") from None
        except TypeError:
            raise UnknownSite(
                f"layers are numbered, 0 to {len(self._parts) - 1}, and sliced; got {index!r}\n  at {caller()}"
            ) from None

    def __len__(self) -> int:
        return len(self._parts)

    def __iter__(self) -> Iterator[Part]:
        return iter(self._parts)

    def __repr__(self) -> str:
        return f"<{len(self._parts)} layers>" + (f"\n{self._parts[0]!r}" if self._parts else "")


def child_of(core: Core, standard: str | None, native: str | None, name: str) -> Any:
    """The child of a part by name, standard names first; None if there is none."""
    table = core.table
    inside = f"{standard}." if standard else ""
    if name == "heads" and standard is not None and standard.endswith("attn"):
        return Heads(core, f"{standard}.heads")
    if name == "layers" and (standard or "") in table.layers:
        stack = table.layers[standard or ""]
        return Layers([Part(core, f"{inside}layers.{k}", path) for k, path in enumerate(stack)])
    own = f"{inside}{name}"
    if standard is not None or native is None or native == "":
        if own in table.modules:
            return Part(core, own, table.modules[own] or None)
        if own in table.layers:
            return Part(core, own, own if own in table.children else None)
    if native is not None and name in table.children.get(native, ()):
        return Part(core, None, f"{native}.{name}" if native else name)
    return None


def at_path(core: Core, path: str) -> Part:
    """The part at a native path, `transformer.h.0`, or of a standard name, `layers.0.mlp`."""
    table = core.table
    if path in table.children or path in table.kinds:
        return Part(core, None, path)
    if path in table.modules:
        return Part(core, path, table.modules[path] or None)
    raise UnknownSite(f"{table.why_not(path)}\n  at {caller()}")


def _parameter(core: Core, name: str) -> Value:
    recorder, line = core.open_block(), caller()
    return Value(recorder, recorder.add(Node("parameter", name, (), (), (), ALL_ROWS, None), line), line)


def call_module(core: Core, path: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Value:
    """A module of the model, or `unembed`, on Values as a pure function."""
    recorder, line = core.open_block(), caller()
    deps: list[int] = []
    own = tuple([recorder.argument(item, deps, line) for item in args])
    named = tuple((name, recorder.argument(item, deps, line)) for name, item in kwargs.items())
    if not deps:
        raise GraphError(f"{path} needs a Value or a tensor\n  at {line}")
    return Value(recorder, recorder.add(Node("module", path, own, named, tuple(deps), ALL_ROWS, None), line), line)
