"""What a block writes into: nodes, lines and captured tensors, in the order of the user's lines.

Recording is on the path of every trace, so it is kept plain: tuples are appended, the user's line is a code object and
an instruction, and shapes are worked out only when somebody asks (see `shapes`).
"""

import contextlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from glassworks.errors import GraphError, ScopeError, UnknownOperation, WriteError
from glassworks.graph.arguments import WATCHED, refusal
from glassworks.graph.graph import Graph
from glassworks.graph.nodes import ALL_ROWS, Dtype, Line, Listed, Node, Ref, Slice, Steps
from glassworks.graph.operations import OPERATIONS, SEVERAL
from glassworks.graph.sites import SiteTable
from glassworks.trace import binding
from glassworks.trace.positions import Positions, with_positions
from glassworks.trace.tensors import TensorConstant

_HERE = str(Path(__file__).resolve().parents[1])
_COMMANDS = str(Path(_HERE) / "cli")
_TORCH = str(Path(torch.__file__).resolve().parent)
_new: Callable[..., Any] = tuple.__new__
"""Makes a named tuple from its fields, without the cost of its constructor."""

_IS_USERS: dict[str, bool] = {}
_SINGLE = (("single", True),)
_PLAIN = frozenset({int, float, bool, str, complex, type(Ellipsis)})
_NOT_HERE = "out device generator memory_format pin_memory requires_grad layout non_blocking max_norm"
_REFUSED = frozenset(_NOT_HERE.split())


def caller(depth: int = 2) -> Line:
    """The user's line: the innermost frame that is neither ours nor a library's that called us.

    Args:
        depth: the frame to begin at; 2 is whoever called the function that asks.
    """
    frame = sys._getframe(depth)
    while True:
        code = frame.f_code
        file = code.co_filename
        users = _IS_USERS.get(file)
        if users is None:
            ours = file.startswith((_HERE, _TORCH, contextlib.__file__)) and not file.startswith(_COMMANDS)
            users = _IS_USERS[file] = not (ours or "/einops/" in file or "/numpy/" in file)
        if users or frame.f_back is None:
            line: Line = _new(Line, (code, frame.f_lasti))
            return line
        frame = frame.f_back


def never(invoke: int) -> bool:
    """The `may_pad` of rows that are all of one length."""
    return False


def _nothing() -> None:
    return None


class Recorder:
    """The nodes of one open block.

    Attributes:
        invoke, steps: the scope of sites written now; `single`: one step, whose saves are tensors.
        needs_steps: a generation, where a site outside any steps is refused. is_edit: sites mean all rows.
        may_pad: whether an invoke may have rows of several lengths.
        frozen: tensors of events that the model's edits have used up, and why.
        derived: sites that are read and written through others, by name. refused: views that cannot be written, why.
        inputs: gives the rows of the block so far.
        branches: which branch of a condition is open (see `branches`); None: there was no condition yet.
        functions: the author's own, which `gw.apply` runs.
        partner: the session that may bring values from its other blocks.
        closed: the block has ended; its Values are results or nothing. sealed: it has ended, and its session has not.
        failure: why there are no results.
        is_live: whether nodes run as they are added, so that Values have numbers.
    """

    is_live = False

    __slots__ = (
        "_captured",
        "_names",
        "_written",
        "at_end",
        "branches",
        "closed",
        "constants",
        "derived",
        "failure",
        "frozen",
        "functions",
        "inputs",
        "invoke",
        "invokes",
        "is_edit",
        "lines",
        "make",
        "may_pad",
        "needs_steps",
        "nodes",
        "partner",
        "refused",
        "saved",
        "sealed",
        "seed",
        "shape_of",
        "single",
        "steps",
        "structure_of",
        "table",
    )  # fmt: skip

    def __init__(self, table: SiteTable, make: type[Any], prefix: Graph | None = None) -> None:
        self.table = table
        self.make = make
        self.nodes: list[Node] = list(prefix.nodes) if prefix else []
        self.lines: list[Any] = list(prefix.lines) if prefix else []
        self.constants: list[Any] = list(prefix.constants) if prefix else []
        self.functions: list[Callable[..., Any]] = list(prefix.functions) if prefix else []
        self.invoke = ALL_ROWS
        self.invokes = 0
        self.steps: Steps | None = None
        self.single = False
        self.seed = 0
        self.closed = False
        self.needs_steps = False
        self.is_edit = False
        self.saved: list[tuple[Any, Any, str]] = []
        self.at_end: list[Callable[[Recorder], None]] = []
        self.partner: Any = None
        self.branches: Any = None
        self.shape_of: Any = None
        self.structure_of: Any = None
        self.may_pad: Callable[[int], bool] = never
        self._captured: dict[int, int] = {}
        self._names: set[str] = set()
        self._written: dict[Any, int] = {}
        self.sealed = False
        self.failure: str | None = None
        self.derived: dict[str, Any] = {}
        self.frozen: Mapping[Any, str] = {}
        self.refused: dict[int, str] = {}
        self.inputs: Callable[[], Any] = _nothing

    def add(self, node: Node, line: Line) -> int:
        """Append a node; gives its position."""
        if self.closed or self.sealed:
            raise ScopeError(f"the block of this value has ended\n  at {line}")
        if self.branches is not None:
            node = self.branches.admitted(node, line)
        nodes = self.nodes
        nodes.append(node)
        self.lines.append(line)
        return len(nodes) - 1

    def numbers(self, n: int, what: str) -> torch.Tensor:
        """The numbers of a node. GraphError: there are none before the block runs."""
        raise GraphError(
            f"in a block a Value has no numbers yet, and {what} would need them: use gw.cond for a condition in the "
            f"graph, gw.log to see it while it runs, model.live to run line by line, or save it and look after the "
            f"block\n  at {caller()}"
        )

    def later(self, name: str, action: Callable[["Recorder"], None], line: Line) -> None:
        """Do something with the final value of a site: when the block ends, after all its writes."""
        self.at_end.append(action)

    def graph(self) -> Graph:
        """What was written, frozen; what waits for the end of the block is written first."""
        for write in self.at_end:
            write(self)
        self.at_end = []
        own = (tuple(self.nodes), tuple(self.lines), tuple(self.constants))
        return Graph(*own, self.invokes, self.seed, tuple(self.functions))

    def close(self) -> None:
        """End the block: let go of nodes and tensors, so that a Value left over pins nothing."""
        self.closed = True
        self.nodes, self.lines, self.constants, self.functions = [], [], [], []
        self._captured, self._written, self.branches = {}, {}, None
        self.saved, self.shape_of, self.structure_of, self.partner, self.may_pad = [], None, None, None, never
        self.derived, self.refused, self.inputs = {}, {}, _nothing

    # Sites.

    def read(self, name: str, line: Line) -> int:
        return self.add(_new(Node, ("read", name, (), (), (), self.invoke, self.steps, ())), line)

    def write(self, name: str, node: int, line: Line, kind: str = "write") -> int:
        """Record that a site takes the value of a node; in a branch, if the branch is taken."""
        if self.branches is not None and self.branches.guard:
            node, kind = self.branches.merged(node, self._current(name, line), line), "write"
        place = self._place(name)
        if place[0] in self.frozen:
            raise WriteError(f"{self.frozen[place[0]]}\n  written here at {line}")
        for derived in self.derived.values():
            derived.check_upstream(place, line)
        self._written[place] = self._written.get(place, 0) + 1
        if name in self.derived:
            return self.derived[name].write(node, line)  # type: ignore[no-any-return]
        return self.add(Node(kind, name, (Ref(node),), (), (node,), self.invoke, self.steps), line)

    def where(self, node: int) -> str:
        """The line of a node."""
        return str(self.lines[node])

    def _current(self, name: str, line: Line) -> int:
        """What a site holds at this line, whether or not the open branch is taken."""
        if name not in self.derived:
            return self.read(name, line)
        with self.branches.outside():
            return self.derived[name].read(line)  # type: ignore[no-any-return]

    def version(self, name: str) -> int:
        """How often a site was written in these rows and steps: a handle from before a write is stale."""
        return self._written.get(self._place(name), 0) if self._written else 0

    def _place(self, name: str) -> Any:
        """What a write changes: the tensor of an event, whatever its names, in the rows and steps that are open."""
        return self.event_of(name), self.invoke, self.steps

    def event_of(self, name: str) -> tuple[Any, ...]:
        """The tensor of an event that a site shows, the same for all its names."""
        site = self.table.sites.get(name)
        if site is None:
            return (name, ())
        event = self.table.events[site.order]  # its order changes when somebody looks into a module
        return event.path, event.port, event.call, site.item

    def save(self, value: Any, kept: Any, name: str | None, reduce: str | None, line: Line) -> None:
        """Record that a Value is kept, under a name of its own; `kept` is what holds on to what it is now."""
        names = self._names
        if name is None:
            name = str(len(names))
        elif not isinstance(name, str):
            raise GraphError(f"the name of a save is a text, got {name!r}\n  at {line}")
        if name in names:
            raise GraphError(f"two saves are named {name!r}\n  at {line}")
        names.add(name)
        kwargs = _SINGLE if self.single else ()
        if reduce:
            kwargs = (("reduce", reduce), *kwargs)
        n = value._node if value._block is self else value.node_in(self, line)
        self.add(_new(Node, ("save", name, (_new(Ref, (n,)),), kwargs, (n,), ALL_ROWS, None, ())), line)
        self.saved.append((kept, value, name))

    def is_name(self, name: str) -> bool:
        """Whether a save has this name already."""
        return name in self._names

    def node_of(self, value: Any, line: Line) -> int:
        """The node of a Value, a tensor or a number."""
        deps: list[int] = []
        argument = self.argument(value, deps, line)
        if type(argument) is Ref:
            return argument.node
        if type(argument) in (int, float, bool, complex):
            return self.capture(torch.tensor(argument), line)
        raise GraphError(f"expected a Value, a tensor or a number, got {type(value).__name__}\n  at {line}")

    def known(self, node: int) -> Any:
        """What is known of a node before it runs: `.shape` and `.dtype`; None if nothing is. What is wrong with it is
        said when it runs, or when somebody asks for its shape."""
        assert self.shape_of is not None
        try:
            return self.shape_of(node)
        except (GraphError, RuntimeError, TypeError, ValueError, IndexError):
            return None

    # Operations.

    def call(self, target: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], line: Line) -> Any:
        """Record a call; gives a Value, or a (named) tuple of Values."""
        deps: list[int] = []
        if target == "to" and any(isinstance(item, str | torch.device) for item in (*args[1:], *kwargs.values())):
            raise GraphError(f"a device cannot be named in a block: values live where the model is\n  at {line}")
        own_args = tuple([self.argument(item, deps, line) for item in args])
        own_kwargs = self._keywords(target, kwargs, deps, line) if kwargs else ()
        if target in WATCHED and (refused := refusal(target, own_args, own_kwargs)) is not None:
            raise UnknownOperation(f"{refused}\n  at {line}")
        n = self.add(Node("call", target, own_args, own_kwargs, tuple(deps), ALL_ROWS, None), line)
        if target in SEVERAL:
            return self._several(n, line)
        return self.make(self, n, line)

    def _keywords(
        self, target: str, kwargs: Mapping[str, Any], deps: list[int], line: Line
    ) -> tuple[tuple[str, Any], ...]:
        kept = []
        for name, value in kwargs.items():
            if name == "_stacklevel" or (value is None and name != "dim") or (name == "inplace" and not value):
                continue
            if name == "inplace":
                raise WriteError(f"{target}(inplace=True) on a Value: write `value.{target}_()` instead\n  at {line}")
            if name in _REFUSED:
                raise UnknownOperation(f"{target}: the argument {name}= is not permitted in a block\n  at {line}")
            kept.append((name, self.argument(value, deps, line)))
        return tuple(kept)

    def _several(self, n: int, line: Line) -> Any:
        """The results of a call that may have several, in the structure that torch gives them."""
        meta = self.structure_of(n)
        if not isinstance(meta, tuple | list):
            return self.make(self, n, line)
        own = [Node("item", "", (Ref(n), k), (), (n,), ALL_ROWS, None) for k in range(len(meta))]
        items = [self.make(self, self.add(node, line), line) for node in own]
        return type(meta)(items) if type(meta).__module__ == "torch.return_types" else tuple(items)

    def function(self, function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Record a torch function that was called with Values among its arguments."""
        line = caller()
        if function in _ATTRIBUTES:
            return getattr(args[0], _ATTRIBUTES[function])
        try:
            name = binding.name_of(function)
        except UnknownOperation as error:
            raise UnknownOperation(f"{error}\n  at {line}") from None
        args = binding.ordered(function, args)
        if name == "where" and len(args) == 1:
            name, kwargs = "nonzero", {"as_tuple": True}
        if name.endswith("_") and name not in OPERATIONS and isinstance(args[0], torch.Tensor):
            raise WriteError(
                f"a tensor from outside the block cannot be changed in it ({name[:-1]} in place): nothing has run yet. "
                f"Save the value, and assign after the block\n  at {line}"
            )
        if name.endswith("_") and name not in OPERATIONS:
            return args[0].in_place(name, args[1:], kwargs, line)
        found = self.call(name, args, kwargs, line)
        first: Any = args[1] if name == "einsum" else args[0] if args else None
        return first.joined(found) if type(first) is self.make else found

    # Arguments.

    def argument(self, value: Any, deps: list[int], line: Line) -> Any:
        """An argument as graph data; the nodes it refers to are appended to `deps`."""
        kind = type(value)
        if kind is self.make:
            node = value.node_in(self, line)
            deps.append(node)
            return Ref(node)
        if kind in _PLAIN or value is None:
            return value
        if kind is slice:
            return Slice(*[self.argument(item, deps, line) for item in (value.start, value.stop, value.step)])
        if kind is tuple or kind is torch.Size:
            return tuple([self.argument(item, deps, line) for item in with_positions(value)])
        if kind is list:
            if any(type(item) is str for item in value):
                raise GraphError(
                    f"a list in a graph holds Values, tensors and numbers, no text; got {value!r}\n  at {line}"
                )
            return Listed([self.argument(item, deps, line) for item in value])
        if isinstance(value, torch.Tensor):
            node = self.capture(value, line)
            deps.append(node)
            return Ref(node)
        return self._foreign(value, deps, line)

    def _foreign(self, value: Any, deps: list[int], line: Line) -> Any:
        """The rarer arguments, numpy's among them, and what cannot be one."""
        if isinstance(value, torch.dtype):
            return Dtype(str(value).removeprefix("torch."))
        if isinstance(value, Positions):
            return with_positions(value)
        if isinstance(value, tuple):
            return tuple([self.argument(item, deps, line) for item in value])
        if type(value).__module__ == "numpy":
            return self.argument(value.item() if value.ndim == 0 else torch.as_tensor(value), deps, line)
        if isinstance(value, torch.device):
            raise GraphError(f"a device cannot be named in a block: values live where the model is\n  at {line}")
        raise GraphError(
            f"a graph holds Values, tensors, numbers, names and lists of them; got {type(value).__name__}\n  at {line}"
        )

    def capture(self, tensor: torch.Tensor, line: Line) -> int:
        """The node of a tensor from outside, held by reference; the same tensor is captured once."""
        node = self._captured.get(id(tensor))
        if node is None:
            self.constants.append(TensorConstant(tensor))
            target = "trains" if tensor.requires_grad else ""
            node = self.add(Node("constant", target, (len(self.constants) - 1,), (), (), ALL_ROWS, None), line)
            self._captured[id(tensor)] = node
        return node


_ATTRIBUTES: dict[Any, str] = {
    getattr(torch.Tensor, name).__get__: name for name in ("shape", "dtype", "ndim", "device", "mT", "T")
}
"""Attributes of a tensor as torch hands them to `__torch_function__`."""
